-- Two days of departures as a stream: flights per airport in windows of six hours, as a table that is complete and as a stream
-- that is not. Run it from the root of the repository.
--
-- examples/data/departures.csv holds flights in the order in which they took off. Their event time is when they were meant
-- to: a flight that is delayed by three hours comes three hours out of order.

CREATE TABLE departures (
    scheduled TIMESTAMP(3),
    departed  TIMESTAMP(3),
    origin    STRING,
    dest      STRING,
    carrier   STRING,
    flight    INT,
    WATERMARK FOR scheduled AS scheduled - INTERVAL '1' DAY
) WITH ('connector' = 'filesystem', 'path' = 'examples/data/departures.csv', 'format' = 'csv');

-- 1. As a batch: the file is read to its end, then there is an answer.
SET 'execution.runtime-mode' = 'batch';

SELECT
    window_start, window_end, origin,
    COUNT(*) AS flights,
    SUM(CASE WHEN departed > scheduled + INTERVAL '15' MINUTE THEN 1 ELSE 0 END) AS delayed
FROM TUMBLE(TABLE departures, DESCRIPTOR(scheduled), INTERVAL '6' HOUR)
GROUP BY window_start, window_end, origin
ORDER BY window_end, origin;

-- 2. As a stream, the same text: a window leaves when the watermark says that no flight of it is to come. It waits for a
-- day here, and no flight was delayed for longer: the answer is the same.
SET 'execution.runtime-mode' = 'streaming';

SELECT
    window_start, window_end, origin,
    COUNT(*) AS flights,
    SUM(CASE WHEN departed > scheduled + INTERVAL '15' MINUTE THEN 1 ELSE 0 END) AS delayed
FROM TUMBLE(TABLE departures, DESCRIPTOR(scheduled), INTERVAL '6' HOUR)
GROUP BY window_start, window_end, origin
ORDER BY window_end, origin;

-- 3. Who waits for two hours only has answers sooner, and loses the flights that come after their window has left. They are
-- dropped and counted: EXPLAIN ANALYZE shows late_rows=5. What is late goes by the watermark, which by default is told
-- every 200 ms and after whole batches; told after each row, the answer is the same in each run.
SET 'pipeline.auto-watermark-interval' = '0';
SET 'execution.batch-size' = '1';

CREATE TABLE hasty_departures (
    scheduled TIMESTAMP(3),
    departed  TIMESTAMP(3),
    origin    STRING,
    dest      STRING,
    carrier   STRING,
    flight    INT,
    WATERMARK FOR scheduled AS scheduled - INTERVAL '2' HOUR
) WITH ('connector' = 'filesystem', 'path' = 'examples/data/departures.csv', 'format' = 'csv');

SELECT
    window_start, window_end, origin,
    COUNT(*) AS flights,
    SUM(CASE WHEN departed > scheduled + INTERVAL '15' MINUTE THEN 1 ELSE 0 END) AS delayed
FROM TUMBLE(TABLE hasty_departures, DESCRIPTOR(scheduled), INTERVAL '6' HOUR)
GROUP BY window_start, window_end, origin
ORDER BY window_end, origin;

EXPLAIN ANALYZE
SELECT window_start, window_end, origin, COUNT(*) AS flights
FROM TUMBLE(TABLE hasty_departures, DESCRIPTOR(scheduled), INTERVAL '6' HOUR)
GROUP BY window_start, window_end, origin;

-- 4. Without windows there is no last word: a result is told at once, and corrected when there is more. The first column says
-- how a row is meant: new (+I), no longer so (-U), now so (+U). Here after 1024 flights, and after all of them.
SET 'execution.batch-size' = '1024';
SET 'execution.buffer-timeout' = '0';

SELECT carrier, COUNT(*) AS flights
FROM departures
WHERE carrier IN ('AA', 'HA')
GROUP BY carrier;
