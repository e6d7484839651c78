"""Runs one query on another engine over Parquet files, for the benchmarks: prints one JSON line.

usage: peer_query.py ENGINE THREADS MEMORY_MB DIR TABLE,TABLE SQL    (MEMORY_MB 0: no cap)

ENGINE is duckdb, datafusion or polars. Every TABLE is DIR/TABLE.parquet. Time counts from when they are registered.
"""

import json
import os
import sys
import time

engine, threads, memory_mb, folder, tables, sql = sys.argv[1:]
threads, memory_mb = int(threads), int(memory_mb)
files = {table: f"{folder}/{table}.parquet" for table in tables.split(",")}

if engine == "duckdb":
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads={threads}; SET temp_directory='{folder}/tmp'")
    if memory_mb:
        connection.execute(f"SET memory_limit='{memory_mb}MB'")
    for table, file in files.items():
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM '{file}'")
    start = time.time()
    rows = connection.execute(sql).fetchall()
    version = duckdb.__version__
elif engine == "datafusion":
    import datafusion
    from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext

    runtime = RuntimeEnvBuilder().with_disk_manager_os()
    if memory_mb:
        runtime = runtime.with_fair_spill_pool(memory_mb * 1_000_000)
    context = SessionContext(SessionConfig().with_target_partitions(threads), runtime)
    for table, file in files.items():
        context.register_parquet(table, file)
    start = time.time()
    rows = [tuple(row.values()) for row in context.sql(sql).to_pylist()]
    version = datafusion.__version__
elif engine == "polars":
    os.environ["POLARS_MAX_THREADS"] = str(threads)
    import polars

    context = polars.SQLContext({table: polars.scan_parquet(file) for table, file in files.items()})
    start = time.time()
    rows = context.execute(sql).collect(engine="streaming").rows()
    version = polars.__version__
else:
    sys.exit(f"peer_query.py: there is no engine '{engine}'; the engines are duckdb, datafusion and polars")

seconds = time.time() - start
answer = [[int(value) for value in row] for row in rows]
print(json.dumps({"seconds": round(seconds, 3), "version": version, "answer": answer}), flush=True)
