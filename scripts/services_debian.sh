#!/bin/sh
# Fetches the databases that the tests start: PostgreSQL and Redis from Debian's packages, unpacked into target/services and not
# installed. Run it as often as you like: what is there, or installed, is skipped. Needs no root.
#
#   scripts/services_debian.sh
#
# Everything goes to $THALWEG_SERVICES_DIR (target/services by default). Where there is no apt the tests use what is on the
# PATH; those that find nothing say so, and fail when CI is set.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
services=${THALWEG_SERVICES_DIR:-${CARGO_TARGET_DIR:-$root/target}/services}

# there NAME PATTERN ..: whether the program NAME is on the PATH or where a pattern says.
there() {
    command -v "$1" > /dev/null 2>&1 && return 0
    shift
    for pattern in "$@"; do
        for path in $pattern; do
            [ -x "$path" ] && return 0
        done
    done
    return 1
}

missing=
there redis-server "$services/usr/bin/redis-server" || missing="$missing redis-server"
there initdb '/usr/lib/postgresql/*/bin/initdb' "$services/usr/lib/postgresql/*/bin/initdb" || missing="$missing postgresql"
if [ -z "$missing" ]; then
    echo "services: there"
    exit 0
fi
if ! command -v apt-get > /dev/null 2>&1 || ! command -v dpkg > /dev/null 2>&1; then
    echo "services_debian.sh: missing:$missing; there is no apt here, so install them by hand" >&2
    exit 0
fi

# A fresh container has no lists of packages.
for package in $missing; do
    if ! apt-cache show "$package" > /dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        break
    fi
done

# Of what a server needs: its own packages and libraries that are not installed. Not LLVM: the tests run without JIT.
needed() {
    apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" |
        grep -E '^(lib|redis|postgresql)[a-z0-9.+-]*(:[a-z0-9]+)?$' | grep -Ev '^lib(llvm|c6|c-bin|perl|pam|debian|newt|slang|text|elogind)|-perl$' |
        sort -u
}

mkdir -p "$services/packages"
cd "$services/packages"
for package in $(needed $missing); do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' && continue
    ls "${package%%:*}"_*.deb > /dev/null 2>&1 ||
        apt-get download -qq -o APT::Sandbox::User=root "$package" 2> /dev/null ||
        echo "services_debian.sh: $package cannot be fetched" >&2
done
for package in *.deb; do
    [ -e "$package" ] && dpkg -x "$package" "$services"
done
echo "services: fetched$missing"
