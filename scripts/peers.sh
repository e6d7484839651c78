#!/bin/sh
# Thalweg beside other engines on the same files, taking turns: the tables of docs/benchmarks.md. Prints JSON lines while it
# runs and a table at the end; both also go to target/peers.
#
#   PEERS_DIR=DIR PEERS_PY=PYTHON scripts/peers.sh
#
# PEERS_DIR is the folder with the other engines' scripts (common/measure.py, terasort/sort.py, join/join.py), PEERS_PY a
# Python that has the engines and psutil installed. The peers are not part of this repository.
#
#   PEERS    engines, separated by commas: duckdb,datafusion,polars by default
#   ROWS     records to sort, 20000000 by default
#   SCALE    scale of the joins, 1 by default
#   MEMORY   the budget of the runs that have one, 512MB by default
#   REPEATS  runs of each, 5 by default
#   BENCH_DIR  where inputs, outputs and spill files go; target/test-data by default (15 GB at full size)
#
# Nothing else should run on the machine meanwhile. Polars knows no budget.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
: "${PEERS_DIR:?names the folder of the scripts of the other engines}"
: "${PEERS_PY:?names a Python that has the other engines installed}"
export PEERS_DIR PEERS_PY
peers=${PEERS:-duckdb,datafusion,polars}
rows=${ROWS:-20000000}
scale=${SCALE:-1}
memory=${MEMORY:-512MB}
repeats=${REPEATS:-5}
out=target/peers
mkdir -p "$out"
: >"$out/runs.jsonl"

# A contender that fails is a line of the result, not the end of the script.
bench() {
    name=$1
    shift
    [ -z "${BENCH_DIR:-}" ] || set -- "$@" --dir "$BENCH_DIR"
    cargo bench --quiet --bench "$name" -- "$@" --repeats "$repeats" >"$out/last.jsonl" || true
    cat "$out/last.jsonl"
    cat "$out/last.jsonl" >>"$out/runs.jsonl"
}

# The others do not synchronize their output to disk; once more as we do it by default.
bench terasort --rows "$rows" --memory "$memory" --sync false --peers "$peers"
bench terasort --rows "$rows" --memory "$memory" --sync true
bench terasort --rows "$rows" --sync false --peers "$peers"
bench terasort --rows "$rows" --memory "$memory" --sync false --format raw
bench hash_join small --scale "$scale" --peers "$peers"
bench hash_join big --scale "$scale" --memory "$memory" --peers "$peers"
bench hash_join big --scale "$scale" --peers "$peers"
bench hash_join carry --scale "$scale" --memory "$memory" --peers "$peers"
bench hash_join carry --scale "$scale" --peers "$peers"
rm -f "$out/last.jsonl"

"$PEERS_PY" - "$out/runs.jsonl" <<'PYTHON' | tee "$out/table.md"
import json
import sys

lines = [json.loads(line) for line in open(sys.argv[1])]
why = {}
for line in lines:
    if "run" in line and "failed" in line:
        why[line["workload"], json.dumps(line["params"]), line["engine"]] = line["failed"]
print("| Workload | Budget (MB) | Engine | Seconds (min - max) | Times ours | Peak RSS (MB) | Spilled (MB) |")
print("|---|---|---|---|---|---|---|")
for line in lines:
    if "median_of" not in line:
        continue
    params = line["params"]
    name = line["workload"] + (" raw" if params.get("format") == "raw" else "") + (" synchronized" if params.get("sync") else "")
    if line["seconds"] is None:
        reason = why.get((line["workload"], json.dumps(params), line["engine"]), "")
        seconds = "fails: " + reason[:80].replace("|", "/")
    else:
        seconds = f"{line['seconds']:.2f} ({line['seconds_min']:.2f} - {line['seconds_max']:.2f})"
        if line["failed_runs"]:
            seconds += f", {line['failed_runs']} failed"
    spilled = "" if line["spilled_bytes"] is None else line["spilled_bytes"] // 1_000_000
    ratio = "" if line["times_ours"] is None else f"{line['times_ours']:.2f}"
    rss = "" if line["peak_rss_mb"] is None else line["peak_rss_mb"]
    print(f"| {name} | {params['memory_mb'] or 'none'} | {line['engine']} | {seconds} | {ratio} | {rss} | {spilled} |")
PYTHON
