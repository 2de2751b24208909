#!/bin/sh
# Installs the binary, man pages, completions, an example and, on Linux, the systemd units. The Debian package has the same files.
#
#   BINARY   the binary to install (target/release/leasehold)
#   PREFIX   where to (/usr/local)
#   DESTDIR  a staging folder in front of it, for packages (none)
set -eu
cd "$(dirname "$0")/.."

binary=${BINARY:-target/release/leasehold}
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}$prefix
doc=$root/share/doc/leasehold
example=target/components/greeter.wasm

[ -x "$binary" ] || { echo "install: there is no $binary: run make build first" >&2; exit 1; }
[ -f "$example" ] || { echo "install: there is no $example: run make guests first" >&2; exit 1; }

install -d "$root/bin" "$root/share/man/man1" "$root/share/bash-completion/completions" \
    "$root/share/zsh/site-functions" "$root/share/fish/vendor_completions.d" "$doc/examples"
install -m 755 "$binary" "$root/bin/leasehold"
"$binary" man "$root/share/man/man1"
"$binary" completions bash >"$root/share/bash-completion/completions/leasehold"
"$binary" completions zsh >"$root/share/zsh/site-functions/_leasehold"
"$binary" completions fish >"$root/share/fish/vendor_completions.d/leasehold.fish"
install -m 644 README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$doc"
# The first configuration and its component side by side, so that it runs as it is.
install -m 644 "$example" "$doc/examples"
rm -f "$doc/examples/services.yaml"
"$binary" init "$doc/examples/services.yaml" >/dev/null

if [ "$(uname)" = Linux ]; then
    install -d "$root/lib/systemd/system" "$root/lib/sysusers.d"
    for unit in leasehold.service leasehold@.service; do
        sed "s|/usr/local/bin/|$prefix/bin/|" "deploy/systemd/$unit" >"$root/lib/systemd/system/$unit"
    done
    install -m 644 deploy/systemd/leasehold.sysusers "$root/lib/sysusers.d/leasehold.conf"
    if [ -z "${DESTDIR:-}" ]; then
        echo "installed. For the service: systemd-sysusers && systemctl daemon-reload," >&2
        echo "write /etc/leasehold/services.yaml, then systemctl enable --now leasehold" >&2
    fi
fi
