"""Datagrams in this process: services, users and sessions in greenlets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import gevent
import gevent.socket

from gnar_lib import logger
from gnar_lib.net import Datagram, DatagramSocket
from gnar_lib.net.datagram import pack_address
from gnar_lib.net.target import DatagramTarget
from gnar_lib.pio.meter import Meter
from gnar_lib.proto.datagram import Framing
from gnar_lib.proxy.sessions import Limits, OpensSockets, Sessions
from tests.helpers.loop import turn, wait_until

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 20.0
LOG = logger.get("test")
USER = pack_address((LOOPBACK, 1000))
UNLIMITED = Limits(timeout_s=60.0)


class EchoService:
    """A UDP service in a greenlet: sends each datagram back, and notes the datagram and the sender's port."""

    def __init__(self, host: str = LOOPBACK, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = gevent.socket.socket(family, socket.SOCK_DGRAM)
        self._sock.bind((host, port))
        self.port = int(self._sock.getsockname()[1])
        self.heard: list[tuple[bytes, int]] = []
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            payload, peer = self._sock.recvfrom(65536)
            self.heard.append((payload, peer[1]))
            self._sock.sendto(payload, peer)

    def stop_answering(self) -> None:
        """Say nothing any more, while the socket stays open."""
        self._greenlet.kill()

    def close(self) -> None:
        self._greenlet.kill()
        self._sock.close()


class Answers:
    """UDP sessions with a service, and the answers of that service."""

    def __init__(self, target: OpensSockets, limits: Limits = UNLIMITED) -> None:
        self.meter = Meter()
        self.got: list[Datagram] = []
        self.sessions = Sessions(target, self.got.extend, self.meter, limits, LOG)

    def has(self, user: bytes) -> bool:
        """Tell whether a user has a session."""
        return self.sessions._conns.get(user) is not None

    def ask(self, user: bytes, payload: bytes) -> None:
        """Send one datagram and wait for its answer."""
        self.sessions.send([(user, payload)])
        wait_until(lambda: (user, payload) in self.got, f"an answer to {payload!r}")

    def ask_again_until_answered(self, user: bytes, payload: bytes) -> None:
        """Send one datagram again and again until it is answered, as users do whose datagrams are lost."""

        def is_answered() -> bool:
            self.sessions.send([(user, payload)])
            turn()
            return (user, payload) in self.got

        wait_until(is_answered, f"an answer to {payload!r}")


def users(number: int) -> list[bytes]:
    """Return the packed addresses of so many users."""
    return [pack_address((LOOPBACK, 1000 + index)) for index in range(number)]


def target_at(port: int, host: str = LOOPBACK) -> DatagramTarget:
    """Return a target on loopback that has been looked up."""
    target = DatagramTarget(host, port)
    target.look_up()
    return target


@contextmanager
def answering(limits: Limits = UNLIMITED) -> Iterator[tuple[EchoService, Answers]]:
    """Run an echo service, and sessions with that service, for the block."""
    with closing(EchoService()) as service:
        answers = Answers(target_at(service.port), limits)
        with closing(answers.sessions):
            yield service, answers
        assert answers.meter.sessions == 0


def udp_user(host: str = LOOPBACK) -> gevent.socket.socket:
    """Return a socket of a UDP user, which the caller closes."""
    sock = gevent.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(TIMEOUT_S)
    return sock


@contextmanager
def echoing(sock: DatagramSocket) -> Iterator[DatagramSocket]:
    """Have a socket send each datagram back for the block; closes the socket."""
    failed: list[int] = []
    sock.serve(lambda datagrams: failed.append(sock.send(datagrams)))
    try:
        yield sock
    finally:
        sock.close()
    assert sum(failed) == 0


def parse_all(framing: Framing, data: bytes) -> tuple[list[Datagram], int]:
    """Return the datagrams in all whole frames of `data`, and the size of those frames in bytes."""
    found: list[Datagram] = []
    start = 0
    while (batch := framing.parse(data[start:]))[1]:
        found += batch[0]
        start += batch[1]
    return found, start
