"""Ports that a service manager has opened for this server, and keeps open while the server is restarted.

A proxy on such a port gets a descriptor of its own. When the proxy ends, the port stays open: users wait for
the next client, and are reset once no client has come for a while.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from dataclasses import dataclass

from gnar_lib.errors import UsageError
from gnar_lib.net import Crew, DatagramSocket, Listener, SocketConn
from gnar_lib.net.datagram import with_buffers
from gnar_lib.net.endpoint import listen_error
from gnar_lib.net.given import GivenSocket

VACANT_S = 60.0  # for which users wait at a port without a client
CONTROL = "control"  # the name of the control port


@dataclass(slots=True)
class _Port:
    """A port of TCP, where nobody is accepted while a client has it, or may come soon."""

    listener: Listener
    free_since_s: float


class GivenPorts:
    """The proxied ports among the given sockets."""

    def __init__(self) -> None:
        self._crew = Crew("given")  # turns users away
        self._tcp: dict[int, _Port] = {}
        self._udp: dict[int, GivenSocket] = {}

    def __len__(self) -> int:
        return len(self._tcp) + len(self._udp)

    def add(self, given: GivenSocket) -> None:
        """Have clients open this port; raises `UsageError` if it is there already."""
        if given.port in (self._tcp if given.kind == "tcp" else self._udp):
            raise UsageError(f"{given} was given twice: one socket for each port, of IPv4 and IPv6 together")
        if given.kind == "tcp":
            self._tcp[given.port] = _Port(Listener(given.sock), time.monotonic())
        else:
            self._udp[given.port] = given

    def listener(self, port: int) -> Listener | None:
        """Return a listener for a proxy on a TCP port, which the caller closes; None if it is not given.

        Raises `ListenError` if there is no descriptor left.
        """
        found = self._tcp.get(port)
        if found is None:
            return None
        found.listener.pause()
        return Listener(_duplicate(found.listener.sock))

    def take(self, port: int) -> Listener | None:
        """Return the listener of a TCP port that is no proxy's, which the caller closes; None as above."""
        found = self._tcp.pop(port, None)
        return None if found is None else found.listener

    def datagram_socket(self, port: int) -> DatagramSocket | None:
        """Return a socket for a proxy on a UDP port; all else is as with `listener`."""
        found = self._udp.get(port)
        return None if found is None else DatagramSocket(with_buffers(_duplicate(found.sock)))

    def tend(self, held: Collection[tuple[str, int]]) -> None:
        """Once a second: turn users away from a port that is not `held`, and has not been for a while."""
        now_s = time.monotonic()
        for number, port in self._tcp.items():
            if ("tcp", number) in held:
                port.free_since_s = now_s
            elif now_s - port.free_since_s > VACANT_S:
                port.listener.serve(self._crew, SocketConn.abort)

    def close(self) -> None:
        """Let go of all ports; the service manager keeps them open."""
        for port in self._tcp.values():
            port.listener.close()
        for given in self._udp.values():
            given.sock.close()
        self._tcp.clear()
        self._udp.clear()


def _duplicate(sock: socket.socket) -> socket.socket:
    """Return another descriptor for a socket; raises `ListenError`."""
    try:
        return sock.dup()
    except OSError as exc:
        raise listen_error(sock.getsockname(), exc) from exc


def control_socket(given: list[GivenSocket], port: int) -> GivenSocket | None:
    """Return the one of the given sockets that is the control port; None if it is not among them.

    It is called "control", or has the number that is set. Raises `UsageError` if two are called so.
    """
    of_tcp = [each for each in given if each.kind == "tcp"]
    named = [each for each in of_tcp if each.name == CONTROL]
    if len(named) > 1:
        raise UsageError(f"{named[1]} is a second control port: give one, of IPv4 and IPv6 together")
    of_number = [each for each in of_tcp if each.port == port]
    return next(iter([*named, *of_number]), None)
