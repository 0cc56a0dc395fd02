"""The control port: logs connections in, learns what each is for, and hands each to its client or user."""

from __future__ import annotations

import socket
from functools import partial

from greenlet import getcurrent

from gnar_lib import logger, memory
from gnar_lib.config import ServerConfig
from gnar_lib.errors import AuthError, ConnError, ListenError, ProtocolError
from gnar_lib.events import LoginGivenUp, LoginRefused, Refusal, emit
from gnar_lib.net import Conn, EventedConn, Listener, SocketConn, descriptors, host_of
from gnar_lib.net.options import dead_after_s
from gnar_lib.proto import Exchange, Login, ProxyCancel
from gnar_lib.server import logins
from gnar_lib.server.control import Control
from gnar_lib.server.in_progress import InProgress
from gnar_lib.server.ingress.door import ControlDoor, Web
from gnar_lib.server.ingress.front import Front, certificate_of
from gnar_lib.server.ingress.kept import KeptIngresses
from gnar_lib.server.logins import (
    ForBeside,
    ForCancel,
    ForCarrier,
    ForControl,
    ForData,
    ForHealth,
    ForStreams,
    ForWaiting,
    Peer,
)
from gnar_lib.server.shared import Shared
from gnar_lib.server.upstream.upstream import ANY_GO_CLIENT, key_of
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream

MAX_CLIENTS = 4096
CLIENT_BYTES = 256 * 1024  # of memory, for a client that reads no answers
GO_USER_TIMEOUT_S = 30.0  # a Go client sends nothing by itself, but acknowledges the server's heartbeats

_log = logger.get("server")


class ControlIngress:
    """The control port, and the clients who have logged in there."""

    def __init__(self, shared: Shared, web: Web) -> None:
        self.clients: set[Control] = set()  # whose control connections have not ended
        self.in_progress = InProgress()  # connections that have not said what they are for
        self.kept = KeptIngresses(shared)  # of clients that are away
        self.is_left = False  # `leave` was called
        self._shared = shared
        self._sessions: set[Mux] = set()  # multiplexed, which have not ended
        self._controlled: set[Mux] = set()  # those of them that have, or had, a control connection
        self._of_client: dict[str, tuple[Control, ...]] = {}  # by what they call themselves
        self._of_session: dict[str, Control] = {}  # gnar's own clients, by the id of the login session
        self._listener: Listener | None = None  # from `serve` on
        self._front = Front(shared.certificates, self._receive_header, ControlDoor(shared, web))

    def serve(self, listener: Listener) -> None:
        """Take clients who come to `listener` from now on, and close it in the end."""
        self._listener = listener
        self.resume()

    @property
    def listens(self) -> bool:
        """Whether clients can come."""
        return self._listener is not None and self._listener.sock.fileno() >= 0

    @property
    def sock(self) -> socket.socket:
        """The socket that listens; raises `ListenError` before `serve`."""
        if self._listener is None:
            raise ListenError("the server does not listen yet")
        return self._listener.sock

    def pause(self) -> None:
        """Accept nobody until `resume`; whoever comes meanwhile waits."""
        if self._listener is not None:
            self._listener.pause()

    def resume(self) -> None:
        """Accept clients again."""
        if self._listener is not None:
            self._listener.serve(self._shared.crew, self._serve_conn)

    def leave(self) -> None:
        """Send all clients away, now and later: another process has the ports. Users stay."""
        self.is_left = self._shared.stopping = True
        self.stop_listening()
        for control in [*self.clients]:
            control.send_away()

    def stop_listening(self) -> None:
        """Accept no further connections; those that are there go on. Ports without a client are closed."""
        self.kept.close()
        if self._listener is not None:
            self._listener.close()

    def close(self) -> None:
        """End all clients and their sessions at once."""
        self.stop_listening()
        for control in [*self.clients]:
            control.end()
        for mux in [*self._sessions]:
            mux.close()

    # ---- from accept on ------------------------------------------------------------------------------------

    def _serve_conn(self, bottom: SocketConn) -> None:
        """Log a connection in and do what it is for, or leave it to the door. Whoever has it closes it."""
        if (begun := self._begin(bottom)) is not None:
            self._serve(*begun)

    def _begin(self, bottom: SocketConn) -> tuple[EventedConn, logins.Purpose] | None:
        """Log a connection in, and return it with what it is for.

        Returns None if there is nothing more to do: it has failed, and was closed, or somebody else has it.
        """
        self.in_progress.add(bottom, getcurrent())
        conn: EventedConn = bottom
        try:
            opened = self._front.open(bottom)
            if opened is None:
                return None
            conn = opened
            may_try = partial(self.in_progress.may_try, bottom)
            return conn, logins.log_in(conn, self._shared.config, may_try, certificate_of(conn))
        except ConnError as exc:
            conn.close()
            emit(LoginGivenUp, conn.getpeername(), str(exc))
        except (AuthError, ProtocolError) as exc:
            conn.close()
            emit(LoginRefused, conn.getpeername(), str(exc), logins.cause_of(exc))
        except BaseException:
            conn.close()
            raise
        finally:
            self.in_progress.discard(bottom)
        return None

    def _serve(self, conn: EventedConn, purpose: logins.Purpose) -> None:
        """Do what a connection is for."""
        match purpose:
            case ForHealth():
                _log.debug("a health check by %s", conn)
                conn.close()
            case ForStreams(peer):
                self._serve_streams(conn, peer)
            case ForControl(peer):
                conn.set_user_timeout(_patience_s(peer))
                self._serve_control(conn, purpose)
            case ForData(login, exchange):
                self._hand_over(conn, exchange, self._key_of(conn, login, exchange))
            case ForWaiting() | ForCarrier() | ForBeside():
                self._admit(conn, purpose)
            case ForCancel(peer, message):
                self._cancel(conn, message, peer)

    def _receive_header(self, conn: SocketConn) -> None:
        """Take the header of the PROXY protocol off a conn; raises what `Balancers.receive` raises.

        From then on the conn counts for the network of the client, and not for that of the load balancer.
        """
        self._shared.balancers.receive(conn)
        self.in_progress.discard(conn)
        self.in_progress.add(conn, getcurrent())

    def _serve_streams(self, conn: EventedConn, peer: Peer) -> None:
        """Take control and data connections of one client as streams of this connection, until it ends."""
        conn.set_user_timeout(_patience_s(peer))
        mux = Mux(conn, is_client=False)
        mux.moves, mux.joins_end = peer.moves, peer.session is not None
        self.in_progress.add(mux)  # until it has a control connection
        self._sessions.add(mux)
        mux.on_end = partial(self._forget_session, mux)
        mux.serve(self._shared.crew, lambda stream: self._serve_stream(stream, mux, peer))

    def _forget_session(self, mux: Mux) -> None:
        self.in_progress.discard(mux)
        self._sessions.discard(mux)
        self._controlled.discard(mux)

    def _serve_stream(self, stream: Stream, mux: Mux, peer: Peer) -> None:
        """Do what a stream of `peer` is for. Whoever takes the stream over closes it.

        The session resets a stream whose first message does not come in time.
        """
        try:
            purpose = logins.purpose_of(logins.recv_first(stream), peer)
        except ConnError as exc:
            stream.abort()
            emit(LoginGivenUp, stream.getpeername(), str(exc))
            return
        except ProtocolError as exc:
            stream.abort()
            emit(LoginRefused, stream.getpeername(), str(exc), logins.cause_of(exc))
            return
        except BaseException:
            stream.abort()
            raise
        stream.claim()
        match purpose:
            case ForControl():
                self._serve_control(stream, purpose, mux)
            case ForData(_, exchange):
                self._hand_over(stream, exchange, key_of(peer.session, mux))
            case ForCancel(_, message):
                self._cancel(stream, message, peer, mux)

    # ---- what connections are for --------------------------------------------------------------------------

    def _serve_control(self, conn: EventedConn | Stream, purpose: ForControl, mux: Mux | None = None) -> None:
        """Serve a client from now on, until its control connection ends."""
        peer = purpose.peer
        refusal = self._why_not(peer, mux)
        if refusal is not None:
            conn.close()
            emit(LoginRefused, conn.getpeername(), *refusal)
            return
        if mux is not None:
            self.in_progress.discard(mux)
            self._controlled.add(mux)
        control = Control(self.kept, conn, peer, mux, self._forget)
        self.clients.add(control)
        if peer.session is not None:
            self._of_session[peer.session.id] = control
        if control.client_id:
            self._take_over_from_older(control)
        control.tell.came(multiplexed=mux is not None)
        if self._shared.dismissed.has(control.client_id):
            control.dismiss()
        if self.is_left:  # the connection was accepted before
            control.send_away()
        control.run(purpose.request)

    def _take_over_from_older(self, control: Control) -> None:
        """Give a client that comes back the proxies that it still has here.

        A `client_id` is no secret, so the older login has to be of the same credential.
        """
        theirs = self._of_client.get(control.client_id, ())
        self._of_client[control.client_id] = (*theirs, control)
        for older in [each for each in theirs if logins.are_one_owner(each.peer, control.peer)]:
            control.tell.returned(older.address)
            control.take_over(older)

    def _why_not(self, peer: Peer, mux: Mux | None) -> tuple[str, Refusal] | None:
        """Return why a client cannot have another control connection now; None if it can.

        The client is not told, since it would take that for good.
        """
        if peer.session is not None and peer.session.id in self._of_session:
            return "a second control connection of one session", Refusal.SESSION
        if mux in self._controlled:
            return "a second control connection of one session", Refusal.SESSION
        most = _max_clients(self._shared.config)
        if len(self.clients) >= most:
            return f"there are {most} clients already", Refusal.FULL
        return None

    def _forget(self, control: Control) -> None:
        """Take note that a client has gone."""
        self.clients.discard(control)
        if control.session is not None:
            self._of_session.pop(control.session.id, None)
        others = tuple(each for each in self._of_client.pop(control.client_id, ()) if each is not control)
        if others:
            self._of_client[control.client_id] = others

    def _hand_over(self, conn: Conn, exchange: Exchange, key: object) -> None:
        """Give a data connection to whoever waits for it in the conn map, if `key` fits."""
        entry = self._shared.conn_map.claim(exchange.conn_id, key)
        if entry is None:
            _log.debug("nobody waits for data connection %s", conn)
            conn.close()
        else:
            entry.deliver(conn)

    def _key_of(self, conn: EventedConn, login: Login, exchange: Exchange) -> object:
        """Return the key with which a data connection claims a user; None, which fits no user, if it may not.

        One of gnar's own clients signs the `conn_id` with the key of its session, and may claim the users
        that the server has announced to this client. A Go client has logged in by the token, and knows the
        `conn_id`.
        """
        if not login.session:
            return ANY_GO_CLIENT
        control = self._client_of(login, conn)
        if control is None or control.session is None:
            return None
        return login.session if control.session.is_signed(exchange.conn_id, exchange.proof) else None

    def _client_of(self, login: Login, conn: EventedConn) -> Control | None:
        """Return the client of whose session a data connection is; None if there is none.

        A client that has logged in by TLS has no data connections without.
        """
        control = self._of_session.get(login.session)
        if control is not None and control.peer.is_encrypted and not certificate_of(conn):
            reason = "a data connection without TLS, of a client that has logged in with TLS"
            emit(LoginRefused, conn.getpeername(), reason, Refusal.CERTIFICATE)
            return None
        return control

    def _admit(self, conn: EventedConn, purpose: ForWaiting | ForCarrier | ForBeside) -> None:
        """Give a connection for users to the client whose session its login names."""
        control = self._client_of(purpose.login, conn)
        if control is None:  # the client has gone meanwhile
            conn.close()
            return
        match purpose:
            case ForWaiting(login):
                control.admit_waiting(conn, login)
            case ForCarrier(login):
                control.admit_carrier(conn, login)
            case ForBeside(login):
                control.admit_beside(conn, login)

    def _cancel(self, conn: Conn, message: ProxyCancel, peer: Peer, mux: Mux | None = None) -> None:
        """End a proxy of a Go client, for the same client. Gnar's own cancel on their control connection.

        A Go client has no name: it is known by its multiplexed session, or by its address and credential.
        """
        host = host_of(conn.getpeername())
        conn.close()
        holders = [control for control in self.clients if control.holds(message)]
        theirs = [
            each
            for each in holders
            if each.session is None
            and each.mux is mux
            and each.host == host
            and logins.are_one_owner(each.peer, peer)
        ]
        if holders and not theirs:
            _log.warning("refused: %s cancels port %d of another client", host, message.remote_port)
            return
        for control in theirs:
            control.cancel(message)


def _max_clients(config: ServerConfig) -> int:
    """Return how many clients there may be at the same time, so that memory and descriptors suffice."""
    limit_bytes = memory.for_peers(config.max_memory or memory.default_limit())
    return min(MAX_CLIENTS, limit_bytes // 2 // CLIENT_BYTES, descriptors.for_clients)


def _patience_s(peer: Peer) -> float:
    """Return for how many seconds a client may leave bytes of its control connection unacknowledged."""
    return dead_after_s() if peer.session is not None else min(GO_USER_TIMEOUT_S, dead_after_s())
