"""The options behind an address of a relay, by socat's names: which there are, and what they may be.

An option that changes nothing at a relay of gnar is read all the same, so that command lines for socat work
as they are. An option that gnar does not support is refused by name, not ignored.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import socket
from collections.abc import Callable, Collection
from typing import Any

from gnar_lib.config.values import MAX_SECONDS, MIN_TIMEOUT_S
from gnar_lib.errors import UsageError
from gnar_lib.net.options import SocketOption
from gnar_lib.relay import proxy_options, tls_options
from gnar_lib.relay.accounts import find_account, find_group, find_owner
from gnar_lib.relay.ranges import read_range

_MAX_INT = 2**31 - 1  # of C
_EVERYTHING = 0o777

FAMILIES = {
    **dict.fromkeys(("ip4", "ipv4", "inet", "inet4", "2"), int(socket.AF_INET)),
    **dict.fromkeys(("ip6", "ipv6", "inet6", "10"), int(socket.AF_INET6)),
}


def _always(text: str) -> bool:
    """Read a switch that cannot be switched off."""
    if not _flag(text):
        raise UsageError("is not supported")
    return True


def _flag(text: str) -> bool:
    """Read a switch: no value, and 1, are true, and 0 is false."""
    if text not in ("", "0", "1"):
        raise UsageError("is neither 0 nor 1")
    return text != "0"


def _number(text: str) -> int:
    """Read a number as C does: 0x10 is hexadecimal, 010 octal, and no value is 1."""
    try:
        is_octal = text.startswith("0") and text.isdecimal()
        number = int(text[:32], 8 if is_octal else 0) if text else 1
    except ValueError:
        number = -1
    if not 0 <= number <= _MAX_INT:
        raise UsageError(f"is not a number from 0 to {_MAX_INT}")
    return number


def _between(least: int, most: int) -> Callable[[str], int]:
    """Return the reader of a number for which the kernel has limits."""

    def read(text: str) -> int:
        number = _number(text)
        if not least <= number <= most:
            raise UsageError(f"is not a number from {least} to {most}")
        return number

    return read


_count = _between(1, _MAX_INT)


def read_seconds(text: str, least_s: float = MIN_TIMEOUT_S) -> float:
    """Read a time in seconds; more than a day is as good as a day. Raises `UsageError`."""
    try:
        seconds = float(text) if text.isascii() else math.nan
    except ValueError:
        seconds = math.nan
    if not seconds >= least_s:
        raise UsageError(f"is not a number of seconds from {least_s:g} on")
    return min(seconds, MAX_SECONDS)


def _mode(text: str) -> int:
    """Read permissions, in octal as with chmod."""
    if not text or len(text) > 4 or set(text) - set("01234567") or int(text, 8) > _EVERYTHING:  # noqa: PLR2004  (0777 is the most)
        raise UsageError("is not a number from 000 to 777")
    return int(text, 8)


def _local_address(text: str) -> str:
    """Read a local address to listen on, which may be a name."""
    if not text:
        raise UsageError("is not an address")
    return text.strip("[]")


def local_ip(text: str) -> str:
    """Return the IP address to dial from, checked; raises `UsageError`."""
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        raise UsageError(f"option 'bind={text}' is not an IP address") from None


def _family(text: str) -> int:
    try:
        return FAMILIES[text.lower()]
    except KeyError:
        raise UsageError("is neither ip4 nor ip6") from None


def _device(text: str) -> bytes:
    if not text:
        raise UsageError("is not a network interface")
    return os.fsencode(text)


# What the kernel does for each socket of an address: the reader of the value, and the names of the option in
# the socket module. The limits are those of Linux.
_KERNEL: dict[str, tuple[Callable[[str], int | bytes], str, str]] = {
    "keepalive": (_flag, "SOL_SOCKET", "SO_KEEPALIVE"),
    "reuseport": (_flag, "SOL_SOCKET", "SO_REUSEPORT"),
    "sndbuf": (_number, "SOL_SOCKET", "SO_SNDBUF"),
    "rcvbuf": (_number, "SOL_SOCKET", "SO_RCVBUF"),
    "so-bindtodevice": (_device, "SOL_SOCKET", "SO_BINDTODEVICE"),
    "nodelay": (_flag, "IPPROTO_TCP", "TCP_NODELAY"),
    "keepidle": (_between(1, 32767), "IPPROTO_TCP", "TCP_KEEPIDLE"),
    "keepintvl": (_between(1, 32767), "IPPROTO_TCP", "TCP_KEEPINTVL"),
    "keepcnt": (_between(1, 127), "IPPROTO_TCP", "TCP_KEEPCNT"),
    "mss": (_between(88, 32767), "IPPROTO_TCP", "TCP_MAXSEG"),
    "tos": (_between(0, 255), "IPPROTO_IP", "IP_TOS"),
    "ttl": (_between(1, 255), "IPPROTO_IP", "IP_TTL"),
    "ipv6-v6only": (_flag, "IPPROTO_IPV6", "IPV6_V6ONLY"),
}
_READERS: dict[str, Callable[[str], Any]] = {
    **{name: reader for name, (reader, _, _) in _KERNEL.items()},
    # These change nothing here: gnar works like that anyway, or does not need it.
    "reuseaddr": _always,
    "unlink-early": _flag,
    "backlog": _number,
    "ignoreeof": _flag,
    "broadcast": _flag,
    "nonblock": _flag,
    "cloexec": _flag,
    "cool-write": _flag,
    "shut-down": _always,
    # These do what they do in socat.
    "fork": _flag,
    "bind": _local_address,
    "pf": _family,
    "range": read_range,
    "max-children": _count,
    "su": find_account,
    "retry": _number,
    "interval": read_seconds,
    "forever": _flag,
    "connect-timeout": read_seconds,
    "mode": _mode,
    "umask": _mode,
    "user": find_owner,
    "group": find_group,
    "unlink-close": _flag,
    **tls_options.readers(_flag),
    **proxy_options.readers(_flag),
}
_ALIASES = {
    "so-reuseaddr": "reuseaddr",
    "new": "unlink-early",
    "unlink": "unlink-early",
    "delete": "unlink-early",
    "remove": "unlink-early",
    "so-broadcast": "broadcast",
    "o-nonblock": "nonblock",
    "coolwrite": "cool-write",
    "so-keepalive": "keepalive",
    "so-reuseport": "reuseport",
    "so-sndbuf": "sndbuf",
    "so-rcvbuf": "rcvbuf",
    "bindtodevice": "so-bindtodevice",
    "interface": "so-bindtodevice",
    "if": "so-bindtodevice",
    "tcp-nodelay": "nodelay",
    "tcp-keepidle": "keepidle",
    "tcp-keepintvl": "keepintvl",
    "tcp-keepcnt": "keepcnt",
    "maxseg": "mss",
    "tcp-maxseg": "mss",
    "ip-tos": "tos",
    "iptos": "tos",
    "ip-ttl": "ttl",
    "ipttl": "ttl",
    "v6only": "ipv6-v6only",
    "ipv6only": "ipv6-v6only",
    "protocol-family": "pf",
    "maxchildren": "max-children",
    "substuser": "su",
    "substuser-delayed": "su",
    "su-d": "su",
    "perm": "mode",
    "owner": "user",
    "uid": "user",
    "gid": "group",
    **tls_options.ALIASES,
    **proxy_options.ALIASES,
}

_ANYWHERE = {"ignoreeof", "nonblock", "cloexec", "cool-write", "shut-down", "reuseaddr"}
_STREAM = {"keepalive", "sndbuf", "rcvbuf"}
_TCP = {"nodelay", "keepidle", "keepintvl", "keepcnt", "mss", "tos", "ttl", "reuseport", "so-bindtodevice"}
_RETRY = {"retry", "interval", "forever"}
_LISTEN = _ANYWHERE | _RETRY | {"fork", "backlog", "su"}
_IP_LISTEN = _LISTEN | {"bind", "pf", "range", "ipv6-v6only", "reuseport", "so-bindtodevice"}
_FILE = {"mode", "umask", "user", "group", "unlink-early", "unlink-close"}
_IP_TARGET = _ANYWHERE | {"bind", "pf", "connect-timeout"}
_TCP_LISTEN = _IP_LISTEN | _STREAM | _TCP | {"max-children"}
_TCP_TARGET = _IP_TARGET | _RETRY | _STREAM | _TCP

LISTENING = {
    "tcp": _TCP_LISTEN,
    "tls-listen": _TCP_LISTEN | tls_options.LISTENING,
    "unix": _LISTEN | _STREAM | _FILE | {"max-children"},
    "udp": _IP_LISTEN | {"broadcast", "sndbuf", "rcvbuf"},
    "unix-dgram": _LISTEN | _FILE,
}
TARGET = {
    "tcp": _TCP_TARGET | proxy_options.TARGET,
    "tls": _TCP_TARGET | proxy_options.TARGET | tls_options.TARGET,
    **{keyword: _TCP_TARGET | options for keyword, options in proxy_options.OF_KEYWORD.items()},
    "unix": _ANYWHERE | _RETRY | _STREAM | {"connect-timeout"},
    "udp": _IP_TARGET | {"broadcast"},
    "unix-dgram": _ANYWHERE,
}


def read_options(given: list[list[str]], known: Collection[str]) -> dict[str, Any]:
    """Return the values of options by name; raises `UsageError` for one that is not `known`, or is wrong.

    `given` is the text of each option, split at colons.
    """
    values = {}
    for option in given:
        name, has_value, text = ":".join(option).partition("=")
        name = name.strip().lower()
        name = _ALIASES.get(name, name)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "leave it out if you can do without"
            hint = tls_options.REFUSED.get(name, hint)
            hint = "it belongs to other addresses" if name in _READERS else hint
            raise UsageError(f"option {proxy_options.masked(name)!r} is not supported here ({hint})")
        try:
            values[name] = _READERS[name](text)
        except UsageError as exc:
            shown = "***" if name in proxy_options.SECRET else text
            raise UsageError(f"option '{name}{has_value}{shown}' {exc}") from None
    return values


def kernel_options(values: dict[str, Any]) -> tuple[SocketOption, ...]:
    """Return what the kernel is to do for each socket; raises `UsageError` where the system cannot."""
    found = []
    for name, (_, level, option) in _KERNEL.items():
        if name in values:
            if not (hasattr(socket, level) and hasattr(socket, option)):
                raise UsageError(f"option {name!r} is not supported on this system")
            value = values[name] if name == "so-bindtodevice" else int(values[name])
            found.append(SocketOption(name, getattr(socket, level), getattr(socket, option), value))
    return tuple(found)
