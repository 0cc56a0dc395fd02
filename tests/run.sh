#!/bin/sh
# Runs all checks of gnar: style, types, the build, the tests. See usage below.
set -eu

usage() {
    cat <<'EOF'
Usage: tests/run.sh [--python PYTHON] [--all] [--coverage] [ARGUMENT-OF-PYTEST ...]

Installs the Python packages of the tests into an environment in build/. Started by root, also installs the
Debian packages with the tools that the tests use. Then runs build_zipapp.sh, shellcheck, ruff, mypy and pytest.
pytest runs six tests at once, beside mypy. With arguments for pytest, the tests run one after the other.

  --python PYTHON  Use this Python. Otherwise $PYTHON, or the one that build_zipapp.sh chooses.
  --all            Also run the tests that take minutes (marked slow).
  --coverage       Show which lines and branches of gnar_lib no test reaches. Programs that the tests start
                   are included; tests/pyz is left out. Takes longer.

With CI=true in the environment a skipped test is a failure.
EOF
}

# tool or file | Debian package | what needs it
tools='
curl|curl|end-to-end tests over HTTP
openssl|openssl|tests of TLS
nc|netcat-openbsd|tests of half-close
ip|iproute2|tests that pull the cable (network namespaces)
tcpdump|tcpdump|tests of what can be read on the way
lsof|lsof|tests of what finds local services on macOS
unshare|util-linux|tests that look for local services, of which a namespace has known ones
socat|socat|tests of the relay beside socat
tinyproxy|tinyproxy-bin|tests of dialling through an HTTP proxy
squid|squid|tests of dialling through an HTTP proxy
microsocks|microsocks|tests of dialling through a SOCKS proxy
gcc|gcc|tests that compile a helper in C
/usr/include/stdio.h|libc6-dev|tests that compile a helper in C
htpasswd|apache2-utils|tests of hashes of passwords
haproxy|haproxy|benchmarks, and tests of the PROXY protocol
iperf3|iperf3|benchmarks of bulk
wrk|wrk|benchmarks of HTTP
caddy|caddy|tests of names with HTTPS by Caddy
h2load|nghttp2-client|tests of HTTP/2, and of names with a crowd of users
nginx|nginx-light|benchmarks and tests with a real web server
/usr/lib/nginx/modules/ngx_stream_module.so|libnginx-mod-stream|tests of the PROXY protocol
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
prometheus|prometheus|tests of the metrics
promtool|prometheus|tests of the metrics
shellcheck|shellcheck|what is wrong in shell scripts
mmdebstrap|mmdebstrap|tests on other systems than this one
mount|mount|tests on other systems than this one
chromium|chromium|tests of the panel in a browser
chromedriver|chromium-driver|tests of the panel in a browser
npm|npm|tests of the panel for who cannot see or use a mouse
'
# The same list for the tools that only the slow tests need.
slow_tools='
pipx|pipx|tests of installing
buildah|buildah|tests that build the image
qemu-aarch64-static|qemu-user-static|tests on another processor
make|make|tests on musl
xz|xz-utils|tests on musl
pod2text|perl|tests on musl
'

axe_core=4.14.1 # the npm package axe-core, which finds what keeps people from using a page

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
            --coverage) pytest="coverage run -m pytest --ignore=tests/pyz" && shift ;;
            *) break ;;
        esac
    done
    cd "$(dirname "$0")/.."
    PATH="$PATH:/usr/sbin:/sbin" # Debian has ip, haproxy and nginx there, and only root's PATH has these folders
    PYTHON=$(PYTHON="${PYTHON:-}" ./build_zipapp.sh --which-python)
    unset PYTHONDONTWRITEBYTECODE # hundreds of processes would compile the same modules
    export PYTHON PATH PIP_CACHE_DIR="$PWD/build/cache/pip" PIP_DISABLE_PIP_VERSION_CHECK=1

    install_tools
    step "building gnar.pyz" ./build_zipapp.sh # first, since its messages say best what a new machine lacks
    make_environment
    PATH="$venv/bin:$PATH" # gnar.pyz is started by python3, which has to be that of the environment
    install_axe
    step "shellcheck" lint_shell
    step "ruff check" ruff check .
    step "ruff format" ruff format --check .
    mypy >build/mypy.txt 2>&1 & # takes one core, and the tests do not always need both
    mypy=$!
    # Pytest compiles the tests in its own way. If they are new, each of the workers would do that for itself.
    [ $# != 0 ] || [ -d tests/__pycache__ ] || python -m pytest --collect-only -q >/dev/null 2>&1 || true
    # The tests wait for half of their time, so six workers keep two cores busy.
    # tests/conftest.py puts the tests into an order in which few of them wait at the same time.
    [ $# != 0 ] || set -- -n 6 --durations=10 --durations-min=1
    [ "${pytest#coverage}" = "$pytest" ] || coverage erase
    failed=""
    # shellcheck disable=SC2086 # a command of several words
    step "pytest" $pytest -m "$unless_slow" "$@" || failed=$?
    [ "${pytest#coverage}" = "$pytest" ] || report_coverage
    wait $mypy || failed=$?
    step "mypy" cat build/mypy.txt
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

# SC2015 warns about `a && b || c`. Here c is meant to run when a or b fails.
lint_shell() {
    if [ "${CI:-}" != true ] && ! present shellcheck; then
        return # complain() has said that it is missing
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

# Runs apt-get. Waits if another apt-get is running.
apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

# Installs packages one at a time: if a release lacks one of them, the others are still installed.
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

# Makes the environment $venv with the packages of gnar and of its tests. Sets $venv. Does nothing if the environment
# was made with the same pyproject.toml and the same Python. The tools are those of build_zipapp.sh.
make_environment() {
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    venv="$PWD/build/test-$version"
    tools_bin="$PWD/build/tools-$version/bin"
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
    "$PYTHON" -m venv --without-pip "$venv"
    requirements >"$venv/requirements.txt"
    # uv takes 2 s for what takes pip 30 s.
    UV_CACHE_DIR="$PWD/build/cache/uv" UV_NO_CONFIG=1 "$tools_bin/uv" pip install --quiet --link-mode=copy --compile-bytecode \
        --python "$venv/bin/python" --requirement "$venv/requirements.txt"
    printf '%s\n' "$stamp" >"$venv/stamp"
}

# Installs axe-core into build/, unless it is there in this version.
install_axe() {
    grep -qs "\"version\": \"$axe_core\"" build/axe-core/node_modules/axe-core/package.json && return
    present npm || return 0 # complain() has said that it is missing
    say "== installing axe-core"
    mkdir -p build/axe-core
    npm_config_cache="$PWD/build/cache/npm" npm install --silent --no-save --no-audit --no-fund --ignore-scripts \
        --no-update-notifier --prefix build/axe-core "axe-core@$axe_core"
}

requirements() {
    "$tools_bin/python" - <<'EOF'
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
