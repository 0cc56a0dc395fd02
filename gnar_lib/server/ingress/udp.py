"""A proxied UDP port: receives users' datagrams for the proxy and sends them the answers; knows no client."""

from __future__ import annotations

import socket

from gnar_lib.events import Side, UdpUserCame, emit
from gnar_lib.net import Crew, Datagram, DatagramSocket, Sockaddr
from gnar_lib.net.datagram import BATCH
from gnar_lib.proto import ProxyReq
from gnar_lib.proxy.share import share
from gnar_lib.server.udp_proxy import UdpProxy
from gnar_lib.server.udp_users import RECENT_S
from gnar_lib.server.upstream import Upstream

MAX_SESSION_S = 86_400  # that a client can ask for


class UdpIngress:
    """A bound socket whose users belong to one proxy; a greenlet of `crew` runs the proxy.

    `session_s`: after so many seconds without a datagram the client ends the session of a user, and the
    server forgets the user's address later. None: nobody knows, as with Go clients.
    """

    request: ProxyReq  # what the client has asked for; `making.fit` says so
    named = None  # there are no names for datagrams
    where = ""

    def __init__(
        self, sock: DatagramSocket, proxy: UdpProxy, crew: Crew, session_s: float | None = None
    ) -> None:
        self.proxy = proxy
        self.port = sock.port
        self.public_port = self.port
        self.key = ("udp", self.port)  # what no other ingress of the server has
        self.session_s = session_s
        self._socket = sock
        self._crew = crew
        sock.on_come = self._on_come
        sock.on_gone = proxy.meter.end_session
        self.set_session(session_s)

    def set_session(self, session_s: float | None) -> None:
        """Forget addresses in time for such sessions: the client may have come back with another setting."""
        self.session_s = session_s
        if session_s is not None:
            # Not at once: an answer may be on its way for long.
            self._socket.forget_after(2 * min(session_s, MAX_SESSION_S))

    @property
    def users(self) -> int:
        """How many users have sent a datagram lately."""
        return self._socket.recent_peers(RECENT_S)

    def start(self) -> None:
        """Receive datagrams as soon as there is a data connection; until then they wait in the kernel."""
        self._crew.spawn(self.proxy.run, self._receive, self._socket.send)

    def _receive(self) -> None:
        self._socket.serve(self._on_datagrams)

    def rest(self, nobody: Upstream) -> None:
        """Have datagrams wait in the kernel until `go_on`: the client is away, and `nobody` answers."""
        self._socket.rest()
        self.proxy.move_to(nobody)

    def go_on(self, upstream: Upstream) -> None:
        """Receive again as soon as there is a data connection of `upstream`."""
        self.proxy.move_to(upstream)
        self.proxy.wake()

    @property
    def sock(self) -> socket.socket:
        """The bound socket."""
        return self._socket.sock

    def tend(self) -> None:
        """Tell of dropped datagrams, and have a proxy without users rest; to be called once a second."""
        self.proxy.tell_dropped()
        if not self._socket.has_peers and self.proxy.rest():
            self._socket.call_on_next(self.proxy.wake)  # the kernel keeps the datagram until `_receive`

    def leave(self, _hold_s: float = 0.0) -> None:
        """Do as `close` does: there is no name to be held."""
        self.close()

    def close(self) -> None:
        """Receive and send nothing more. More than once does no harm."""
        self._socket.close()
        self.proxy.close()

    def _on_come(self, user: Sockaddr) -> None:
        self.proxy.meter.begin_session()
        emit(UdpUserCame, Side.SERVER, self.proxy.name, user)

    def _on_datagrams(self, datagrams: list[Datagram]) -> None:
        """Pass on what users have sent in this turn of the loop; pause if users of TCP need the time."""
        self.proxy.receive(datagrams)
        meter = self.proxy.meter
        if len(datagrams) == BATCH:  # a flood: the kernel may have dropped some for want of room
            meter.dropped += self._socket.take_overflow()
        if pause_s := share.pause_after(self._socket.began_s):
            self._socket.pause(pause_s)
