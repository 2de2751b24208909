#!/bin/sh
# Builds a service of each template of `leasehold new` into target/guests with the toolchain of its language, and runs its
# test, the languages in the arguments alone if there are any; rust-grpc is the service in gRPC, and rust-p3 that of wasi:http 0.3.
# Installs what is missing, by name.
set -eu
cd "$(dirname "$0")/.."

LEASEHOLD=$(pwd)/target/release/leasehold
export LEASEHOLD
into=target/guests
CLANG="clang lld wasi-libc libclang-rt-dev-wasm32"

say() {
    echo "guests-all: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# True if a library for WebAssembly can be linked.
have_clang() {
    have clang || return 1
    probe=$(mktemp -d)
    echo '#include <stdio.h>' >"$probe/probe.c"
    found=0
    clang --target=wasm32-wasi -mexec-model=reactor -o "$probe/probe.wasm" "$probe/probe.c" 2>/dev/null || found=1
    rm -r "$probe"
    return $found
}

apt_install() {
    have apt-get || fail "please install these, then run this again: $*"
    say "installing $*"
    if [ "$(id -u)" = 0 ]; then
        set -- env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"
    else
        set -- sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"
    fi
    "$@" >/dev/null || fail "apt-get could not install them; read the package lists anew: apt-get update"
}

# Installs the usual tools of a language.
tools() {
    case $1 in
    rust | rust-p3)
        sh scripts/guests.sh check || fail "rust needs the target wasm32-wasip2: rustup target add wasm32-wasip2"
        ;;
    rust-grpc)
        tools rust
        have protoc || apt_install protobuf-compiler libprotobuf-dev
        ;;
    go) have go || fail "go needs Go 1.25 or newer: https://go.dev/dl" ;;
    c)
        # shellcheck disable=SC2086 # packages are words
        have_clang || apt_install $CLANG
        ;;
    js | ts) have npm || apt_install nodejs npm ;;
    python) python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv ;;
    *) fail "unknown language: $1" ;;
    esac
}

# Builds the service as its README says.
build() {
    case $1 in
    rust | rust-grpc | rust-p3) sh scripts/guests.sh folder "$2" "$2/hello-$1.wasm" ;;
    js | ts) (cd "$2" && npm install --no-audit --no-fund --loglevel=error && npm run --silent build) ;;
    *) make --no-print-directory -C "$2" build ;;
    esac
}

# Runs the service's own test, with the component that is built.
run_test() {
    case $1 in
    js | ts) (cd "$2" && npm run --silent --ignore-scripts test) ;;
    *) make --no-print-directory -C "$2" -o build test ;;
    esac
}

[ $# -gt 0 ] || set -- rust rust-p3 rust-grpc go c js ts python
[ -x "$LEASEHOLD" ] || fail "$LEASEHOLD is not there: make build"
have curl || apt_install curl
mkdir -p "$into"
for language in "$@"; do
    tools "$language"
    folder=$into/hello-$language
    rm -rf "$folder"
    # shellcheck disable=SC2046 # options are words of their own
    (cd "$into" && "$LEASEHOLD" new "hello-$language" --lang $(echo "$language" | sed 's/-grpc/ --grpc/; s/-p3/ --http 0.3/') >/dev/null)
    begun=$(date +%s)
    build "$language" "$folder"
    (cd "$folder" && "$LEASEHOLD" wit --check "hello-$language.wasm" >/dev/null && "$LEASEHOLD" --quiet check --offline services.yaml >/dev/null)
    say "hello-$language.wasm: $(($(wc -c <"$folder/hello-$language.wasm") / 1024)) KiB, built in $(($(date +%s) - begun)) s"
    run_test "$language" "$folder"
done
