#!/bin/sh
# Renews the files below share/, which are made from the texts of --help and are part of the package.
# $PYTHON, otherwise python3, has to have gnar's packages, as that of the tests has.
set -eu
cd "$(dirname "$0")"

renew() {
    file=$1
    shift
    "${PYTHON:-python3}" ../gnar.py "$@" >"$file.new" || { rm "$file.new" && exit 1; }
    mv "$file.new" "$file"
}

renew man/man1/gnar.1 man
renew bash-completion/completions/gnar completion bash
renew zsh/site-functions/_gnar completion zsh
renew fish/vendor_completions.d/gnar.fish completion fish
