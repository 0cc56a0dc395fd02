"""Parses the addresses of a relay, in gnar's spelling and in socat's; opens nothing.

gnar's spelling is `tcp:9000`, `tcp:HOST:PORT` or `unix:PATH`, with TLS `tls-listen:9000` or `tls:HOST:PORT`,
and for datagrams `udp:PORT`, `udp:HOST:PORT` or `unix-dgram:PATH`. An address in socat's spelling
(`UNIX-LISTEN:/tmp/x.sock,reuseaddr,fork`, `TCP:HOST:PORT`) means what it means to socat: without `fork` the
relay serves one connection, or one user. What may follow an address, after commas, is in `options.py`.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from gnar_lib import net
from gnar_lib.config.model import MAX_PORT
from gnar_lib.errors import UsageError
from gnar_lib.net.dialling import DIAL_TIMEOUT_S, DialSettings
from gnar_lib.net.options import SocketOption
from gnar_lib.net.unix import AS_USUAL, SocketFileSettings
from gnar_lib.relay import proxy_options, tls_options
from gnar_lib.relay.accounts import Account
from gnar_lib.relay.attempts import DEFAULT_INTERVAL_S, ONCE, Retry
from gnar_lib.relay.options import LISTENING, TARGET, kernel_options, local_ip, read_options
from gnar_lib.relay.proxy_options import Through
from gnar_lib.relay.ranges import Range
from gnar_lib.relay.tls_options import TlsSettings

_CLOSING = {"(": ")", "[": "]", "{": "}", "'": "'", '"': '"'}

_EVERYTHING = 0o777  # the permissions of a socket file without a umask
_ANY, _V4, _V6 = int(socket.AF_UNSPEC), int(socket.AF_INET), int(socket.AF_INET6)
_EVERYWHERE = {_ANY: "", _V4: "0.0.0.0", _V6: "::"}


class Role(Enum):
    """The side of a relay that an address is for."""

    LISTEN = "listen"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a keyword at the beginning of an address stands for."""

    transport: str  # "tcp", "tls-listen", "tls", "unix", "udp", "unix-dgram", or one of a proxy's `KEYWORDS`
    role: Role
    family: int = _ANY  # of the IP addresses that fit, such as AF_INET
    own: bool = False  # whether the keyword is gnar's; a relay with gnar's keyword always serves many users
    answers: bool = True  # whether answers of the target go back to users
    needs_fork: bool = False  # whether gnar supports the keyword with `fork` alone
    any_source: bool = False  # whether datagrams of every address are answers of the target


_OWN = {
    (transport, role): _Kind(transport, role, own=True)
    for transport in ("tcp", "unix", "udp", "unix-dgram")
    for role in Role
}
_TLS_LISTEN, _TLS = _Kind("tls-listen", Role.LISTEN), _Kind("tls", Role.TARGET)
_SOCAT = {
    "tls-listen": replace(_TLS_LISTEN, own=True),  # gnar's, which have one role each
    "tls": replace(_TLS, own=True),
    **dict.fromkeys(("openssl-listen", "ssl-l"), _TLS_LISTEN),
    **dict.fromkeys(("openssl", "openssl-connect", "ssl"), _TLS),
    **dict.fromkeys(("proxy", "proxy-connect"), _Kind("proxy", Role.TARGET)),
    **dict.fromkeys(("socks5", "socks5-connect"), _Kind("socks5", Role.TARGET)),
    "unix-listen": _Kind("unix", Role.LISTEN),
    "unix-l": _Kind("unix", Role.LISTEN),
    "unix-connect": _Kind("unix", Role.TARGET),
    "unix-client": _Kind("unix", Role.TARGET),
    "unix-recvfrom": _Kind("unix-dgram", Role.LISTEN, needs_fork=True),
    "unix-recv": _Kind("unix-dgram", Role.LISTEN, answers=False),
    "unix-sendto": _Kind("unix-dgram", Role.TARGET),
    "unix-send": _Kind("unix-dgram", Role.TARGET),
}
for _version, _family in (("", _ANY), ("4", _V4), ("6", _V6)):
    _tcp, _udp = f"tcp{_version}", f"udp{_version}"
    _SOCAT |= {
        f"{_tcp}-listen": _Kind("tcp", Role.LISTEN, _family),
        f"{_tcp}-l": _Kind("tcp", Role.LISTEN, _family),
        _tcp: _Kind("tcp", Role.TARGET, _family),
        f"{_tcp}-connect": _Kind("tcp", Role.TARGET, _family),
        f"{_udp}-listen": _Kind("udp", Role.LISTEN, _family),
        f"{_udp}-l": _Kind("udp", Role.LISTEN, _family),
        f"{_udp}-recvfrom": _Kind("udp", Role.LISTEN, _family, needs_fork=True),
        f"{_udp}-recv": _Kind("udp", Role.LISTEN, _family, answers=False),
        _udp: _Kind("udp", Role.TARGET, _family),
        f"{_udp}-connect": _Kind("udp", Role.TARGET, _family),
        f"{_udp}-sendto": _Kind("udp", Role.TARGET, _family),
        f"{_udp}-send": _Kind("udp", Role.TARGET, _family),
        f"{_udp}-datagram": _Kind("udp", Role.TARGET, _family, any_source=True),
        f"{_udp}-dgram": _Kind("udp", Role.TARGET, _family, any_source=True),
    }
_EXAMPLES = {
    Role.LISTEN: "tcp:9000, tls-listen:9000, udp:9000, unix:/tmp/x.sock or TCP-LISTEN:9000,reuseaddr,fork",
    Role.TARGET: "tcp:localhost:3000, tls:localhost:443, udp:localhost:3000, unix:/tmp/x.sock or"
    " TCP:localhost:3000",
}


@dataclass(frozen=True, slots=True)
class Address:
    """One side of a relay: a host and a port, or the path of a Unix socket."""

    transport: str  # "tcp", "tls-listen", "tls", "unix", "udp" or "unix-dgram"
    family: int = _ANY  # of the IP addresses that fit, such as AF_INET
    host: str = ""  # to listen on, empty for every address of the machine
    port: int = 0
    path: str = ""  # empty unless this is a Unix socket
    options: tuple[SocketOption, ...] = ()  # for the kernel, for each socket of the address
    retry: Retry = ONCE  # after an attempt to listen or to connect has failed
    any_source: bool = False  # whether datagrams of every address are answers of the target
    tls: TlsSettings | None = None  # of a connection that is encrypted

    # ---- of an address to listen on

    fork: bool = True  # whether the relay serves many users, not one
    file: SocketFileSettings = AS_USUAL  # of a Unix socket
    answers: bool = True  # whether answers of the target go back to users
    allowed: Range | None = None  # from where users may come; None: from everywhere
    most_users: float = math.inf  # at the same time; more of them wait
    account: Account | None = None  # whose rights the relay has once it listens; None: it keeps its own

    # ---- of a target

    source: str = ""  # IP address to dial from, empty for the system's choice
    connect_timeout_s: float = DIAL_TIMEOUT_S
    through: Through | None = None  # a proxy on the way

    def __str__(self) -> str:
        where = net.format_address((self.host, self.port)) if self.host else str(self.port)
        return f"{self.transport}:{self.path or where}"

    @property
    def how_to_dial(self) -> DialSettings:
        """What the options say of dialling this target."""
        return DialSettings(self.connect_timeout_s, self.source, self.options)

    @property
    def is_datagram(self) -> bool:
        """Whether this address is for datagrams, not for connections."""
        return self.transport in ("udp", "unix-dgram")


def parse_address(text: str, role: Role, family: int = _ANY) -> Address:
    """Parse an address in either spelling; raises `UsageError` with what is wrong and an example.

    `family` is that of IP addresses where the address does not say which.
    """
    try:
        (keyword, *parameters), *options = _split_unquoted(text)
        return _read_address(_kind_of(keyword, role), parameters, options, family)
    except UsageError as exc:
        raise UsageError(f"{proxy_options.masked(text)}: {exc}") from None


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


def _read_address(kind: _Kind, parameters: list[str], given: list[list[str]], family: int) -> Address:
    """Make an address of its parameters (between colons) and its options (between commas)."""
    known = (LISTENING if kind.role is Role.LISTEN else TARGET)[kind.transport]
    values = read_options(given, known)
    if kind.transport in proxy_options.KEYWORDS:
        through: Through | None = _read_proxy(kind.transport, parameters, values)
        kind, parameters = replace(kind, transport="tcp"), parameters[-2:]
    else:
        through = proxy_options.of_option(values)
    if kind.transport.startswith("unix"):
        net.unix_family()  # raises an error on a system that has no Unix sockets
        address = Address(kind.transport, path=":".join(parameters))
        if not address.path:
            raise UsageError("the path is missing")
    else:
        address = _read_ip_address(kind, parameters, values, family)
    address = replace(address, options=kernel_options(values), retry=_retry(values))
    if kind.transport == "tls-listen":
        address = replace(address, tls=tls_options.of_users(values, is_own=kind.own))
    elif kind.transport == "tls":
        address = replace(address, tls=tls_options.of_target(values, address.host, is_own=kind.own))
    if kind.role is Role.LISTEN:
        return _listening(kind, address, values)
    return replace(
        address,
        connect_timeout_s=values.get("connect-timeout", DIAL_TIMEOUT_S),
        any_source=kind.any_source,
        through=through,
    )


def _read_proxy(keyword: str, parameters: list[str], values: dict[str, Any]) -> Through:
    """Read the proxy in front of the parameters `HOST:PORT`, and its port, if that is there."""
    host, *others = parameters[:-2] or [""]
    port = others.pop() if keyword == "socks5" and len(others) == 1 else ""
    if not host or others:
        wanted = "PROXY[:PORT]:HOST:PORT" if keyword == "socks5" else "PROXY:HOST:PORT"
        raise UsageError(f"behind the keyword comes {wanted}, with IPv6 in brackets")
    port = port or values.get("proxyport") or values.get("socksport") or proxy_options.KEYWORDS[keyword][1]
    number = _read_port(port, _Kind("tcp", Role.TARGET))
    return proxy_options.of_keyword(keyword, host.strip("[]"), number, values)


def _listening(kind: _Kind, address: Address, values: dict[str, Any]) -> Address:
    """Return an address to listen on with what its options say of listening."""
    if kind.own and not values.get("fork", True):
        raise UsageError("option 'fork=0' needs socat's spelling, such as TCP-LISTEN:9000")
    fork = kind.own or not kind.answers or values.get("fork", False)
    if kind.needs_fork and not fork:
        raise UsageError("without option 'fork' it would end after one datagram, which is not supported")
    if not fork and "max-children" in values:
        raise UsageError("option 'max-children' needs option 'fork'")
    return replace(
        address,
        fork=fork,
        file=_file(values),
        answers=kind.answers,
        allowed=values.get("range"),
        most_users=values.get("max-children", math.inf),
        account=values.get("su"),
    )


def _file(values: dict[str, Any]) -> SocketFileSettings:
    """Return what the options say of the file of a Unix socket."""
    file = replace(AS_USUAL, keep=not values.get("unlink-close", True))
    if "umask" in values:
        file = replace(file, mode=_EVERYTHING & ~values["umask"])
    return replace(file, **{name: values[name] for name in ("mode", "user", "group") if name in values})


def _retry(values: dict[str, Any]) -> Retry:
    times = math.inf if values.get("forever") else values.get("retry", 0)
    return Retry(times, values.get("interval", DEFAULT_INTERVAL_S))


def _read_ip_address(kind: _Kind, parameters: list[str], values: dict[str, Any], family: int) -> Address:
    host, port = _read_host_and_port(kind, parameters)
    bind = values.get("bind", "")
    if "pf" in values:
        family = values["pf"]
        if kind.family not in (_ANY, family):
            raise UsageError("option 'pf' names another version of IP than the keyword")
    elif kind.family != _ANY or _is_ip(host or bind):
        family = kind.family
    if kind.role is Role.TARGET:
        return Address(kind.transport, family, host, port, source=local_ip(bind))
    return Address(kind.transport, family, host or bind or _EVERYWHERE[family], port)


def _is_ip(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


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
            port = socket.getservbyname(text, "udp" if kind.transport == "udp" else "tcp")
        except (OSError, ValueError):
            raise UsageError(f"{text!r} is not a port, and no service has that name") from None
    if not (0 if kind.role is Role.LISTEN else 1) <= port <= MAX_PORT:
        raise UsageError(f"port {text} is out of range")
    return port


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
