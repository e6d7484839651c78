#!/usr/bin/env python3
"""Make test data and the answers of an independent engine (DuckDB); run it through scripts/test_data.sh.

    make_test_data.py                 TPC-H at 0.01 and TPC-DS at 0.1: what the tests use
    make_test_data.py tpch --sf 1     one benchmark at another scale
    make_test_data.py quickstart      the committed answers of examples/quickstart.sql

Each <benchmark>/sf<N>/ below $THALWEG_TEST_DIR (default target/test-data) holds

    <table>.parquet    the data, in several row groups
    qNN.sql            a query, exactly as DuckDB's extension gives it, without the closing semicolon
    qNN.csv            its answer, computed from those very Parquet files; see write_answer
    qNN.types          the DuckDB type of each column of the answer, one a line
    answers.csv        a line for each query: query, rows, determined, ordered

Columns without an alias have DuckDB's name for the expression: compare columns by position.

`determined` is "no" when the query leaves open which rows it returns (a LIMIT which cuts through ties): then only the
number of rows can be compared. `ordered` is "no" when the order is open: compare the sorted rows. Both are found by
asking again with the rows of all tables shuffled (up to scale 1); a query without an ORDER BY is never `ordered`.

The answers have PostgreSQL's meaning where DuckDB's own differs: integers divide to integers, NULLs come first in
descending order. Left as DuckDB has it: AVG of a DECIMAL and division of DECIMALs give a DOUBLE.
"""

import argparse
import csv
import datetime
import hashlib
import importlib
import math
import os
import re
import shutil
import time
from pathlib import Path

import duckdb

ROOT = Path(__file__).resolve().parent.parent
TEST_DIR = Path(os.environ.get("THALWEG_TEST_DIR", ROOT / "target" / "test-data"))

DEFAULT_SCALE = {"tpch": "0.01", "tpcds": "0.1"}
GENERATOR = {"tpch": "dbgen", "tpcds": "dsdgen"}
STAMP = ".stamp"
SHUFFLES = 3
LARGEST_SHUFFLED_SCALE = 1.0


def connect(database: str = ":memory:") -> duckdb.DuckDBPyConnection:
    """A DuckDB with PostgreSQL's meaning of `/` and of descending NULLs, which fetches nothing from the network."""
    connection = duckdb.connect(database)
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET integer_division = true")
    connection.execute("SET default_null_order = 'NULLS_LAST_ON_ASC_FIRST_ON_DESC'")
    return connection


def load_extension(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Load the extension out of its PyPI package; nothing is installed into the user's home."""
    package = Path(importlib.import_module(f"duckdb_extension_{name}").__file__).parent
    connection.execute(f"LOAD '{package / 'extensions' / f'v{duckdb.__version__}' / name}.duckdb_extension'")


def say(text: str) -> None:
    print(text, flush=True)


# ---- tables and queries


def row_group_size(scale: float) -> int:
    """Small data is cut finely, so that parallel scans have something to do. (DuckDB wants a multiple of 2,048.)"""
    return 10_240 if scale < 1 else 122_880


def write_tables(benchmark: str, scale: str, folder: Path) -> list[str]:
    """Generate the tables into a database on disk and copy each to Parquet, in the order of the generator."""
    database = folder / "generator.duckdb"
    connection = connect(str(database))
    load_extension(connection, benchmark)
    connection.execute(f"CALL {GENERATOR[benchmark]}(sf = {scale})")
    tables = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
    for table in tables:
        target = folder / f"{table}.parquet"
        options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {row_group_size(float(scale))}"
        connection.execute(f"COPY {table} TO '{target}' ({options})")
        (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        say(f"{benchmark} sf{scale} {target.name}: {rows} rows, {target.stat().st_size} bytes")
    connection.close()
    for leftover in folder.glob(f"{database.name}*"):
        leftover.unlink()
    return tables


def write_queries(benchmark: str, folder: Path) -> dict[str, str]:
    connection = connect()
    load_extension(connection, benchmark)
    queries = {}
    for number, text in connection.execute(f"FROM {benchmark}_queries() ORDER BY 1").fetchall():
        name = f"q{number:02}"
        queries[name] = text.strip().removesuffix(";").rstrip()
        (folder / f"{name}.sql").write_text(queries[name] + "\n", encoding="utf-8")
    return queries


# ---- answers


def as_text(value: object, null: str) -> str:
    """One field: floats with every digit, decimals with their scale, dates and times in ISO form."""
    if value is None:
        return null
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    return str(value)


def write_answer(path: Path, columns: list[str], rows: list[tuple], null: str) -> None:
    """A header, then the rows. NULL is `null`, never quoted; an empty string stays empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([as_text(value, null) for value in row] for row in rows)


def rounded(row: tuple) -> tuple:
    """The row with its floats cut to nine digits: sums of floats depend on the order of the rows."""
    return tuple(float(f"{value:.8e}") if isinstance(value, float) and math.isfinite(value) else value for value in row)


def sort_key(row: tuple) -> list[tuple[bool, str]]:
    return [(value is None, str(value)) for value in row]


def asks_for_order(query: str) -> bool:
    """Whether there is an ORDER BY outside all parentheses."""
    outside, inner = query, None
    while outside != inner:
        inner, outside = outside, re.sub(r"\([^()]*\)", " ", outside)
    return re.search(r"\border\s+by\b", outside, re.IGNORECASE) is not None


def shuffled(folder: Path, tables: list[str], seed: int) -> duckdb.DuckDBPyConnection:
    """The same tables in memory, their rows in an order which depends on `seed` only."""
    connection = connect()
    for table in tables:
        source = f"read_parquet('{folder / table}.parquet', file_row_number = true)"
        connection.execute(
            f"CREATE TABLE {table} AS SELECT * EXCLUDE (file_row_number) FROM {source} "
            f"ORDER BY hash(file_row_number + {seed} * 1000003), file_row_number"
        )
    return connection


def write_answers(benchmark: str, scale: str, folder: Path, tables: list[str], queries: dict[str, str]) -> None:
    connection = connect()
    for table in tables:
        connection.execute(f"CREATE VIEW {table} AS FROM read_parquet('{folder / table}.parquet')")
    answers = {}
    for name, query in queries.items():
        result = connection.sql(query)
        answers[name] = result.fetchall()
        write_answer(folder / f"{name}.csv", result.columns, answers[name], null="\\N")
        (folder / f"{name}.types").write_text("".join(f"{kind}\n" for kind in result.types), encoding="utf-8")
    say(f"{benchmark} sf{scale}: {len(answers)} queries answered")

    determined = set(queries)
    ordered = {name for name, query in queries.items() if asks_for_order(query)}
    if float(scale) <= LARGEST_SHUFFLED_SCALE:
        for seed in range(1, SHUFFLES + 1):
            again = shuffled(folder, tables, seed)
            for name, query in queries.items():
                first = [rounded(row) for row in answers[name]]
                second = [rounded(row) for row in again.execute(query).fetchall()]
                if first != second:
                    ordered.discard(name)
                if sorted(first, key=sort_key) != sorted(second, key=sort_key):
                    determined.discard(name)
            again.close()
        say(f"{benchmark} sf{scale}: asked {SHUFFLES} times more with shuffled rows")

    with (folder / "answers.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "rows", "determined", "ordered"])
        for name, rows in answers.items():
            writer.writerow([name, len(rows), *("yes" if name in kept else "no" for kept in (determined, ordered))])
    for label, names in {
        "empty answers": [name for name, rows in answers.items() if not rows],
        "rows left open by the query": sorted(set(queries) - determined),
        "only the order left open": sorted(determined - ordered),
    }.items():
        say(f"{benchmark} sf{scale}: {len(names)} {label}{': ' if names else ''}{' '.join(names)}")


# ---- what the command line asks for


def fingerprint(benchmark: str, scale: str) -> str:
    """What the output depends on: this script, DuckDB's version, the scale."""
    script = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return f"{benchmark} sf{scale} duckdb {duckdb.__version__} script {script}\n"


def make_benchmark(benchmark: str, scale: str) -> None:
    folder = TEST_DIR / benchmark / f"sf{scale}"
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == fingerprint(benchmark, scale):
        say(f"{benchmark} sf{scale}: up to date")
        return
    started = time.monotonic()
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        tables = write_tables(benchmark, scale, scratch)
        write_answers(benchmark, scale, scratch, tables, write_queries(benchmark, scratch))
        (scratch / STAMP).write_text(fingerprint(benchmark, scale))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say(f"{benchmark} sf{scale}: done in {time.monotonic() - started:.1f} s")


def make_quickstart() -> None:
    """Answer examples/quickstart.sql, and write tests/expected/quickstart/q1.csv and so on (NULL is an empty field)."""
    os.chdir(ROOT)
    folder = ROOT / "tests" / "expected" / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    connection = connect()
    script = re.sub(r"--[^\n]*", "", (ROOT / "examples" / "quickstart.sql").read_text(encoding="utf-8"))
    number = 0
    for statement in filter(None, map(str.strip, script.split(";"))):
        table = re.fullmatch(r"CREATE EXTERNAL TABLE (\w+)\s+STORED AS PARQUET LOCATION ('[^']+')", statement)
        if table:
            connection.execute(f"CREATE VIEW {table[1]} AS FROM read_parquet({table[2]})")
            continue
        number += 1
        result = connection.sql(statement)
        rows = result.fetchall()
        write_answer(folder / f"q{number}.csv", result.columns, rows, null="")
        say(f"quickstart q{number}.csv: {len(rows)} rows")


def scale_factor(text: str) -> str:
    """A positive number in its shortest form: the folder is called sf1, never sf1.0."""
    if not float(text) > 0:
        raise ValueError(text)
    return f"{float(text):.12g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="tpch, tpcds or quickstart (default: tpch tpcds; with --sf: tpch)")
    parser.add_argument("--sf", type=scale_factor, metavar="N", help="scale factor (default: tpch 0.01, tpcds 0.1)")
    options = parser.parse_args()
    for what in options.what or (["tpch"] if options.sf else ["tpch", "tpcds"]):
        if what == "quickstart":
            make_quickstart()
        elif what in GENERATOR:
            make_benchmark(what, options.sf or DEFAULT_SCALE[what])
        else:
            parser.error(f"no such test data: {what}")


if __name__ == "__main__":
    main()
