"""One client at the server: its control connection, and the proxies that it has asked for.

The message loop reads like the protocol: one case for each message, one call for each case. Everything that
the client holds is freed in one place, `end`, however the control connection ended.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

from gnar_lib import logger
from gnar_lib.auth import Rights
from gnar_lib.errors import ConnError, ProtocolError
from gnar_lib.events import CloseReason
from gnar_lib.net import EventedConn, format_address, host_of
from gnar_lib.net.options import dead_after_s
from gnar_lib.net.rota import Rota
from gnar_lib.proto import Heartbeat, Login, Message, ProxyCancel, ProxyReq, ProxyResp
from gnar_lib.proto.msg import HEARTBEAT_FRAME, STATUS_FAILED
from gnar_lib.proto.numbers import FEATURE_LEAVE, HEARTBEAT_S
from gnar_lib.proto.outbox import Outbox
from gnar_lib.proto.pace import MESSAGE_S, pace, recv_paced
from gnar_lib.server.belongings import BY_ADMINISTRATOR, Belongings, Client
from gnar_lib.server.ingress.kept import KeptIngresses
from gnar_lib.server.ingress.making import Ingress
from gnar_lib.server.logins import Peer
from gnar_lib.server.upstream import Carriers, Upstream
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream

TICK_S = 1.0  # between two looks at the client and at what it has
LOOK_EVERY_S = 5.0  # whether a client is dead
HEARTBEAT_SLACK_S = 1.0  # by which a heartbeat may be late
DISMISS_S = 2.0  # for a client to take note that it has been ended, before it is hung up on
READ_BYTES = 256  # to see whether a Heartbeat has come, and nothing else
INHERITED_S = 10.0  # within which a client that has come back has to ask for each of its proxies again

_numbers = itertools.count(1)
_rota = Rota(lambda: TICK_S)  # of all clients: the process has one loop
_log = logger.get("control")


class Control:
    """A client that has logged in, for as long as its control connection lasts.

    `conn` is the control connection. With a client that multiplexes, `conn` is a stream of `mux`; otherwise
    `mux` is None. `end` closes both, and the client's further sessions, and then calls `on_end`.
    """

    def __init__(
        self,
        kept: KeptIngresses,
        conn: EventedConn | Stream,
        peer: Peer,
        mux: Mux | None,
        on_end: Callable[[Control], None],
    ) -> None:
        shared = kept.shared
        self.number = next(_numbers)  # the same when the client comes back before its end was noticed
        self.conn = conn
        self.peer = peer
        self.session = peer.session  # the login session; None for a Go client
        self._carriers = None if mux is None else Carriers(mux, peer.session)
        self.client_id = peer.login.client_id  # the same when the client comes back; empty for a Go client
        self.address = conn.getpeername()  # of the client
        self._shared = shared
        self._on_end = on_end
        self._outbox = outbox = Outbox(conn, shared.crew, self._abort)
        self.upstream = Upstream(
            shared.conn_map, outbox.post, peer.session, self._carriers, lambda: self.is_silent
        )
        client = Client(peer, self.address, outbox.post, lambda: self.is_silent, self._on_lost)
        self._has = has = Belongings(kept, self.upstream, client)
        self.tell = has.tell
        self._heard_s = began_s = time.monotonic()  # when the last message came
        self._heartbeat_s = HEARTBEAT_S if peer.session is None else peer.session.heartbeat_s
        self._beats_s = began_s + self._heartbeat_s - TICK_S / 2  # when the next Heartbeat is due
        self._looks_s = began_s  # when to look whether the client is dead
        self._inherits_until_s = began_s + INHERITED_S  # then what nobody has asked for is closed
        self._is_replaced = False  # by another control connection of the same client
        self._dismissed_s = math.inf  # when `dismiss` was called
        self._is_ended_by_hand = False  # an administrator has ended the client, or its last proxy
        self._is_ended = False
        self._has_lost = False  # `_on_lost` was called

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
        """Serve the client from now on, until its control connection ends; does not wait for that."""
        _rota.add(self)
        self._serve(first)

    def _serve(self, message: Message | None = None) -> None:
        """Handle `message`, or the next one, and those behind it; no greenlet waits for what comes later.

        If the control connection ends, frees all that the client has.
        """
        try:
            self._handle(message or recv_paced(self.conn))
            while self.conn.has_unread:
                self._handle(recv_paced(self.conn))
            self.conn.call_once_readable(self._on_readable)
        except ConnError as exc:
            self._end(self._why(exc))
        except ProtocolError as exc:
            self._end(str(exc), broke_protocol=True)
        except BaseException:
            self.end()
            raise

    def _on_readable(self) -> None:
        """Take note of a Heartbeat, and have a greenlet handle everything else; runs in the hub."""
        try:
            data = self.conn.recv_now(READ_BYTES)
            if data == HEARTBEAT_FRAME and pace.take_now(MESSAGE_S):
                self._heard_s = time.monotonic()
                self.conn.call_once_readable(self._on_readable)
                return
        except ConnError as exc:
            self._shared.crew.enter(self._end, self._why(exc))
            return
        self.conn.unread(data or b"")
        self._shared.crew.enter(self._serve)

    def _why(self, error: ConnError) -> str:
        """Return why the control connection has ended; `ClientGone` has the address."""
        return str(error).removeprefix(f"{self.conn}: ")

    @property
    def silent_s(self) -> float:
        """For how many seconds nothing has come from the client. Any byte of a multiplexed session counts."""
        heard_s = self._heard_s if self._carriers is None else max(self._heard_s, self._carriers.heard_s)
        return time.monotonic() - max(heard_s, _rota.resumed_s)

    @property
    def mux(self) -> Mux | None:
        """The multiplexed session that has the control connection; None without, and once that is left."""
        return None if self._carriers is None else self._carriers.first

    @property
    def is_silent(self) -> bool:
        """Whether one of the heartbeats of gnar's own client should have come, and has not."""
        return self.session is not None and self.silent_s > 1.5 * self._heartbeat_s + HEARTBEAT_SLACK_S

    def _handle(self, message: Message) -> None:
        self._heard_s = time.monotonic()
        match message:
            case Heartbeat(leaving=leaving):
                if leaving:
                    self._leave()
            case ProxyReq():
                self._has.open_proxy(message)
            case ProxyCancel():
                self._has.cancel(message)
            case _:
                raise ProtocolError(f"{type(message).__name__} on a control connection")

    def tick(self, now_s: float) -> None:
        """Once a second: do what is due. Most of the time that is nothing, for thousands of clients."""
        if now_s >= self._beats_s:
            self._beats_s = now_s + self._heartbeat_s - TICK_S / 2
            self._outbox.post_heartbeat()
        if now_s >= self._looks_s:
            self._looks_s = now_s + min(LOOK_EVERY_S, dead_after_s() / 8)
            self._give_up_if_dead()
        if now_s - self._dismissed_s > DISMISS_S:
            self._dismissed_s = math.inf
            self._shared.crew.spawn(self.end)
        if now_s > self._inherits_until_s:
            self._inherits_until_s = math.inf
            if self._has.has_inherited:
                self._shared.crew.spawn(self._has.close_inherited)
        self.upstream.tend()
        if self._has.has_datagrams:
            self._has.tend()

    def _give_up_if_dead(self) -> None:
        if self.session is not None and self.silent_s > dead_after_s():
            _log.info("client %s has been silent for %.0f s", self, self.silent_s)
            _rota.discard(self)
            self._abort()

    # ---- proxies -------------------------------------------------------------------------------------------

    @property
    def rights(self) -> Rights:
        """What the client may have."""
        return self._has.rights

    @rights.setter
    def rights(self, rights: Rights) -> None:
        self._has.rights = rights

    def holds(self, message: ProxyCancel) -> bool:
        """Tell whether a proxy of this client has the port that a cancel names, or is meant by its name."""
        port = message.remote_port
        return self._has.has_port(port) if port else self._has.find(message) is not None

    def cancel(self, message: ProxyCancel) -> None:
        """Close a proxy of this client; its users stay. Refused if the client has no such proxy."""
        self._has.cancel(message)

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
        """The ingresses of the client's proxies at the moment."""
        return self._has.used

    @property
    def held(self) -> list[Ingress]:
        """The same, and those for which the client has not asked again."""
        return self._has.all

    @property
    def udp_users(self) -> int:
        """How many users of UDP proxies have sent a datagram lately."""
        return self._has.udp_users

    # ---- a client that comes back, or leaves ---------------------------------------------------------------

    def take_over(self, older: Control) -> None:
        """Take the proxies over from an earlier control connection of the same client, and end that.

        Users who come meanwhile wait. A proxy for which the client does not ask again is closed soon. Users
        who have a data connection stay, also those of a multiplexed session, which ends with the last.
        """
        self.number = older.number
        older._is_replaced = True
        self._has.take_over(older._has)
        older._end_without_users()

    def _end_without_users(self) -> None:
        """End the control connection; a multiplexed session ends with its last user."""
        carriers, self._carriers = self._carriers, None  # so that they outlive this control connection
        self.end()
        if carriers is not None:
            carriers.drain()

    def _leave(self) -> None:
        """Keep what the client has for its next start, and tell the client that no more users come."""
        _log.info("client %s leaves, and may come back; proxies: %d", self, len(self._has.used))
        self._has.keep()
        self.post(Heartbeat(leaving=True))

    def _on_lost(self) -> None:
        """Have the client connect anew, and ask again: it was silent, and another has one of its names."""
        if self._has_lost:
            return
        self._has_lost = True
        if self.session is not None and FEATURE_LEAVE in self.session.features:
            self.post(Heartbeat(leaving=True))
        else:
            self._abort()

    def send_away(self) -> None:
        """Have the client connect anew, since another process has the ports; its users stay."""
        self._has.hand_on()
        if self.session is None or FEATURE_LEAVE not in self.session.features:
            self._end_without_users()
            return
        carriers, self._carriers = self._carriers, None
        if carriers is not None:
            carriers.drain()
        self.post(Heartbeat(leaving=True))

    # ---- what an administrator ends ------------------------------------------------------------------------

    def end_proxy(self, ingress: Ingress) -> None:
        """Close one of `held` for good, with its users, and tell the client."""
        self._has.end(ingress)
        self._is_ended_by_hand = not self.held
        self._has.tell_ended(ingress)

    def dismiss(self) -> None:
        """End the client with all its users, and tell it not to come back by itself.

        If the client does not hear that, since its connection breaks, it is told when it has come back.
        """
        self._shared.dismissed.add(self.client_id)
        self._dismissed_s = min(self._dismissed_s, time.monotonic())  # asking again gives it no more time
        self._has.is_dismissed = self._is_ended_by_hand = True
        self.post(Heartbeat(ended=BY_ADMINISTRATOR))
        if self.session is None:
            self.post(ProxyResp("", STATUS_FAILED))  # a Go client knows no other word for that
        for ingress in self.held:
            if self._has.has(ingress):  # else it is closed by now
                self._has.end(ingress)
                pace.take(MESSAGE_S)

    # ---- data connections that wait ------------------------------------------------------------------------

    def admit_waiting(self, conn: EventedConn, login: Login) -> None:
        """Take over a data connection that is to wait for a user; refuse one that proves nothing."""
        if not self.upstream.admit(conn, login):
            _log.warning("refused %s: a data connection that proves nothing", conn)
            conn.close()

    def admit_carrier(self, conn: EventedConn, login: Login) -> None:
        """Carry users on a further multiplexed session until it ends; refuse one that proves nothing."""
        carriers = self._carriers
        mux = None if carriers is None else carriers.admit(conn, login)
        if carriers is None or mux is None:
            _log.debug("refused %s: a further session of %s", conn, self)
            conn.close()
            return
        try:
            mux.wait_end()
        finally:
            carriers.forget(mux)
            mux.close()

    def admit_beside(self, conn: EventedConn, login: Login) -> None:
        """Have bulk of a stream go on over a connection; close one that proves nothing, or is not needed."""
        if self._carriers is None or not self._carriers.attach(conn, login):
            _log.debug("refused %s: no stream of %s needs it", conn, self)
            conn.close()

    # ---- the end -------------------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Take no more users; those who have a data connection stay."""
        self._has.stop_listening()

    def _abort(self) -> None:
        """End the control connection at once, and free all that the client has; does not wait."""
        self.conn.abort()
        self._shared.crew.spawn(self._end, "closed")

    def end(self) -> None:
        """Close the control connection, let no user wait and free the ports; more than once does no harm."""
        self._end("ended by the server")

    def _end(self, reason: str, *, broke_protocol: bool = False) -> None:
        """End the client, of which `reason` tells why it has gone, unless it has ended before."""
        if not self._is_ended:
            self._is_ended = self._has.is_over = True
            if not self._is_replaced:  # else the client has come back on another connection
                reason = BY_ADMINISTRATOR if self._is_ended_by_hand else reason
                self.tell.gone(reason, self.held, broke_protocol=broke_protocol)
            self._outbox.close()
            self.conn.close()
            if self._carriers is not None:
                self._carriers.close()
            self.upstream.close()
        _rota.discard(self)  # each time, since `run` may have come behind the end
        self._has.close_all(CloseReason.STOPPING if self._shared.stopping else CloseReason.CLIENT_LEFT)
        self._on_end(self)
