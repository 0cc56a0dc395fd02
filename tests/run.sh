#!/bin/sh
# Runs everything that says whether gnar works: style, types, the build, the tests. See usage below.
set -eu

usage() {
    cat <<'EOF'
Usage: tests/run.sh [--python PYTHON] [--all] [--coverage] [ARGUMENT-OF-PYTEST ...]

Makes its own environment in build/, installs what it needs there, and as root also the Debian packages
with the tools that tests talk to. Then: build_zipapp.sh, shellcheck, ruff, mypy, pytest.
pytest runs four tests at once; with arguments of its own it runs them one after the other.
The Python is that of --python, or $PYTHON, or what build_zipapp.sh picks.
--all runs the tests that take minutes (marked slow) too.
--coverage shows which lines and branches of gnar_lib no test reaches, programs that tests start included.
That takes longer.
With CI=true a skipped test is a failure.
EOF
}

# tool or file | Debian package | what needs it
tools='
curl|curl|end-to-end tests over HTTP
nc|netcat-openbsd|tests of half-close
ip|iproute2|tests that pull the cable (network namespaces)
socat|socat|tests of the relay beside socat
gcc|gcc|tests that compile a helper in C
/usr/include/stdio.h|libc6-dev|tests that compile a helper in C
haproxy|haproxy|benchmarks
iperf3|iperf3|benchmarks of bulk
wrk|wrk|benchmarks of HTTP
nginx|nginx-light|benchmarks and tests with a real web server
go|golang-go|tests with the Go peers
/usr/share/gocode/src/github.com/hashicorp/yamux|golang-github-hashicorp-yamux-dev|tests of multiplexing with Go
dnsmasq|dnsmasq-base|tests of UDP with a real DNS server
dig|dnsutils|tests of UDP with a real DNS server
systemd-analyze|systemd|tests of the unit files
zsh|zsh|tests of completion
fish|fish|tests of completion
mandoc|mandoc|tests of the manual page
groff|groff-base|tests of the manual page
setpriv|util-linux|tests as another user
shellcheck|shellcheck|what is wrong in shell scripts
mmdebstrap|mmdebstrap|tests on other systems than this one
mount|mount|tests on other systems than this one
'
# The same of what slow tests alone need.
slow_tools='
pipx|pipx|tests of installing
buildah|buildah|tests that build the image
qemu-aarch64-static|qemu-user-static|tests on another processor
make|make|tests on musl
xz|xz-utils|tests on musl
'

say() { printf '%s\n' "$*" >&2; }

main() {
    unless_slow="not slow"
    pytest="python -m pytest"
    while true; do
        case "${1-}" in
            -h | --help) usage && exit ;;
            --python) PYTHON=${2:?"--python needs the name of a Python"} && shift 2 ;;
            --python=*) PYTHON=${1#*=} && shift ;;
            --all) unless_slow="" && tools="$tools$slow_tools" && shift ;;
            --coverage) pytest="coverage run -m pytest" && shift ;;
            *) break ;;
        esac
    done
    cd "$(dirname "$0")/.."
    PATH="$PATH:/usr/sbin:/sbin" # where Debian keeps ip, haproxy and nginx, for people who are not root
    PYTHON=$(PYTHON="${PYTHON:-}" ./build_zipapp.sh --which-python)
    export PYTHON PATH PIP_CACHE_DIR="$PWD/build/cache/pip" PIP_DISABLE_PIP_VERSION_CHECK=1

    install_tools
    step "building gnar.pyz" ./build_zipapp.sh # first: it says best what a bare machine lacks
    make_environment
    PATH="$venv/bin:$PATH" # gnar.pyz starts with python3, and that has to be this one
    step "shellcheck" lint_shell
    step "ruff check" ruff check .
    step "ruff format" ruff format --check .
    step "mypy" mypy
    # Half of the time of the tests is waiting, so four workers keep two cores busy. They get one test at a time,
    # in an order in which few wait at the same time (tests/conftest.py).
    [ $# != 0 ] || set -- -n 4 --dist load --maxschedchunk 1 --durations=10 --durations-min=1
    [ "${pytest#coverage}" = "$pytest" ] || coverage erase
    failed=""
    # shellcheck disable=SC2086 # a command of several words
    step "pytest" $pytest -m "$unless_slow" "$@" || failed=$?
    [ "${pytest#coverage}" = "$pytest" ] || report_coverage
    return ${failed:-0}
}

report_coverage() {
    step "coverage" coverage combine --quiet
    coverage report
}

step() {
    say "== $1"
    shift
    "$@"
}

# SC2015: in `a && b || c`, c is meant for the failure of either.
lint_shell() {
    if [ "${CI:-}" != true ] && ! present shellcheck; then
        return # complain() has told
    fi
    # shellcheck disable=SC2046 # no name of a script has a space in it
    shellcheck --exclude=SC2015 .ci/run $(git ls-files '*.sh' 2>/dev/null || printf '%s\n' *.sh tests/*.sh tests/*/*.sh)
}

install_tools() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "== installing Debian packages: $missing"
        # shellcheck disable=SC2086 # one word for each package
        apt_get update && apt_get install $missing || one_by_one $missing
        missing=$(missing_packages)
    fi
    [ -z "$missing" ] || complain
}

# Another apt-get that runs is waited for.
apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

# Where a release lacks one of them, the others still come.
one_by_one() {
    for package in "$@"; do
        apt_get install "$package" || say "apt-get could not install $package"
    done
}

missing_packages() {
    printf '%s' "$tools" | while IFS='|' read -r what package _; do
        [ -z "$what" ] || present "$what" || printf '%s ' "$package"
    done
}

present() {
    case "$1" in
        /*) [ -e "$1" ] ;;
        nc) nc -h 2>&1 | grep -q OpenBSD ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

complain() {
    say "!! These Debian packages are missing, and only root can install them. What cannot run without them:"
    printf '%s' "$tools" | while IFS='|' read -r what package purpose; do
        [ -z "$what" ] || present "$what" || say "!!   $package: $purpose"
    done
    say "!! To install them: sudo apt-get install $missing"
}

# Makes $venv with gnar's packages and those of its tests; again only when the lists or the Python changed.
make_environment() {
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    venv="$PWD/build/test-$version"
    stamp=$(
        cksum <pyproject.toml
        "$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)'
    )
    ! command -v flock >/dev/null || { exec 8>build/test.lock && flock 8; } # two runs take turns
    if [ ! -f "$venv/stamp" ] || [ "$(cat "$venv/stamp")" != "$stamp" ]; then
        install_packages
    fi
    exec 8>&- # nobody waits for the tests of another run
}

install_packages() {
    say "== installing the packages of the tests"
    rm -rf "$venv"
    "$PYTHON" -m venv "$venv"
    requirements >"$venv/requirements.txt"
    "$venv/bin/python" -m pip install --quiet --prefer-binary --requirement "$venv/requirements.txt"
    printf '%s\n' "$stamp" >"$venv/stamp"
}

requirements() {
    "$venv/bin/python" - <<'EOF'
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["test"], sep="\n")
EOF
}

main "$@"
