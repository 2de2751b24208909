#!/bin/sh
# Makes the files of a release in target/dist: the binary with its files as a tarball, the Debian package, the components of the
# binary as an SBOM, the changes, and checksums. The same commit gives the same bytes, by the same compiler and libraries, in
# whatever folder.
#
#   BINARY              a binary that is built already (none)
#   SOURCE_DATE_EPOCH   the time of every file (that of the commit)
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "dist: $*" >&2
    exit 1
}
need() {
    command -v "$1" >/dev/null || fail "needs $1: $2"
}
need cargo-deb "cargo install cargo-deb --locked"
need cargo-cyclonedx "cargo install cargo-cyclonedx --locked"
need dpkg-shlibdeps "apt-get install dpkg-dev"
tar --version | grep -q GNU || fail "needs GNU tar, which sorts"

git diff --quiet HEAD || fail "there are changes that are not committed, and a release is a commit"
version=$(cargo metadata --locked --no-deps --format-version 1 |
    sed 's/.*"name":"leasehold-cli","version":"\([^"]*\)".*/\1/')
triple=$(rustc -vV | sed -n 's/^host: //p')
tag=$(git tag --points-at HEAD 'v*')
[ -z "$tag" ] || [ "$tag" = "v$version" ] || fail "the commit has the tag $tag, and the version $version"

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
LEASEHOLD_COMMIT=$(git rev-parse --short=12 HEAD)
export SOURCE_DATE_EPOCH LEASEHOLD_COMMIT TZ=UTC LC_ALL=C
umask 022

dist=target/dist
name=leasehold-$version-$triple
# Apart from the builds of tests, since the flags below are others; and anew, since C code has the time of the commit in it.
export CARGO_TARGET_DIR="$PWD/$dist/build"
rm -rf "$dist"
mkdir -p "$dist/out" "$dist/stage/$name" "$CARGO_TARGET_DIR/release"

# No path of this machine is in the files.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$PWD=leasehold --remap-path-prefix=$cargo_home=cargo"
export CFLAGS="-ffile-prefix-map=$PWD=leasehold -ffile-prefix-map=$cargo_home=cargo"
if [ -n "${BINARY:-}" ]; then
    cp "$BINARY" "$CARGO_TARGET_DIR/release/leasehold"
else
    cargo build --locked --release -p leasehold-cli
    env -u CARGO_TARGET_DIR sh scripts/guests.sh greeter
fi
binary=$CARGO_TARGET_DIR/release/leasehold

# The same files in both, under their prefixes.
BINARY=$binary PREFIX=/usr/local DESTDIR=$dist/stage sh scripts/install.sh
mv "$dist/stage/usr/local"/* "$dist/stage/$name"
rm -rf target/deb/stage
BINARY=$binary PREFIX=/usr DESTDIR=target/deb/stage sh scripts/install.sh

tar --directory "$dist/stage" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -cf - "$name" |
    gzip -9n >"$dist/out/$name.tar.gz"
cargo deb --no-build --locked -p leasehold-cli --output "$dist/out/"

# cargo-cyclonedx writes a file beside each manifest of the workspace.
source=$PWD/$dist/source
mkdir -p "$source"
git archive HEAD | tar -xC "$source"
(cd "$source" && cargo cyclonedx --quiet --manifest-path host/runner/Cargo.toml --format json --spec-version 1.5 --no-build-deps \
    --target "$triple" --override-filename sbom)
sed "s|path+file://$source/|path+file:///leasehold/|" "$source/host/runner/sbom.json" >"$dist/out/$name.cdx.json"

sed -n "/^## $version\(,.*\)\{0,1\}\$/,/^## /p" CHANGELOG.md | sed -e '1p' -e '/^## /d' >"$dist/out/leasehold-$version-changes.md"
[ -s "$dist/out/leasehold-$version-changes.md" ] || fail "CHANGELOG.md has no section of $version"
[ -z "$tag" ] || ! grep -q "^## .*not released yet" "$dist/out/leasehold-$version-changes.md" || fail "CHANGELOG.md says that $version is not released yet"

(cd "$dist/out" && sha256sum ./* | sed 's|  \./|  |' >"$OLDPWD/$dist/SHA256SUMS" && mv "$OLDPWD/$dist/SHA256SUMS" .)
(cd "$dist/out" && cat SHA256SUMS)
