-- The answers to examples/stream.sql, by DuckDB: `duckdb < tests/expected/stream/answers.sql` from the root of the repository.

CREATE VIEW departures AS
SELECT *, row_number() OVER () AS place, time_bucket(INTERVAL '6' HOUR, scheduled) AS start
FROM read_csv('examples/data/departures.csv', columns = {'scheduled': 'TIMESTAMP', 'departed': 'TIMESTAMP',
    'origin': 'VARCHAR', 'dest': 'VARCHAR', 'carrier': 'VARCHAR', 'flight': 'INTEGER'}, parallel = false);

CREATE MACRO per_window(flights) AS TABLE
SELECT
    strftime(start, '%Y-%m-%dT%H:%M:%S') AS window_start,
    strftime(start + INTERVAL '6' HOUR, '%Y-%m-%dT%H:%M:%S') AS window_end,
    origin,
    count(*) AS flights,
    count(*) FILTER (departed > scheduled + INTERVAL '15' MINUTE) AS delayed
FROM query_table(flights)
GROUP BY start, origin
ORDER BY start, origin;

COPY (FROM per_window('departures')) TO 'tests/expected/stream/all.csv' (HEADER);

-- The watermark that each flight meets: two hours behind the latest before it. A window has left when the watermark has
-- reached its last millisecond.
CREATE VIEW in_time AS
SELECT * FROM (
    SELECT *, max(scheduled) OVER (ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) - INTERVAL '2' HOUR AS watermark
    FROM departures
)
WHERE watermark IS NULL OR start + INTERVAL '6' HOUR - INTERVAL '1' MILLISECOND > watermark;

COPY (FROM per_window('in_time')) TO 'tests/expected/stream/in_time.csv' (HEADER);

-- What is known after the first 1024 flights, and how that changes with the others.
COPY (
    WITH first AS (SELECT carrier, count(*) AS flights FROM departures WHERE place <= 1024 GROUP BY carrier),
    whole AS (SELECT carrier, count(*) AS flights FROM departures GROUP BY carrier),
    changed AS (
        SELECT carrier, first.flights AS old, whole.flights AS new
        FROM whole LEFT JOIN first USING (carrier) WHERE carrier IN ('AA', 'HA')
    )
    SELECT '+I' AS op, carrier, coalesce(old, new) AS flights FROM changed
    UNION ALL SELECT '-U', carrier, old FROM changed WHERE old <> new
    UNION ALL SELECT '+U', carrier, new FROM changed WHERE old <> new
    ORDER BY carrier, op
) TO 'tests/expected/stream/changing.csv' (HEADER);
