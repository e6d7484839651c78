#!/usr/bin/env bash
# Every check of the project, in one command. Needs Rust, a C compiler, make and Python 3.10 or newer; for the tests with
# Kafka also Java 17 and Maven.
#
#   ./test.sh            test data, services, format, lints, documentation, tests
#   ./test.sh --quick    the tests only, with the test data and services that are there
#
# Stops at the first step that fails. The last line is `N passed, N failed`; the exit code is 0 only when nothing failed.
# The first run fetches crates, Python packages and Kafka; later ones need no network (CARGO_NET_OFFLINE=true enforces it).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

usage="usage: ./test.sh [--quick]"
quick=no
for argument in "$@"; do
    case $argument in
        --quick) quick=yes ;;
        -h | --help) echo "$usage"; exit 0 ;;
        *) echo "test.sh: unknown argument '$argument'" >&2; echo "$usage" >&2; exit 2 ;;
    esac
done

# Nothing here asks; whoever would, sees the end of its input.
exec < /dev/null

if [ -n "${CI:-}" ]; then
    export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"
    export CARGO_TERM_PROGRESS_WHEN="${CARGO_TERM_PROGRESS_WHEN:-never}"
fi

logs=${CARGO_TARGET_DIR:-target}
mkdir -p "$logs"
log=$logs/test.log
: > "$log"
step=
started=$SECONDS

# Adds up cargo's lines `test result: ok. 5 passed; 0 failed; ..`, then says how it ended. Runs however the script ends.
conclude() {
    local code=$? passed=0 failed=0 results
    trap - EXIT
    if results=$(grep -E '^test result: ' "$log"); then
        passed=$(awk '{ for (i = 2; i <= NF; i++) if ($i ~ /^passed;?$/) sum += $(i - 1) } END { print sum + 0 }' <<< "$results")
        failed=$(awk '{ for (i = 2; i <= NF; i++) if ($i ~ /^failed;?$/) sum += $(i - 1) } END { print sum + 0 }' <<< "$results")
    fi
    # A step that is not a test, a test that does not compile, or one that was killed.
    if [ "$code" -ne 0 ]; then
        echo "test.sh: failed at: ${step:-start}" >&2
        [ "$failed" -gt 0 ] || failed=1
    elif [ "$failed" -gt 0 ] || [ "$passed" -eq 0 ]; then
        echo "test.sh: cargo reported success, but $passed tests passed and $failed failed" >&2
        code=1
        [ "$failed" -gt 0 ] || failed=1
    fi
    echo "total: $((SECONDS - started)) s"
    echo "$passed passed, $failed failed"
    exit "$code"
}
trap conclude EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# run NAME COMMAND ..: announces a step, times it, stops the script when it fails.
run() {
    step=$1
    shift
    local begin=$SECONDS
    echo "==> $step: $*"
    "$@"
    echo "==> $step: ok, $((SECONDS - begin)) s"
}

need() {
    command -v "$1" > /dev/null 2>&1 || { echo "test.sh: $1 was not found: $2" >&2; exit 1; }
}

# component NAME SUBCOMMAND: installs a part of the toolchain that is missing.
component() {
    cargo "$2" --version > /dev/null 2>&1 && return
    need rustup "install $1 with your toolchain"
    rustup component add "$1"
}

doc() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
}

tests() {
    cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"
}

step=prerequisites
need cargo "install Rust from https://rustup.rs"
if ! command -v cc > /dev/null 2>&1 && [ -z "${CC:-}" ]; then
    need cc "install a C compiler (Debian: apt install build-essential), or set CC"
fi
need make "install it (Debian: apt install build-essential); the allocator is built with it"
need "${PYTHON:-python3}" "install Python 3.10 or newer, or set PYTHON"
need java "install Java 17 or newer (Debian: apt install default-jre-headless); a Kafka broker takes part in the tests"

if [ "$quick" = no ]; then
    run "test data" scripts/test_data.sh
    run services scripts/services_debian.sh
    run services scripts/services.sh fetch
    step=components
    component rustfmt fmt
    component clippy clippy
    run format cargo fmt --all --check
    run lints cargo clippy --workspace --all-targets --locked -- -D warnings
    run documentation doc
fi
run tests tests
