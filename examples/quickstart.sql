-- A year of flights out of New York: four questions to the tables in examples/data.
-- Run it from the root of the repository. The columns are described in examples/data/README.md.

CREATE EXTERNAL TABLE flights  STORED AS PARQUET LOCATION 'examples/data/flights.parquet';
CREATE EXTERNAL TABLE airlines STORED AS PARQUET LOCATION 'examples/data/airlines.parquet';
CREATE EXTERNAL TABLE airports STORED AS PARQUET LOCATION 'examples/data/airports.parquet';
CREATE EXTERNAL TABLE planes   STORED AS PARQUET LOCATION 'examples/data/planes.parquet';
CREATE EXTERNAL TABLE weather  STORED AS PARQUET LOCATION 'examples/data/weather.parquet';

-- Question 1: Which airlines arrive late, which cancel, and is it the age of their planes?
-- (No age is given for an airline most of whose flights name no known plane: they report fleet numbers instead.)
SELECT
    a.name AS airline,
    COUNT(*) AS flights,
    ROUND(AVG(f.arr_delay), 1) AS mean_arrival_delay_min,
    ROUND(100.0 * COUNT(CASE WHEN f.arr_delay > 15 THEN 1 END) / COUNT(f.arr_delay), 1) AS late_pct,
    ROUND(100.0 * COUNT(CASE WHEN f.dep_time IS NULL THEN 1 END) / COUNT(*), 1) AS cancelled_pct,
    CASE WHEN 2 * COUNT(p.year) > COUNT(*) THEN ROUND(AVG(f.year - p.year), 1) END AS mean_plane_age_years
FROM flights f
JOIN airlines a ON a.carrier = f.carrier
LEFT JOIN planes p ON p.tailnum = f.tailnum
GROUP BY a.name
ORDER BY mean_arrival_delay_min DESC, airline;

-- Question 2: At which hour of the day should one leave each airport, and which hour is the worst?
WITH hourly AS (
    SELECT origin, hour, COUNT(*) AS flights, AVG(dep_delay) AS mean_delay
    FROM flights
    GROUP BY origin, hour
    HAVING COUNT(dep_delay) >= 100
),
ranked AS (
    SELECT
        origin, hour, flights, mean_delay,
        RANK() OVER (PARTITION BY origin ORDER BY mean_delay) AS best,
        RANK() OVER (PARTITION BY origin ORDER BY mean_delay DESC) AS worst
    FROM hourly
)
SELECT
    a.name AS airport,
    CASE WHEN r.best = 1 THEN 'best' ELSE 'worst' END AS verdict,
    r.hour AS scheduled_hour,
    r.flights,
    ROUND(r.mean_delay, 1) AS mean_departure_delay_min
FROM ranked r
JOIN airports a ON a.faa = r.origin
WHERE r.best = 1 OR r.worst = 1
ORDER BY airport, verdict, scheduled_hour;

-- Question 3: How much of the waiting is the weather's fault?
WITH conditions AS (
    SELECT
        CASE
            WHEN w.visib < 1 THEN '1 fog (visibility under a mile)'
            WHEN w.precip >= 0.1 THEN '2 heavy rain or snow'
            WHEN w.precip > 0 THEN '3 light rain or snow'
            WHEN w.wind_speed >= 20 THEN '4 dry and windy (20 mph and more)'
            ELSE '5 fair'
        END AS weather,
        f.dep_delay
    FROM flights f
    JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour
)
SELECT
    weather,
    COUNT(*) AS flights,
    ROUND(100.0 * COUNT(*) / SUM(COUNT(*)) OVER (), 1) AS share_of_flights_pct,
    ROUND(AVG(dep_delay), 1) AS mean_departure_delay_min,
    ROUND(100.0 * COUNT(CASE WHEN dep_delay > 60 THEN 1 END) / COUNT(*), 1) AS over_an_hour_pct,
    ROUND(100.0 * COUNT(CASE WHEN dep_delay IS NULL THEN 1 END) / COUNT(*), 1) AS cancelled_pct
FROM conditions
GROUP BY weather
ORDER BY weather;

-- Question 4: Which three destinations, flown at least once a day, keep one waiting longest at each airport?
WITH routes AS (
    SELECT origin, dest, COUNT(*) AS flights, AVG(dep_delay) AS mean_delay, MAX(dep_delay) AS longest_delay
    FROM flights
    GROUP BY origin, dest
    HAVING COUNT(*) >= 365
),
numbered AS (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY origin ORDER BY mean_delay DESC, dest) AS place
    FROM routes
)
SELECT
    n.origin,
    n.place,
    COALESCE(a.name, n.dest) AS destination,
    n.flights,
    ROUND(n.mean_delay, 1) AS mean_departure_delay_min,
    n.longest_delay AS longest_departure_delay_min
FROM numbered n
LEFT JOIN airports a ON a.faa = n.dest
WHERE n.place <= 3
ORDER BY n.origin, n.place;
