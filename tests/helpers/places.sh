#!/bin/sh
# Makes other systems than that of this machine, in which tests/helpers/places.py uses gnar.pyz. See usage below.
set -eu

usage() {
    cat <<'TEXT'
Usage: tests/helpers/places.sh debian ARCHITECTURE FOLDER
       tests/helpers/places.sh musl FOLDER

  debian  Make FOLDER/python3, the root of a system that has nothing but the Python of a newer Debian, and
          FOLDER/libstdc++, which has that library besides. ARCHITECTURE is Debian's name of one, such as arm64.
  musl    Build FOLDER/python, a CPython on musl instead of glibc, from Debian's sources. Takes some minutes.

What is there already is kept, unless this script has changed. Only root can make them.
TEXT
}

suite=forky
newer_python=python3.14

say() { printf '%s\n' "$*" >&2; }

main() {
    case "$#:${1-}" in
        3:debian | 2:musl) ;;
        1:-h | 1:--help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    for folder in "$@"; do :; done # the last argument
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    stamp="$(cksum <"$0") $folder" # a system works only in the folder in which it was made
    exec 9>"$folder.lock" # two runs of the tests take turns
    flock 9
    if [ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ]; then
        rm -rf "$folder"
        mkdir "$folder"
        "make_$1" "$2"
        printf '%s\n' "$stamp" >"$folder/stamp"
    fi
}

# Unpacks packages and runs none of their scripts, so code for another processor and a shell are not needed.
# apt may use a list of packages that has expired.
unpack() {
    mmdebstrap --quiet --mode=root --variant=extract --aptopt='Acquire::Check-Valid-Until "false"' "$@"
}

make_debian() {
    unpack --architectures="$1" --include="$newer_python,libstdc++6" "$suite" "$folder/libstdc++"
    (
        cd "$folder/libstdc++"
        rm -rf dev etc var # gnar has to work without these
        mkdir app var var/tmp # tests mount something there
        for lib in usr/lib*; do ln -s "$lib" "${lib#usr/}"; done
        ln -s "$newer_python" usr/bin/python
        [ "$1" = "$(dpkg --print-architecture)" ] || cp "$(command -v qemu-aarch64-static)" emulator
        compile_library
    )
    cp -al "$folder/libstdc++" "$folder/python3"
    find "$folder/python3" -name 'libstdc++.so*' -exec rm {} +
}

# Compiles the modules of the standard library that gnar imports. The scripts of the package would compile all.
compile_library() {
    emulator=
    [ ! -e emulator ] || emulator=/emulator
    env -i "$(command -v chroot)" . $emulator /usr/bin/python -c '
import compileall, heapq, http.client, logging, platform, selectors, signal, socket, ssl, subprocess, tarfile, tempfile
import threading, uuid, zipfile'
}

# gevent and greenlet need musl 1.2.4, and Debian 12 has 1.2.3. So musl comes from the newer Debian; the compiler, and
# the sources of Python and of three libraries, come from the Debian of this machine.
make_musl() {
    machine=$(uname -m)
    prefix="$folder/prefix"
    mkdir "$folder/packages" "$folder/sources" "$folder/include"
    cd "$folder/packages"
    # shellcheck disable=SC2016 # mmdebstrap expands it
    unpack --include=musl-dev --extract-hook='APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq download musl-tools' \
        "$suite" "$folder/musl"
    dpkg-deb -x musl-tools_*.deb "$folder/musl"
    fetch_sources
    make_compiler
    export CC="$folder/cc" CFLAGS="-O1 -w -I$prefix/include" LDFLAGS="-L$prefix/lib"
    build_zlib
    build_lzma
    build_openssl
    build_python
    rm -rf "$folder/packages"
}

fetch_sources() {
    default_python=$(apt-cache show --no-all-versions python3 | sed -n 's/^Depends: \(python3\.[0-9]*\) .*/\1/p')
    # shellcheck disable=SC2016 # apt-get expands it
    apt-get indextargets --format 'deb-src $(REPO_URI) $(CODENAME) main' 'Identifier: Packages' \
        'Origin: Debian' 'Label: Debian' >sources.list
    mkdir -p lists/partial
    set -- -qq -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$PWD/lists" -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false
    apt-get "$@" update
    apt-get "$@" source --download-only zlib xz-utils openssl "$default_python"
    for archive in *.orig.tar.*; do
        case "$archive" in
            *.asc) ;;
            *) tar -xf "$archive" -C "$folder/sources" ;;
        esac
    done
}

# Makes $folder/cc, which runs gcc for the musl in $folder. Like gcc on a system with musl, it names musl as its
# platform. The headers of the kernel are those of this machine, since they are the same for every libc.
make_compiler() {
    sed -e "s#/usr/#$folder/musl/usr/#g" -e "s#/lib/ld-musl#$folder/musl/usr/lib/ld-musl#" \
        "$folder/musl/usr/lib/$machine-linux-musl/musl-gcc.specs" >"$folder/specs"
    ln -s /usr/include/linux /usr/include/asm-generic "/usr/include/$machine-linux-gnu/asm" "$folder/include"
    cat >"$folder/cc" <<TEXT
#!/bin/sh
case "\$*" in *-print-multiarch) echo $machine-linux-musl && exit ;; esac
exec gcc -specs "$folder/specs" -idirafter "$folder/include" "\$@"
TEXT
    chmod 755 "$folder/cc"
}

build_zlib() {
    cd "$folder"/sources/zlib-*
    CFLAGS="$CFLAGS -fPIC" ./configure --static --prefix="$prefix" >/dev/null
    make -s -j2 install >/dev/null
}

build_lzma() {
    cd "$folder"/sources/xz-*
    ./configure -q --host="$machine-linux-musl" --prefix="$prefix" --with-pic --disable-shared --disable-xz \
        --disable-xzdec --disable-lzmadec --disable-lzmainfo --disable-scripts --disable-doc --disable-nls
    make -s -j2 -C src/liblzma install >/dev/null
}

build_openssl() {
    cd "$folder"/sources/openssl-*
    ./Configure "linux-$machine" --prefix="$prefix" --libdir=lib no-shared no-module no-tests >/dev/null
    make -s -j2 build_libs >/dev/null
    make -s install_dev >/dev/null
}

# Builds a Python that runs in the folder of its sources. It lacks modules that gnar never imports, such as _bz2.
build_python() {
    cd "$folder"/sources/Python-*
    printf '%s\n' '*disabled*' _asyncio _bz2 _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw \
        _crypt _ctypes _curses _curses_panel _dbm _decimal _elementtree _gdbm _hashlib _multibytecodec _sqlite3 \
        _tkinter _uuid _xxsubinterpreters audioop nis ossaudiodev pyexpat readline spwd >Modules/Setup.local
    ./configure -q --build="$machine-linux-musl" --without-ensurepip --disable-test-modules \
        --with-openssl="$prefix"
    make -s -j2 >/dev/null
    ./python -c 'import lzma, select, socket, ssl, unicodedata, zlib'
    ln -s "$PWD/python" "$folder/python"
}

main "$@"
