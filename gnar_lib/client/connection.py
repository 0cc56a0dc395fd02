"""One control connection that is logged in: its heartbeats, its messages, and the users whom it announces."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

from gnar_lib import logger
from gnar_lib.client import tunnel
from gnar_lib.client.connect import ControlConn
from gnar_lib.client.pool import WaitingPool
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.shared import Shared
from gnar_lib.errors import ProtocolError
from gnar_lib.net import Conn
from gnar_lib.proto import Exchange, Heartbeat, Message, ProxyResp, expect, recv
from gnar_lib.proto.numbers import HEARTBEAT_S, MAX_LOGIN_BYTES, SILENCE_S
from gnar_lib.proto.outbox import Outbox
from gnar_lib.yamux import Stream

_log = logger.get("client")


class Connection:
    """Serves the users of all proxies that the server has opened on this control connection.

    `proxy_of` returns the proxy whose user an Exchange announces, or raises `ProtocolError`. Users who are
    being served go on when the control connection ends, unless it is multiplexed.
    """

    def __init__(
        self, shared: Shared, control: ControlConn, proxy_of: Callable[[Exchange], ClientProxy]
    ) -> None:
        self.control = control  # `close` closes it
        self.pool = WaitingPool(shared.users, control.open_waiting, self._serve)
        self._shared = shared
        self._proxy_of = proxy_of
        self._outbox = Outbox(control.conn, shared.crew)  # sends the messages
        self._heard_s = time.monotonic()  # when the last message came

    def post(self, message: Message) -> None:
        """Send a message to the server; never waits. A message that cannot be sent is lost."""
        self._outbox.post(message)

    def run(self, on_answer: Callable[[ProxyResp], None], on_tick: Callable[[], None]) -> None:
        """Receive messages until the control connection ends; raises the `ConnError` or `ProtocolError`.

        `on_answer` is called with each answer to a ProxyReq, `on_tick` once a second.
        """
        ticker = gevent.spawn(self._tick, on_tick)
        try:
            self.control.serve_streams(self._shared.users, self._serve_stream)
            while True:
                self._handle(recv(self.control.conn), on_answer)
        finally:
            ticker.kill(block=False)

    def _handle(self, message: Message, on_answer: Callable[[ProxyResp], None]) -> None:
        self._heard_s = time.monotonic()
        match message:
            case Heartbeat(waiting=count):
                if count and self.control.may_wait:
                    self.pool.want(count)
            case Exchange(proxy_type="udp"):
                self._shared.crew.spawn(self._bring_datagrams, message)
            case Exchange():
                self._shared.users.spawn(self._bring, message)
            case ProxyResp():
                on_answer(message)
            case _:
                raise ProtocolError(f"{type(message).__name__} on a control connection")

    def _tick(self, on_tick: Callable[[], None]) -> None:
        """Once a second: send a heartbeat, and give up a server that is silent."""
        while True:
            gevent.sleep(HEARTBEAT_S)
            if time.monotonic() - self._heard_s > SILENCE_S:
                _log.warning("the server has been silent for %g s", SILENCE_S)
                self.control.abort()
                return
            if not self.control.is_go:
                self.post(Heartbeat())
            on_tick()

    def close(self) -> None:
        """Close the control connection, and the data connections that wait; more than once does no harm."""
        self._outbox.close()
        self.pool.close()
        self.control.close()

    # ---- users: each way ends in `tunnel.serve` ------------------------------------------------------------

    def _bring(self, asked: Exchange) -> None:
        """Serve a user on demand: the server asks for a data connection."""
        proxy = self._proxy_of(asked)
        tunnel.serve(proxy, self.control.open_data(asked), asked.user)

    def _serve_stream(self, stream: Stream) -> None:
        """Serve a user for whom the server has opened a stream; the session resets one that says nothing."""
        try:
            exchange = expect(stream, Exchange, MAX_LOGIN_BYTES)
            stream.claim()
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
        conn = self.control.open_data(asked)
        proxy.udp.carry(conn, binary=self.control.carries_datagrams_in_binary)
