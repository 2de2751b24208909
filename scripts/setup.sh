#!/bin/sh
# Installs missing packages of the build and the tests, and prints each with the reason.
# Prints nothing if no package is missing, and then needs no network.
set -eu
cd "$(dirname "$0")/.."

say() {
    echo "setup: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# True if protoc is installed with the google/protobuf/*.proto files, which are a separate package in Debian.
have_protoc() {
    have protoc || return 1
    probe=$(mktemp -d)
    echo 'syntax = "proto3"; import "google/protobuf/any.proto"; message Probe { google.protobuf.Any any = 1; }' \
        >"$probe/probe.proto"
    found=0
    protoc "--proto_path=$probe" "--descriptor_set_out=$probe/out" probe.proto >"$probe/log" 2>&1 || found=1
    rm -r "$probe"
    return $found
}

# True if Python is installed with venv and pip, which are separate packages in Debian.
have_venv() {
    have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null
}

# Prints a missing package with the reason, and adds it to the list.
need() {
    package=$1
    shift
    say "needs $package: $*"
    missing="$missing $package"
}

# Lists the missing packages, by their names on this system.
look() {
    missing=
    have cc || need "$1" "a C compiler links everything, and ring and mimalloc are written in C"
    have_protoc || need "$2" "etcd's API is generated from its .proto files"
    have etcd || need "$3" "\`leasehold run --dev\` and the tests run a real etcd"
    have etcdctl || need "$4" "the tests look into etcd from outside"
    have_venv || need "$5" "the tests call gRPC services from Python"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "needs root for: $*; run it as root, or install sudo"
    fi
}

updated=
apt_install() {
    if [ -z "$updated" ]; then
        say "reading the package lists"
        as_root apt-get update -qq || say "the lists could not be read anew; trying with those that are here"
        updated=yes
    fi
    say "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

native() {
    if have apt-get; then
        set -- "gcc libc6-dev" "protobuf-compiler libprotobuf-dev" etcd-server etcd-client python3-venv
    elif have brew; then
        set -- xcode-select protobuf etcd etcd python
    else
        set -- "a C compiler" "protoc with its include files" etcd etcdctl "Python with venv"
    fi
    look "$@"
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086 # packages are words
    if have apt-get; then
        apt_install $missing
    elif have brew; then
        case $missing in *xcode-select*) fail "please run: xcode-select --install" ;; esac
        say "installing$missing"
        brew install --quiet $missing >/dev/null
    else
        fail "please install these, then run this again"
    fi
    look "$@"
    [ -z "$missing" ] || fail "installed, and yet not found on the PATH:$missing"
}

components() {
    sh scripts/guests.sh check && return
    say "the wasm32-wasip2 target is missing: components are compiled for it"
    if have rustup && rustup target add wasm32-wasip2 >/dev/null 2>&1; then
        say "installed it with rustup"
        return
    fi
    have apt-get || fail "rustup could not install it; please run: rustup target add wasm32-wasip2"
    say "rustup could not install it; Debian's compiler, which is installed beside rustup's, builds the same"
    apt_install rustc-web cargo-web rust-web-src wasi-libc lld
    sh scripts/guests.sh check || fail "the components still cannot be built; please run: rustup target add wasm32-wasip2"
}

have cargo || fail "no Rust: install it from https://rustup.rs, stable 1.95 or newer, then run this again"
native
components
