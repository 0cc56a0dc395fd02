"""The typed messages of the protocol, and the fields by which gnar's own ends extend them; no I/O.

A field with a default is an extension, or one that only some versions of the Go program send: the Go programs
ignore fields that they do not know, and an extension that is not set is not sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from gnar_lib.errors import ProtocolError
from gnar_lib.proto import packet
from gnar_lib.proto.packet import PacketType

MAX_PORT = 65535
MAX_TEXT = 1024  # of any text field but an error and a payload: longer ones only cost memory
INT64 = range(-(1 << 63), 1 << 63)  # what the Go program's integers hold

STATUS_SUCCESS, STATUS_FAILED = "success", "failed"
AUTH_NONE = "none"  # in the Login of a health check, which only asks whether a server answers


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages; `TYPE` is the first byte of their frames."""

    TYPE: ClassVar[PacketType]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login(Message):
    """First on every TCP connection: who the client is.

    `timestamp` is in Unix seconds. `features`, `nonce` and `auth` are sent by our own clients on a control
    connection; `client_id` lets a client that comes back take its proxies over. Their data connections name
    the `session` instead; one that is to wait for a user is the session's `waiting`-th, signed by `proof`.
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
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """Every second on a control connection: the sender is alive.

    One of our own servers tells one of our own clients by `waiting` how many data connections are to wait.
    """

    TYPE = PacketType.HEARTBEAT
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class ProxyReq(Message):
    """The client asks for a proxy; `remote_port` 0 lets one of our own servers choose."""

    TYPE = PacketType.PROXY_REQ
    remote_port: int
    proxy_name: str
    subdomain: str
    proxy_type: str


@dataclass(frozen=True, slots=True)
class ProxyResp(Message):
    """The server's answer to a ProxyReq; `retry` says that the same request may succeed later."""

    TYPE = PacketType.PROXY_RESP
    domain: str
    status: str
    error: str = ""
    retry: bool = False
    remote_port: int = 0
    proxy_name: str = ""


@dataclass(frozen=True, slots=True)
class ProxyCancel(Message):
    """The client ends a proxy: on a connection of its own, or on the control connection of our own ends."""

    TYPE = PacketType.PROXY_CANCEL
    proxy_name: str
    remote_port: int


@dataclass(frozen=True, slots=True)
class Exchange(Message):
    """From the server: a user has come; from the client: here is the data connection for that user.

    Between our own ends: `proof` shows that the data connection belongs to the session, `proxy_name` and
    `user` tell which proxy who came to.
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
    """Our own server asks our own client to prove that it knows the token."""

    TYPE = PacketType.CHALLENGE
    nonce: str


@dataclass(frozen=True, slots=True)
class Proof(Message):
    """The client's answer to a Challenge."""

    TYPE = PacketType.PROOF
    proof: str


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Our own server's end of the login: its proof and the session's id, or the `error` that refused it."""

    TYPE = PacketType.WELCOME
    features: tuple[str, ...] = ()
    nonce: str = ""
    proof: str = ""
    session: str = ""
    error: str = ""


# ---- from and to the fields of a frame ---------------------------------------------------------------------


def _text(value: Any) -> bool:
    return isinstance(value, str) and (value.isascii() or _is_unicode(value))


def _is_unicode(value: str) -> bool:
    """Tell whether text can be sent and hashed: JSON can spell half a surrogate pair, UTF-8 cannot."""
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
    """What the Go program sends for a `*net.UDPAddr`."""
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
_UNBOUNDED = {"payload", "error"}


class _Field:
    """What one field of a message must be; made once for each, since parsing is part of the hot path."""

    __slots__ = ("check", "default", "expected", "is_required", "max_length", "name")

    def __init__(self, name: str, annotation: str, default: Any) -> None:
        self.name = name
        self.expected, self.check = _CHECKS[annotation]
        self.is_required = default is MISSING
        self.default = default
        self.max_length = packet.MAX_BODY_BYTES if name in _UNBOUNDED else MAX_TEXT

    def parse(self, value: Any) -> Any:
        """Return the value as the message holds it; `ProtocolError` says what was expected."""
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


def to_frame(message: Message) -> bytes:
    """Return the frame of a message, without the extensions that are not set."""
    values = {}
    for name, field in _FIELDS[type(message)].items():
        value = getattr(message, name)
        if field.is_required or value != field.default:
            values[name] = value
    return packet.encode(message.TYPE, values)


def from_frame(frame: bytes) -> Message:
    """Return the message of one whole frame; `ProtocolError` when a field is missing or of the wrong type."""
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
