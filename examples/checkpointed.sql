-- A job that survives its process: flights per airport in windows of six hours, written to files with checkpoints. Run it from
-- the root of the repository.
--
-- To see it go on, let the first run die after its checkpoint is stored and before the files of that checkpoint are shown:
--
--   THALWEG_FAULT=before-commit:1 thalweg run examples/checkpointed.sql     aborts; no file is to be seen
--   thalweg state inspect target/checkpointed/checkpoints/departures        what it has left
--   thalweg run examples/checkpointed.sql                                   goes on, and shows each row once
--
-- INSERT adds files to the folders: remove target/checkpointed to begin anew.

SET 'execution.runtime-mode' = 'streaming';
SET 'execution.checkpointing.dir' = 'target/checkpointed/checkpoints';
SET 'execution.checkpointing.interval' = '100 ms';
SET 'pipeline.name' = 'departures';

CREATE TABLE departures (
    scheduled TIMESTAMP(3),
    departed  TIMESTAMP(3),
    origin    STRING,
    dest      STRING,
    carrier   STRING,
    flight    INT,
    WATERMARK FOR scheduled AS scheduled - INTERVAL '1' DAY
) WITH ('connector' = 'filesystem', 'path' = 'examples/data/departures.csv', 'format' = 'csv');

CREATE TABLE per_airport (window_end TIMESTAMP(3), origin STRING, flights BIGINT)
WITH ('connector' = 'filesystem', 'path' = 'target/checkpointed/per_airport/', 'format' = 'csv');

CREATE TABLE delayed (scheduled TIMESTAMP(3), origin STRING, carrier STRING, flight INT)
WITH ('connector' = 'filesystem', 'path' = 'target/checkpointed/delayed/', 'format' = 'csv');

-- One job: it reads the departures once, and both folders are of the same checkpoint.
EXECUTE STATEMENT SET BEGIN
INSERT INTO per_airport
SELECT window_end, origin, COUNT(*)
FROM TUMBLE(TABLE departures, DESCRIPTOR(scheduled), INTERVAL '6' HOUR)
GROUP BY window_start, window_end, origin;
INSERT INTO delayed
SELECT scheduled, origin, carrier, flight FROM departures WHERE departed > scheduled + INTERVAL '2' HOUR;
END;

SET 'execution.runtime-mode' = 'batch';

SELECT origin, COUNT(*) AS windows, SUM(flights) AS flights
FROM per_airport GROUP BY origin ORDER BY origin;
