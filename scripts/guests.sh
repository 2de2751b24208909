#!/bin/sh
# Builds the components in the arguments into target/components.
# `check` returns by its exit code if this machine can build them; `lint` lints them. `folder DIR FILE` builds the crate
# that `leasehold new` has written to DIR, with the versions of this workspace, and copies its component to FILE.
#
# Two toolchains work: a toolchain with the wasm32-wasip2 target (rustup), or Debian's, which compiles the target's
# standard library along with the components and uses the linkers of the first.
set -eu
cd "$(dirname "$0")/.."

target=wasm32-wasip2

# True if the Rust toolchain on the PATH has the target.
ours() {
    [ -d "$(rustc --print target-libdir --target "$target" 2>/dev/null)" ]
}

# Folder of the Rust toolchain with rust-lld and wasm-component-ld.
linkers() {
    for linker in "$(rustc --print sysroot)"/lib/rustlib/*/bin/wasm-component-ld; do
        [ -x "$linker" ] && dirname "$linker" && return
    done
    return 1
}

# True if Debian's rustc-web, cargo-web, rust-web-src, wasi-libc and lld are installed.
debian() {
    [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] && [ -f /usr/lib/wasm32-wasi/libc.a ] &&
        [ -x /usr/bin/wasm-ld ] && [ -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std" ] &&
        linkers >/dev/null
}

names() {
    for name in "$@"; do
        printf -- '-p %s ' "$name"
    done
}

case ${1-} in
check)
    ours || debian
    exit
    ;;
lint)
    shift
    if ! ours; then
        echo "lint: the components are not linted: this Rust toolchain has no $target target" >&2
        exit
    fi
    # shellcheck disable=SC2046 # names are words
    exec cargo clippy --locked --profile guest --target "$target" $(names "$@") -- -D warnings
    ;;
esac

# Builds into the folder in the first argument, with the arguments of cargo behind it.
build() {
    directory=$1
    shift
    if ours; then
        cargo build --target "$target" --target-dir "$directory" "$@"
    else
        PATH="$PATH:$(linkers)" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
            RUSTFLAGS="${RUSTFLAGS:-} -L /usr/lib/wasm32-wasi -C link-self-contained=no" \
            /usr/bin/cargo build --target "$target" --target-dir "$directory" -Z build-std=std,panic_abort "$@"
    fi
}

# A separate directory, so that one compiler does not discard the other's results.
into=target
ours || into=target/debian

if [ "${1-}" = folder ]; then
    cp Cargo.lock "$2/"
    build "$into/templates" --release --manifest-path "$2/Cargo.toml"
    cp "$into/templates/$target/release/service.wasm" "$3"
    exit
fi

built=$into/$target/guest
# shellcheck disable=SC2046
build "$into" --locked --profile guest $(names "$@")

mkdir -p target/components
for name in "$@"; do
    from=$built/$(echo "$name" | tr - _).wasm
    cmp -s "$from" "target/components/$name.wasm" || cp "$from" "target/components/$name.wasm"
done
