"""One proxied UDP port: carries its users' datagrams over one data connection, and answers to who asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gevent.hub import get_hub

from gnar_lib import logger
from gnar_lib.net import Conn, Datagram, DatagramSocket
from gnar_lib.net.datagram import BATCH
from gnar_lib.pio.meter import Meter
from gnar_lib.proto import Exchange, numbers
from gnar_lib.proto.datagram import NOBODY, BinaryFraming, Framing, JsonFraming
from gnar_lib.proxy.share import share
from gnar_lib.proxy.udp import Carrier, admit

if TYPE_CHECKING:
    from gnar_lib.server.control import Control

ASK_PAUSE_S = 0.5  # before another data connection is asked for in place of one that ended
RECENT_S = 60.0  # who was heard of in that time counts as a user


class Vacancy:
    """The place of the data connection that a UDP proxy has asked for, in the conn map."""

    def __init__(self, proxy: UdpProxy) -> None:
        self.proxy = proxy
        self.control = proxy.control

    def join(self, conn: Conn) -> None:
        """The client has brought it."""
        self.proxy.join(conn)

    def expire(self) -> None:
        """The client has not."""
        self.proxy.ask_again()


class UdpProxy:
    """A UDP port that a client has; it ends with its control connection.

    There is nothing to wait for when it ends: datagrams have no last one.
    """

    type = "udp"

    def __init__(self, control: Control, name: str, sock: DatagramSocket) -> None:
        self.control = control
        self.name = name
        self.port = sock.port
        self.log = logger.get(f"UDP [{name}]")
        self._meter = Meter(control.server.meter, control.server.config.max_speed)
        self._socket = sock
        self._carrier: Carrier | None = None
        self._last_speaker = NOBODY
        self._is_closed = False
        self._is_go = control.session is None or numbers.FEATURE_UDP not in control.session.features
        self._framing: Framing = JsonFraming(with_address=True) if self._is_go else BinaryFraming()
        # Repeating, since a timer of libev that does not is good for one start.
        self._ask_timer: Any = get_hub().loop.timer(ASK_PAUSE_S, ASK_PAUSE_S)

    @property
    def users(self) -> int:
        """How many users were heard of lately."""
        return self._socket.recent_peers(RECENT_S)

    def start(self) -> None:
        """Ask for the data connection; users are heard when it is there."""
        self._ask_timer.stop()
        conn_id = self.control.server.connmap.put(Vacancy(self))
        name = self.name if self.control.session is not None else ""
        self.control.post(Exchange(conn_id=conn_id, proxy_type="udp", proxy_name=name))

    def close(self) -> None:
        """Take and send nothing more, and close the data connection."""
        if self._is_closed:
            return
        self._is_closed = True
        self._ask_timer.stop()
        self._socket.close()
        self._meter.end()
        if self._carrier is not None:
            self._carrier.conn.close()
        self.control.server.connmap.drop(lambda entry: entry.proxy is self)

    # ---- the data connection -------------------------------------------------------------------------------

    def join(self, conn: Conn) -> None:
        """Carry datagrams over a data connection from now on."""
        if self._is_closed:
            conn.close()
            return
        if self._carrier is not None:  # the client would not bring another if that still worked
            self._carrier.conn.abort()
        self._carrier = carrier = Carrier(conn, self._framing, self._meter, self.log)
        self.log.debug("data connection %s", conn)
        self.control.server.crew.spawn(self._carry, carrier)
        self._socket.serve(self._on_datagrams)

    def _carry(self, carrier: Carrier) -> None:
        try:
            carrier.run(self._deliver)
        finally:
            if self._carrier is carrier:
                self._carrier = None
                self.ask_again()

    def ask_again(self) -> None:
        """Ask for another data connection after a pause: the one there was ended, or never came."""
        if not self._is_closed:
            self._ask_timer.stop()
            self._ask_timer.start(self.start)

    # ---- datagrams -----------------------------------------------------------------------------------------

    def _on_datagrams(self, received: list[Datagram]) -> None:
        """Send on what the users sent in this turn of the loop."""
        carrier = self._carrier
        if carrier is None:
            self._meter.dropped += len(received)
            return
        self._last_speaker = received[-1][0]
        carrier.post(admit(received, self._meter.up, self._meter))
        carrier.flush()
        if len(received) == BATCH:  # a flood: more may have come than there was room for
            self._meter.dropped += self._socket.take_overflow()
        if pause_s := share.pause_after(self._socket.began_s, self._meter):
            self._socket.pause(pause_s)

    def _deliver(self, answers: list[Datagram]) -> None:
        """Give each answer to the user whom it is for."""
        answers = admit(answers, self._meter.down, self._meter)
        if self._is_go:  # a Go client does not say whom, and means who spoke last
            answers = [(user or self._last_speaker, payload) for user, payload in answers]
        self._meter.dropped += self._socket.send(answers)
