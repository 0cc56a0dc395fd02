"""Parses the addresses of a relay, in gnar's spelling and in socat's; opens nothing.

gnar's spelling is `tcp:9000`, `tcp:HOST:PORT` or `unix:PATH`, and for datagrams `udp:PORT`, `udp:HOST:PORT`
or `unix-dgram:PATH`. An address in socat's spelling (`UNIX-LISTEN:/tmp/x.sock,reuseaddr,fork`,
`TCP:HOST:PORT`) means what it means to socat: without `fork` the relay serves one connection, or one user.
An option that gnar does not support is refused by name, not ignored.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, replace
from enum import Enum

from gnar_lib import net
from gnar_lib.config.model import MAX_PORT
from gnar_lib.errors import UsageError

_CLOSING = {"(": ")", "[": "]", "{": "}", "'": "'", '"': '"'}

_ANY, _V4, _V6 = int(socket.AF_UNSPEC), int(socket.AF_INET), int(socket.AF_INET6)
_EVERYWHERE = {_ANY: "", _V4: "0.0.0.0", _V6: "::"}


class Role(Enum):
    """The side of a relay that an address is for."""

    LISTEN = "listen"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a keyword at the beginning of an address stands for."""

    transport: str  # "tcp", "unix", "udp" or "unix-dgram"
    role: Role
    family: int = _ANY  # of the IP addresses that fit, such as AF_INET
    options: frozenset[str] = frozenset()  # names of the options that the address may have
    own: bool = False  # whether the keyword is gnar's; a relay with gnar's keyword always serves many users
    answers: bool = True  # whether answers of the target go back to users
    needs_fork: bool = False  # whether gnar supports the keyword with `fork` alone
    any_source: bool = False  # whether datagrams of every address are answers of the target


_UNIX_OPTIONS = frozenset({"fork", "reuseaddr", "mode", "unlink-early", "unlink-close"})
_TCP_OPTIONS = frozenset({"fork", "reuseaddr", "bind"})
_BIND = frozenset({"bind"})
_BROADCAST = frozenset({"broadcast"})  # changes nothing: gnar sees by itself that an address is one
_NO_FORK = frozenset({"fork"})

_OWN = {
    ("tcp", Role.LISTEN): _Kind("tcp", Role.LISTEN, options=_TCP_OPTIONS - _BIND, own=True),
    ("tcp", Role.TARGET): _Kind("tcp", Role.TARGET, options=_BIND, own=True),
    ("unix", Role.LISTEN): _Kind("unix", Role.LISTEN, options=_UNIX_OPTIONS, own=True),
    ("unix", Role.TARGET): _Kind("unix", Role.TARGET, own=True),
    ("udp", Role.LISTEN): _Kind("udp", Role.LISTEN, options=_TCP_OPTIONS - _BIND | _BROADCAST, own=True),
    ("udp", Role.TARGET): _Kind("udp", Role.TARGET, options=_BIND | _BROADCAST, own=True),
    ("unix-dgram", Role.LISTEN): _Kind("unix-dgram", Role.LISTEN, options=_UNIX_OPTIONS, own=True),
    ("unix-dgram", Role.TARGET): _Kind("unix-dgram", Role.TARGET, own=True),
}
_SOCAT = {
    "tcp-listen": _Kind("tcp", Role.LISTEN, options=_TCP_OPTIONS),
    "tcp-l": _Kind("tcp", Role.LISTEN, options=_TCP_OPTIONS),
    "tcp4-listen": _Kind("tcp", Role.LISTEN, _V4, _TCP_OPTIONS),
    "tcp4-l": _Kind("tcp", Role.LISTEN, _V4, _TCP_OPTIONS),
    "tcp6-listen": _Kind("tcp", Role.LISTEN, _V6, _TCP_OPTIONS),
    "tcp6-l": _Kind("tcp", Role.LISTEN, _V6, _TCP_OPTIONS),
    "unix-listen": _Kind("unix", Role.LISTEN, options=_UNIX_OPTIONS),
    "unix-l": _Kind("unix", Role.LISTEN, options=_UNIX_OPTIONS),
    "tcp-connect": _Kind("tcp", Role.TARGET, options=_BIND),
    "tcp4": _Kind("tcp", Role.TARGET, _V4, _BIND),
    "tcp4-connect": _Kind("tcp", Role.TARGET, _V4, _BIND),
    "tcp6": _Kind("tcp", Role.TARGET, _V6, _BIND),
    "tcp6-connect": _Kind("tcp", Role.TARGET, _V6, _BIND),
    "unix-connect": _Kind("unix", Role.TARGET),
    "unix-recvfrom": _Kind("unix-dgram", Role.LISTEN, options=_UNIX_OPTIONS, needs_fork=True),
    "unix-recv": _Kind("unix-dgram", Role.LISTEN, options=_UNIX_OPTIONS - _NO_FORK, answers=False),
    "unix-sendto": _Kind("unix-dgram", Role.TARGET),
}
for _prefix, _family in (("udp", _ANY), ("udp4", _V4), ("udp6", _V6)):
    _listen = _Kind("udp", Role.LISTEN, _family, _TCP_OPTIONS | _BROADCAST)
    _target = _Kind("udp", Role.TARGET, _family, _BIND | _BROADCAST)
    _SOCAT |= {
        f"{_prefix}-listen": _listen,
        f"{_prefix}-l": _listen,
        f"{_prefix}-recvfrom": replace(_listen, needs_fork=True),
        f"{_prefix}-recv": replace(_listen, options=_listen.options - _NO_FORK, answers=False),
        _prefix: _target,
        f"{_prefix}-connect": _target,
        f"{_prefix}-sendto": _target,
        f"{_prefix}-datagram": replace(_target, any_source=True),
    }
_EXAMPLES = {
    Role.LISTEN: "tcp:9000, udp:9000, unix:/tmp/x.sock or TCP-LISTEN:9000,reuseaddr,fork",
    Role.TARGET: "tcp:localhost:3000, udp:localhost:3000, unix:/tmp/x.sock or TCP:localhost:3000",
}


@dataclass(frozen=True, slots=True)
class Address:
    """One side of a relay: a host and a port, or the path of a Unix socket."""

    transport: str  # "tcp", "unix", "udp" or "unix-dgram"
    family: int = _ANY  # of the IP addresses that fit, such as AF_INET
    host: str = ""  # to listen on, empty for every address of the machine
    port: int = 0
    path: str = ""  # empty unless this is a Unix socket
    fork: bool = True  # whether a relay that listens here serves many users, not one
    mode: int | None = None  # permissions of the socket file; None leaves them to the umask
    source: str = ""  # IP address to dial from, empty for the system's choice
    keep_file: bool = False  # whether the socket file stays when the relay ends
    answers: bool = True  # whether answers of the target go back to users
    any_source: bool = False  # whether datagrams of every address are answers of the target

    def __str__(self) -> str:
        where = net.format_address((self.host, self.port)) if self.host else str(self.port)
        return f"{self.transport}:{self.path or where}"

    @property
    def is_datagram(self) -> bool:
        """Whether this address is for datagrams, not for connections."""
        return self.transport in ("udp", "unix-dgram")


def parse_address(text: str, role: Role) -> Address:
    """Parse an address in either spelling; raises `UsageError` with what is wrong and an example."""
    try:
        (keyword, *parameters), *options = _split_unquoted(text)
        return _read_address(_kind_of(keyword, role), parameters, options)
    except UsageError as exc:
        raise UsageError(f"{text}: {exc}") from None


def _kind_of(keyword: str, role: Role) -> _Kind:
    """Return what a keyword stands for; raises `UsageError` when it is unknown or of the other role."""
    word = keyword.lower()
    kind = _OWN.get((word, role)) or _SOCAT.get(word)
    if kind is None:
        raise UsageError(
            f"{keyword!r} is not an address that gnar knows; write for example {_EXAMPLES[role]}"
        )
    if kind.role is not role:
        does = "does not listen" if role is Role.LISTEN else "cannot be dialled"
        raise UsageError(f"{keyword} {does}; write for example {_EXAMPLES[role]}")
    return kind


def _read_address(kind: _Kind, parameters: list[str], options: list[list[str]]) -> Address:
    """Make an address of its parameters (between colons) and its options (between commas)."""
    values = _read_options(kind, options)
    fork = kind.own or not kind.answers or _flag(values, "fork", default=False)
    if kind.needs_fork and not fork:
        raise UsageError("without option 'fork' it would end after one datagram, which is not supported")
    if kind.transport.startswith("unix"):
        net.unix_family()  # raises an error on a system that has no Unix sockets
        path = ":".join(parameters)
        if not path:
            raise UsageError("the path is missing")
        if kind.role is Role.TARGET:
            return Address(kind.transport, path=path)
        keep_file = not _flag(values, "unlink-close", default=True)
        return Address(
            kind.transport,
            path=path,
            fork=fork,
            mode=_mode(values),
            keep_file=keep_file,
            answers=kind.answers,
        )
    host, port = _read_host_and_port(kind, parameters)
    source = values.get("bind", "").strip("[]")
    if kind.role is Role.TARGET:
        return Address(
            kind.transport,
            kind.family,
            host,
            port,
            source=_local_address(source),
            any_source=kind.any_source,
        )
    host = host or source or _EVERYWHERE[kind.family]
    return Address(kind.transport, kind.family, host, port, fork=fork, answers=kind.answers)


def _read_host_and_port(kind: _Kind, parameters: list[str]) -> tuple[str, int]:
    """Read the parameters `PORT` or `HOST:PORT`, as the kind allows.

    A missing host is empty (every address) for a listener, and localhost for a target.
    """
    most = 1 if kind.role is Role.LISTEN and not kind.own else 2
    least = 2 if kind.role is Role.TARGET and not kind.own else 1
    if not least <= len(parameters) <= most:
        wanted = "PORT, and bind=HOST as an option" if most == 1 else "HOST:PORT, with IPv6 in brackets"
        raise UsageError(f"behind the keyword comes {wanted}")
    host = parameters[0].strip("[]") if len(parameters) == 2 else ""  # noqa: PLR2004  (HOST and PORT)
    if kind.role is Role.TARGET and not host:
        host = "localhost"
    return host, _read_port(parameters[-1], kind)


def _read_port(text: str, kind: _Kind) -> int:
    """Read the number of a port, or the name of its service; port 0 is allowed for a listener alone."""
    if text.isascii() and text.isdigit():
        port = int(text[:100])  # Python refuses to read thousands of digits
    else:
        try:
            port = socket.getservbyname(text, kind.transport)
        except (OSError, ValueError):
            raise UsageError(f"{text!r} is not a port, and no service has that name") from None
    if not (0 if kind.role is Role.LISTEN else 1) <= port <= MAX_PORT:
        raise UsageError(f"port {text} is out of range")
    return port


def _read_options(kind: _Kind, options: list[list[str]]) -> dict[str, str]:
    """Return the values of options by name; raises `UsageError` for an option that is not supported."""
    values = {}
    for option in options:
        name, _, value = ":".join(option).partition("=")
        name = name.lower()
        if name not in kind.options:
            known = ", ".join(sorted(kind.options)) or "none"
            raise UsageError(f"option {name!r} is not supported here (supported: {known})")
        values[name] = value
    if not _flag(values, "reuseaddr", default=True):
        raise UsageError("option 'reuseaddr=0' is not supported")
    if kind.own and not _flag(values, "fork", default=True):
        raise UsageError("option 'fork=0' needs socat's spelling, such as TCP-LISTEN:9000")
    return values


def _flag(values: dict[str, str], name: str, *, default: bool) -> bool:
    """Read a switch: `name` and `name=1` are true, `name=0` is false; `default` if the option is missing."""
    if name not in values:
        return default
    if values[name] not in ("", "0", "1"):
        raise UsageError(f"option '{name}={values[name]}' is neither 0 nor 1")
    return values[name] != "0"


def _mode(values: dict[str, str]) -> int | None:
    """Read option `mode`, permissions in octal as with chmod; None if the option is missing."""
    text = values.get("mode")
    if text is None:
        return None
    if not text or len(text) > 4 or set(text) - set("01234567") or int(text, 8) > 0o777:  # noqa: PLR2004  (0777 is the most)
        raise UsageError(f"option 'mode={text}' is not a number from 000 to 777")
    return int(text, 8)


def _local_address(text: str) -> str:
    """Return the IP address of option `bind`, checked; raises `UsageError`."""
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        raise UsageError(f"option 'bind={text}' is not an IP address") from None


def _split_unquoted(text: str) -> list[list[str]]:
    """Split at commas, and each field at colons, as socat does.

    Commas and colons inside quotes or brackets, or after a backslash, do not split. Brackets are kept; quotes
    and backslashes are removed.
    """
    fields = [[""]]
    closers: list[str] = []  # closing quotes and brackets that have to come, the next one last
    chars = iter(text)
    for char in chars:
        quoted = bool(closers) and closers[-1] in "'\""
        if char == "\\":
            fields[-1][-1] += next(chars, "")
        elif closers and char == closers[-1]:
            closers.pop()
            fields[-1][-1] += "" if quoted else char
        elif char in _CLOSING and not quoted:
            closers.append(_CLOSING[char])
            fields[-1][-1] += "" if char in "'\"" else char
        elif char == "," and not closers:
            fields.append([""])
        elif char == ":" and not closers:
            fields[-1].append("")
        else:
            fields[-1][-1] += char
    if closers:
        raise UsageError(f"a closing {closers[-1]} is missing, or a backslash before what it would close")
    return fields
