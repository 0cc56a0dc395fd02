"""A proxied UDP port: receives users' datagrams for the proxy and sends them the answers; knows no client."""

from __future__ import annotations

from gnar_lib.net import Crew, Datagram, DatagramSocket
from gnar_lib.net.datagram import BATCH
from gnar_lib.proxy.share import share
from gnar_lib.server.udp_proxy import UdpProxy
from gnar_lib.server.udp_users import RECENT_S


class UdpIngress:
    """A bound socket whose users belong to one proxy; a greenlet of `crew` runs the proxy."""

    def __init__(self, sock: DatagramSocket, proxy: UdpProxy, crew: Crew) -> None:
        self.proxy = proxy
        self.port = sock.port
        self._socket = sock
        self._crew = crew

    @property
    def users(self) -> int:
        """How many users have sent a datagram lately."""
        return self._socket.recent_peers(RECENT_S)

    def start(self) -> None:
        """Receive datagrams as soon as there is a data connection; until then they wait in the kernel."""
        self._crew.spawn(self.proxy.run, self._receive, self._socket.send)

    def _receive(self) -> None:
        self._socket.serve(self._on_datagrams)

    def close(self) -> None:
        """Receive and send nothing more. More than once does no harm."""
        self._socket.close()
        self.proxy.close()

    def _on_datagrams(self, datagrams: list[Datagram]) -> None:
        """Pass on what users have sent in this turn of the loop; pause if users of TCP need the time."""
        self.proxy.receive(datagrams)
        meter = self.proxy.meter
        if len(datagrams) == BATCH:  # a flood: the kernel may have dropped some for want of room
            meter.dropped += self._socket.take_overflow()
        if pause_s := share.pause_after(self._socket.began_s):
            self._socket.pause(pause_s)
