"""Hands the listening sockets of a server over to another process of the same user: `gnar server --replace`.

The running server offers them at a Unix socket, in a folder that only its user may enter. The new process
asks for all of them and says when it is ready. Then the running server accepts nobody any more, waits until
every user who has been accepted has a data connection, and lets go. Users who come meanwhile wait in the
kernel. Its clients connect to the new process, its users stay with it until they have finished. If the new
process fails before that, the running server goes on as if nobody had asked.

Each message is a JSON object. The new process sends `wants`: "sockets", then "more" for as long as the answer
says so, then "go". The running server answers with `sockets`, which describes those that come with the
answer, and `names`, which describes proxies that have no socket; with `go`, or with `error`, a line for
people.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import gevent

from gnar_lib import __version__, auth, logger
from gnar_lib.config import ServerConfig
from gnar_lib.errors import (
    ConnError,
    DialError,
    GnarError,
    ListenError,
    NameTakenError,
    PortTakenError,
    ProtocolError,
    ProxyRefusedError,
)
from gnar_lib.net import (
    DatagramSocket,
    Listener,
    SocketConn,
    UnixListener,
    deadline,
    dial,
    listen,
    listen_unix,
    unix_family,
)
from gnar_lib.net.passing import MAX_SOCKETS, is_of_this_user, recv_with_sockets, send_with_sockets
from gnar_lib.net.unix import SocketFileSettings
from gnar_lib.proto import ProxyReq, to_frame
from gnar_lib.proto.msg import from_frame
from gnar_lib.proto.packet import HEADER, PacketType, encode
from gnar_lib.server import meeting
from gnar_lib.server.ingress.control import ControlIngress
from gnar_lib.server.ingress.making import Ingress
from gnar_lib.server.ingress.named import NamedIngress
from gnar_lib.server.ingress.tcp import TcpIngress
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.shared import Shared

if TYPE_CHECKING:
    from gnar_lib.server.ingress.noweb import NoWeb
    from gnar_lib.server.ingress.web import WebIngress

    WebPorts = WebIngress | NoWeb

PROTOCOL = 1  # which this version speaks
CONTROL = "control"  # the kind of the control port; proxied ports are of "tcp" or "udp"
WEB = "web"  # the kind of a web port, whose scheme is its name
STEP_S = 10.0  # for the other process to answer
SETTLE_S = 2.0  # for users who have been accepted to get their data connections
SETTLE_EVERY_S = 0.01
COMING_S = 0.3  # for whoever has come to the control port to say what for

_log = logger.get("server")


@dataclass(frozen=True, slots=True)
class Handed:
    """A socket that is handed over and the proxy for which it is, or a proxy that has a name and no socket.

    `auth` is by what the client has logged in (`Credential.kind`); `udp_timeout` is that of the client, in
    seconds, 0 if nobody knows. `request` is what the client has asked for, as the fields of a ProxyReq; a
    server of an earlier version does not send it.
    """

    kind: str
    name: str = ""
    auth: str = ""
    client_id: str = ""
    udp_timeout: int = 0
    request: dict[str, Any] = field(default_factory=dict)


# ---- messages ----------------------------------------------------------------------------------------------


def _send(conn: SocketConn, values: dict[str, Any], sockets: list[socket.socket] | None = None) -> None:
    send_with_sockets(conn, json.dumps(values).encode(), sockets or [])


def _recv(conn: SocketConn) -> tuple[dict[str, Any], list[socket.socket]]:
    """Receive a message and its sockets; raises `ConnError` or `ProtocolError`."""
    text, sockets = recv_with_sockets(conn)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        for sock in sockets:
            sock.close()
        raise ProtocolError("the other process sends no JSON object")
    return values, sockets


# ---- the running server ------------------------------------------------------------------------------------


class Offer:
    """What the running server offers: its sockets, to one process after the other until one has them.

    `on_replaced` is called when that one serves clients and users: nobody comes to this process any more.
    """

    def __init__(
        self,
        control_ingress: ControlIngress,
        web: WebPorts,
        shared: Shared,
        on_replaced: Callable[[], None],
    ) -> None:
        self._control_ingress = control_ingress
        self._web = web
        self._shared = shared
        self._on_replaced = on_replaced
        self._name = meeting.file_name(shared.config)
        self._listener: UnixListener | None = None
        self._is_busy = False  # another process is asking

    def open(self) -> None:
        """Offer the sockets from now on, if there is a place for that: a server works without."""
        for folder in meeting.folders():
            try:
                meeting.make(folder)
                path, secret = os.path.join(folder, self._name), SocketFileSettings(mode=0o600)
                self._listener = listen_unix(path, secret)
            except GnarError as exc:
                _log.debug("not to be replaced by way of %s: %s", folder, exc)
            else:
                self._listener.serve(self._shared.crew, self._serve)
                return

    def close(self) -> None:
        """Offer nothing any more; more than once does no harm."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _serve(self, conn: SocketConn) -> None:
        """Answer one process; closes `conn`."""
        try:
            with deadline(STEP_S, "handing over"):
                values, sockets = _recv(conn)
            for sock in sockets:
                sock.close()
            if reason := self._why_not(conn, values):
                _send(conn, {"error": reason})
                return
            self._is_busy = True
            try:
                self._hand_over(conn, values)
            finally:
                self._is_busy = False
        except (ConnError, ProtocolError) as exc:
            _log.warning("not replaced: %s", exc)
        finally:
            conn.close()

    def _why_not(self, conn: SocketConn, request: dict[str, Any]) -> str:
        """Return why a process does not get the sockets; empty if it does."""
        if not is_of_this_user(conn):
            return "the running server is of another user"
        if request.get("protocol") != PROTOCOL or request.get("wants") != "sockets":
            return (
                f"the running server, gnar {__version__}, hands nothing over to that version; stop it first"
            )
        if self._is_busy or self._shared.stopping:
            return "the running server is being stopped or replaced already"
        return ""

    def _hand_over(self, conn: SocketConn, request: dict[str, Any]) -> None:
        """Give all sockets to the process that asks, and let go once it is ready."""
        with deadline(STEP_S, "handing the sockets over"):
            batches = [*self._batches()]
            for number, batch in enumerate(batches, 1):
                sockets = [sock for _, sock in batch if sock is not None]
                answer = {
                    "sockets": [_described(handed) for handed, sock in batch if sock is not None],
                    "names": [_described(handed) for handed, sock in batch if sock is None],
                    "more": number < len(batches),
                }
                _send(conn, answer, sockets)
                wanted = "more" if number < len(batches) else "go"
                if _recv(conn)[0].get("wants") != wanted:
                    raise ProtocolError(f"the other process does not say that it wants {wanted!r}")
        self._settle()
        self.close()  # the path is the other's from now on
        try:
            _send(conn, {"go": True})
        except ConnError:
            self._resume()
            raise
        _log.info("process %s takes over", logger.printable(str(request.get("pid"))[:10]))
        self._web.stop_listening()
        self._control_ingress.leave()
        self._on_replaced()

    def _batches(self) -> Iterator[list[tuple[Handed, socket.socket | None]]]:
        found: list[tuple[Handed, socket.socket | None]] = [(Handed(CONTROL), self._control_ingress.sock)]
        found += [(Handed(WEB, scheme), each.sock) for scheme, each in self._web.listeners.items()]
        for ingress, kind, client_id in self._ingresses():
            sock = None if isinstance(ingress, NamedIngress) else ingress.sock
            found.append((_handed(ingress, kind, client_id), sock))
        for begin in range(0, len(found), MAX_SOCKETS):
            yield found[begin : begin + MAX_SOCKETS]

    def _ingresses(self) -> Iterator[tuple[Ingress, str, str]]:
        """Yield each ingress, with the kind of the credential and the id of its client."""
        for control in self._control_ingress.clients:
            for each in control.held:
                yield each, control.peer.credential.kind, control.client_id
        for kept in self._control_ingress.kept.all:
            yield kept.ingress, kept.credential.kind, kept.client_id

    def _settle(self) -> None:
        """Accept nobody, and wait until those who have been accepted have their data connections.

        Users of names may ask once more, and the answer says that their connection ends. A data connection on
        demand comes to the control port, which is still this process's, until nobody needs one.
        """
        for control in self._control_ingress.clients:
            for ingress in control.held:
                if isinstance(ingress, TcpIngress):
                    ingress.pause()
        self._web.pause()
        until_s = time.monotonic() + SETTLE_S
        gevent.sleep(SETTLE_EVERY_S)  # the greenlets of the last ones begin
        while self._has_users_waiting() and time.monotonic() < until_s:
            gevent.sleep(SETTLE_EVERY_S)
        self._control_ingress.pause()
        while self._may_have_users() and time.monotonic() < until_s:
            gevent.sleep(SETTLE_EVERY_S)

    def _may_have_users(self) -> bool:
        """Tell whether somebody has just come to the control port who may be a user of a name."""
        if not self._web.has_control_port:
            return False
        return self._control_ingress.in_progress.has_come_within(COMING_S) or self._web.expects_requests

    def _has_users_waiting(self) -> bool:
        if self._web.expects_requests:
            return True
        return any(control.upstream.users_waiting for control in self._control_ingress.clients)

    def _resume(self) -> None:
        """Go on: the other process has failed at the last moment."""
        if self._shared.stopping:
            return
        self._control_ingress.resume()
        self._web.resume()
        for control in self._control_ingress.clients:
            for ingress in control.ingresses:
                if isinstance(ingress, TcpIngress):
                    ingress.start()
        self.open()


def _handed(ingress: Ingress, kind: str, client_id: str) -> Handed:
    udp_timeout_s = int(ingress.session_s or 0) if isinstance(ingress, UdpIngress) else 0
    request = json.loads(to_frame(ingress.request)[HEADER.size :])
    return Handed(ingress.proxy.kind, ingress.proxy.name, kind, client_id, udp_timeout_s, request)


def _described(handed: Handed) -> dict[str, Any]:
    return {key: getattr(handed, key) for key in Handed.__slots__}


# ---- the new process ---------------------------------------------------------------------------------------


class Predecessor:
    """The running server, whose place this process takes; `close` closes the connection to it."""

    def __init__(self, conn: SocketConn) -> None:
        self._conn = conn

    @classmethod
    def find(cls, config: ServerConfig) -> Predecessor:
        """Connect to the running server with the same port and `bind`; raises `ListenError` without one."""
        family = unix_family()
        for folder in filter(meeting.is_private, meeting.folders()):
            path = os.path.join(folder, meeting.file_name(config))
            with suppress(DialError):
                conn = dial(family, path)
                if is_of_this_user(conn):
                    return cls(conn)
                conn.close()
        where = f"port {config.port}"
        try:
            listen(config.bind, config.port).close()
        except PortTakenError:
            raise ListenError(
                f"what has {where} cannot be replaced: no gnar, an earlier one, of another user, or run by "
                "systemd; stop it first"
            ) from None
        raise ListenError(f"no server to replace on {where}; start without --replace")

    def sockets(self) -> list[tuple[Handed, socket.socket | None]]:
        """Return what the running server has; the caller closes the sockets. Raises `GnarError`."""
        handed: list[Handed] = []
        names: list[Handed] = []
        received: list[socket.socket] = []
        request = {"wants": "sockets", "protocol": PROTOCOL, "version": __version__, "pid": os.getpid()}
        try:
            while True:
                answer, sockets = self._ask(request)
                received += sockets
                described = answer.get("sockets")
                if not isinstance(described, list) or len(described) != len(sockets):
                    raise ProtocolError("the running server describes other sockets than it sends")
                handed += [_read(each) for each in described]
                named = answer.get("names", [])
                names += [_read(each) for each in named] if isinstance(named, list) else []
                if not answer.get("more"):
                    return [*zip(handed, received, strict=True), *((each, None) for each in names)]
                request = {"wants": "more"}
        except BaseException:
            for sock in received:
                sock.close()
            raise

    def let_go(self) -> None:
        """Have the running server let go: from now on this process serves; raises `GnarError`."""
        answer, _ = self._ask({"wants": "go"})
        if not answer.get("go"):
            raise ProtocolError("the running server does not let go")

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[socket.socket]]:
        with deadline(STEP_S, "taking over from the running server"):
            _send(self._conn, request)
            answer, sockets = _recv(self._conn)
        if "error" in answer:
            raise ListenError(logger.printable(str(answer["error"])))
        return answer, sockets

    def close(self) -> None:
        """Close the connection to the running server."""
        self._conn.close()


def _read(values: Any) -> Handed:
    """Return what the running server has said of a socket; raises `ProtocolError`."""
    found = values if isinstance(values, dict) else {}
    texts = {key: found.get(key, "") for key in ("kind", "name", "auth", "client_id")}
    udp_timeout_s = found.get("udp_timeout", 0)
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(udp_timeout_s, int):
        raise ProtocolError("the running server describes its sockets in another way")
    request = found.get("request")
    return Handed(**texts, udp_timeout=udp_timeout_s, request=request if isinstance(request, dict) else {})


def _request_of(handed: Handed) -> ProxyReq:
    """Return what the client has asked for, as far as the running server says; raises `ProtocolError`."""
    request = ProxyReq(0, handed.name, "", handed.kind)
    if handed.request:
        message = from_frame(encode(PacketType.PROXY_REQ, handed.request))
        assert isinstance(message, ProxyReq)  # noqa: S101  (the type of the frame says so)
        request = message
    return replace(request, udp_timeout=handed.udp_timeout)


def take_over(
    predecessor: Predecessor, control_ingress: ControlIngress, web: WebPorts, shared: Shared
) -> int:
    """Serve in the place of the running server from now on; return the control port. Raises `GnarError`.

    Its proxied ports wait for their clients.
    """
    listener: Listener | None = None
    web_listeners: dict[str, Listener] = {}
    try:
        for handed, sock in predecessor.sockets():
            if handed.kind == CONTROL and sock is not None:
                listener = Listener(sock)
            elif handed.kind == WEB and sock is not None:
                web_listeners[handed.name] = Listener(sock)
            else:
                _adopt(handed, sock, control_ingress, shared)
        if listener is None:
            raise ProtocolError("the running server has no control port")
        shared.control_port = listener.port
        web.start(web_listeners)
        web.pause()
        predecessor.let_go()
        web.resume()
    except BaseException:
        control_ingress.stop_listening()
        web.stop_listening()
        if listener is not None:
            listener.close()
        raise
    control_ingress.serve(listener)
    return listener.port


def _adopt(
    handed: Handed, sock: socket.socket | None, control_ingress: ControlIngress, shared: Shared
) -> None:
    """Have a proxy of the running server wait for its client, unless there are no such proxies here."""
    opened: Listener | DatagramSocket | None = None
    if sock is not None:
        opened = Listener(sock) if sock.type == socket.SOCK_STREAM else DatagramSocket(sock)
    credential = auth.Credential(handed.auth, shared.config.token)
    try:
        control_ingress.kept.adopt(opened, _request_of(handed), credential, handed.client_id)
    except (NameTakenError, ProxyRefusedError) as exc:
        _log.warning("proxy %s is not taken over: %s", logger.printable(handed.name), exc)
        if opened is not None:
            opened.close()
