#!/bin/sh
# Make the data and the answers which the end-to-end tests compare with. Run it as often as you like: what is up to date is skipped.
#
#   scripts/test_data.sh                 TPC-H and TPC-DS at the scales the tests use
#   scripts/test_data.sh tpch --sf 1     another scale, for the benchmarks
#
# Everything goes to $THALWEG_TEST_DIR (target/test-data by default). Needs Python 3.10 or newer ($PYTHON, python3 by default).
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
THALWEG_TEST_DIR=${THALWEG_TEST_DIR:-$root/target/test-data}
export THALWEG_TEST_DIR
requirements=$root/scripts/requirements-test.txt
venv=$THALWEG_TEST_DIR/venv

if ! cmp -s "$requirements" "$venv/installed.txt"; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "test_data.sh: Python 3.10 or newer is needed; set PYTHON" >&2
        exit 1
    }
    mkdir -p "$THALWEG_TEST_DIR"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r "$requirements"
    cp "$requirements" "$venv/installed.txt"
    echo "venv: made"
fi

exec "$venv/bin/python" "$root/scripts/make_test_data.py" "$@"
