#!/bin/sh
# Renews the manual page and the completion scripts below share/. They are made from the texts of --help, and are
# part of the package. The script uses $PYTHON, or else python3. This Python needs gnar's dependencies; the
# environment of the tests has them (build/test-VERSION/bin/python).
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
