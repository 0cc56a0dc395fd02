"""The client's end of UDP proxies: their users' sessions with the local service, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnar_lib import logger
from gnar_lib.config import ProxyConfig
from gnar_lib.errors import DialError
from gnar_lib.net import Conn, Datagram
from gnar_lib.net.target import DatagramTarget
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import Exchange, numbers
from gnar_lib.proto.datagram import BinaryFraming, Framing, JsonFraming
from gnar_lib.proxy.udp import Carrier, Limits, Sessions, admit

if TYPE_CHECKING:
    from gnar_lib.client.link import Link


def bring_datagram_conn(link: Link, message: Exchange) -> None:
    """The server asks for the data connection of a UDP proxy: open it, and carry until it ends."""
    proxy = link.proxy_of(message)
    if proxy.udp is None:
        proxy.log.warning("the server asks for datagrams of a proxy that has none")
        return
    conn = link.control.open_data(message)
    session = link.control.session
    if session is not None and numbers.FEATURE_UDP in session.features:
        proxy.udp.carry(conn, BinaryFraming())
    else:
        proxy.udp.carry(conn, JsonFraming(with_address=False))


class UdpService:
    """The local service of a UDP proxy, with the sessions of its users.

    Sessions outlive the data connection: a user does not notice that another has taken its place.
    """

    def __init__(self, config: ProxyConfig, meter: Meter, log: logger.Logger) -> None:
        self._log = log
        self._meter = meter
        self._target = DatagramTarget(config.local_host, config.local_port)
        limits = Limits(timeout_s=config.udp_timeout_s)
        self._sessions = Sessions(self._target, self._on_answers, meter, limits, log)
        self._carrier: Carrier | None = None

    @property
    def sessions(self) -> int:
        """How many sessions there are."""
        return len(self._sessions)

    def carry(self, conn: Conn, framing: Framing) -> None:
        """Carry datagrams over a data connection until it ends; the one before it is closed."""
        if self._carrier is not None:
            self._carrier.conn.abort()
        self._carrier = carrier = Carrier(conn, framing, self._meter, self._log)
        try:
            self._look_up()
            carrier.run(self._deliver)
        finally:
            conn.close()
            if self._carrier is carrier:
                self._carrier = None

    def _look_up(self) -> None:
        """Wait for the address of the service, the first time; later it is only refreshed meanwhile."""
        if self._target.is_known:
            self._target.look_up_soon()
            return
        try:
            self._target.look_up()
        except DialError as exc:  # it is tried again when users come
            self._log.warning("%s", exc)

    def _deliver(self, datagrams: list[Datagram]) -> None:
        """Send users' datagrams to the service."""
        self._sessions.send(admit(datagrams, self._meter.up, self._meter))

    def _on_answers(self, answers: list[Datagram]) -> None:
        """Send on what the service answered to one user; what comes in one turn of the loop goes together."""
        if self._carrier is None:
            self._meter.dropped += len(answers)
            return
        self._carrier.post(admit(answers, self._meter.down, self._meter))
        self._carrier.flush_soon()

    def close(self) -> None:
        """End the sessions, and the data connection."""
        if self._carrier is not None:
            self._carrier.conn.close()
        self._sessions.close()
