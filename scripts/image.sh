#!/bin/sh
# Lays the files of the container image in target/image: the Containerfile, and the root file system.
#
#   BINARY   the binary (target/release/leasehold)
#   IMAGE    where to (target/image)
set -eu
cd "$(dirname "$0")/.."

binary=${BINARY:-target/release/leasehold}
image=${IMAGE:-target/image}
root=$image/root
example=target/components/greeter.wasm
authorities=/etc/ssl/certs/ca-certificates.crt
user=65532

[ -x "$binary" ] || { echo "image: there is no $binary: run make build first" >&2; exit 1; }
[ -f "$example" ] || { echo "image: there is no $example: run make guests first" >&2; exit 1; }
[ -f "$authorities" ] || { echo "image: there is no $authorities: apt-get install ca-certificates" >&2; exit 1; }
[ "$(uname)" = Linux ] || { echo "image: the binary of the image has to be built on Linux" >&2; exit 1; }

rm -rf "$image"
install -d "$root/usr/bin" "$root/etc/leasehold" "$root/etc/ssl/certs" "$root/usr/share/doc/leasehold/examples" "$root/components"
install -m 644 deploy/container/Containerfile "$image"
install -m 755 "$binary" "$root/usr/bin/leasehold"

# The libraries that the binary was linked with, under the names that it looks for: `name => /path (address)`, and the loader alone.
# glibc 2.34 and newer looks names up without further files.
ldd "$binary" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' | while read -r library; do
    install -D -m 755 "$library" "$root$library"
done

install -m 644 "$authorities" "$root/etc/ssl/certs"
printf 'root:x:0:0:root:/:/sbin/nologin\nleasehold:x:%s:%s:leasehold:/:/sbin/nologin\n' $user $user >"$root/etc/passwd"
printf 'root:x:0:\nleasehold:x:%s:\n' $user >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
install -m 644 LICENSE-APACHE LICENSE-MIT "$root/usr/share/doc/leasehold"
install -m 644 "$example" "$root/usr/share/doc/leasehold/examples"

# Writable to any user; the sticky bit keeps users apart. A mounted folder takes the place of each.
install -d "$root/run" "$root/var/cache"
install -d -m 1777 "$root/run/leasehold" "$root/var/cache/leasehold"
