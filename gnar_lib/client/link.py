"""One control connection and the proxies asked for on it: the client's message loop, and coming back.

With a server of ours one link carries all proxies. A Go server takes one proxy per control connection: the
link keeps its first and hands the others back, for links of their own.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import gevent

from gnar_lib import logger
from gnar_lib.client import tunnel, udp
from gnar_lib.client.control import Control
from gnar_lib.client.proxies import ClientProxy, ProxyState
from gnar_lib.errors import AuthError, ConnClosed, ConnError, ProtocolError
from gnar_lib.net import SocketConn
from gnar_lib.proto import Exchange, Heartbeat, Message, ProxyCancel, ProxyReq, ProxyResp, recv
from gnar_lib.proto.msg import STATUS_SUCCESS
from gnar_lib.proto.outbox import Outbox

if TYPE_CHECKING:
    from gnar_lib.client.serve import Client

HEARTBEAT_S = 1.0
SILENCE_S = 10.0  # either server sends a heartbeat every second
MAX_WAITING = 64  # data connections, whatever the server says
WAITING_SILENCE_S = 30.0  # the server writes to a waiting one every 10 seconds
BACKOFF_FIRST_S, BACKOFF_LAST_S, BACKOFF_JITTER = 0.5, 30.0, 0.2

_log = logger.get("client")


def _why_failed(proxy: ClientProxy) -> str:
    """Say what a Go server means, which does not say why."""
    if proxy.state is ProxyState.OPEN:
        return f"the server closed port {proxy.remote_port}"
    return f"the server refused port {proxy.remote_port} (a Go server does not say why; is it taken?)"


class Backoff:
    """How long to wait before the next try: doubling, with jitter so that clients do not come all at once."""

    def __init__(self) -> None:
        self._next_s = BACKOFF_FIRST_S

    def reset(self) -> None:
        """It worked."""
        self._next_s = BACKOFF_FIRST_S

    def next(self) -> float:
        """Return the seconds to wait now."""
        base, self._next_s = self._next_s, min(self._next_s * 2, BACKOFF_LAST_S)
        return base * random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)  # noqa: S311  (no secret)


class Link:
    """Keeps a control connection to the server, and the proxies on it."""

    control: Control

    def __init__(self, client: Client, proxies: list[ClientProxy]) -> None:
        self.client = client
        self.proxies = {proxy.name: proxy for proxy in proxies}
        self._heard_waiting_s: dict[SocketConn, float] = {}
        self._opening = 0
        self._wanted = 0
        self._outbox: Outbox | None = None
        self._backoff = Backoff()
        self._port_backoff = Backoff()
        self._retry_at_s: dict[str, float] = {}
        self._heard_s = 0.0
        self._is_ending = False
        self._was_connected = False

    # ---- the connection ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Connect, serve, and come back, until the link is ended or the login is refused (`AuthError`)."""
        while self._goes_on():
            try:
                self._connect_and_serve()
            except (ConnError, ProtocolError) as exc:
                if not self._goes_on():
                    return
                delay_s = self._backoff.next()
                lost = "lost the server: " if self._was_connected else ""
                _log.warning("%s%s; trying again in %.1f s", lost, exc, delay_s)
                gevent.sleep(delay_s)

    def _goes_on(self) -> bool:
        return bool(self.proxies) and not self._is_ending

    def _connect_and_serve(self) -> None:
        """Have one control connection, from dialling to its end; raises why it ended, unless we ended it."""
        first = next(iter(self.proxies.values()))
        self.control = control = Control(self.client.config, self.client.client_id)
        ticker = None
        try:
            self._log_in(control, first.request())
            self._was_connected = True
            self._heard_s = time.monotonic()
            self._outbox = Outbox(control.conn, self.client.crew)
            _log.info("connected to %s%s", control.conn, "" if control.session else " (a Go server)")
            self._ask_for_the_others(first)
            if not self._goes_on():  # a reload during the login left nothing to do here
                return
            ticker = gevent.spawn(self._tick)
            control.serve_streams(self.client.users, lambda stream: tunnel.serve_stream(self, stream))
            while True:
                self._handle(recv(control.conn))
        finally:
            if ticker is not None:
                ticker.kill(block=False)
            self._disconnected()

    def _log_in(self, control: Control, request: ProxyReq) -> None:
        """Log in; a server that hangs up without a word refuses us, unless it has been known to take us."""
        try:
            control.log_in(request)
        except ConnClosed as exc:
            if self._was_connected:
                raise
            raise AuthError(f"the server hung up at the login; {control.hint}") from exc

    def _ask_for_the_others(self, first: ClientProxy) -> None:
        if self.proxies.get(first.name) is not first:  # removed while the login was under way
            self._cancel(first)
        others = [proxy for proxy in self.proxies.values() if proxy is not first]
        if self.control.session is None:
            for proxy in others:
                del self.proxies[proxy.name]
                self.client.start_link([proxy])
            return
        for proxy in others:
            self._post(proxy.request())

    def _disconnected(self) -> None:
        """Close the control connection and what waited beside it; users that are served go on."""
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
        self.control.close()
        self._close_waiting()
        self._retry_at_s.clear()
        for proxy in self.proxies.values():
            proxy.state = ProxyState.PENDING

    def _post(self, message: Message) -> None:
        if self._outbox is not None:
            self._outbox.post(message)

    def _tick(self) -> None:
        """Once a second: say that we live, notice that the server does not, ask again for taken ports."""
        while True:
            gevent.sleep(HEARTBEAT_S)
            now = time.monotonic()
            if now - self._heard_s > SILENCE_S:
                _log.warning("the server has been silent for %g s", SILENCE_S)
                self.control.abort()
                return
            if self.control.session is not None:
                self._post(Heartbeat())
            for name in [name for name, at_s in self._retry_at_s.items() if at_s <= now]:
                del self._retry_at_s[name]
                self._post(self.proxies[name].request())
            self._tend_waiting(now)

    # ---- messages ------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        self._heard_s = time.monotonic()
        match message:
            case Heartbeat():
                self._want(message.waiting)
            case Exchange(proxy_type="udp"):
                self.client.crew.spawn(udp.bring_datagram_conn, self, message)
            case Exchange():
                self.client.users.spawn(tunnel.bring_data_conn, self, message)
            case ProxyResp():
                self._answered(message)
            case _:
                raise ProtocolError(f"{type(message).__name__} on a control connection")

    def proxy_of(self, message: Exchange) -> ClientProxy:
        """Return the proxy whose user an Exchange announces; `ProtocolError` when there is none such."""
        if message.proxy_name in self.proxies:
            return self.proxies[message.proxy_name]
        if not message.proxy_name and len(self.proxies) == 1:  # a Go server does not say: there is one
            return next(iter(self.proxies.values()))
        raise ProtocolError(f"a user for {message.proxy_name!r}, which is no proxy here")

    def _answered(self, answer: ProxyResp) -> None:
        """A proxy is open, or is not: then for good, or to be asked for again."""
        proxy = self.proxies.get(answer.proxy_name) if self.control.session else self._only_proxy()
        if proxy is None:  # removed before it was open
            if answer.status == STATUS_SUCCESS:
                self._post(ProxyCancel(proxy_name=answer.proxy_name, remote_port=answer.remote_port))
            return
        self._retry_at_s.pop(proxy.name, None)
        if answer.status == STATUS_SUCCESS:
            self._backoff.reset()
            self._port_backoff.reset()
            proxy.state = ProxyState.OPEN
            proxy.remote_port = answer.remote_port or proxy.remote_port
            proxy.domain = answer.domain
            self.client.proxy_opened(proxy)
        elif self.control.session is None:
            if not self._is_ending:  # else it answers our cancel, and users may still be served
                raise ConnError(_why_failed(proxy))
        elif answer.retry:
            delay_s = self._port_backoff.next()
            proxy.log.warning("%s; trying again in %.1f s", answer.error, delay_s)
            self._retry_at_s[proxy.name] = time.monotonic() + delay_s
        else:
            proxy.log.error("the server refused: %s", answer.error)
            proxy.state = ProxyState.REFUSED
            del self.proxies[proxy.name]
            self.client.proxy_refused(proxy)

    def _only_proxy(self) -> ClientProxy | None:
        """Return the one proxy of a link to a Go server."""
        return next(iter(self.proxies.values()), None)

    # ---- data connections that wait ------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._heard_waiting_s)

    def _want(self, number: int) -> None:
        """The server says how many are to wait; a heartbeat that does not say changes nothing."""
        if number and self.control.session is not None and self.control.mux is None:
            self._wanted = min(number, MAX_WAITING)
            self.fill()

    def fill(self) -> None:
        """Open as many as are wanted and not here yet."""
        if self._is_ending or self._outbox is None:
            return
        for _ in range(self._wanted - len(self._heard_waiting_s) - self._opening):
            self._opening += 1
            self.client.users.spawn(tunnel.wait_for_user, self)

    def open_waiting(self) -> SocketConn:
        """Open one; raises `ConnError`."""
        try:
            conn = self.control.open_waiting()
        finally:
            self._opening -= 1
        if self._is_ending or self._outbox is None:
            conn.close()
            raise ConnClosed("the control connection has ended")
        self._heard_waiting_s[conn] = time.monotonic()
        return conn

    def heard_on(self, conn: SocketConn, message: Message) -> None:
        """One that waits has had a message other than its user."""
        if not isinstance(message, Heartbeat):
            raise ProtocolError(f"{type(message).__name__} on a waiting connection")
        self._heard_waiting_s[conn] = time.monotonic()

    def no_longer_waits(self, conn: SocketConn) -> None:
        """One got its user, or ended; the latter is replaced with the next tick, so that no loop can spin."""
        self._heard_waiting_s.pop(conn, None)

    def _tend_waiting(self, now_s: float) -> None:
        for conn in [c for c, at_s in self._heard_waiting_s.items() if now_s - at_s > WAITING_SILENCE_S]:
            conn.abort()
        self.fill()

    def _close_waiting(self) -> None:
        self._wanted = 0
        for conn in [*self._heard_waiting_s]:
            conn.close()

    # ---- changes -------------------------------------------------------------------------------------------

    @property
    def takes_more(self) -> bool:
        """Whether further proxies can be asked for on this link, now or when it is connected again."""
        return not self._is_ending and (self._outbox is None or self.control.session is not None)

    def add(self, proxy: ClientProxy) -> None:
        """Ask for one more proxy."""
        self.proxies[proxy.name] = proxy
        self._post(proxy.request())

    def remove(self, proxy: ClientProxy) -> None:
        """Cancel a proxy; its users stay."""
        del self.proxies[proxy.name]
        self._cancel(proxy)
        self._retry_at_s.pop(proxy.name, None)

    def end_without_proxies(self) -> None:
        """End when the last proxy has been removed and none has come in its place."""
        if not self.proxies:
            self.end()

    def _cancel(self, proxy: ClientProxy) -> None:
        """Cancel a proxy that is open or about to be; whose port nobody knows yet is cancelled when it is."""
        if self._outbox is None or proxy.name in self._retry_at_s or not proxy.remote_port:
            return
        if self.control.session is not None:
            self._post(proxy.cancellation())
            return
        try:
            self.control.cancel_apart(proxy.cancellation())
        except ConnError as exc:
            proxy.log.debug("not cancelled: %s", exc)

    def cancel_all(self) -> None:
        """Cancel every proxy, and close the data connections that wait; users that are served stay."""
        self._is_ending = True
        for proxy in self.proxies.values():
            self._cancel(proxy)
        self._close_waiting()

    def end(self) -> None:
        """Close the control connection, which ends `run`."""
        self._is_ending = True
        if self._outbox is not None:
            self._outbox.close()
            self.control.close()
