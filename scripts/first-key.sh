#!/bin/sh
# Measures the time from an empty folder to a key in etcd, for the languages in the arguments or for all: `leasehold new`, the build of
# the template, the first start, and `leasehold ls`. The caches of the toolchains and of the host are empty, so that everything is
# fetched, as on a machine that has the usual tools of the language alone. Prints a row for each.
set -eu
cd "$(dirname "$0")/.."

LEASEHOLD=$(pwd)/target/release/leasehold
# Seconds until the key is there.
limit=1800

fail() {
    echo "first-key: $*" >&2
    exit 1
}

# Ends the host, in every case.
finish() {
    if [ -n "${host:-}" ]; then
        kill -TERM "$host" 2>/dev/null || true
        wait "$host" 2>/dev/null || true
    fi
    [ -z "${work:-}" ] || { chmod -R u+w "$work" && rm -rf "$work"; }
    host='' work=''
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Builds the service in this folder, as its README says.
build() {
    case $1 in
    js | ts) npm install --no-audit --no-fund --loglevel=error && npm run --silent build ;;
    *) make --no-print-directory build ;;
    esac
}

# Prints the address of the private etcd, once the host has said it.
etcd() {
    sed -n 's/.*private etcd: \(http[^,]*\),.*/\1/p' "$work/log"
}

[ $# -gt 0 ] || set -- rust rust-p3 go c js ts python
[ -x "$LEASEHOLD" ] || fail "$LEASEHOLD is not there: make build"
PATH=$(dirname "$LEASEHOLD"):$PATH
echo "| language | build | first start | in all |"
echo "|---|---|---|---|"
for language in "$@"; do
    work=$(mktemp -d)
    # Each toolchain looks for its cache in one of these.
    export XDG_CACHE_HOME="$work/cache" npm_config_cache="$work/npm" PIP_CACHE_DIR="$work/pip"
    export GOMODCACHE="$work/gomod" GOCACHE="$work/gobuild" CARGO_HOME="$work/cargo"
    mkdir "$CARGO_HOME"
    # The place of the registry is the machine's, not a cache.
    cp "$HOME/.cargo/config.toml" "$CARGO_HOME/" 2>/dev/null || true
    begun=$(date +%s)
    name=hello-$language
    # shellcheck disable=SC2046 # options are words of their own
    (cd "$work" && "$LEASEHOLD" new "$name" --lang $(echo "$language" | sed 's/-p3/ --http 0.3/') >/dev/null)
    (cd "$work/$name" && build "$language" >"$work/build" 2>&1) || { cat "$work/build" >&2; fail "$language: the build failed"; }
    built=$(date +%s)
    (cd "$work/$name" && exec "$LEASEHOLD" run --dev --strict services.yaml >"$work/log" 2>&1) &
    host=$!
    until [ -n "$(etcd)" ] && "$LEASEHOLD" --quiet ls "$name" --json --config "$work/$name/services.yaml" --etcd "$(etcd)" 2>/dev/null |
        tr -d ' ' | grep -q '"state":"ok"'; do
        kill -0 "$host" 2>/dev/null || { cat "$work/log" >&2; fail "$language: the host has ended"; }
        [ $(($(date +%s) - begun)) -lt $limit ] || fail "$language: no key within $limit s"
        sleep 1
    done
    found=$(date +%s)
    echo "| $language | $((built - begun)) s | $((found - built)) s | $((found - begun)) s |"
    finish
done
