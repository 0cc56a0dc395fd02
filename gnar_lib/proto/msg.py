"""The typed messages of the protocol, from and to frames; no I/O.

A field with a default is an extension of gnar's own, or is sent by some versions of the Go program only. An
extension that is not set is not sent. The Go programs ignore fields that they do not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from gnar_lib.errors import ProtocolError
from gnar_lib.proto import packet
from gnar_lib.proto.packet import PacketType

MAX_PORT = 65535
MAX_TEXT = 1024  # characters of a text field that is not named in `_LONGER`
MAX_ERROR_PAGE = 8192  # characters
INT64 = range(-(1 << 63), 1 << 63)  # the integers of the Go program

STATUS_SUCCESS, STATUS_FAILED = "success", "failed"
AUTH_NONE = "none"  # in the Login of a health check, which only asks whether a server answers


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages; `TYPE` is the first byte of their frames."""

    TYPE: ClassVar[PacketType]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login(Message):
    """The first message on every TCP connection: who the client is.

    `timestamp` is in Unix seconds. Gnar's own clients send `features`, `nonce` and `auth` on a control
    connection, and a `client_id`, by which a client that comes back takes its proxies over. On a data
    connection they name the `session` instead; a data connection that is to wait for a user is the session's
    `waiting`-th, signed by `proof`. So are the `carrier`-th further multiplexed session, and the connection
    `beside` a stream: "0:12" is the stream 12 of carrier 0. By `heartbeat`, a client asks for so many seconds
    between two Heartbeats.
    By `check`, it says that it only tries whether everything works, and is gone in a moment.
    `certificate` is the SHA-256, in hex, of the server's certificate as the client sees it, if there is TLS.
    """

    TYPE = PacketType.LOGIN
    token: str
    version: str = ""
    client_version: str = ""  # what the Go program of 2023 calls `version`
    timestamp: int
    features: tuple[str, ...] = ()
    auth: str = ""
    nonce: str = ""
    client_id: str = ""
    session: str = ""
    waiting: int = 0
    carrier: int = 0
    beside: str = ""
    proof: str = ""
    heartbeat: int = 0
    check: bool = False
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """Sent every second on a control connection, or as often as both ends have agreed: the sender is alive.

    By `waiting`, gnar's own server tells its own client how many data connections are to wait for users.
    By `leaving`, a server says that another process takes its place, and a client that it is to be restarted.
    By `ended`, a server says why it ends the client, which is not to come back by itself.
    """

    TYPE = PacketType.HEARTBEAT
    waiting: int = 0
    leaving: bool = False
    ended: str = ""


@dataclass(frozen=True, slots=True)
class ProxyReq(Message):
    """The client asks for a proxy; with `remote_port` 0, gnar's own server chooses the port.

    A `proxy_type` of "http" or "https" has no port, but a name: `subdomain` is the name under the server's
    domain, or a whole host name; with an empty one, gnar's own server chooses a name. A proxy of "tcp" may
    have both. Users reach a proxy with a `path` where the path of their request begins with that.
    `max_users` is how many users there may be at the same time, `max_users_per_address` how many of them
    from one address; 0 is no limit.
    After `udp_timeout` seconds without a datagram, the client ends a UDP session; 0 stands for the 60 seconds
    that gnar's own clients keep to otherwise.
    The client itself limits the proxy to `limit_up` and `limit_down` bytes per second; 0 is no limit.
    Users come from addresses in `allow_from` alone, unless it is empty, and from none in `deny_from`:
    networks such as 10.0.0.0/8. `host_header` takes the place of users' Host; `request_headers` and
    `response_headers` are set, as in "Name: value", or removed, as in "-Name". `basic_auth` is "user:hash"
    for each user who may come, all users if it is empty. With `redirect_https`, requests without TLS are
    redirected. With `http2`, connections of HTTP/2 are passed through as they are. `error_page` is the HTML
    of answers that the server makes by itself. With `tells_address`, the client tells the service once for
    each data connection whose it is: no further user's requests are to come there.
    """

    TYPE = PacketType.PROXY_REQ
    remote_port: int
    proxy_name: str
    subdomain: str
    proxy_type: str
    max_users: int = 0
    max_users_per_address: int = 0
    udp_timeout: int = 0
    limit_up: int = 0
    limit_down: int = 0
    path: str = ""
    host_header: str = ""
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()
    basic_auth: tuple[str, ...] = ()
    allow_from: tuple[str, ...] = ()
    deny_from: tuple[str, ...] = ()
    redirect_https: bool = False
    http2: bool = False
    error_page: str = ""
    tells_address: bool = False


@dataclass(frozen=True, slots=True)
class ProxyResp(Message):
    """The server's answer to a ProxyReq; `retry` says that the same request may succeed later.

    `domain` is the host name that a proxy has, and `url` where users find the proxy there. A failure with a
    `remote_port` or a `url` is no answer: the server has closed the proxy there, for good. By `own`, the
    server says that the port or the name is that of a client from the same address, with the same token.
    """

    TYPE = PacketType.PROXY_RESP
    domain: str
    status: str
    error: str = ""
    retry: bool = False
    remote_port: int = 0
    proxy_name: str = ""
    own: bool = False
    url: str = ""


@dataclass(frozen=True, slots=True)
class ProxyCancel(Message):
    """The client ends a proxy: on the control connection, or as a Go client on a connection of its own.

    A proxy without a port has the `remote_port` 0.
    """

    TYPE = PacketType.PROXY_CANCEL
    proxy_name: str
    remote_port: int


@dataclass(frozen=True, slots=True)
class Exchange(Message):
    """From the server: a user has come. From the client: this is the data connection for that user.

    Gnar's own ends add a `proof` that the data connection belongs to the session, the `proxy_name`, and the
    address of the `user`.
    """

    TYPE = PacketType.EXCHANGE
    conn_id: str
    proxy_type: str
    proof: str = ""
    proxy_name: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class UDPDatagram(Message):
    """One datagram, its payload in base64; `addr` is the user's address, None from the Go client."""

    TYPE = PacketType.UDP_DATAGRAM
    payload: str
    addr: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Challenge(Message):
    """Gnar's own server asks its own client to prove that it knows the token.

    `certificate` is the SHA-256, in hex, of the certificate that the server has shown; empty without TLS.
    """

    TYPE = PacketType.CHALLENGE
    nonce: str
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Proof(Message):
    """The client's answer to a Challenge."""

    TYPE = PacketType.PROOF
    proof: str


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Gnar's own server ends the login: with its proof and the session's id, or with an `error`.

    To a client that has asked for a pace of heartbeats, `heartbeat` says the seconds that now hold.
    `max_proxies` is how many proxies the client may have, `time` is the server's, in Unix seconds.
    """

    TYPE = PacketType.WELCOME
    features: tuple[str, ...] = ()
    nonce: str = ""
    proof: str = ""
    session: str = ""
    error: str = ""
    heartbeat: int = 0
    max_proxies: int = 0
    time: int = 0


# ---- from and to frames ------------------------------------------------------------------------------------


def _text(value: Any) -> bool:
    return isinstance(value, str) and (value.isascii() or _is_unicode(value))


def _is_unicode(value: str) -> bool:
    """Tell whether UTF-8 can encode the text; JSON can spell half of a surrogate pair, which it cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in INT64


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(_text(item) for item in value)


def _address(value: Any) -> bool:
    """Tell whether a value is what the Go program sends for a `*net.UDPAddr`."""
    return value is None or (
        isinstance(value, dict) and _text(value.get("IP")) and _integer(value.get("Port"))
    )


_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a string", _text),
    "int": ("a 64-bit integer", _integer),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "tuple[str, ...]": ("a list of strings", _texts),
    "dict[str, Any] | None": ("null or an address", _address),
}
_LONGER = {
    "payload": packet.MAX_BODY_BYTES,
    "error": packet.MAX_BODY_BYTES,
    "error_page": MAX_ERROR_PAGE,
}


class _Field:
    """What the value of one field has to be; made once for each field, since every message is parsed."""

    __slots__ = ("check", "default", "expected", "is_required", "max_length", "name")

    def __init__(self, name: str, annotation: str, default: Any) -> None:
        self.name = name
        self.expected, self.check = _CHECKS[annotation]
        self.is_required = default is MISSING
        self.default = default
        self.max_length = _LONGER.get(name, MAX_TEXT)

    def parse(self, value: Any) -> Any:
        """Return the value as the message holds it; raises `ProtocolError` that says what was expected."""
        if not self.check(value):
            raise ProtocolError(f"{self.name} is not {self.expected}")
        if self.name == "remote_port" and not 0 <= value <= MAX_PORT:
            raise ProtocolError(f"remote_port is not from 0 to {MAX_PORT}")
        if isinstance(value, (str, list)):
            if len(value) > self.max_length:
                raise ProtocolError(f"{self.name} is longer than {self.max_length}")
            return tuple(value) if isinstance(value, list) else value
        return value


_CLASSES: tuple[type[Message], ...] = (
    Login,
    Heartbeat,
    ProxyReq,
    ProxyResp,
    ProxyCancel,
    Exchange,
    UDPDatagram,
    Challenge,
    Proof,
    Welcome,
)
_MESSAGES = {cls.TYPE: cls for cls in _CLASSES}
_FIELDS = {
    cls: {field.name: _Field(field.name, str(field.type), field.default) for field in fields(cls)}
    for cls in _CLASSES
}
_REQUIRED = {cls: [name for name, field in _FIELDS[cls].items() if field.is_required] for cls in _CLASSES}


_HEARTBEAT = Heartbeat()  # the message that comes most often, and says nothing but that its sender is alive


def to_frame(message: Message) -> bytes:
    """Return the frame of a message, without extensions that are not set; raises `MessageTooLongError`."""
    values = {}
    for name, field in _FIELDS[type(message)].items():
        value = getattr(message, name)
        if field.is_required or value != field.default:
            values[name] = value
    return packet.encode(message.TYPE, values)


def from_frame(frame: bytes) -> Message:
    """Return the message in one whole frame; raises `ProtocolError` for a missing or wrong field."""
    if frame == HEARTBEAT_FRAME:
        return _HEARTBEAT
    packet_type, values = packet.decode(frame)
    cls = _MESSAGES[packet_type]
    known = _FIELDS[cls]
    try:
        for name in _REQUIRED[cls]:
            if name not in values:
                raise ProtocolError(f"{name} is missing")
        return cls(**{name: known[name].parse(value) for name, value in values.items() if name in known})
    except ProtocolError as exc:
        raise ProtocolError(f"{cls.__name__}: {exc}") from exc


HEARTBEAT_FRAME = to_frame(_HEARTBEAT)
