#!/bin/sh
# Builds gnar.pyz, the one file that gnar is shipped as. All other files that this script makes are in build/.
set -eu

usage() {
    cat <<'EOF'
Usage: ./build_zipapp.sh [--output FILE]
       ./build_zipapp.sh --host [--output FILE]
       ./build_zipapp.sh --platform NAME [--platform NAME ...] [--output FILE]
       ./build_zipapp.sh --renew-pins
       ./build_zipapp.sh --which-python
       ./build_zipapp.sh --help

Without an option, makes ./gnar.pyz for every host: CPython 3.10 to 3.14 on Linux (x86_64 and aarch64, with
glibc 2.28 or musl 1.2.4), macOS (Intel and Apple silicon) and Windows (x86_64).

  --host           Make the file for the Python and the platform of this host alone: a tenth of the size, or less.
  --platform NAME  Make the file for every Python on one platform: linux-x86_64, linux-aarch64,
                   linux-x86_64-musl, linux-aarch64-musl, macos-x86_64, macos-arm64 or windows-x86_64.
  --output FILE    Write FILE instead of ./gnar.pyz.
  --renew-pins     Write the newest version of every package into pyz/pins/.
  --which-python   Only print the path of the Python that would be used.

The build runs under $PYTHON if that is set, otherwise under the first of python3, python3.14, ..., python3.10
that is version 3.10 or newer. Packages are checked against the hashes in pyz/pins/, and kept in build/.
EOF
}

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "build_zipapp.sh: $*"
    exit 1
}

main() {
    for argument in "$@"; do
        case "$argument" in
            -h | --help) usage && exit ;;
            --which-python) find_python && exit ;;
            --host) tools=shiv ;;
        esac
    done
    python=$(find_python) # before cd: $PYTHON may be a path from the present folder
    started_in=$PWD
    cd "$(dirname "$0")"
    mkdir -p build
    lock
    set_surroundings
    for tool in ${tools:-shiv uv}; do install "$tool"; done
    exec "$venv/bin/python" -m pyz --started-in "$started_in" "$@"
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" && return
        fail "PYTHON=$PYTHON is not a Python of version 3.10 or newer"
    fi
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        new_enough "$name" && return
    done
    fail "Python 3.10 or newer is needed and not found; install it: apt-get install python3 python3-venv"
}

# Prints the absolute path of a Python. Fails when the Python is missing or too old.
new_enough() {
    "$1" -c 'import sys; sys.version_info < (3, 10) and sys.exit(1); print(sys.executable)' 2>/dev/null
}

# Makes builds of the same tree take turns. macOS has no flock: there two builds at once are not safe.
lock() {
    command -v flock >/dev/null || return 0
    exec 9>build/lock
    flock 9
}

# Keeps the tools from writing outside build/ and from using packages of another Python, whatever the user has set.
set_surroundings() {
    venv="$PWD/build/tools-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    mkdir -p build/tmp
    unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PIP_TARGET PIP_PREFIX PIP_USER PIP_ROOT SHIV_ROOT
    export TMPDIR="$PWD/build/tmp" XDG_CACHE_HOME="$PWD/build/cache"
    export PIP_CACHE_DIR="$PWD/build/cache/pip" UV_CACHE_DIR="$PWD/build/cache/uv"
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never PYTHONDONTWRITEBYTECODE=1
}

# Installs a tool of pyz/pins/ into $venv, unless that has just this version. $venv is made if needed.
install() {
    interpreter=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
    if [ "$(cat "$venv/interpreter" 2>/dev/null)" != "$interpreter" ]; then
        rm -rf "$venv"
        make_venv
        printf '%s\n' "$interpreter" >"$venv/interpreter"
    fi
    if cmp -s "pyz/pins/$1.txt" "$venv/$1.txt"; then
        return
    fi
    say "installing $1, a tool of the build"
    "$venv/bin/python" -m pip install --quiet --only-binary :all: --require-hashes --requirement "pyz/pins/$1.txt" ||
        fail "pip could not install $1 (the reason is above)"
    cp "pyz/pins/$1.txt" "$venv/$1.txt"
}

make_venv() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make environments; install what is missing: apt-get install $(venv_package)"
    "$python" -m venv "$venv" || fail "'$python -m venv' failed; apt-get install python3-venv may help"
}

venv_package() { "$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'; }

main "$@"
