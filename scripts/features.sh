#!/bin/sh
# The libraries without some of their features: each of these combinations compiles without a warning. Only checks, and builds nothing.
set -eu
cd "$(dirname "$0")/.."

without() {
    crate=$1
    shift
    for features in "$@"; do
        echo "features: $crate with ${features:-none}"
        cargo clippy --locked --quiet -p "$crate" --no-default-features --features "$features" -- -D warnings
    done
}

without leasehold "" discovery load tls
without leasehold-wasmtime "" discovery p3
