"""The proxied ports of a server: opens one that is free and allowed, or says why not; knows no proxy."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from gnar_lib.config import PortRanges
from gnar_lib.config.model import LOOPBACK
from gnar_lib.errors import ListenError, PortTakenError, ProxyRefusedError
from gnar_lib.net import DatagramSocket, Listener, bind_udp, descriptors, listen
from gnar_lib.net.datagram import is_out_of_files
from gnar_lib.server.given import GivenPorts

TRIES_FOR_ANY_PORT = 100

Opened = TypeVar("Opened")


class Ports:
    """Opens proxied ports on the addresses of this server, and knows which are in use.

    Ports of "tcp" and of "udp" have nothing to do with each other.
    """

    def __init__(self, bind: str, udp_bind: str = "") -> None:
        self.given = GivenPorts()  # which a service manager has opened
        self._bind = bind
        self._udp_bind = udp_bind or bind
        self._held: dict[tuple[str, int], object] = {}  # who has each that is in use, by kind and port

    def __len__(self) -> int:
        return len(self._held)

    def listen(self, port: int, allowed: PortRanges) -> Listener:
        """Return a listener on `port`, or if `port` is 0 on any free port that is allowed.

        Raises `ProxyRefusedError` if the port is not allowed, `PortTakenError` if somebody has it, another
        `ListenError` if there are too many files or ports: the same request may succeed later.
        """
        return self._open("tcp", self._listen, port, allowed)

    def _listen(self, port: int) -> Listener:
        """Listen on a port, or take what a service manager has opened; raises `ListenError`."""
        self._refuse_held("tcp", port)
        return self.given.listener(port) or listen(self._bind, port)

    def listen_locally(self) -> Listener:
        """Return a listener on a port of loopback that the system chooses; raises `ListenError`."""
        return self._open("tcp", lambda port: listen(LOOPBACK, port), 0, PortRanges())

    def bind_udp(self, port: int, allowed: PortRanges) -> DatagramSocket:
        """Return a socket for datagrams; everything else is as with `listen`."""
        return self._open("udp", self._bind_udp, port, allowed)

    def _bind_udp(self, port: int) -> DatagramSocket:
        """Bind to a port, or take what a service manager has opened; raises `ListenError`."""
        self._refuse_held("udp", port)
        return self.given.datagram_socket(port) or bind_udp(self._udp_bind, port)

    def _refuse_held(self, kind: str, port: int) -> None:
        """Raise `PortTakenError` if a proxy has the port: the system would let a given one be taken twice."""
        if (kind, port) in self._held:
            raise PortTakenError(f"port {port} is taken")

    def tend(self) -> None:
        """Turn users away from given ports that have no client; to be called once a second."""
        self.given.tend(self._held.keys())

    def hold(self, kind: str, port: int, owner: object = None) -> None:
        """Note that a port is in use, until `release`; `owner` may say whose it is."""
        self._held[kind, port] = owner

    def owner(self, kind: str, port: int) -> object:
        """Return whose a port is; None if nobody has it, or nobody knows."""
        return self._held.get((kind, port))

    def release(self, kind: str, port: int) -> None:
        """Note that a port is free."""
        self._held.pop((kind, port), None)

    def _open(self, kind: str, open_port: Callable[[int], Opened], port: int, allowed: PortRanges) -> Opened:
        """Return what `open_port` makes of `port`, or of an allowed port if `port` is 0.

        With 0 and no restriction, the system chooses the port. Raises as `listen` does.
        """
        if port and not allowed.allows(port):
            raise ProxyRefusedError(f"port {port} is not allowed (allowed: {allowed})")
        if len(self) >= descriptors.for_ports:
            raise ListenError(f"{len(self)} ports are open: {descriptors.why_short}")
        if port == 0 and allowed:
            candidates = itertools.islice(self._candidates(kind, allowed), TRIES_FOR_ANY_PORT)
            return self._open_any(open_port, candidates)
        try:
            return open_port(port)
        except PortTakenError:
            raise PortTakenError(f"port {port} is taken") from None
        except ListenError as exc:
            if is_out_of_files(exc):
                raise
            raise ProxyRefusedError(str(exc)) from exc

    @staticmethod
    def _open_any(open_port: Callable[[int], Opened], candidates: Iterable[int]) -> Opened:
        """Open the first candidate that can be opened; raises `ListenError` if none can."""
        error: ListenError = PortTakenError("no allowed port is free")
        for port in candidates:
            try:
                return open_port(port)
            except PortTakenError:
                continue
            except ListenError as exc:
                error = exc
                if is_out_of_files(exc):  # the other candidates would fail for the same reason
                    break
        raise error

    def _candidates(self, kind: str, allowed: PortRanges) -> Iterator[int]:
        """Yield the allowed ports that are not in use here, in an order that is random enough.

        From a random one on, each is as far behind the one before it. If that distance and the number of
        ports have no common divisor, each port comes once, and nobody has to list or shuffle them.
        """
        count = len(allowed)
        distance = random.randrange(1, count + 1)  # noqa: S311  (no secret)
        while math.gcd(distance, count) > 1:
            distance = random.randrange(1, count + 1)  # noqa: S311  (no secret)
        index = random.randrange(count)  # noqa: S311  (no secret)
        for _ in range(count):
            if (kind, port := allowed[index]) not in self._held:
                yield port
            index = (index + distance) % count
