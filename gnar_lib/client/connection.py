"""One control connection that is logged in: its heartbeats, its messages, and the users whom it announces."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from gnar_lib import logger
from gnar_lib.client import tunnel
from gnar_lib.client.backoff import LAST_S
from gnar_lib.client.carriers import Carriers
from gnar_lib.client.connect import ControlConn
from gnar_lib.client.pool import WaitingPool
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.shared import Shared
from gnar_lib.errors import ConnClosed, DismissedError, ProtocolError
from gnar_lib.net import Conn, Crew, descriptors, wait_for_room
from gnar_lib.net.descriptors import USER_COSTS
from gnar_lib.proto import Exchange, Heartbeat, Message, ProxyResp, expect
from gnar_lib.proto.numbers import MAX_LOGIN_BYTES, waiting_silence_s
from gnar_lib.proto.outbox import Outbox
from gnar_lib.proto.pace import recv_paced
from gnar_lib.yamux import Stream

_log = logger.get("client")


TICK_S = 1.0  # between two looks at the server and at what there is


class Connection:
    """Serves the users of all proxies that the server has opened on this control connection.

    `proxy_of` returns the proxy whose user an Exchange announces, or raises `ProtocolError`. Users who are
    being served go on when the control connection ends, unless it is multiplexed.
    """

    def __init__(
        self, shared: Shared, control: ControlConn, proxy_of: Callable[[Exchange], ClientProxy]
    ) -> None:
        self.control = control  # `close` closes it
        silence_s = waiting_silence_s(control.heartbeat_s)
        self.pool = WaitingPool(shared.users, shared.turns, control.open_waiting, self._serve, silence_s)
        self._carriers = Carriers(control, shared.crew, shared.users, shared.turns, self._serve_stream)
        self._shared = shared
        self._proxy_of = proxy_of
        self._outbox = Outbox(control.conn, shared.crew, control.conn.abort)  # sends the messages
        self._began_s = time.monotonic()
        self._heard_s = self._began_s  # when the last message came
        self._beaten_s = self._heard_s  # when the last Heartbeat was sent
        self._error: Exception | None = None  # with which the control connection has ended
        self._trouble: Event = Event()  # the server is silent or leaves, or the control connection has ended
        self._is_left = False  # the server has said that another process takes its place
        self._is_leaving = False  # `leave` was called
        self._has_left: Event = Event()  # the server has answered that no more users come
        self._crew = Crew("connection")  # the greenlets that receive and tick
        self._is_released = False  # `release` was called
        # By proxy: the latest request for a data connection for datagrams, while one is being opened.
        self._asked: dict[str, Exchange] = {}

    def post(self, message: Message) -> None:
        """Send a message to the server; never waits. A message that cannot be sent is lost."""
        self._outbox.post(message)

    def start(self, on_answer: Callable[[ProxyResp], None], on_tick: Callable[[], None]) -> None:
        """Receive messages from now on, until the control connection ends.

        `on_answer` is called with each answer to a ProxyReq, `on_tick` once a second.
        """
        self._crew.spawn(self._receive, on_answer)
        self._crew.spawn(self._tick, on_tick)
        self._carriers.start()

    def wait_for_trouble(self) -> None:
        """Wait until another is needed; raises the error if the control connection has ended.

        That is a `ConnError` or `ProtocolError`, or whatever a defect has raised.
        """
        if self._error is None:
            self._trouble.clear()
            self._trouble.wait()
        if self._error is not None:
            raise self._error

    @property
    def needs_another(self) -> bool:
        """Whether another control connection has to be tried beside this one."""
        return self._is_left or self.is_silent or self._is_outdated

    @property
    def _is_outdated(self) -> bool:
        """Whether the server shows another certificate than at the login, which was not just now.

        For a new login this is False: otherwise somebody in between, who shows data connections alone another
        certificate, could have the client log in again and again.
        """
        return self.control.is_outdated and self.age_s > LAST_S

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come from the server for a while."""
        return self.silent_s > self.control.silence_s

    @property
    def silent_s(self) -> float:
        """For how many seconds nothing has come. Any byte of a multiplexed session counts."""
        mux = self.control.mux
        heard_s = self._heard_s if mux is None else max(self._heard_s, mux.heard_s)
        return time.monotonic() - heard_s

    def _receive(self, on_answer: Callable[[ProxyResp], None]) -> None:
        try:
            while True:
                self._handle(recv_paced(self.control.conn), on_answer)
        except Exception as exc:  # noqa: BLE001  (`wait_for_trouble` raises it)
            self._error = exc
            self._has_left.set()
            self._trouble.set()

    def _handle(self, message: Message, on_answer: Callable[[ProxyResp], None]) -> None:
        self._heard_s = time.monotonic()
        match message:
            case Heartbeat(ended=reason) if reason:
                raise DismissedError(f"the server has dismissed this client: {reason}")
            case Heartbeat(leaving=True):
                self._on_leaving()
            case Heartbeat(waiting=count):
                if count and self.control.may_wait:
                    self.pool.want(count)
                if self.control.answers_heartbeats:  # at once: so the answer acknowledges the question, too
                    self.post(Heartbeat())
            case Exchange(proxy_type="udp"):
                self._shared.crew.spawn(self._bring_datagrams, message)
            case Exchange():
                self._shared.users.spawn(self._bring, message)
            case ProxyResp():
                on_answer(message)
            case _:
                raise ProtocolError(f"{type(message).__name__} on a control connection")

    def _tick(self, on_tick: Callable[[], None]) -> None:
        """Once a second: see whether the server is silent, send a heartbeat that is due."""
        while True:
            gevent.sleep(TICK_S)
            if self.is_silent:
                self._on_silence()
            elif self._is_outdated:
                self._trouble.set()
            self._beat()
            self._carriers.tend()
            on_tick()

    def _on_silence(self) -> None:
        """Have a server of gnar's own dialled anew; a Go server would keep the ports for this connection."""
        if not self._trouble.is_set():
            _log.warning("the server has been silent for %g s", self.control.silence_s)
        if self.control.is_go:
            self.control.abort()
        else:
            self._trouble.set()

    def _beat(self) -> None:
        """Send a heartbeat if one is due; this end answers those of a server with which it has agreed so."""
        now = time.monotonic()
        if self.control.is_go or self.control.answers_heartbeats:
            return
        if now - self._beaten_s > self.control.heartbeat_s - TICK_S / 2:
            self._beaten_s = now
            self.post(Heartbeat())

    def _on_leaving(self) -> None:
        """Have another process of the server dialled; or take note of the answer to `leave`."""
        if self._is_leaving:
            self._has_left.set()
            return
        _log.info("another process takes the server's place: connecting to it")
        self._is_left = True
        self._trouble.set()

    def leave(self) -> None:
        """Have the server keep the ports for the client's next start; users who are being served stay."""
        self._is_leaving = True
        self.post(Heartbeat(leaving=True))

    def wait_left(self, timeout_s: float) -> None:
        """Wait until no user can be on the way any more, or `timeout_s` is over."""
        until_s = time.monotonic() + timeout_s
        if self._is_leaving and not self.has_ended:
            self._has_left.wait(timeout_s)
            self.pool.wait_empty(until_s - time.monotonic())
        self.pool.close()

    def retire(self) -> None:
        """Let another connection take the place of this one; users who are being served stay.

        The control connection stays until `release`: its end would have the server free the ports.
        """
        self._crew.kill()
        self._outbox.close()
        self.pool.close()

    def release(self) -> None:
        """Close the control connection of a connection that was retired: the server has noticed the other."""
        if not self._is_released:
            self._is_released = True
            self._carriers.drain()
            self.control.retire()

    @property
    def age_s(self) -> float:
        """How many seconds ago the server has let the client in."""
        return time.monotonic() - self._began_s

    @property
    def has_ended(self) -> bool:
        """Whether the control connection has ended, by either end."""
        return self._error is not None

    @property
    def carries_users(self) -> bool:
        """Whether there is a multiplexed session that goes on, whatever the control connection does."""
        return (self.control.mux is not None and not self.control.mux.closed) or self._carriers.are_there

    @property
    def is_over(self) -> bool:
        """Whether nobody needs a connection that was retired any longer."""
        return self._is_released and not self.carries_users

    def close(self) -> None:
        """Close the control connection, and the data connections that wait; more than once does no harm."""
        self._error = self._error or ConnClosed("this end has closed the control connection")
        self._trouble.set()
        self._crew.kill()
        self._outbox.close()
        self.pool.close()
        self._carriers.close()
        self.control.close()

    # ---- users: each way ends in `tunnel.serve` ------------------------------------------------------------

    def _bring(self, asked: Exchange) -> None:
        """Serve a user on demand: the server asks for a data connection."""
        proxy = self._proxy_of(asked)
        wait_for_room(USER_COSTS + len(self.pool))  # users for those that wait will need a descriptor, too
        with descriptors.promise():
            conn = self._open_data(asked)
        tunnel.serve(proxy, conn, asked.user)

    def _open_data(self, asked: Exchange) -> Conn:
        """Return the data connection for which the server asks, once it is its turn; raises `ConnError`."""
        self._shared.turns.wait()
        with self._shared.turns.trying():
            return self.control.open_data(asked)

    def _serve_stream(self, stream: Stream) -> None:
        """Serve a user for whom the server has opened a stream; the session resets one that says nothing."""
        try:
            exchange = expect(stream, Exchange, MAX_LOGIN_BYTES)
            stream.claim()
            wait_for_room(1)
        except BaseException:
            stream.abort()
            raise
        self._serve(stream, exchange)

    def _serve(self, conn: Conn, exchange: Exchange) -> None:
        """Serve the user whose Exchange has come on a data connection; closes the data connection."""
        try:
            proxy = self._proxy_of(exchange)
        except ProtocolError:
            conn.abort()
            raise
        tunnel.serve(proxy, conn, exchange.user)

    def _bring_datagrams(self, asked: Exchange) -> None:
        """Open the data connection of a UDP proxy, for which the server asks, and carry until it ends."""
        proxy = self._proxy_of(asked)
        if proxy.udp is None:
            proxy.log.warning("the server asks for datagrams of a proxy that has none")
            return
        is_opening = proxy.name in self._asked
        self._asked[proxy.name] = asked
        if is_opening:  # one after the other: whoever opens now sees it
            return
        try:
            conn = self._open_data(asked)
        finally:
            if (latest := self._asked.pop(proxy.name)) is not asked:
                self._shared.crew.spawn(self._bring_datagrams, latest)
        proxy.udp.carry(conn, binary=self.control.carries_datagrams_in_binary)
