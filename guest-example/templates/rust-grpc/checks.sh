# The bytes of a file, for people.
bytes() {
    od -An -c "$1" | tr -s ' \n' ' '
}

# Fails unless a call of a method with a message has this status and reply. On the wire, five bytes precede a message: a zero, and
# its length.
calls() {
    printf '%b' "$2" >"$work/request"
    printf '%b' "$4" >"$work/expected"
    : >"$work/reply"
    curl --silent --noproxy '*' --max-time 30 --http2-prior-knowledge --header 'content-type: application/grpc' --header 'te: trailers' \
        --data-binary "@$work/request" --dump-header "$work/headers" --output "$work/reply" "http://$address/$1" ||
        fail "$1: expected a response, curl ended with $?"
    status=$(sed -n 's/^grpc-status: *\([0-9]*\).*/\1/p' "$work/headers")
    [ "$status" = "$3" ] || fail "$1: expected grpc-status $3, got \"$status\""
    cmp -s "$work/expected" "$work/reply" || fail "$1: expected the bytes$(bytes "$work/expected"), got$(bytes "$work/reply")"
    echo "ok: $1, grpc-status $3"
}

curl --version | grep -q HTTP2 || fail "this test needs a curl with HTTP/2"
calls greeter.v1.Greeter/Greet '\0000\0000\0000\0000\0005\n\0003Ada' 0 '\0000\0000\0000\0000\0013\n\0011hello Ada'
calls greeter.v1.Greeter/Greet '\0000\0000\0000\0000\0000' 3 ''
calls grpc.health.v1.Health/Check '\0000\0000\0000\0000\0000' 0 '\0000\0000\0000\0000\0002\0010\0001'
