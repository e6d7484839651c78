#!/usr/bin/env python3
"""Answer the queries of answers.sql with DuckDB: answers.py FOLDER

FOLDER holds person.parquet, auction.parquet and bid.parquet; qN.parquet appears beside them for each query.
"""

import re
import sys
from pathlib import Path

import duckdb


def main() -> None:
    folder = Path(sys.argv[1])
    connection = duckdb.connect()
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET threads = 2")
    for table in ("person", "auction", "bid"):
        connection.execute(f"CREATE TABLE {table} AS FROM read_parquet('{folder / table}.parquet')")
    text = (Path(__file__).parent / "answers.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- (q\d+):.*\n", text, flags=re.MULTILINE)
    for name, query in zip(parts[1::2], parts[2::2]):
        connection.execute(f"COPY ({query.strip()}) TO '{folder / name}.parquet' (FORMAT parquet)")


if __name__ == "__main__":
    main()
