"""Relays datagrams: each user has a socket of its own to the target, as with the tunnel's UDP proxies."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from gnar_lib import logger, net
from gnar_lib.config.model import DEFAULT_UDP_TIMEOUT_S
from gnar_lib.errors import ConnError
from gnar_lib.net.target import DatagramTarget, UnixDatagramTarget
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.sessions import Limits, OpensSockets, Sessions
from gnar_lib.proxy.udp import admit
from gnar_lib.relay.address import Address, Role
from gnar_lib.relay.attempts import open_in_the_end
from gnar_lib.relay.ranges import Range
from gnar_lib.relay.socat import NO_OPTIONS, SocatOptions

_log = logger.get("relay")


@dataclass(frozen=True, slots=True)
class UdpSettings:
    """What the command line says about datagrams alone."""

    timeout_s: float | None = None  # a session without datagrams ends after that time; None: not given
    any_source: bool = False  # answers of the target count, whatever address they come from


DEFAULTS = UdpSettings()


class DatagramRelay:
    """A bound socket, and a session with the target for each user who writes to the socket.

    The constructor starts receiving and raises `ConnError` when it cannot, or when the target's name is
    unknown. A relay whose address lacks `fork` serves the first user alone.
    """

    error: ConnError | None = None  # a relay of datagrams never fails
    kind = "udp"

    def __init__(
        self,
        listen: Address,
        target: Address,
        settings: UdpSettings = DEFAULTS,
        socat: SocatOptions = NO_OPTIONS,
    ) -> None:
        self.users = net.Crew("relay")  # stays empty, since the hub carries datagrams
        self.name = str(listen)
        self.meter = Meter()
        timeout_s = settings.timeout_s or socat.idle_timeout_s or DEFAULT_UDP_TIMEOUT_S
        self._serves_one = not listen.fork
        self._only_user: bytes | None = None  # the address of the first user, if `_serves_one`
        self._answers = listen.answers and socat.silent is not Role.LISTEN  # whether they go back to users
        self._allowed = listen.allowed
        self._turned_away = logger.Burst()  # warnings about users who may not come
        self.sessions = Sessions(
            _target(target, any_source=settings.any_source),
            self._on_answers,
            self.meter,
            Limits(timeout_s=timeout_s),
            _log,
        )
        self.listener = open_in_the_end(lambda: _bind(listen), listen.retry)
        self.listener.forget_after(2 * timeout_s)  # later than the session of the user ends
        self.listener.serve(self._on_datagrams)

    def close(self) -> None:
        """Stop receiving and end the sessions."""
        self.listener.close()
        self.sessions.close()

    def status(self) -> str:
        """Return the number of sessions and of dropped datagrams, as `name=value`."""
        return f"udp_sessions={len(self.sessions)} udp_dropped={self.meter.dropped}"

    def _on_datagrams(self, datagrams: list[net.Datagram]) -> None:
        if self._allowed is not None:
            datagrams = self._those_allowed(datagrams, self._allowed)
        if self._serves_one:
            if self._only_user is None and datagrams:
                self._only_user = datagrams[0][0]
            datagrams = [each for each in datagrams if each[0] == self._only_user]
        self.sessions.send(admit(datagrams, self.meter.up, self.meter))

    def _those_allowed(self, datagrams: list[net.Datagram], allowed: Range) -> list[net.Datagram]:
        """Return the datagrams of users within a range; warns of others."""
        within = [each for each in datagrams if allowed.has(each[0])]
        self.meter.dropped += len(datagrams) - len(within)
        if len(within) < len(datagrams):
            self._turned_away.warning(_log, "users from outside the range are turned away")
        return within

    def _on_answers(self, datagrams: list[net.Datagram]) -> None:
        if self._answers:
            self.meter.dropped += self.listener.send(admit(datagrams, self.meter.down, self.meter))


def _target(address: Address, *, any_source: bool) -> OpensSockets:
    """Return what opens sockets to `address`; raises `DialError` when the name is unknown."""
    if address.transport == "unix-dgram":
        return UnixDatagramTarget(address.path)
    any_source = any_source or address.any_source
    target = DatagramTarget(address.host, address.port, address.family, address.source, any_source=any_source)
    target.look_up()
    return target


def _bind(address: Address) -> net.DatagramSocket:
    """Return a socket bound to a Unix path or a UDP port; the caller closes it. Raises `ConnError`."""
    if address.transport == "unix-dgram":
        return net.bind_unix_datagram(address.path, address.file)
    if not address.host:
        return net.bind_udp("", address.port, address.options)
    found = net.resolve(address.host, address.port, socket.SOCK_DGRAM, address.family)
    return net.bind_udp(str(found[0][1][0]), address.port, address.options)
