"""Runs gnar on Linux as on Windows or macOS: without what these lack, and with the answers that these give.

    python tests/helpers/platforms.py windows server 8910

gevent and the standard library are imported first, for Linux. Then this module removes what the other
platform lacks, replaces what the other platform does in another way, and imports gnar. What each platform has
is written under "Availability" in the documentation of `socket`, `os` and `signal`, and in gevent's sources.
"""

from __future__ import annotations

import _socket  # has the type of all sockets: a method that is removed there is missing everywhere
import ctypes
import errno
import gc
import importlib
import os
import pkgutil
import signal
import socket
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

WINDOWS_SOCKETS = "PLATFORM_SOCKETS"  # the variable that says how many the loop can watch; 1,024 without it
WINDOWS_TICK_S = 1 / 64  # the step of `time.monotonic` before Python 3.13
WINDOWS_SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
WINDOWS_HAS_NO = {
    "os": """O_CLOEXEC O_NONBLOCK chown fchmod fork forkpty get_blocking getegid geteuid getgid getuid killpg
        mkfifo nice openpty pipe2 pread preadv pwrite pwritev readv register_at_fork sched_getaffinity
        sched_yield sendfile set_blocking setsid statvfs sysconf uname wait waitid writev""",
    "select": "epoll poll",
    "socket": """AF_UNIX CMSG_LEN CMSG_SPACE IPV6_RECVPKTINFO MSG_DONTWAIT SCM_RIGHTS SO_REUSEPORT
        TCP_NOTSENT_LOWAT""",
}
LINUX_ALONE_HAS = {
    "os": """eventfd memfd_create pidfd_open pipe2 sched_getaffinity splice SPLICE_F_MOVE SPLICE_F_MORE
        SPLICE_F_NONBLOCK""",
    "select": "epoll",
    "socket": """AF_ALG AF_NETLINK AF_PACKET AF_VSOCK IP_BIND_ADDRESS_NO_PORT IP_RECVTOS IP_TRANSPARENT
        MSG_NOSIGNAL SO_BINDTODEVICE SO_DOMAIN SO_INCOMING_CPU SO_MARK SO_PASSCRED SO_PEERCRED SO_PRIORITY
        SO_PROTOCOL TCP_CORK TCP_DEFER_ACCEPT TCP_INFO TCP_LINGER2 TCP_QUICKACK TCP_SYNCNT TCP_USER_TIMEOUT
        TCP_WINDOW_CLAMP""",
}
WINDOWS_HAS_NO_MODULE = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")

MACOS_DATAGRAM_BYTES = 9216  # the largest datagram, unless the buffer of the socket was made larger
MACOS_OPEN_MAX = 10240


# ---- how features go ---------------------------------------------------------------------------------------


def preload() -> None:
    """Import what gnar needs, and patch the standard library as gnar does, for Linux; no hub is made yet."""
    importlib.import_module("gevent").config.loop = "libev-cext"
    importlib.import_module("gevent.monkey").patch_all(ssl=False)
    for module in pkgutil.walk_packages([str(ROOT / "gnar_lib")], "gnar_lib."):
        importlib.import_module(module.name)
    for name in [*sys.modules]:
        if name.partition(".")[0] == "gnar_lib":
            del sys.modules[name]


def take_away(names: dict[str, str]) -> None:
    """Remove names from modules."""
    for module, missing in names.items():
        for name in missing.split():
            vars(importlib.import_module(module)).pop(name, None)


def replace_method(name: str, make: Callable[[Any], Any] | None) -> None:
    """Replace a method of all sockets by what `make` returns for the original; without `make` remove it."""
    methods = gc.get_referents(vars(_socket.socket))[0]  # the dictionary behind the read-only view
    original = methods.pop(name)
    if make is not None:
        methods[name] = make(original)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(_socket.socket))


# ---- Windows -----------------------------------------------------------------------------------------------


def become_windows() -> None:
    take_away(LINUX_ALONE_HAS)
    take_away(WINDOWS_HAS_NO)
    for module in WINDOWS_HAS_NO_MODULE:
        sys.modules[module] = None  # type: ignore[assignment]  # so an import of the module fails
    sys.modules["gevent.libuv._corecffi"] = None  # type: ignore[assignment]  # gnar.pyz does not have this module
    signal.SIGBREAK = signal.SIGUSR2  # type: ignore[attr-defined]  # the tests send SIGUSR2 for ^Break
    for name in [name for name in dir(signal) if name.startswith("SIG") and name not in WINDOWS_SIGNALS]:
        if name != "SIGBREAK":
            delattr(signal, name)
    socket.SO_EXCLUSIVEADDRUSE = socket.SO_KEEPALIVE  # type: ignore[attr-defined]  # an option that does no harm
    socket.errorTab = {errno.ECONNREFUSED: "Connection refused by a table."}  # type: ignore[attr-defined]
    for name in ("sendmsg", "recvmsg", "recvmsg_into"):
        replace_method(name, None)
    for name in ("_accept", "recv", "recv_into", "recvfrom", "send", "sendto", "shutdown", "getsockname"):
        replace_method(name, _with_errors_of_windows)
    replace_method("connect_ex", _connect_ex_of_windows)
    ssl = importlib.import_module("ssl")
    vars(ssl)["enum_certificates"] = lambda _store: []  # urllib asks Windows for certificates
    _limit_watched_sockets(int(os.environ.get(WINDOWS_SOCKETS, "1024")))
    _coarsen_clock()
    sys.platform = "win32"


def _with_errors_of_windows(original: Any) -> Any:
    def call(self: socket.socket, *args: Any) -> Any:
        try:
            return original(self, *args)
        except ConnectionRefusedError as exc:
            if self.type == socket.SOCK_DGRAM:
                raise ConnectionResetError(errno.ECONNRESET, "port unreachable") from exc
            raise
        except OSError as exc:
            if exc.errno == errno.EBADF:
                raise OSError(errno.ENOTSOCK, "not a socket") from exc
            raise

    return call


def _connect_ex_of_windows(original: Any) -> Any:
    def connect_ex(self: socket.socket, address: Any) -> int:
        status = int(original(self, address))
        return errno.EWOULDBLOCK if status == errno.EINPROGRESS else status

    return connect_ex


def _limit_watched_sockets(limit: int) -> None:
    """Make the loop refuse to watch more than `limit` sockets, as the loop of gevent on Windows does."""
    from gevent.libev import corecext

    watched: Counter[int] = Counter()
    original_loop: Any = corecext.loop
    original_io: Any = vars(corecext)["io"]

    class Io(original_io):  # type: ignore[misc]  # of a type that mypy does not see
        def __init__(self, loop: object, fd: int, *args: object) -> None:
            super().__init__(loop, fd, *args)
            self._counted = fd
            watched[fd] += 1

        def __del__(self) -> None:
            watched[self._counted] -= 1
            if not watched[self._counted]:
                del watched[self._counted]

    class Loop(original_loop):  # type: ignore[misc]  # as above
        def io(self, fd: int, events: int, ref: bool = True, priority: int | None = None) -> Io:
            if fd not in watched and len(watched) >= limit:
                raise OSError(f"cannot watch more than {limit} sockets")
            return Io(self, fd, events, ref, priority)

    vars(corecext)["loop"] = Loop


def _coarsen_clock() -> None:
    exact = time.monotonic
    time.monotonic = lambda: exact() // WINDOWS_TICK_S * WINDOWS_TICK_S


# ---- macOS -------------------------------------------------------------------------------------------------


def become_macos() -> None:
    take_away(LINUX_ALONE_HAS)
    socket.TCP_KEEPALIVE = vars(socket).pop("TCP_KEEPIDLE")  # type: ignore[attr-defined]  # its name there
    roomy: weakref.WeakSet[socket.socket] = weakref.WeakSet()
    replace_method("setsockopt", lambda original: _setsockopt_of_macos(original, roomy))
    for name in ("send", "sendto"):
        replace_method(name, lambda original: _send_of_macos(original, roomy))
    replace_method("bind", _bind_of_macos)
    _limit_descriptors(importlib.import_module("resource"))
    sys.platform = "darwin"


def _setsockopt_of_macos(original: Any, roomy: weakref.WeakSet[socket.socket]) -> Any:
    def setsockopt(self: socket.socket, level: int, option: int, *value: Any) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_SNDBUF):
            roomy.add(self)
        original(self, level, option, *value)

    return setsockopt


def _send_of_macos(original: Any, roomy: weakref.WeakSet[socket.socket]) -> Any:
    def send(self: socket.socket, data: bytes, *args: Any) -> int:
        if self.type == socket.SOCK_DGRAM and len(data) > MACOS_DATAGRAM_BYTES and self not in roomy:
            raise OSError(errno.EMSGSIZE, "Message too long")
        return int(original(self, data, *args))

    return send


def _bind_of_macos(original: Any) -> Any:
    def bind(self: socket.socket, address: Any) -> None:
        if not address or (isinstance(address, str) and address.startswith("\0")):
            raise FileNotFoundError(
                errno.ENOENT, "No such file or directory"
            )  # only Linux has names without one
        original(self, address)

    return bind


def _limit_descriptors(resource: Any) -> None:
    """Show no limit for descriptors, and refuse more than 10,240."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    original = resource.setrlimit
    limits = [min(256, soft), 1 << 62]

    def setrlimit(_which: int, wanted: tuple[int, int]) -> None:
        if wanted[0] > MACOS_OPEN_MAX:
            raise ValueError("current limit exceeds maximum limit")
        original(resource.RLIMIT_NOFILE, (min(wanted[0], hard), hard))

    resource.getrlimit = lambda _which: (limits[0], limits[1])
    resource.setrlimit = setrlimit


PLATFORMS = {"windows": become_windows, "macos": become_macos}


def main() -> int:
    platform, *sys.argv[1:] = sys.argv[1:]
    sys.path.insert(0, str(ROOT))
    preload()
    PLATFORMS[platform]()
    gnar = importlib.import_module("gnar")
    return int(gnar.main())


if __name__ == "__main__":
    sys.exit(main())
