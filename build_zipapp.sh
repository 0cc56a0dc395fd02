#!/bin/sh
# Builds gnar.pyz, the one file that gnar is shipped as. All that it makes besides lies in build/.
set -eu

usage() {
    cat <<'EOF'
Usage: ./build_zipapp.sh --host
       ./build_zipapp.sh --which-python
       ./build_zipapp.sh --help

  --host          Make ./gnar.pyz for the Python and the platform of this machine.
  --which-python  Only print the Python that would be used.

The Python is $PYTHON if that is set, otherwise the first of python3 and python3.14 to python3.10
that is new enough (3.10). Delete build/ to fetch newer packages.
EOF
}

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "build_zipapp.sh: $*"
    exit 1
}

main() {
    case "$#:${1-}" in
        1:--host) ;;
        1:--which-python) find_python && exit ;;
        1:-h | 1:--help) usage && exit ;;
        0:) build_all ;;
        *) usage >&2 && exit 2 ;;
    esac
    cd "$(dirname "$0")"
    build_host
}

# The one file for every platform at once belongs here: DESIGN.md, "The one file". What is packed below
# takes any number of Pythons (BUILT_FOR is a list); what is missing is fetching their packages.
build_all() {
    say "build_zipapp.sh: the file for all platforms comes later; for this machine: ./build_zipapp.sh --host"
    exit 2
}

build_host() {
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make environments; install what is missing: apt-get install python$version-venv"
    tag=$(tag_of "$python")
    work="$PWD/build/$tag"
    mkdir -p "$work"
    lock
    set_surroundings
    fetch_packages
    pack
    report
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

# Prints where a Python really is; fails when it is missing or too old.
new_enough() {
    "$1" -c 'import sys; sys.version_info < (3, 10) and sys.exit(1); print(sys.executable)' 2>/dev/null
}

# What the compiled modules of a Python are marked with, such as cpython-311-x86_64-linux-gnu.
python_tag_code='
import sys
def python_tag():
    try:
        from _imp import extension_suffixes
    except ImportError:
        return "python%d%d" % sys.version_info[:2]
    tag = extension_suffixes()[0].split(".")[1]
    if sys.platform == "darwin":  # its tag lacks the processor
        import os
        tag += "-" + os.uname().machine
    return tag
'

tag_of() {
    "$1" -c "$python_tag_code
print(python_tag())"
}

# Nothing of the user's settings leads outside build/ or into another Python.
set_surroundings() {
    mkdir -p "$work/tmp"
    unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PIP_TARGET PIP_PREFIX PIP_USER PIP_ROOT SHIV_ROOT
    export TMPDIR="$work/tmp" PIP_CACHE_DIR="$PWD/build/cache/pip" XDG_CACHE_HOME="$PWD/build/cache"
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONDONTWRITEBYTECODE=1
}

# Two builds at once take turns. macOS has no flock; there nobody builds twice at once.
lock() {
    command -v flock >/dev/null || return 0
    exec 9>"$work/lock"
    flock 9
}

# Makes $work/venv with shiv, and $work/packages with what gnar needs; again only when that has changed.
fetch_packages() {
    stamp=$(
        cat pyproject.toml build_zipapp.sh | cksum
        "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
    )
    if [ -f "$work/stamp" ] && [ "$(cat "$work/stamp")" = "$stamp" ]; then
        return
    fi
    say "Fetching packages (once; later builds take seconds) ..."
    rm -rf "$work/stamp" "$work/venv" "$work/packages"
    "$python" -m venv "$work/venv" || fail "'$python -m venv' failed; apt-get install python3-venv may help"
    # The lists are split into words on purpose: one requirement is one word.
    # shellcheck disable=SC2046
    pip install $(requirements build) && pip install --no-compile --target "$work/packages" $(requirements) ||
        fail "pip could not fetch the packages (above it says why)"
    prune
    printf '%s\n' "$stamp" >"$work/stamp"
}

pip() { "$work/venv/bin/python" -m pip "$@" --quiet --prefer-binary; }

# Prints the requirements of gnar, or of one of its extras, from pyproject.toml.
requirements() {
    "$work/venv/bin/python" - "$@" <<'EOF'
import sys
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
lists = [project["optional-dependencies"][name] for name in sys.argv[1:]] or [project["dependencies"]]
print(*(requirement.replace(" ", "") for names in lists for requirement in names), sep="\n")
EOF
}

# Takes away what never runs: tests, sources, the loops of gevent that need cffi, and the compiled half of
# tomli (its Python half does the same). Licences and entry points stay.
prune() {
    (
        cd "$work/packages"
        rm -rf bin include gevent/tests gevent/testing gevent/libev/_corecffi* gevent/libuv/_corecffi*
        rm -rf ./*__mypyc*.so tomli/*.so
        find . -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} \;
        find . -type f \( -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyx' \
            -o -name '*.pxd' -o -name '*.pyi' -o -name py.typed -o -name tests.py \
            -o -path '*.dist-info/RECORD' -o -path '*.dist-info/WHEEL' -o -path '*.dist-info/INSTALLER' \
            -o -path '*.dist-info/REQUESTED' -o -path '*.dist-info/top_level.txt' \) -exec rm -f {} +
        # A real package comes before any other package called zope that a machine may have installed.
        : >zope/__init__.py
    )
}

# Packs packages and sources with shiv, then puts our own start-up into the file in place of shiv's.
pack() {
    rm -rf "$work/app"
    mkdir -p "$work/app"
    cp -R gnar.py gnar_lib "$work/app/"
    find "$work/app" -depth -type d -name __pycache__ -exec rm -rf {} \;
    chmod -R u=rwX,go=rX "$work/app" "$work/packages"
    "$work/venv/bin/python" -W ignore -m shiv --site-packages "$work/packages" --site-packages "$work/app" \
        --reproducible --compile-pyc --entry-point gnar:main --output-file "$work/shiv.pyz"
    write_start >"$work/start.py"
    "$work/venv/bin/python" - "$work/shiv.pyz" "$work/start.py" "$work/gnar.pyz" <<'EOF'
import json, platform, sys, zipfile
source, start, target = sys.argv[1:]
with open(start, encoding="utf-8") as file:
    start_code = file.read()
names = {}
exec(start_code.split("# -- start", 1)[0], names)
with zipfile.ZipFile(source) as old, open(target, "wb") as file:
    file.write(b"#!/usr/bin/env python3\n")
    entries = old.infolist()
    python = "%s %d.%d" % (platform.python_implementation(), *sys.version_info[:2])
    constants = {
        "BUILD_ID": json.loads(old.read("environment.json"))["build_id"][:16],
        "FILES": sum(entry.filename.startswith("site-packages/") for entry in entries),
        "BUILT_FOR": {names["python_tag"](): python},
    }
    header = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in entries:
            data = old.read(entry)
            new.writestr(entry, header + start_code if entry.filename == "__main__.py" else data)
EOF
    chmod 755 "$work/gnar.pyz"
    mv -f "$work/gnar.pyz" gnar.pyz # at once, so that whoever starts it meanwhile finds a whole file
    rm -rf "$work/tmp" "$work/shiv.pyz"
}

# Prints what starts gnar.pyz. shiv's own start-up takes 0.1 s longer, wants a home folder that can be written
# to, and meets a wrong Python with a traceback. Any Python, even 2.7, must be able to read it.
write_start() {
    printf '%s\n' "$python_tag_code"
    cat <<'EOF'
# -- start of gnar: unpack the file once into a folder of the user's; from then on start from there
import os
import stat


def fail(text):
    sys.exit("gnar.pyz: " + text)


def check_python():
    tag = python_tag()
    if tag not in BUILT_FOR:
        wanted = " or ".join("%s (%s)" % (BUILT_FOR[known], known) for known in sorted(BUILT_FOR))
        fail("it needs %s, and this is Python %d.%d (%s); run it with that Python or build one for this: "
             "./build_zipapp.sh --host" % ((wanted,) + tuple(sys.version_info[:2]) + (tag,)))


def folders():
    """Yield where the unpacked files may lie, the best first."""
    if os.environ.get("SHIV_ROOT"):
        yield os.environ["SHIV_ROOT"]
        return
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    home = os.path.expanduser("~")
    for above, cache in ((os.environ.get("XDG_CACHE_HOME", ""), ""), (home, ".cache")):
        # root with the HOME of somebody else (sudo) must not run what lies there
        if os.path.isabs(above) and owner(above) in (user, None):
            yield os.path.join(above, cache, "gnar")
    for above in (os.environ.get("TMPDIR"), os.environ.get("TEMP"), "/tmp", "/var/tmp", "/dev/shm"):
        if above and os.path.isabs(above):
            yield os.path.join(above, "gnar-%d" % user)


def owner(folder):
    try:
        return os.stat(folder).st_uid if hasattr(os, "geteuid") else None
    except OSError:
        return -1


def private(folder):
    """Say whether nobody else can put files here: what lies here is going to be run."""
    if "SHIV_ROOT" in os.environ or not hasattr(os, "geteuid"):
        return True
    info = os.lstat(folder)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o022


def whole(site):
    """Say whether all files are there: something may clean a temporary folder by the age of its files."""
    return FILES == sum(len(names) for at, _, names in os.walk(site) if not at.endswith("__pycache__"))


def find_site():
    name = "gnar-" + BUILD_ID
    for folder in folders():
        site = os.path.join(folder, name, "site-packages")
        if os.path.isdir(site) and private(folder) and whole(site):
            return site
    return unpack(name)


def unpack(name):
    import pathlib
    import zipfile
    from _bootstrap import extract_site_packages

    for folder in folders():
        target = os.path.join(folder, name)
        site = os.path.join(target, "site-packages")
        try:
            if not os.path.isdir(folder):
                os.makedirs(folder, 0o700)
            if not private(folder) or cannot_run_from(folder):
                continue
            damaged = os.path.isdir(site) and not whole(site)
            with zipfile.ZipFile(__loader__.archive) as archive:
                # a lock and a rename in there let several start at once
                extract_site_packages(archive, pathlib.Path(target), True, 1, damaged)
        except OSError:
            continue
        return site
    fail("there is no folder to unpack into; make one of these writable (or name one in SHIV_ROOT): "
         + ", ".join(folders()))


def cannot_run_from(folder):
    return hasattr(os, "statvfs") and os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)


def start():
    check_python()
    try:
        sys.path[0] = find_site()
    except KeyboardInterrupt:
        fail("stopped while unpacking")
    sys.modules.pop("zope", None)  # a .pth file of another installation may have made one
    try:
        import gnar

        status = gnar.main()
    except KeyboardInterrupt:  # before gnar takes signals itself
        status = 0
    sys.exit(status)


if __name__ == "__main__":
    start()
EOF
}

report() {
    say "gnar.pyz is ready: $(wc -c <gnar.pyz | tr -d ' ') bytes, for $("$python" -V)"
    if [ "$(tag_of python3 2>/dev/null)" != "$tag" ]; then
        say "python3 here is another Python; start the file as: $python gnar.pyz"
    fi
}

main "$@"
