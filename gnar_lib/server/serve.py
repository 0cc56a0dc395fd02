"""The server: takes connections, tells them apart, pairs users with data connections, stops."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace

import gevent

from gnar_lib import logger
from gnar_lib.config import ServerConfig
from gnar_lib.errors import AuthError, ConnError, ProtocolError
from gnar_lib.lifecycle import Stopper
from gnar_lib.net import Conn, Crew, Listener, SocketConn, deadline, host_of, listen
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import Exchange, Login, Message, ProxyCancel, ProxyReq, recv
from gnar_lib.proto.msg import AUTH_NONE
from gnar_lib.server import logins
from gnar_lib.server.connmap import ConnMap
from gnar_lib.server.control import Control, limit_silence
from gnar_lib.server.proxy import Proxy, User
from gnar_lib.server.resources import Ports
from gnar_lib.server.udp import UdpProxy, Vacancy
from gnar_lib.yamux import Session as Mux
from gnar_lib.yamux import Stream

EXPIRE_EVERY_S = 1.0
REFUSALS_PER_MINUTE = 20  # logged; whoever finds the port can be refused thousands of times a second

_log = logger.get("server")


class Server:
    """Everything that the public end holds."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.connmap: ConnMap[User | Vacancy] = ConnMap()
        self.ports: Ports[Proxy | UdpProxy] = Ports(config.bind, config.udp_bind)
        self.crew = Crew("server")  # logins and control connections
        self.users = Crew("user")  # one greenlet per user's connection
        self.meter = Meter()  # of all proxies together
        self.stopping = False  # no further proxies
        self._in_progress = logins.InProgress()
        self._refusals = logger.Burst(lines=REFUSALS_PER_MINUTE)
        self._controls: set[Control] = set()
        self._sessions: dict[str, Control] = {}
        self._listener: Listener | None = None

    # ---- from accept on ------------------------------------------------------------------------------------

    def start(self) -> int:
        """Listen on the control port, and return it."""
        self._listener = listen(self.config.bind, self.config.port)
        self._listener.serve(self.crew, self._serve_conn)
        self.crew.spawn(self._expire)
        return self._listener.port

    def _serve_conn(self, conn: SocketConn) -> None:
        """Log a connection in, then do what it is for. Whoever takes it over closes it."""
        self._in_progress.add(conn)
        try:
            entrance = logins.log_in(conn, self.config)
        except ConnError as exc:
            _log.debug("refused %s: %s", conn, exc)
            conn.close()
            return
        except (AuthError, ProtocolError) as exc:
            self._refusals.warning(_log, "refused %s: %s", conn, exc)
            conn.close()
            return
        except BaseException:
            conn.close()
            raise
        finally:
            self._in_progress.discard(conn)
        self._dispatch(conn, entrance)

    def _dispatch(self, conn: SocketConn, entrance: logins.Entrance) -> None:
        login = entrance.login
        match entrance.first:
            case None if login.auth == AUTH_NONE:
                _log.debug("a health check by %s", conn)
                conn.close()
            case None if login.waiting:
                self._admit_waiting(conn, login)
            case None:
                self._serve_multiplexed(conn, entrance)
            case ProxyReq():
                limit_silence(conn, entrance.session)
                self._serve_control(conn, entrance)
            case Exchange():
                self._serve_data(conn, entrance.first, self._may_claim(login, entrance.first))
            case ProxyCancel():
                self._cancel(conn, entrance)
            case _:
                _refuse(conn, entrance.first)

    def _serve_control(self, conn: Conn, entrance: logins.Entrance, mux: Mux | None = None) -> None:
        control = Control(self, conn, entrance.session, entrance.login.client_id, mux)
        if control.client_id:
            self._take_over_from_older(control)
        self._controls.add(control)
        if control.session is not None:
            self._sessions[control.session.id] = control
        how = ", multiplexed" if mux else ""
        _log.info("client %s (%s%s)", control.address, _version(entrance.login), how)
        assert entrance.first is not None  # noqa: S101  (a ProxyReq brought us here)
        control.run(entrance.first)

    # ---- multiplexed ---------------------------------------------------------------------------------------

    def _serve_multiplexed(self, conn: SocketConn, entrance: logins.Entrance) -> None:
        """Have control and data of one client as streams of this connection, until it ends."""
        limit_silence(conn, entrance.session)
        mux = Mux(conn, is_client=False)
        self._in_progress.add(mux)  # until it has said by a first stream what it is for
        try:
            mux.serve(self.crew, lambda stream: self._serve_stream(stream, mux, entrance))
            mux.wait_end()
        finally:
            self._in_progress.discard(mux)
            mux.close()

    def _serve_stream(self, stream: Stream, mux: Mux, entrance: logins.Entrance) -> None:
        """Do what a stream is for that the client has opened; its login is that of the session."""
        try:
            with deadline(logins.LOGIN_DEADLINE_S, "the first message of a stream"):
                first = recv(stream, logins.MAX_LOGIN_BYTES)
        except (ProtocolError, ConnError) as exc:
            _log.debug("refused %s: %s", stream, exc)
            stream.abort()
            return
        except BaseException:
            stream.abort()
            raise
        self._in_progress.discard(mux)
        entrance = replace(entrance, first=first)
        match first:
            case ProxyReq():
                self._serve_control(stream, entrance, mux)
            case Exchange():
                self._serve_data(stream, first, lambda entry: entry.control.mux is mux)
            case ProxyCancel():
                self._cancel(stream, entrance, mux)
            case _:
                _refuse(stream, first)

    # ---- what connections are for --------------------------------------------------------------------------

    def _take_over_from_older(self, control: Control) -> None:
        """A client that comes back before its end was noticed: what it had becomes free for it at once."""
        for older in [c for c in self._controls if c.client_id == control.client_id]:
            _log.info("client %s is back as %s", older.address, control.address)
            older.end()

    def _admit_waiting(self, conn: SocketConn, login: Login) -> None:
        control = self._sessions.get(login.session)
        if control is None:  # it has ended meanwhile
            conn.close()
        else:
            control.admit_waiting(conn, login)

    def _serve_data(self, conn: Conn, message: Exchange, may_claim: Callable[[User | Vacancy], bool]) -> None:
        """Join a data connection with the user, or the UDP proxy, that it claims by the `conn_id`."""
        entry = self.connmap.claim(message.conn_id, may_claim)
        if entry is None:
            _log.debug("nobody waits for data connection %s", conn)
            conn.close()
            return
        entry.join(conn)

    def _may_claim(self, login: Login, message: Exchange) -> Callable[[User | Vacancy], bool]:
        """Return the test whether this connection may claim a user.

        A client of ours claims what its own session was told of, and signs it. A Go client has logged in by
        its token, and knows the `conn_id`.
        """
        control = self._sessions.get(login.session) if login.session else None
        if control is None or control.session is None:
            is_go = not login.session
            return lambda entry: is_go and entry.control.session is None and entry.control.mux is None
        is_signed = control.session.is_signed(message.conn_id, message.proof)
        return lambda entry: is_signed and entry.control is control

    def _cancel(self, conn: Conn, entrance: logins.Entrance, mux: Mux | None = None) -> None:
        """End a Go client's proxy. Our own clients cancel on their control connection."""
        message = entrance.first
        assert isinstance(message, ProxyCancel)  # noqa: S101  (that is what brought us here)
        host = host_of(conn.getpeername())
        conn.close()
        owners = {proxy.control for proxy in self.ports.owners(message.remote_port)}
        theirs = [c for c in owners if c.session is None and c.mux is mux and c.host == host]
        if owners and not theirs:
            _log.warning("refused: %s cancels port %d of another client", host, message.remote_port)
            return
        for control in theirs:
            control.cancel(message)

    def forget(self, control: Control) -> None:
        """A control connection has ended: nobody comes to it any more."""
        self._controls.discard(control)
        if control.session is not None:
            self._sessions.pop(control.session.id, None)
        self.connmap.drop(lambda entry: entry.control is control)

    def _expire(self) -> None:
        while True:
            gevent.sleep(EXPIRE_EVERY_S)
            self.connmap.expire()
            self._in_progress.expire()

    # ---- the end -------------------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Take no more clients, proxies and users; those that are there go on."""
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        for control in self._controls:
            control.stop_listening()

    def close(self) -> None:
        """End everything at once."""
        self.users.kill()
        for control in [*self._controls]:
            control.end()
        self.crew.kill()

    def status(self) -> str:
        """Return what there is at the moment, in one line."""
        waiting = sum(len(control.waiting) for control in self._controls)
        totals = self.meter.totals()
        return (
            f"clients={len(self._controls)} proxies={len(self.ports)} users={len(self.users)} "
            f"users_total={totals.users_total} bytes_up={totals.up} bytes_down={totals.down} "
            f"udp_users={sum(control.udp_users for control in self._controls)} udp_dropped={totals.dropped} "
            f"waiting={waiting} conn_map={len(self.connmap)} logins={len(self._in_progress)}"
        )

    def reload(self, config: ServerConfig) -> None:
        """Take new settings over; clients that are there stay as they are."""
        if (config.port, config.bind, config.udp_bind) != (
            self.config.port,
            self.config.bind,
            self.config.udp_bind,
        ):
            _log.warning("port, bind and udp-bind stay as they are until the next start")
        self.config = replace(
            config, port=self.config.port, bind=self.config.bind, udp_bind=self.config.udp_bind
        )
        _log.info("configuration reloaded")


def _refuse(conn: Conn, message: Message | None) -> None:
    _log.warning("refused %s: %s after the login", conn, type(message).__name__)
    conn.close()


def _version(login: Login) -> str:
    return logger.printable(login.version or login.client_version or "no version")


def is_loopback(bind: str) -> bool:
    """Tell whether an address to listen on can be reached from this machine alone."""
    try:
        return bind == "localhost" or ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False


def run_server(load: Callable[[], ServerConfig]) -> int:
    """Run until a signal; `load` gives the configuration now and on SIGHUP. Returns the exit status."""
    config = load()
    server = Server(config)
    stopper = Stopper()  # before anybody can hear that the server listens, and send a signal
    stopper.on_reload(lambda: server.reload(load()))
    stopper.on_status(server.status)
    try:
        port = server.start()
        _log.info("listening on port %d%s", port, f" of {config.bind}" if config.bind else "")
        if not config.token and not is_loopback(config.bind):
            _log.warning("no token: whoever reaches port %d may open ports here; set --token", port)
        stopper.wait()
        _log.info("stopping")
        server.stop_listening()
        stopper.wait_or_second(server.users, config.grace_s)
        server.close()
        gevent.sleep(0)  # the greenlets that were just ended close what they hold
    finally:
        stopper.close()
    return 0
