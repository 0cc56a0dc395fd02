"""The local service of a UDP proxy, with the sessions of its users; knows no link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnar_lib import logger
from gnar_lib.config import ProxyConfig
from gnar_lib.errors import DialError
from gnar_lib.net import Conn, Datagram
from gnar_lib.net.target import DatagramTarget
from gnar_lib.pio.meter import Meter
from gnar_lib.proto.datagram import BinaryFraming, Framing, JsonFraming
from gnar_lib.proxy.sessions import Limits, Sessions
from gnar_lib.proxy.udp import Carrier, admit

if TYPE_CHECKING:
    from gnar_lib.client.user_headers import UserHeaders


class UdpService:
    """Carries datagrams between a data connection and the service.

    The sessions outlive the data connection: users do not notice that another has taken its place. `headers`
    tell the service of users.
    """

    def __init__(
        self, config: ProxyConfig, meter: Meter, log: logger.Logger, headers: UserHeaders | None = None
    ) -> None:
        self._log = log
        self._meter = meter
        self._target = DatagramTarget(config.local_host, config.local_port, any_source=config.udp_any_source)
        limits = Limits(timeout_s=config.udp_timeout_s)
        self._sessions = Sessions(self._target, self._on_answers, meter, limits, log)
        if headers is not None:
            self._sessions.header_of = headers.of_datagrams
        self._carrier: Carrier | None = None  # of the data connection, while there is one

    @property
    def sessions(self) -> int:
        """How many sessions there are."""
        return len(self._sessions)

    def carry(self, conn: Conn, *, binary: bool) -> None:
        """Carry datagrams over a data connection until it ends, and close it; the one before it is aborted.

        `binary`: the server takes datagrams in binary; a Go server takes them as JSON.
        """
        if self._carrier is not None:
            self._carrier.abort()
        framing: Framing = BinaryFraming() if binary else JsonFraming(with_address=False)
        self._carrier = carrier = Carrier(conn, framing, self._meter, self._log)
        try:
            self._look_up()
            carrier.run(self._deliver)
        finally:
            conn.close()
            if self._carrier is carrier:
                self._carrier = None

    def _look_up(self) -> None:
        """Look up the address of the service: the first time wait for it, later do so in the background."""
        if self._target.is_known:
            self._target.look_up_soon()
            return
        try:
            self._target.look_up()
        except DialError as exc:  # the target looks it up again when users come
            self._log.warning("%s", exc)

    def _deliver(self, datagrams: list[Datagram]) -> None:
        """Send users' datagrams to the service."""
        self._sessions.send(admit(datagrams, self._meter.up, self._meter))

    def _on_answers(self, answers: list[Datagram]) -> None:
        """Send on what the service answers to one user; answers of one turn of the loop leave together."""
        if self._carrier is None:
            self._meter.dropped += len(answers)
            return
        self._carrier.send(admit(answers, self._meter.down, self._meter))

    def close(self) -> None:
        """End the sessions, and close the data connection."""
        if self._carrier is not None:
            self._carrier.close()
        self._sessions.close()
