"""Addresses: resolving them, and showing them to people."""

from __future__ import annotations

import socket
from typing import Any

import gevent.socket
from gevent import monkey

from gnar_lib.errors import DialError, UnreachableError, UsageError

Sockaddr = tuple[Any, ...] | str
"""An address of the socket module: `(host, port, ...)`, or the path of a Unix socket."""

_look_up: Any = monkey.get_original("socket", "getaddrinfo")  # waits for DNS without giving way
_AF_UNIX: int | None = getattr(socket, "AF_UNIX", None)  # None on Windows, where Python cannot open them


def unix_family() -> int:
    """Return the family of Unix sockets; raises `UsageError` on a system that has none."""
    if _AF_UNIX is None:
        raise UsageError("this platform has no Unix sockets")
    return _AF_UNIX


def is_unix(family: int) -> bool:
    """Tell whether addresses of this family are paths."""
    return family == _AF_UNIX


def format_address(address: Sockaddr | None) -> str:
    """Return an address for people: `host:port`, IPv6 in brackets, IPv4 in IPv6 as IPv4, a path as it is."""
    if not isinstance(address, tuple):
        return (address or "") if isinstance(address, str) else "?"
    host = address[0].removeprefix("::ffff:") if "." in address[0] else address[0]
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def read_address(text: str) -> tuple[str, int] | None:
    """Return host and port of what `format_address` has shown of an IP address; None if the text is none."""
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal()):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def host_of(address: Sockaddr) -> str:
    """Return the host of an address as `format_address` shows it; empty for a path."""
    return "" if isinstance(address, str) else format_address(address).rsplit(":", 1)[0]


def network_of(address: Sockaddr) -> str:
    """Return what belongs to one owner: an IPv4 address, or the first 64 bits of an IPv6 address."""
    host = host_of(address)
    if ":" not in host:
        return host
    return socket.inet_pton(socket.AF_INET6, host.strip("[]").partition("%")[0])[:8].hex()


def resolve(
    host: str, port: int, kind: int = socket.SOCK_STREAM, family: int = socket.AF_UNSPEC
) -> list[tuple[int, Sockaddr]]:
    """Return `(family, address)` for each address of a host, the preferred one first.

    Other greenlets go on while this one waits for DNS. Raises `DialError` if the name is unknown, or if the
    host has no address of the `family` that is asked for; `UnreachableError` if DNS does not answer.
    """
    try:
        host.encode("idna")  # getaddrinfo does so in a thread of gevent, which would log a traceback
        found = _numeric(host, port, kind) or gevent.socket.getaddrinfo(host or None, port, type=kind)
    except UnicodeError as exc:
        raise DialError(f"cannot resolve {host!r}: no host can have such a name") from exc
    except OSError as exc:
        error = UnreachableError if exc.errno == socket.EAI_AGAIN else DialError
        raise error(f"cannot resolve {host!r}: {exc.strerror or exc}") from exc
    addresses: list[tuple[int, Sockaddr]] = [(each, address) for each, _, _, _, address in found]
    fitting = [each for each in addresses if family in (socket.AF_UNSPEC, each[0])]
    if not fitting:
        raise DialError(f"{host} has no {'IPv4' if family == socket.AF_INET else 'IPv6'} address")
    return fitting


def _numeric(host: str, port: int, kind: int) -> list[Any]:
    """Return what `getaddrinfo` makes of an IP address, at once; an empty list for a name.

    gevent asks a thread for an IP address, too, which takes milliseconds.
    """
    try:
        return list(_look_up(host, port, type=kind, flags=socket.AI_NUMERICHOST)) if host else []
    except OSError:
        return []


def family_of(source: str, default: int = socket.AF_UNSPEC) -> int:
    """Return the family of the local IP address `source`, from which to dial; `default` if that is empty."""
    if not source:
        return default
    return socket.AF_INET6 if ":" in source else socket.AF_INET
