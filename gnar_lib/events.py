"""What happens in this process, as typed events to which others listen; knows nobody who listens.

A room says in one call what happened: `emit(UserCame, side, proxy, user)`. The event is only made when
somebody has subscribed to its type, so that an event to which nobody listens costs one look-up. The first
listener is `eventlog`, which writes the log lines.

Listeners run where the event happens, mostly in a user's greenlet or in the hub: they must not wait. An error
in a listener is logged and stops neither the others nor whoever emitted the event.

Fields that many events have: `kind` is "tcp", "udp", "http" or
"https". Bytes `up` are from the user to the local service,
bytes `down` from the local service to the user. `net.format_address` shows an address to people, and
`eventdata` makes an event data for programs. The `id` of a client is what it calls itself when it comes back,
and empty for a Go client, which does not say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ParamSpec, TypeVar

from gnar_lib import logger

Address = tuple[Any, ...] | str
"""What the socket module calls an address."""


class Side(Enum):
    """Which part of gnar an event is about: one process may be several, as `gnar demo` is."""

    SERVER = "server"
    CLIENT = "client"
    RELAY = "relay"


_log = logger.get("events")


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


# ---- at the server: clients --------------------------------------------------------------------------------


class Refusal(Enum):
    """Why a login is refused, in a word."""

    TOKEN = "token"  # noqa: S105  (the token is wrong, or missing)
    METHOD = "method"  # the peer proves the token in a way that this server does not take
    CERTIFICATE = "certificate"  # the peer has been shown another one: somebody stands in between
    CLOCK = "clock"  # the peer's is too far off
    RATE = "rate"  # too many logins a second from there
    FULL = "full"  # there are as many clients as there may be
    SESSION = "session"  # there is a control connection, or nothing that proves that one may be used
    PROTOCOL = "protocol"  # what the peer has sent is no login


@dataclass(frozen=True, slots=True)
class LoginRefused(Event):
    """A connection to the control port was refused at its login."""

    peer: Address
    reason: str
    cause: Refusal


@dataclass(frozen=True, slots=True)
class LoginGivenUp(Event):
    """A connection to the control port has ended, or took too long, before it had logged in."""

    peer: Address
    reason: str


@dataclass(frozen=True, slots=True)
class ClientCame(Event):
    """A client has logged in; `version` is what the client calls its program."""

    client: Address
    version: str
    multiplexed: bool
    id: str = ""


@dataclass(frozen=True, slots=True)
class ClientReturned(Event):
    """A client came back before the end of its older control connection, from `before`, was noticed."""

    client: Address
    before: Address
    id: str = ""


@dataclass(frozen=True, slots=True)
class ClientGone(Event):
    """A client's control connection has ended, `lasted_s` seconds after its login, and none took its place.

    `proxies` are the names of what the client had, and `ports` their ports, in the same order.
    `broke_protocol`: the server ended the connection for that.
    """

    client: Address
    reason: str
    broke_protocol: bool
    id: str = ""
    proxies: tuple[str, ...] = ()
    lasted_s: float = 0.0
    ports: tuple[int, ...] = ()


# ---- at the client: the server -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """The client has logged in to the server; `is_go`: to one that is the Go program."""

    server: Address
    is_go: bool


@dataclass(frozen=True, slots=True)
class ConnectFailed(Event):
    """The server cannot be reached, or was lost (`was_connected`); the next try is in `retry_s` seconds.

    `is_refused`: the server refuses a client that it has let in before.
    """

    reason: str
    was_connected: bool
    retry_s: float
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class DataConnsFail(Event):
    """The client cannot open data connections, beside a control connection; it tries again in `retry_s`."""

    reason: str
    retry_s: float


@dataclass(frozen=True, slots=True)
class DataConnsWork(Event):
    """The client has opened a data connection again, at full pace, after at least one `DataConnsFail`."""


# ---- proxies -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProxyOpened(Event):
    """The server has opened a proxy on `port`; at the client, `where` is what users have to know.

    At the server, `where` is the URL of a proxy that has a name; `port` is 0 if the proxy has no port of its
    own. `peer` is the client or, at the client, the server.
    """

    side: Side
    name: str
    kind: str
    port: int
    peer: Address
    where: str = ""


@dataclass(frozen=True, slots=True)
class ProxyRefused(Event):
    """The server refused a proxy to `peer`, or `peer` refused it. The client asks again in `retry_s` seconds.

    `retry_s` is None if the client never asks again, and at the server, which does not know.
    """

    side: Side
    name: str
    kind: str
    peer: Address
    reason: str
    retry_s: float | None = None


class CloseReason(Enum):
    """Why a proxy was closed."""

    CANCELLED = "cancelled"
    CLIENT_LEFT = "the client left"
    STOPPING = "stopping"
    ENDED = "ended by an administrator"


@dataclass(frozen=True, slots=True)
class ProxyClosed(Event):
    """A proxy takes no more users. A server that stops says so once the users have finished.

    `where` is as in `ProxyOpened`.
    """

    side: Side
    name: str
    kind: str
    port: int
    peer: Address
    reason: CloseReason
    where: str = ""


# ---- users -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserCame(Event):
    """A user has come to a proxy of TCP, or to a relay, whose name is then its address."""

    side: Side
    proxy: str
    user: Address


@dataclass(frozen=True, slots=True)
class UserConnected(Event):
    """A user has got a data connection, or the local service, `after_s` seconds after the user came."""

    side: Side
    proxy: str
    user: Address
    after_s: float


@dataclass(frozen=True, slots=True)
class UserAnswered(Event):
    """The first byte for a user has come from the service, `after_s` seconds after the user came."""

    side: Side
    proxy: str
    user: Address
    after_s: float


@dataclass(frozen=True, slots=True)
class UserLeft(Event):
    """A user has left, `lasted_s` seconds after the user came; `reason` is empty for a normal end."""

    side: Side
    proxy: str
    user: Address
    up: int
    down: int
    lasted_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class UserRefused(Event):
    """A user was turned away by the server: there are as many as there may be, or none from that address."""

    proxy: str
    kind: str
    user: Address
    reason: str


@dataclass(frozen=True, slots=True)
class UdpUserCame(Event):
    """A user of a UDP proxy has sent a datagram: the first one, or the first after a long silence."""

    side: Side
    proxy: str
    user: Address


@dataclass(frozen=True, slots=True)
class DatagramsDropped(Event):
    """So many datagrams of a UDP proxy were not passed on since the last such event, a second ago or more."""

    side: Side
    proxy: str
    count: int


@dataclass(frozen=True, slots=True)
class ServiceUnreachable(Event):
    """The local service of a proxy did not answer for one user; `again`: nor for the user before."""

    proxy: str
    kind: str
    reason: str
    again: bool


@dataclass(frozen=True, slots=True)
class ServiceReached(Event):
    """The local service of a proxy answers again, after at least one `ServiceUnreachable`."""

    proxy: str
    kind: str


# ---- the process -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescriptorsShort(Event):
    """The process or the system has too many files; `effect` says what happens until it has fewer."""

    effect: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reloaded(Event):
    """The configuration was read again: the client asks for `new` proxies.

    Of the settings that differ, `unchanged` are those that only a restart changes, and `at_login` are those
    that change at the next login.
    """

    side: Side
    new: int
    unchanged: tuple[str, ...] = ()
    at_login: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    """The process takes no more users, and lets those that are there finish."""

    side: Side


_kinds = (kind for kind in [*globals().values()] if isinstance(kind, type) and issubclass(kind, Event))
ALL: tuple[type[Event], ...] = tuple(kind for kind in _kinds if kind is not Event)
"""The types of all events."""

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def name_of(event_type: type[Event]) -> str:
    """Return what a type of events is called outside: `client-gone` for `ClientGone`."""
    return _CAPITAL.sub("-", event_type.__name__).lower()


BY_NAME: dict[str, type[Event]] = {name_of(event_type): event_type for event_type in ALL}
"""The types of all events by their names."""


# ---- who listens -------------------------------------------------------------------------------------------

P = ParamSpec("P")
E = TypeVar("E", bound=Event)

_listeners: dict[object, list[Callable[[Any], None]]] = {}  # by the type of the event


def subscribe(event_type: type[E], listener: Callable[[E], None]) -> None:
    """Have `listener` called with each event of exactly this type from now on."""
    _listeners.setdefault(event_type, []).append(listener)


def unsubscribe(event_type: type[E], listener: Callable[[E], None]) -> None:
    """End what `subscribe` began; a listener that has not subscribed is ignored."""
    listeners = _listeners.get(event_type, [])
    if listener in listeners:
        _listeners[event_type] = [each for each in listeners if each != listener]


def is_heard(event_type: type[Event]) -> bool:
    """Tell whether somebody has subscribed to this type: else nothing need be prepared."""
    return bool(_listeners.get(event_type))


def emit(event_type: Callable[P, Event], /, *args: P.args, **kwargs: P.kwargs) -> None:
    """Tell the listeners of `event_type` that such an event has happened; the arguments are its fields."""
    listeners = _listeners.get(event_type)
    if not listeners:
        return
    event = event_type(*args, **kwargs)
    for listener in listeners:
        try:
            listener(event)
        except Exception:  # noqa: BLE001  (a defect of a listener must not end what it is told of)
            _log.exception("a listener of %s failed", type(event).__name__)
