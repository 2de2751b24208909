#!/bin/sh
# Packages the published crates, and compares what is in them with the repository. Prints each file that goes in.
#
#   VERIFY   no: the packages are not built from their own content (yes)
set -eu
cd "$(dirname "$0")/.."

CRATES="leasehold leasehold-wasmtime leasehold-artifacts leasehold-cli"
out=$(mktemp -d)
trap 'rm -r "$out"' EXIT

# A change is checked before it is committed, too. By name: cargo packages the crates of a workspace together only if all of them have a version, and those of the tests have none.
# shellcheck disable=SC2046 # crates are words
cargo package --allow-dirty --locked $(printf -- '-p %s ' $CRATES) $([ "${VERIFY:-yes}" = yes ] || echo --no-verify)

version=$(cargo metadata --locked --no-deps --format-version 1 |
    sed 's/.*"name":"leasehold","version":"\([^"]*\)".*/\1/')
for crate in $CRATES; do
    tar -xzf "target/package/$crate-$version.crate" -C "$out"
    mv "$out/$crate-$version" "$out/$crate"
done

failed=
# Compares a file or folder of the repository with that in a package; the entries of a folder, one by one.
holds() {
    diff -r "$1" "$out/$2" || { echo "package: $2 is not $1" >&2; failed=yes; }
}

folder=host/registrar
for crate in $CRATES; do
    case $crate in *-wasmtime) folder=host/plugin ;; *-artifacts) folder=host/artifacts ;; *-cli) folder=host/runner ;; esac
    for file in LICENSE-APACHE LICENSE-MIT; do
        holds "$file" "$crate/$file"
    done
    holds "$folder/README.md" "$crate/README.md"
    holds "$folder/src" "$crate/src"
done
for crate in leasehold-wasmtime leasehold-cli; do
    holds wit "$crate/wit"
done
# What `leasehold new` writes.
holds guest-example/templates leasehold-cli/templates
holds host/runner/lib leasehold-cli/lib

for crate in $CRATES; do
    echo "== $crate $version, $(du -k "target/package/$crate-$version.crate" | cut -f1) KiB"
    (cd "$out/$crate" && find . -type f | sed 's|^\./||' | LC_ALL=C sort)
done
[ -z "$failed" ] || exit 1
