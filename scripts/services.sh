#!/usr/bin/env bash
# The services that tests talk to: fetched once, started by whoever needs one, on free ports of the loopback interface.
#
#   scripts/services.sh fetch    fetch Apache Kafka with Maven; skipped when it is up to date
#   scripts/services.sh kafka    run one broker until standard input ends; says `bootstrap=HOST:PORT` when it answers
#
# Everything goes to $THALWEG_SERVICES_DIR (target/services by default). Needs Java 17 or newer, and Maven to fetch.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
services=${THALWEG_SERVICES_DIR:-${CARGO_TARGET_DIR:-$root/target}/services}
pom=$root/scripts/kafka/pom.xml
jars=$services/kafka
python=${PYTHON:-python3}

fail() {
    echo "services.sh: $*" >&2
    exit 1
}

fetch() {
    if cmp -s "$pom" "$jars/pom.xml"; then
        echo "kafka: up to date"
        return
    fi
    command -v java > /dev/null || fail "java was not found: install Java 17 or newer (Debian: apt install default-jre-headless)"
    command -v mvn > /dev/null || fail "mvn was not found: install Maven (Debian: apt install maven)"
    mkdir -p "$services"
    # Into a folder beside it, so that a fetch that was cut short leaves nothing that looks complete.
    local fresh
    fresh=$(mktemp -d "$services/kafka.XXXXXX")
    mvn --quiet --batch-mode --file "$pom" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$fresh" || { rm -rf "$fresh"; fail "Maven could not fetch Kafka"; }
    cp "$pom" "$fresh/pom.xml"
    rm -rf "$jars"
    mv "$fresh" "$jars"
    echo "kafka: fetched"
}

# free_ports N: ports that nobody listens at now.
free_ports() {
    "$python" - "$1" << 'PYTHON'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
}

# answers PORT: whether somebody listens there.
answers() {
    (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null
}

properties() {
    cat << EOT
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$2
listeners=PLAINTEXT://127.0.0.1:$1,CONTROLLER://127.0.0.1:$2
advertised.listeners=PLAINTEXT://127.0.0.1:$1
controller.listener.names=CONTROLLER
log.dirs=$3/data
auto.create.topics.enable=false
delete.topic.enable=true
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.segment.bytes=1048576
transaction.abort.timed.out.transaction.cleanup.interval.ms=200
group.initial.rebalance.delay.ms=0
log.segment.bytes=16777216
log.cleaner.enable=false
num.network.threads=2
num.io.threads=4
EOT
}

kafka() {
    cmp -s "$pom" "$jars/pom.xml" || fail "Kafka is not there: run scripts/services.sh fetch"
    command -v java > /dev/null || fail "java was not found: install Java 17 or newer"
    folder=$(mktemp -d "${TMPDIR:-/tmp}/thalweg-kafka.XXXXXX")
    broker=
    trap 'if [ -n "$broker" ]; then kill -9 "$broker" 2> /dev/null || true; wait "$broker" 2> /dev/null || true; fi; rm -rf "$folder"' EXIT
    trap 'exit 143' INT TERM HUP
    local java=(java -Xmx384m -Xms128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/*")
    local port controller attempt
    # Another process may take a port between the look and the start.
    for attempt in 1 2 3; do
        read -r port controller < <(free_ports 2)
        rm -rf "$folder/data"
        properties "$port" "$controller" "$folder" > "$folder/server.properties"
        "${java[@]}" kafka.tools.StorageTool format --cluster-id thalweg-tests-kafka-00 \
            --config "$folder/server.properties" > "$folder/log" 2>&1 || { cat "$folder/log" >&2; fail "cannot format the storage"; }
        "${java[@]}" kafka.Kafka "$folder/server.properties" >> "$folder/log" 2>&1 < /dev/null &
        broker=$!
        local waited=0
        while kill -0 "$broker" 2> /dev/null && [ "$waited" -lt 600 ]; do
            if answers "$port"; then
                echo "bootstrap=127.0.0.1:$port"
                # Until whoever started this is gone.
                cat > /dev/null
                exit 0
            fi
            read -r -t 0.2 _ <> <(:) || true
            waited=$((waited + 1))
        done
        kill -9 "$broker" 2> /dev/null || true
        echo "services.sh: the broker did not start (attempt $attempt):" >&2
        tail -20 "$folder/log" >&2
    done
    fail "no broker"
}

case ${1:-} in
    fetch) fetch ;;
    kafka) kafka ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
