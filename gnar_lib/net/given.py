"""The sockets that a service manager has opened for this process, as sd_listen_fds(3) describes."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from gnar_lib.errors import UsageError
from gnar_lib.net.address import format_address
from gnar_lib.net.conn import socket_class
from gnar_lib.net.options import set_common_options

MAX_DIGITS = 4  # of the number of sockets
FIRST = 3  # the number of the first descriptor; the others follow
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class GivenSocket:
    """A TCP socket that listens, or a UDP socket that is bound; the service manager calls it `name`."""

    name: str
    sock: socket.socket

    @property
    def kind(self) -> str:
        """What it is for: "tcp" or "udp"."""
        return "tcp" if self.sock.type == socket.SOCK_STREAM else "udp"

    @property
    def port(self) -> int:
        """The port on which it listens, or to which it is bound."""
        return int(self.sock.getsockname()[1])

    def __str__(self) -> str:
        return f"{self.kind} {format_address(self.sock.getsockname())} ({self.name})"


def given_sockets() -> list[GivenSocket]:
    """Return the sockets that are for this process, in order; the caller closes them.

    Removes the variables that name them from the environment, so that no child takes them for its own. Raises
    `UsageError` if the variables make no sense, or for a socket of another kind.
    """
    pid, count, names = (os.environ.pop(name, "") for name in _VARIABLES)
    if not count or pid != str(os.getpid()):
        return []
    if not count.isascii() or not count.isdecimal() or len(count) > MAX_DIGITS:
        raise UsageError(f"LISTEN_FDS={count!r}: expected the number of sockets")
    named = names.split(":") if names else []
    return [
        _given(FIRST + index, named[index] if index < len(named) else "unknown")
        for index in range(int(count))
    ]


def _given(number: int, name: str) -> GivenSocket:
    """Return the socket with a descriptor; raises `UsageError`."""
    try:
        os.set_inheritable(number, False)
        sock = socket_class(fileno=number)
    except OSError as exc:
        raise UsageError(f"LISTEN_FDS: descriptor {number} ({name}): {exc.strerror}") from exc
    if reason := _why_unfit(sock):
        sock.close()
        raise UsageError(f"LISTEN_FDS: {name} {reason}")
    if sock.type == socket.SOCK_STREAM:
        set_common_options(sock)  # accepted sockets inherit them
    return GivenSocket(name, sock)


def _why_unfit(sock: socket.socket) -> str:
    """Return why a socket cannot be used; empty if it can."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type not in kinds:
        return "is no socket of TCP or UDP"
    if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen; a unit with Accept=yes does not fit"
    return ""
