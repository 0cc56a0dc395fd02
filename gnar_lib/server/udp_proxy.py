"""A proxy of UDP at the server: keeps one data connection for all its users' datagrams; knows no port."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from gnar_lib import logger
from gnar_lib.auth import Rights
from gnar_lib.errors import ConnError, ProtocolError
from gnar_lib.events import DatagramsDropped, Side, UserRefused, emit
from gnar_lib.net import Conn, Datagram, SocketConn
from gnar_lib.pio.meter import NO_LIMIT, Meter
from gnar_lib.proto.datagram import NOBODY, BinaryFraming, Framing, JsonFraming
from gnar_lib.proxy.udp import Carrier, admit
from gnar_lib.server.admission import ALL_MAY_COME, AddressRules
from gnar_lib.server.places import Places
from gnar_lib.server.udp_users import UdpUsers
from gnar_lib.server.upstream import Upstream

REST_AFTER_S = 60.0  # a data connection is kept so long at least, so that a proxy without users is tried, too
ASK_PAUSE_S = 0.5  # before another data connection is asked for in place of one that ended or never came


class UdpProxy:
    """What one client has asked for: a name, limits and counts of its users, and the way to the client."""

    kind = "udp"

    def __init__(self, name: str, upstream: Upstream, rights: Rights, total: Meter, places: Places) -> None:
        self.name = name
        self.places = places
        self.meter = Meter(total, rights.speed)
        self.own_limit = NO_LIMIT  # to which the client keeps by itself, besides that of the meter
        self._rules = ALL_MAY_COME
        self._users = UdpUsers(places, lambda user, reason: emit(UserRefused, name, self.kind, user, reason))
        self._upstream = upstream
        self._log = logger.get(f"UDP [{name}]")
        self._carrier: Carrier | None = None  # of the data connection, while there is one
        self._answer: Callable[[list[Datagram]], int]  # sends datagrams to users; from `run`
        self._connected_s = 0.0  # when the data connection came
        self._is_wanted = Event()  # whether there is to be a data connection
        self._is_wanted.set()
        self._last_speaker = NOBODY  # the user whose datagram came last
        self._is_closed = False

    @property
    def rules(self) -> AddressRules:
        """From where users may come."""
        return self._rules

    @rules.setter
    def rules(self, rules: AddressRules) -> None:
        self._rules = rules
        self._users.set_refusal(rules.refusal if rules else None)

    def run(self, on_connected: Callable[[], None], answer: Callable[[list[Datagram]], int]) -> None:
        """Get a data connection and carry datagrams, again and again until `close`.

        `on_connected` is called whenever there is a data connection. `answer` sends datagrams to the users to
        whom they are addressed, and returns how many it could not send.
        """
        while not self._is_closed:
            self._is_wanted.wait()
            data = self._upstream.take_for_datagrams(self.name, self)
            if data is not None:
                self._carry(data, on_connected, answer)
            if self._is_wanted.is_set() and not self._is_closed:
                gevent.sleep(ASK_PAUSE_S)

    def _carry(
        self, data: Conn, on_connected: Callable[[], None], answer: Callable[[list[Datagram]], int]
    ) -> None:
        """Carry datagrams until the data connection ends, and close it."""
        if self._is_closed:
            data.close()
            return
        self._log.debug("data connection %s", data)
        self._connected_s = time.monotonic()
        is_binary = self._upstream.takes_binary_datagrams
        framing: Framing = BinaryFraming() if is_binary else JsonFraming(with_address=True)
        self._answer = answer
        self._carrier = carrier = Carrier(data, framing, self.meter, self._log)
        on_connected()
        try:
            carrier.run(self._on_answers if is_binary else self._on_nameless_answers)
        except (ConnError, ProtocolError) as exc:
            self._log.debug("the data connection broke: %s", exc)
        finally:
            self._carrier = None

    def receive(self, datagrams: list[Datagram]) -> None:
        """Send to the client what users have sent in one turn of the loop; never waits, but may drop some."""
        carrier = self._carrier
        if carrier is None:
            self.meter.dropped += len(datagrams)
            return
        admitted = self._users.admit(datagrams)
        self.meter.dropped += len(datagrams) - len(admitted)
        if not admitted:
            return
        self._last_speaker = admitted[-1][0]
        carrier.send(admit(admitted, self.meter.up, self.meter))

    def _on_answers(self, answers: list[Datagram]) -> None:
        """Give each answer to its user."""
        answers = admit(answers, self.meter.down, self.meter)
        self._users.note_answers(answers)
        self.meter.dropped += self._answer(answers)

    def _on_nameless_answers(self, answers: list[Datagram]) -> None:
        """A Go client names no user, and means the one who spoke last."""
        self._on_answers([(user or self._last_speaker, payload) for user, payload in answers])

    def rest(self) -> bool:
        """Close the data connection until `wake`, if there is one to be spared; tell whether that was done.

        To be called when there are no users. Keep-alives of the data connection would cost bytes and a
        descriptor for nobody; a stream costs neither.
        """
        carrier = self._carrier
        if carrier is None or not isinstance(carrier.conn, SocketConn):
            return False
        if not self._upstream.takes_binary_datagrams:  # a Go client may expect its data connection to stay
            return False
        if time.monotonic() - self._connected_s < REST_AFTER_S:
            return False
        self._log.debug("no users: the data connection is closed")
        self._is_wanted.clear()
        carrier.close()
        return True

    def wake(self) -> None:
        """Get a data connection again."""
        self._is_wanted.set()

    def tell_dropped(self) -> None:
        """Emit an event if datagrams were dropped since the last call; to be called once a second."""
        if count := self.meter.take_dropped():
            emit(DatagramsDropped, Side.SERVER, self.name, count)

    def move_to(self, upstream: Upstream) -> None:
        """Reach the client in another way from now on: it has come back."""
        before, self._upstream = self._upstream, upstream
        self._let_go_of(before)

    def close(self) -> None:
        """Close the data connection, and ask for no other."""
        self._is_closed = True
        self._is_wanted.set()
        self._let_go_of(self._upstream)
        self._users.close()
        self.meter.end()

    def _let_go_of(self, upstream: Upstream) -> None:
        """Close the data connection, or wait for none any longer."""
        upstream.give_up(self)
        if self._carrier is not None:
            self._carrier.close()
