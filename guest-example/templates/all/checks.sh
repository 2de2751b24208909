# Fails unless a path is answered like this.
answers() {
    came=$(get "$1") || came="no response"
    [ "$came" = "$2" ] || fail "GET $1: expected \"$2\", got \"$came\""
    echo "ok: GET $1"
}

answers / "200 hello from $name"
answers "/call/$name" "200 $name answered 200: hello from $name"
has "GET /status" "$(get /status)" '"state":"registered"' '"weight":50' "\"addr\":\"$address\""
