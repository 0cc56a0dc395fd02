"""One client at the server: its control connection, and the proxies that it has asked for.

The message loop reads like the protocol: one case for each message, one call for each case. Everything that
the client holds is freed in one place, `end`, however the control connection ended.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace

import gevent

from gnar_lib import logger
from gnar_lib.auth import Rights
from gnar_lib.config.model import DEFAULT_UDP_TIMEOUT_S
from gnar_lib.errors import ConnClosed, ConnError, GnarError, ProtocolError, ProxyRefusedError
from gnar_lib.events import CloseReason
from gnar_lib.net import Conn, EventedConn, format_address, host_of
from gnar_lib.net.options import dead_after_s
from gnar_lib.net.rounds import Rounds
from gnar_lib.proto import Heartbeat, Login, Message, ProxyCancel, ProxyReq, ProxyResp
from gnar_lib.proto.msg import STATUS_FAILED, STATUS_SUCCESS
from gnar_lib.proto.numbers import FEATURE_LEAVE, HEARTBEAT_S
from gnar_lib.proto.outbox import Outbox
from gnar_lib.proto.pace import MESSAGE_S, pace, recv_paced
from gnar_lib.server.ingress.kept import Ingress, KeptPorts, limits_of, new_ingress, own_limit_of
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.logins import Peer
from gnar_lib.server.opening import KINDS, open_port
from gnar_lib.server.teller import Teller
from gnar_lib.server.upstream import Upstream
from gnar_lib.yamux import Session as Mux

TICK_S = 1.0  # between two looks at the client and at what it has
HEARTBEAT_SLACK_S = 1.0  # by which a heartbeat may be late
DISMISS_S = 2.0  # for a client to take note that it has been ended, before it is hung up on
BY_ADMINISTRATOR = "ended by an administrator"
INHERITED_S = 10.0  # within which a client that has come back has to ask for each of its proxies again

_numbers = itertools.count(1)
_log = logger.get("control")


class Control:
    """A client that has logged in, for as long as its control connection lasts.

    `conn` is the control connection. With a client that multiplexes, `conn` is a stream of `mux`; otherwise
    `mux` is None. `end` closes both, and then calls `on_end`.
    """

    def __init__(
        self,
        kept: KeptPorts,
        conn: Conn,
        peer: Peer,
        mux: Mux | None,
        on_end: Callable[[Control], None],
    ) -> None:
        shared = kept.shared
        self.number = next(_numbers)  # the same when the client comes back before its end was noticed
        self.conn = conn
        self.peer = peer
        self.session = peer.session  # the login session; None for a Go client
        self.mux = mux
        self.client_id = peer.login.client_id  # the same when the client comes back; empty for a Go client
        self.address = conn.getpeername()  # of the client
        self.rights = Rights.of(shared.config)  # replaced by a reload
        self._shared = shared
        self._kept = kept  # the ports of clients that are away
        self._on_end = on_end
        self._outbox = outbox = Outbox(conn, shared.crew)
        self.upstream = Upstream(shared.conn_map, outbox.post, peer.session, mux, lambda: self.is_silent)
        self._ingresses: dict[tuple[str, int], Ingress] = {}  # by kind and port
        # Those of the client's control connection before this one for which the client has not asked again.
        self._inherited: dict[tuple[str, int], Ingress] = {}
        self._began_s = time.monotonic()
        self._heard_s = self._began_s  # when the last message came
        self._heartbeat_s = HEARTBEAT_S if peer.session is None else peer.session.heartbeat_s
        self.tell = Teller(peer, self.address)
        self._is_replaced = False  # by another control connection of the same client
        self._dismissed_s = math.inf  # when `dismiss` was called
        self._is_ended_by_hand = False  # an administrator has ended the client, or its last proxy
        self._is_ended = False
        self._owner = (peer.credential, self.host)  # whose the ports of this client are

    def __str__(self) -> str:
        return format_address(self.address)

    @property
    def host(self) -> str:
        """The address from which the client has connected, without the port."""
        return host_of(self.address)

    def post(self, message: Message) -> None:
        """Send a message to the client; never waits."""
        self._outbox.post(message)

    def run(self, first: ProxyReq) -> None:
        """Serve the client until its control connection ends, then free all that the client has."""
        self._shared.crew.spawn(self._tick)
        reason, broke_protocol = "ended by the server", False
        try:
            self._handle(first)
            while True:
                self._handle(recv_paced(self.conn))
        except ConnError as exc:
            reason = str(exc).removeprefix(f"{self.conn}: ")  # `ClientGone` has the address
        except ProtocolError as exc:
            reason, broke_protocol = str(exc), True
        finally:
            if not self._is_replaced:  # else the client has come back on another connection
                reason = BY_ADMINISTRATOR if self._is_ended_by_hand else reason
                self.tell.gone(reason, self.held, broke_protocol=broke_protocol)
            self.end()

    @property
    def silent_s(self) -> float:
        """For how many seconds nothing has come from the client. Any byte of a multiplexed session counts."""
        heard_s = self._heard_s if self.mux is None else max(self._heard_s, self.mux.heard_s)
        return time.monotonic() - heard_s

    @property
    def is_silent(self) -> bool:
        """Whether one of the heartbeats of gnar's own client should have come, and has not."""
        return self.session is not None and self.silent_s > 1.5 * self._heartbeat_s + HEARTBEAT_SLACK_S

    def _handle(self, message: Message) -> None:
        self._heard_s = time.monotonic()
        match message:
            case Heartbeat(leaving=leaving):
                if leaving:
                    self._leave_ports()
            case ProxyReq():
                self._open_proxy(message)
            case ProxyCancel():
                self.cancel(message)
            case _:
                raise ProtocolError(f"{type(message).__name__} on a control connection")

    def _tick(self) -> None:
        """Once a second: send a heartbeat that is due, give up a client that is dead, tend what it has."""
        next_heartbeat_s, rounds = 0.0, Rounds(TICK_S)
        while not self._is_ended:
            now = time.monotonic()
            if rounds.was_stopped():
                self._heard_s = now  # what has come meanwhile is still to be read
            if now >= next_heartbeat_s:
                self.post(Heartbeat())
                next_heartbeat_s = now + self._heartbeat_s - TICK_S / 2
            if now - self._dismissed_s > DISMISS_S:
                self.end()
            if self.session is not None and self.silent_s > dead_after_s():
                _log.info("client %s has been silent for %.0f s", self, self.silent_s)
                self.conn.abort()
                return
            self.upstream.tend()
            for ingress in self._ingresses.values():
                if isinstance(ingress, UdpIngress):
                    ingress.tend()
            if self._inherited and now - self._began_s > INHERITED_S:
                self._close_inherited()
            gevent.sleep(TICK_S)

    # ---- proxies -------------------------------------------------------------------------------------------

    def _open_proxy(self, request: ProxyReq) -> None:
        """Open the proxy that the client asks for and answer; a refusal is an answer, too."""
        name, kind = request.proxy_name, request.proxy_type
        is_over = self._shared.stopping or self._dismissed_s < math.inf
        if not is_over and (self._inherit(request) or self._return_to(request)):
            return
        try:
            ingress = self._open_ingress(request)
        except GnarError as exc:
            self.tell.refused(name, kind, str(exc))
            retry = not isinstance(exc, ProxyRefusedError)
            own = self._shared.ports.owner(kind, request.remote_port) == self._owner
            answer = ProxyResp("", STATUS_FAILED, str(exc), retry, proxy_name=name, own=own)
            self._answer(answer)
            return
        self.tell.opened(ingress)
        self._answer(ProxyResp("", STATUS_SUCCESS, remote_port=ingress.port, proxy_name=name))
        if kind == "tcp":
            self.upstream.expect_users()
        ingress.start()

    def _open_ingress(self, request: ProxyReq) -> Ingress:
        """Return a new ingress, with its proxy, that has yet to start; raises `GnarError` that says why not.

        `_close` closes the ingress.
        """
        shared, rights, kind = self._shared, self.rights, request.proxy_type
        if self._dismissed_s < math.inf:
            raise ProxyRefusedError(f"this client was {BY_ADMINISTRATOR}")
        opened = open_port(shared, rights, request, len(self._ingresses))
        request = replace(request, udp_timeout=int(self._session_s(request) or 0))
        ingress = new_ingress(shared, opened, self.upstream, rights, request)
        if self._is_ended:  # during the look-up of the address to bind to: nobody would call `_close`
            ingress.close()
            raise ConnClosed("the control connection has ended")
        shared.ports.hold(kind, ingress.port, self._owner)
        self._ingresses[kind, ingress.port] = ingress
        return ingress

    def _session_s(self, request: ProxyReq) -> float | None:
        """Return how long the client keeps idle UDP sessions; None if it is Go's, which does not say."""
        return None if self.session is None else request.udp_timeout or DEFAULT_UDP_TIMEOUT_S

    def _answer(self, answer: ProxyResp) -> None:
        """Answer a request, without what the Go program does not know to a client of that program."""
        self.post(answer if self.session is not None else ProxyResp("", answer.status))

    def holds(self, port: int) -> bool:
        """Tell whether a proxy of this client has this port, of TCP or of UDP."""
        return any((kind, port) in self._ingresses for kind in KINDS)

    def cancel(self, message: ProxyCancel) -> None:
        """Close a proxy of this client; its users stay. Refused if the client has no such proxy."""
        found = (self._ingresses.get((kind, message.remote_port)) for kind in KINDS)
        for ingress in found:
            if ingress is not None and ingress.proxy.name == message.proxy_name:
                break
        else:
            _log.warning("refused: %s cancels %r on port %d", self, message.proxy_name, message.remote_port)
            return
        self._close(ingress, CloseReason.CANCELLED)
        if self.session is None and ingress.proxy.kind == "tcp":  # as the Go server does
            self.post(ProxyResp(domain="", status=STATUS_FAILED))

    def _close(self, ingress: Ingress, reason: CloseReason) -> None:
        """Close an ingress with its proxy, and free the port; users who have a data connection stay."""
        kind, port = ingress.proxy.kind, ingress.port
        del self._ingresses[kind, port]
        self._shared.ports.release(kind, port)
        ingress.close()
        if kind == "tcp" and not any(each == "tcp" for each, _ in self._ingresses):
            self.upstream.expect_no_users()
        self.tell.closed(ingress, reason)

    @property
    def is_check(self) -> bool:
        """Whether the client only tries whether everything works: nobody is told of it."""
        return self.peer.login.check

    @property
    def is_there(self) -> bool:
        """Whether this is the client's present control connection."""
        return not (self._is_ended or self._is_replaced)

    @property
    def ingresses(self) -> list[Ingress]:
        """The ports that the client's proxies have at the moment."""
        return [*self._ingresses.values()]

    @property
    def held(self) -> list[Ingress]:
        """The same, and those for which the client has not asked again."""
        return [*self._ingresses.values(), *self._inherited.values()]

    @property
    def udp_users(self) -> int:
        """How many users of UDP proxies have sent a datagram lately."""
        return sum(each.users for each in self._ingresses.values() if isinstance(each, UdpIngress))

    # ---- a client that comes back --------------------------------------------------------------------------

    def take_over(self, older: Control) -> None:
        """Take the proxies over from an earlier control connection of the same client.

        Users who come meanwhile wait. A proxy for which the client does not ask again is closed soon.
        """
        self.number = older.number
        self._inherited.update(older.hand_over())

    def hand_over(self) -> dict[tuple[str, int], Ingress]:
        """Give all proxies away, by kind and port, and end the control connection.

        Users who have a data connection stay, also those of a multiplexed session, which ends with the last.
        """
        ingresses = {**self._inherited, **self._ingresses}
        self._inherited, self._ingresses = {}, {}
        self._is_replaced = True
        for ingress in ingresses.values():
            ingress.rest(self._kept.nobody)
        self._end_without_users()
        return ingresses

    def _end_without_users(self) -> None:
        """End the control connection; a multiplexed session ends with its last user."""
        mux, self.mux = self.mux, None  # so that it outlives this control connection
        self.end()
        if mux is not None:
            mux.drain()

    def _inherit(self, request: ProxyReq) -> bool:
        """Go on with the ingress that the client had on its control connection before this one.

        False if there is none, or if it is not allowed any more.
        """
        ingress = self._inherited_for(request)
        if ingress is None:
            return False
        key = ingress.proxy.kind, ingress.port
        if ingress.proxy.name != request.proxy_name or not self.rights.ports.allows(ingress.port):
            self._close_inherited(key)
            return False
        self._adopt(self._inherited.pop(key), request)
        return True

    def _adopt(self, ingress: Ingress, request: ProxyReq) -> None:
        """Have an ingress serve the proxy that is asked for, and answer."""
        self._ingresses[ingress.proxy.kind, ingress.port] = ingress
        ingress.proxy.places.limits, ingress.proxy.own_limit = limits_of(request), own_limit_of(request)
        if isinstance(ingress, UdpIngress):
            ingress.set_session(self._session_s(request))
        self._answer(ProxyResp("", STATUS_SUCCESS, remote_port=ingress.port, proxy_name=request.proxy_name))
        if ingress.proxy.kind == "tcp":
            self.upstream.expect_users()
        ingress.go_on(self.upstream)

    def _inherited_for(self, request: ProxyReq) -> Ingress | None:
        """Return what is inherited at the port that is asked for, or, if any will do, under that name."""
        kind, port = request.proxy_type, request.remote_port
        if port:
            return self._inherited.get((kind, port))
        for ingress in self._inherited.values():
            if ingress.proxy.kind == kind and ingress.proxy.name == request.proxy_name:
                return ingress
        return None

    def _close_inherited(self, *only: tuple[str, int]) -> None:
        """Close the ingresses for which the client has not asked again, or `only` some of them."""
        for key in only or [*self._inherited]:
            if (ingress := self._inherited.pop(key, None)) is not None:  # else it was asked for just now
                self._ingresses[key] = ingress
                self._close(ingress, CloseReason.CLIENT_LEFT)
                pace.take(MESSAGE_S)

    # ---- a client, or a server, that leaves ----------------------------------------------------------------

    def _leave_ports(self) -> None:
        """Keep the ports for the client's next start, and tell the client that no more users come."""
        _log.info("client %s leaves, and may come back; open ports: %d", self, len(self._ingresses))
        for key in [*self._ingresses]:
            if (ingress := self._ingresses.pop(key, None)) is not None:  # else `end` has closed it meanwhile
                self.tell.left(ingress)
                self._kept.keep(ingress, self.peer.credential)
                pace.take(MESSAGE_S)
        self.upstream.expect_no_users()
        self.post(Heartbeat(leaving=True))

    def _return_to(self, request: ProxyReq) -> bool:
        """Go on with the port that has waited for this client; False if there is none."""
        if len(self._ingresses) >= self.rights.proxies or not len(self._kept):
            return False
        ingress = self._kept.take(request, self.peer.credential, self.client_id, self.rights.ports)
        if ingress is None:
            return False
        self.tell.opened(ingress)
        self._adopt(ingress, request)
        return True

    def send_away(self) -> None:
        """Have the client connect anew, since another process has the ports; its users stay."""
        ingresses, self._ingresses, self._inherited = self.held, {}, {}
        for ingress in ingresses:
            self._shared.ports.release(ingress.proxy.kind, ingress.port)
            ingress.close()
        self.upstream.expect_no_users()
        if self.session is None or FEATURE_LEAVE not in self.session.features:
            self._end_without_users()
            return
        mux, self.mux = self.mux, None
        if mux is not None:
            mux.drain()
        self.post(Heartbeat(leaving=True))

    # ---- what an administrator ends ------------------------------------------------------------------------

    def end_proxy(self, ingress: Ingress) -> None:
        """Close one of `held` for good, with its users, and tell the client."""
        self._end_proxy(ingress)
        port, name = ingress.port, ingress.proxy.name
        self._answer(ProxyResp("", STATUS_FAILED, BY_ADMINISTRATOR, remote_port=port, proxy_name=name))

    def _end_proxy(self, ingress: Ingress) -> None:
        self._ingresses[ingress.proxy.kind, ingress.port] = ingress
        self._inherited.pop((ingress.proxy.kind, ingress.port), None)
        self._close(ingress, CloseReason.ENDED)
        for live in [*ingress.proxy.meter.connections]:
            live.end(BY_ADMINISTRATOR)
        self._is_ended_by_hand = not self.held

    def dismiss(self) -> None:
        """End the client with all its users, and tell it not to come back by itself.

        If the client does not hear that, since its connection breaks, it is told when it has come back.
        """
        self._shared.dismissed.add(self.client_id)
        self._dismissed_s = min(self._dismissed_s, time.monotonic())  # asking again gives it no more time
        self._is_ended_by_hand = True
        self.post(Heartbeat(ended=BY_ADMINISTRATOR))
        if self.session is None:
            self.post(ProxyResp("", STATUS_FAILED))  # a Go client knows no other word for that
        for ingress in self.held:
            key = ingress.proxy.kind, ingress.port
            if ingress in (self._ingresses.get(key), self._inherited.get(key)):  # else it is closed by now
                self._end_proxy(ingress)
                pace.take(MESSAGE_S)

    # ---- data connections that wait ------------------------------------------------------------------------

    def admit_waiting(self, conn: EventedConn, login: Login) -> None:
        """Take over a data connection that is to wait for a user; refuse one that proves nothing."""
        if not self.upstream.admit(conn, login):
            _log.warning("refused %s: a data connection that proves nothing", conn)
            conn.close()

    # ---- the end -------------------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Take no more users; those who have a data connection stay."""
        for ingress in self.held:
            ingress.close()

    def end(self) -> None:
        """Close the control connection, let no user wait and free the ports; more than once does no harm.

        Others have their turn while thousands of ports are freed, unless the server stops. Whoever calls
        `end` meanwhile helps, so that all ports are free whenever it returns.
        """
        if not self._is_ended:
            self._is_ended = True
            self._outbox.close()
            self.conn.close()
            if self.mux is not None:
                self.mux.close()
            self.upstream.close()
        self._ingresses.update(self._inherited)
        self._inherited = {}
        reason = CloseReason.STOPPING if self._shared.stopping else CloseReason.CLIENT_LEFT
        while self._ingresses:
            self._close(next(reversed(self._ingresses.values())), reason)
            if not self._shared.stopping:
                pace.take(MESSAGE_S)
        self._on_end(self)
