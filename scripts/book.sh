#!/bin/sh
# Builds the site of the pages in docs, and checks every link in it.
set -eu
cd "$(dirname "$0")/.."

MERMAID=12.3.0

need() {
    command -v "$1" >/dev/null || { echo "book: needs $1: $2" >&2; exit 1; }
}
need mdbook "cargo install mdbook --locked"
need npm "Node.js with npm, for the pictures (mermaid): apt-get install nodejs npm"
need python3 "Python with venv, for the check of the links: apt-get install python3-venv"

book=target/book
rm -rf "$book/src" "$book/html"
mkdir -p "$book/src"
cp docs/book/book.toml docs/book/pictures.js "$book"

if [ ! -f "$book/mermaid-$MERMAID.js" ]; then
    npm pack --silent --pack-destination "$book" "mermaid@$MERMAID" >/dev/null
    tar -xzOf "$book/mermaid-$MERMAID.tgz" package/dist/mermaid.min.js >"$book/mermaid-$MERMAID.js"
fi
cp "$book/mermaid-$MERMAID.js" "$book/mermaid.min.js"

# Pages keep their places in the repository, so that their links hold in both.
pages=$(sed -n 's/.*](\(.*\.md\))$/docs\/\1/p' docs/SUMMARY.md | sed 's|^docs/\.\./||'; ls docs/decisions/[0-9]*.md)
for page in $pages; do
    mkdir -p "$book/src/$(dirname "$page")"
    cp "$page" "$book/src/$page"
done
# The records stand below their list, which has them already.
sed -e 's|](|](docs/|' -e 's|](docs/\.\./|](|' docs/SUMMARY.md | while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in *"(docs/decisions/README.md)") sed -n 's|^- \[\([0-9]*\)\](\(.*\)) \(.*\)|  - [\1 \3](docs/decisions/\2)|p' docs/decisions/README.md ;; esac
done >"$book/src/SUMMARY.md"

# Files that pages link to, beside the pages.
for page in $pages; do
    grep -o '](\([^)#:]*\)' "$page" | sed 's|^](||' | while IFS= read -r target; do
        case $target in *.md) continue ;; esac
        folder=$(cd "$(dirname "$page")/$(dirname "$target")" && pwd)
        path=${folder#"$PWD"/}/$(basename "$target")
        [ -f "$path" ] || continue
        mkdir -p "$book/src/$(dirname "$path")"
        cp "$path" "$book/src/$path"
    done
done

# The first page is in docs, with the pages that it leads to.
cat >"$book/src/index.html" <<'EOF'
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Leasehold</title><meta http-equiv="refresh" content="0; url=docs/README.html"></head>
<body><a href="docs/README.html">Leasehold</a></body></html>
EOF

mdbook build "$book"

[ -x "$book/python/bin/linkchecker" ] || {
    python3 -m venv "$book/python"
    "$book/python/bin/pip" install --quiet --disable-pip-version-check --requirement docs/book/requirements.txt
}
# A link to a heading that is not there is a warning, which counts.
printf '[AnchorCheck]\n[output]\nstatus=0\n' >"$book/linkchecker.ini"
"$book/python/bin/linkchecker" --config "$book/linkchecker.ini" "$book/html/index.html"
echo "book: $book/html/index.html"
