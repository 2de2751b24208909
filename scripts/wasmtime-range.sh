#!/bin/sh
# Checks the plugin with the oldest release of wasmtime that it takes. Everything else is built with the newest one, by the lock file of
# the workspace, from which the versions of all other crates are taken here.
set -eu
cd "$(dirname "$0")/.."

# `wasmtime = { version = ">=47, <49"` in Cargo.toml.
oldest=$(sed -n 's/^wasmtime = .*version = ">=\([0-9]*\), <.*/\1/p' Cargo.toml)
[ -n "$oldest" ] || { echo "wasmtime-range: Cargo.toml has no range of wasmtime" >&2; exit 1; }

folder=target/wasmtime-range
mkdir -p "$folder/src"
cat >"$folder/Cargo.toml" <<END
[package]
name = "wasmtime-range"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
leasehold-wasmtime = { path = "../../host/plugin" }
wasmtime = { version = "$oldest", default-features = false }
END
: >"$folder/src/lib.rs"
cp Cargo.lock "$folder/Cargo.lock"
cd "$folder"

# Versions of wasmtime in the lock file, one a line.
locked() {
    sed -n '/^name = "wasmtime"$/{n;s/^version = "\(.*\)"/\1/p;}' Cargo.lock
}

cargo metadata --format-version 1 >/dev/null
for version in $(locked); do
    case $version in "$oldest".*) chosen=$version ;; esac
done
# Both requirements allow it, but cargo chooses the highest version for each.
for version in $(locked); do
    [ "$version" = "$chosen" ] || cargo update --quiet "wasmtime@$version" --precise "$chosen"
done
[ "$(locked)" = "$chosen" ] || { echo "wasmtime-range: these are in the lock file:" $(locked) >&2; exit 1; }
echo "wasmtime-range: leasehold-wasmtime with wasmtime $chosen"
cargo check --locked --quiet
