"""A proxy as the client sees it: what was asked for, what came of that, and how the local service answers."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

from gnar_lib import logger
from gnar_lib.client.udp import UdpService
from gnar_lib.config import Address, ProxyConfig
from gnar_lib.config.model import DEFAULT_UDP_TIMEOUT_S, NAMED_KINDS
from gnar_lib.errors import ConnError, DialError, ExhaustedError, RefusedError, UnreachableError
from gnar_lib.events import (
    CloseReason,
    DatagramsDropped,
    ProxyClosed,
    ServiceReached,
    ServiceUnreachable,
    Side,
    emit,
)
from gnar_lib.net import Conn, Sockaddr
from gnar_lib.net.target import Target
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import ProxyCancel, ProxyReq, ProxyResp
from gnar_lib.proxy.joiner import Joiner

if TYPE_CHECKING:
    from gnar_lib.client.user_headers import UserHeaders
    from gnar_lib.inspect import Inspector


class ProxyState(Enum):
    """Where a proxy stands with the server."""

    PENDING = "asked for, or to be asked for again"
    OPEN = "open"
    REFUSED = "given up: the server will never open it"
    ENDED = "closed by the server, for good"


class ClientProxy:
    """A proxy of this client."""

    def __init__(self, config: ProxyConfig, total: Meter) -> None:
        self.config = config
        self.meter = Meter(total, config.speed_limit)  # counts and limits all users of the proxy
        # Joins users with the local service.
        self.joiner = Joiner(Side.CLIENT, config.proxy_name, self.meter, config.idle_timeout_s)
        self.log = logger.get(f"{config.proxy_type.upper()} [{config.proxy_name}]")
        self.state = ProxyState.PENDING
        self.remote_port = config.remote_port  # the port at the server, once that is known; 0: not yet
        self.subdomain = config.subdomain  # the name to ask for
        self.domain = ""  # the host name that the proxy has at the server, if any
        self._url = ""  # where users find that, as a server of gnar's own says
        self._users: tuple[str, ...] = ()  # hashes of basic authentication, once they are made
        self._headers: UserHeaders | None = None  # by which the local service is told of users
        if config.proxy_protocol:
            from gnar_lib.client.user_headers import UserHeaders  # which few clients need

            self._headers = UserHeaders(config, self.log)
        self.udp: UdpService | None = None  # None for a proxy of TCP
        if self.kind == "udp":
            self.udp = UdpService(config, self.meter, self.log, self._headers)
        # The local service of a proxy of TCP; `dial` dials it.
        self._target = Target(config.local_host, config.local_port)
        self.inspector: Inspector | None = None  # looks at what users of TCP send and get, if there is one
        self.answers: bool | None = None  # whether the local service answered the last user, if there was one

    @property
    def name(self) -> str:
        """The name by which client and server speak of the proxy."""
        return self.config.proxy_name

    @property
    def kind(self) -> str:
        """Return "tcp", "udp", "http" or "https"."""
        return self.config.proxy_type

    def location(self, server: Address) -> str:
        """Return where users find the proxy: its URL if it has a name, else host:port of the server."""
        if self._url or self.domain:  # made printable: a server must not write to this terminal
            return logger.printable(self._url or f"https://{self.domain}")
        return str(Address(server.host, self.remote_port))

    def url(self, server: Address) -> str:
        """Return the URL at which a browser may find the proxy; empty for a proxy of UDP."""
        where = self.location(server)
        return "" if self.kind == "udp" else where if "://" in where else f"http://{where}"

    def request(self) -> ProxyReq:
        """Return the message that asks for the proxy, with the port that the server chose the last time."""
        timeout_s = self.config.udp_timeout_s
        return ProxyReq(
            remote_port=self.remote_port,
            proxy_name=self.name,
            subdomain=self.subdomain,
            proxy_type=self.kind,
            max_users=self.config.max_users,
            max_users_per_address=self.config.max_users_per_address,
            limit_up=self.config.speed_limit.up or 0,
            limit_down=self.config.speed_limit.down or 0,
            udp_timeout=0 if timeout_s == DEFAULT_UDP_TIMEOUT_S else math.ceil(timeout_s),
            path=self.config.path,
            host_header=self._host_header,
            request_headers=self.config.request_headers,
            response_headers=self.config.response_headers,
            basic_auth=self._hashed_users(),
            allow_from=self.config.allow_from,
            deny_from=self.config.deny_from,
            redirect_https=self.config.redirect_https,
            http2=self.config.http2,
            error_page=self.config.error_page,
            tells_address=bool(self.config.proxy_protocol) and self.kind != "udp",
        )

    @property
    def _host_header(self) -> str:
        return (
            str(self.config.local_service) if self.config.host_header == "local" else self.config.host_header
        )

    def _hashed_users(self) -> tuple[str, ...]:
        """Return who may come, without passwords: their hashes are made once, since each takes a while."""
        if self.config.basic_auth and not self._users:
            from gnar_lib.auth.passwords import hash_password, is_hash  # loads what few clients need

            pairs = [user.reveal().partition(":") for user in self.config.basic_auth]
            self._users = tuple(
                f"{name}:{secret if is_hash(secret) else hash_password(secret)}" for name, _, secret in pairs
            )
        return self._users

    def opened(self, answer: ProxyResp, server: Sockaddr | None = None) -> None:
        """Take note of what the server, at this address, has given: a port, a name, or both."""
        self.state = ProxyState.OPEN
        self.remote_port = answer.remote_port or self.remote_port
        self.domain, self._url = answer.domain, answer.url
        if self.kind in NAMED_KINDS and answer.domain:
            self.subdomain = (
                answer.domain
            )  # the server may have chosen it: the client asks for the same again
        if self._headers is not None:
            self._headers.opened(server, self.remote_port, self.domain, self._url)

    @property
    def can_be_cancelled(self) -> bool:
        """Whether the server can be told which proxy to end: one whose port is not known yet it could not."""
        return bool(self.remote_port) or self.config.has_name

    @property
    def limits_users(self) -> bool:
        """Whether the server is asked to limit the users of the proxy."""
        return bool(self.config.max_users or self.config.max_users_per_address)

    def cancellation(self) -> ProxyCancel:
        """Return the message that ends the proxy."""
        return ProxyCancel(proxy_name=self.name, remote_port=self.remote_port)

    def dial(self, user: str | None = None) -> Conn:
        """Return a conn to the local service for one user, which the caller closes. Raises `DialError`.

        `user` is the user's address as the server tells it, empty if the server does not, or None if this
        client itself is the user.
        """
        conn = self._dial()
        if self._headers is not None:
            header = self._headers.of_this_end() if user is None else self._headers.of_user(user)
            try:
                conn.sendall(header)
            except ConnError as exc:
                conn.abort()
                raise DialError(f"the local service has hung up: {exc}") from exc
            except BaseException:
                conn.abort()
                raise
        return conn

    def _dial(self) -> Conn:
        try:
            conn = self._target.dial()
        except DialError as exc:
            again, self.answers = self.answers is False, False
            reason = f"{exc}; {what_to_try(exc, self.config.local_host)}"
            emit(ServiceUnreachable, self.name, self.kind, reason, again)
            raise
        was_unreachable, self.answers = self.answers is False, True
        if was_unreachable:
            emit(ServiceReached, self.name, self.kind)
        return conn

    @property
    def why_failed_at_go(self) -> str:
        """What a Go server means by a refusal, for which it gives no reason."""
        if self.state is ProxyState.OPEN:
            return f"the server closed port {self.remote_port}"
        return f"the server refused port {self.remote_port} (a Go server does not say why; is it taken?)"

    def tell_closed(self, server: Address, peer: Sockaddr, reason: CloseReason) -> None:
        """Emit an event that the proxy is closed; `server` is as the user wrote it, `peer` its address."""
        where = self.location(server)
        emit(ProxyClosed, Side.CLIENT, self.name, self.kind, self.remote_port, peer, reason, where)

    def tell_dropped(self) -> None:
        """Emit an event if datagrams were dropped since the last call; to be called once a second."""
        if count := self.meter.take_dropped():
            emit(DatagramsDropped, Side.CLIENT, self.name, count)

    def end(self) -> None:
        """Forget the proxy, which the client has no more: users of TCP stay, those of UDP do not."""
        self.meter.end()
        if self.udp is not None:
            self.udp.close()


def what_to_try(error: DialError, local_host: str) -> str:
    """Return what a person may do about a local service that does not answer."""
    match error:
        case RefusedError() if local_host:
            return "is it running, and does it listen on that port and address?"
        case RefusedError():
            return "is it running? If it is on another host, or in another container, set local-host"
        case UnreachableError():
            return "is local-host right, and does no firewall stand in between?"
        case ExhaustedError():
            return "this machine has no descriptor (ulimit -n) or no port left for more connections"
        case _:
            return "is local-host right?"
