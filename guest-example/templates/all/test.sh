#!/bin/sh
# Runs the built service on a private etcd, and checks what it serves, its key in etcd, and its end.
set -u
cd "$(dirname "$0")" || exit 1

leasehold=${LEASEHOLD:-leasehold}
# Seconds until the service answers. The first start compiles the component.
start_limit=300
# Seconds from SIGTERM to the end.
stop_limit=60

name={{name}}
address=$(sed -n 's/^[ -]*listen: *\([^ #]*\).*/\1/p' services.yaml | head -n 1)
work=$(mktemp -d) || exit 1

# Ends the host, in every case.
finish() {
    if [ -s "$work/pid" ] && [ ! -s "$work/code" ]; then
        kill -TERM "$(cat "$work/pid")" 2>/dev/null
        ended_within 10 || kill -KILL "$(cat "$work/pid")" 2>/dev/null
    fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "test: $*" >&2
    if [ -s "$work/log" ]; then
        echo "test: the end of the host's log:" >&2
        tail -n 20 "$work/log" >&2
    fi
    exit 1
}

# True once the host has ended; waits so many seconds for it.
ended_within() {
    seconds=$1
    while [ ! -s "$work/code" ]; do
        [ "$seconds" -gt 0 ] || return 1
        seconds=$((seconds - 1))
        sleep 1
    done
}

# The status and the body of a response, on one line.
get() {
    status=$(curl --silent --noproxy '*' --max-time 30 --output "$work/body" --write-out '%{http_code}' "http://$address$1") || return 1
    echo "$status $(cat "$work/body")"
}

# Fails unless a JSON text has these members; spaces do not matter.
has() {
    subject=$1
    text=$(echo "$2" | tr -d ' \n')
    shift 2
    for member in "$@"; do
        case $text in
        *"$member"*) ;;
        *) fail "$subject: expected $member, got $text" ;;
        esac
    done
    echo "ok: $subject"
}

command -v curl >/dev/null || fail "this test needs curl"
[ -n "$address" ] || fail "services.yaml: expected a line with listen:, found none"
[ -f "$name.wasm" ] || fail "expected $name.wasm, found no such file; build it first"
curl --silent --noproxy '*' --max-time 5 --output /dev/null "http://$address/"
# 7: the connection is refused.
[ $? = 7 ] || fail "$address is in use; end the process that listens there, or change listen: in services.yaml"

# --strict: a service that does not start ends the host.
(
    "$leasehold" run --dev --strict services.yaml >"$work/log" 2>&1 &
    echo $! >"$work/pid"
    wait $!
    echo $? >"$work/code"
) &

waited=0
until get / >/dev/null; do
    [ ! -s "$work/code" ] || fail "expected a running service, the host ended with $(cat "$work/code")"
    [ $waited -lt $start_limit ] || fail "expected a response at http://$address/ within $start_limit s, got none"
    waited=$((waited + 1))
    sleep 1
done

{{checks}}

etcd=$(sed -n 's/.*private etcd: \(http[^,]*\),.*/\1/p' "$work/log")
listed=$("$leasehold" --quiet ls "$name" --json --config services.yaml --etcd "$etcd" 2>&1)
has "leasehold ls $name" "$listed" "\"name\":\"$name\"" "\"addr\":\"$address\"" '"weight":50' '"state":"ok"'

kill -TERM "$(cat "$work/pid")"
ended_within $stop_limit || fail "expected an end within $stop_limit s of SIGTERM, the host still runs"
code=$(cat "$work/code")
[ "$code" = 0 ] || fail "expected exit code 0 after SIGTERM, got $code"
echo "ok: the host ended with 0 after SIGTERM"
