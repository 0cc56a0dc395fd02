"""Tries ports of a server: asks for them, comes there as a user, measures, and gives them back.

The users of a trial come from this process, and so does their local service. A user from elsewhere, who
happens to come meanwhile, is reset.
"""

from __future__ import annotations

import hmac
import os
import socket
import statistics
import time
from collections import deque
from dataclasses import dataclass, field, replace

import gevent
from gevent.event import Event

from gnar_lib.client.connect import ControlConn
from gnar_lib.client.connection import Connection
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.shared import MAX_UNANSWERED, Shared
from gnar_lib.config import ClientConfig, ProxyConfig, Rate
from gnar_lib.config.model import LOOPBACK
from gnar_lib.errors import ConnClosed, DeadlineError, ProtocolError, UnreachableError
from gnar_lib.net import Conn, Crew, Datagram, bind_udp, deadline, give_way, listen, recv_exactly, resolve
from gnar_lib.net.datagram_conn import connect_udp
from gnar_lib.net.target import Target
from gnar_lib.proto import Exchange, ProxyResp
from gnar_lib.proto.msg import STATUS_SUCCESS

HELLO_S = 3.0  # for a user of the trial to say who that is
UDP_TRIES, UDP_TRY_S = 5, 0.3  # since datagrams get lost
LOOK_EVERY_S = 0.01
ECHOES = 5  # round trips of which the median counts
BLOCK = bytes(64 * 1024)
MOST_BYTES = 64 << 20  # of one measurement: a second of half a gigabit, and no more for those who pay for it
SECRET_BYTES = 16
NAME_PREFIX = "check "  # of a proxy, in the server's log
PAGE_PREFIX = "gnar-check-"  # of the path of a page
PAGE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
_ECHO, _DOWN, _UP = b"e", b"d", b"u"  # what a user of the trial wants of the local service


class _Service:
    """The local service of a trial, on loopback. It talks only to those who know its secret."""

    def __init__(self) -> None:
        self.secret = os.urandom(SECRET_BYTES)
        self.page_name = f"{PAGE_PREFIX}{self.secret.hex()}"  # of which it has a page, for users of names
        self.page = os.urandom(SECRET_BYTES).hex().encode()  # what stands there
        self.received = 0  # bytes of uploads
        self.began_s = 0.0  # when the first of them came
        self._crew = Crew("trial")
        self._listener = listen(LOOPBACK, 0)
        self._listener.serve(self._crew, self._serve)
        self._datagrams = bind_udp(LOOPBACK, 0)
        self._datagrams.serve(self._answer)

    def port(self, kind: str) -> int:
        """Return the port on which it serves "tcp" or "udp"."""
        return self._datagrams.port if kind == "udp" else self._listener.port

    def close(self) -> None:
        self._listener.close()
        self._datagrams.close()
        self._crew.kill()

    def _serve(self, conn: Conn) -> None:
        try:
            with deadline(HELLO_S, "the beginning"):
                said = recv_exactly(conn, SECRET_BYTES + 1)
            if said.startswith(b"GET /"):
                self._show_page(conn, said)
                return
            if not hmac.compare_digest(said[:SECRET_BYTES], self.secret):
                raise ProtocolError("a user from elsewhere")
            wish = said[SECRET_BYTES:]
            if wish == _DOWN:
                _pour(conn)
            elif wish == _UP:
                self._count(conn)
            else:
                while data := conn.recv(len(BLOCK)):
                    conn.sendall(data)
        finally:
            conn.abort()

    def _show_page(self, conn: Conn, head: bytes) -> None:
        """Answer a request by HTTP whose head begins with `head`."""
        with deadline(HELLO_S, "the request"):
            while b"\r\n\r\n" not in head and len(head) < len(BLOCK):
                head += conn.recv(len(BLOCK)) or b"\r\n\r\n"
            target = head.split(b" ")[1]
            if not hmac.compare_digest(target.rpartition(b"/")[2], self.page_name.encode()):
                raise ProtocolError("a user from elsewhere")
            conn.sendall(PAGE_HEAD % len(self.page) + self.page)
            conn.shutdown(socket.SHUT_WR)
            while conn.recv(len(BLOCK)):
                pass

    def _count(self, conn: Conn) -> None:
        while data := conn.recv(len(BLOCK)):
            self.began_s = self.began_s or time.monotonic()
            self.received += len(data)
            give_way()

    def _answer(self, datagrams: list[Datagram]) -> None:
        self._datagrams.send([each for each in datagrams if each[1] == self.secret])


def _pour(conn: Conn) -> None:
    """Send until the other end has gone, which raises a `ConnError`."""
    while True:
        conn.sendall(BLOCK)
        give_way()


@dataclass(eq=False, slots=True)
class Port:
    """A port of the server that a trial asks for. `of` is the proxy for which the port is meant."""

    of: ProxyConfig
    proxy: ClientProxy  # that is asked for: users reach the service of the trial
    answer: ProxyResp | None = None  # of the server
    is_held: bool = False  # the server has opened it for the trial
    answered: Event = field(default_factory=Event)

    @property
    def is_open(self) -> bool:
        """Whether the server has opened the port."""
        return self.answer is not None and self.answer.status == STATUS_SUCCESS

    @property
    def number(self) -> int:
        """The port at the server; 0 if nobody knows it yet."""
        return self.proxy.remote_port


class Trial:
    """One control connection, which is logged in by `begin`, and the ports that are asked for on it.

    `close` ends it, and gives everything back.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._service = _Service()
        self._shared = Shared(config)
        self._ports: dict[str, Port] = {}  # by the name that is asked for
        self._to_ask: deque[Port] = deque()
        self._unanswered = 0
        self._connection: Connection | None = None  # from `begin` on

    # ---- ports ---------------------------------------------------------------------------------------------

    @property
    def page_name(self) -> str:
        """The last part of the path at which the service answers users of names."""
        return self._service.page_name

    @property
    def page(self) -> bytes:
        """What the service answers there."""
        return self._service.page

    def port(self, of: ProxyConfig) -> Port:
        """Return a port for a proxy of the settings, which `begin` or `ask` asks for."""
        name = f"{NAME_PREFIX}{of.proxy_name}"
        trial = replace(
            of,
            proxy_name=name,
            local_host=LOOPBACK,
            local_port=self._service.port(of.proxy_type),
            speed_limit=Rate(),
            max_users=0,
            max_users_per_address=0,
            proxy_protocol="",  # which the service of the trial does not expect
        )
        return Port(of, ClientProxy(trial, self._shared.meter))

    def begin(self, control: ControlConn, ports: list[Port]) -> None:
        """Log in, and ask for the ports: a Go server for the first, another for all.

        The trial closes `control`, at once if the login fails. Raises what `ControlConn.log_in` raises.
        """
        first, *others = ports
        try:
            control.log_in(first.proxy.request())
        except BaseException:
            control.close()
            raise
        self._connection = Connection(self._shared, control, self._proxy_of)
        self._ports[first.proxy.name] = first
        self._unanswered = 1
        self._connection.start(self._on_answer, self._on_tick)
        if not control.is_go:
            self.ask(others)

    def ask(self, ports: list[Port]) -> None:
        """Ask for further ports."""
        self._to_ask.extend(ports)
        self._ask_more()

    def _ask_more(self) -> None:
        while self._connection is not None and self._to_ask and self._unanswered < MAX_UNANSWERED:
            port = self._to_ask.popleft()
            self._ports[port.proxy.name] = port
            self._unanswered += 1
            self._connection.post(port.proxy.request())

    def wait_answer(self, port: Port, timeout_s: float) -> None:
        """Wait until the server has answered for a port, or has hung up, or `timeout_s` is over."""
        until_s = time.monotonic() + timeout_s
        while self._connection is not None and not self._connection.has_ended and not port.answered.is_set():
            if (left_s := until_s - time.monotonic()) <= 0:
                break
            port.answered.wait(min(left_s, LOOK_EVERY_S))

    def give_back(self, port: Port) -> None:
        """Cancel a port, if it is open; users who come there are refused from then on."""
        if self._connection is None or not port.is_held:
            return
        port.is_held = False
        control = self._connection.control
        if control.is_go:
            control.cancel_apart(port.proxy.cancellation())
        else:
            self._connection.post(port.proxy.cancellation())

    def _on_answer(self, answer: ProxyResp) -> None:
        name = answer.proxy_name or next(iter(self._ports))  # a Go server names none: there is one
        port = self._ports.get(name)
        if port is None or port.answer is not None:
            return
        port.answer, port.is_held = answer, answer.status == STATUS_SUCCESS
        if port.is_held:
            port.proxy.opened(answer)
        self._unanswered -= 1
        port.answered.set()
        self._ask_more()

    def _on_tick(self) -> None:
        if self._connection is not None:
            self._connection.pool.tend(refill=True)

    def _proxy_of(self, exchange: Exchange) -> ClientProxy:
        port = self._ports.get(exchange.proxy_name or next(iter(self._ports)))
        if port is None:
            raise ProtocolError("a user for no port of the trial")
        return port.proxy

    def close(self) -> None:
        """End the control connection, with which all ports are free, and all that belongs to it."""
        self._shared.users.kill()
        if self._connection is not None:
            self._connection.close()
        for port in self._ports.values():
            port.proxy.end()
        self._shared.crew.kill()
        self._service.close()
        gevent.sleep(0)  # the greenlets that were just ended close what they hold

    # ---- users ---------------------------------------------------------------------------------------------

    def reach(self, port: Port, timeout_s: float) -> float:
        """Come to a port as a user, and return the seconds of a round trip to the service: the median.

        Raises `ConnError` if users do not get there.
        """
        with deadline(timeout_s, "reaching the port"):
            if port.of.proxy_type == "udp":
                return self._reach_by_datagrams(port)
            conn = self._user(port, _ECHO)
            try:
                times_s = []
                for _ in range(ECHOES):
                    began_s = time.monotonic()
                    conn.sendall(b"x")
                    recv_exactly(conn, 1)
                    times_s.append(time.monotonic() - began_s)
                return statistics.median(times_s)
            finally:
                conn.abort()

    def _user(self, port: Port, wish: bytes) -> Conn:
        """Return a conn of a user to a port, on which the service does as wished; the caller closes it."""
        conn = Target(self.config.server.host, port.number).dial()
        conn.sendall(self._service.secret + wish)
        return conn

    def _reach_by_datagrams(self, port: Port) -> float:
        host = self.config.server.host
        answered = Event()
        family, address = resolve(host, port.number, socket.SOCK_DGRAM)[0]
        conn = connect_udp(family, address)
        try:
            conn.serve(lambda _: answered.set(), b"")
            for _ in range(UDP_TRIES):
                began_s = time.monotonic()
                conn.send(self._service.secret)
                if answered.wait(UDP_TRY_S):
                    return time.monotonic() - began_s
        finally:
            conn.close()
        raise UnreachableError(f"no datagram came back from {host}")

    def download(self, port: Port, seconds: float) -> float:
        """Return how many bytes a second a user gets from the service.

        Measured for `seconds`, or until there were `MOST_BYTES`. Raises `ConnError`.
        """
        conn = self._user(port, _DOWN)
        try:
            received, began_s = 0, 0.0
            with deadline(HELLO_S + 2 * seconds, "the download"):
                while received < MOST_BYTES and not 0 < began_s <= time.monotonic() - seconds:
                    data = conn.recv(len(BLOCK))
                    if not data:
                        raise ConnClosed("the download ended")
                    began_s = began_s or time.monotonic()
                    received += len(data)
                    give_way()
            return received / (time.monotonic() - began_s)
        finally:
            conn.abort()

    def upload(self, port: Port, seconds: float) -> float:
        """Return how many bytes a second the service gets from a user, measured as by `download`."""
        service = self._service
        service.received, service.began_s = 0, 0.0
        conn = self._user(port, _UP)
        self._shared.crew.spawn(_pour, conn)
        try:
            until_s = time.monotonic() + HELLO_S
            while not service.began_s:
                if time.monotonic() > until_s:
                    raise DeadlineError("the upload did not begin")
                gevent.sleep(LOOK_EVERY_S)
            until_s = service.began_s + seconds
            while service.received < MOST_BYTES and (left_s := until_s - time.monotonic()) > 0:
                gevent.sleep(min(left_s, LOOK_EVERY_S))
            return service.received / (time.monotonic() - service.began_s)
        finally:
            conn.abort()
