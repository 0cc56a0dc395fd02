"""The addresses of one place, which have an age: what a name stands for changes. Opens nothing."""

from __future__ import annotations

import ipaddress
import socket
import time
from itertools import chain, zip_longest

from gnar_lib import logger
from gnar_lib.net.address import Sockaddr, family_of, format_address, resolve
from gnar_lib.net.greenlets import Crew

MAX_AGE_S = 30.0  # of addresses; a name that is used is then looked up again, in the background
STALE_S = 60.0  # the age at which nobody dials addresses without having asked again
LOOK_UP_PAUSE_S = 1.0  # between two look-ups of a name whose addresses do not answer
SILENT_PAUSE_S = 5.0  # the same if they only say nothing: some services never answer, as syslog
LOOK_UP_WAIT_S = 1.0  # for an answer, where there are older addresses
MOST_ADDRESSES = 16  # of one name

HERE = (
    (int(socket.AF_INET), "127.0.0.1"),
    (int(socket.AF_INET6), "::1"),  # where alone some programs listen that were told "localhost"
)

Addresses = list[tuple[int, Sockaddr]]

_log = logger.get("net")


class Place:
    """A host and a port, and the addresses that they stand for, in the order in which they are to be tried.

    Without a host, the place is this machine: 127.0.0.1, and ::1 behind it. `kind` is a type of sockets.
    `source` is a local IP address from which to open sockets, empty for any. Addresses of another family than
    that of `source`, or than `family`, are left out.
    """

    def __init__(
        self, host: str, port: int, kind: int, family: int = socket.AF_UNSPEC, source: str = ""
    ) -> None:
        self.host = host
        self.source = source
        self.known: Addresses = []  # empty before the first look-up
        self._port = port
        self._kind = kind
        self._family = family_of(source, family)
        self._changes = bool(host) and not _is_ip_address(host)
        self._looked_up_s = 0.0  # when the last look-up began, as time.monotonic() says
        self._preferred: Sockaddr | None = None  # the address that has worked last
        self._crew = Crew("look-up")  # one greenlet while a look-up runs in the background

    def look_up(self) -> None:
        """Ask for the addresses, and wait; raises `DialError` if there are none."""
        self._looked_up_s = time.monotonic()
        if not self.host:
            found: Addresses = [(family, (ip, self._port)) for family, ip in HERE]
        else:
            found = _alternating(resolve(self.host, self._port, self._kind, self._family))
        before, self.known = self.known, found[:MOST_ADDRESSES]
        if self._preferred is not None:
            self.prefer(self._preferred)
        if before and {address for _, address in before}.isdisjoint(address for _, address in self.known):
            _log.info("%s is at %s now", self.host, format_address(self.known[0][1]))

    def addresses(self) -> Addresses:
        """Return the addresses for one use.

        Waits where there are none, and for a moment where they are old. Raises `DialError` if there are none.
        """
        if not self.known:
            self.look_up()
        elif self._changes:
            is_stale = time.monotonic() - self._looked_up_s > STALE_S
            self.refresh()
            if is_stale:
                self._crew.wait_empty(LOOK_UP_WAIT_S)
        return [*self.known]

    def refresh(self) -> None:
        """Look the name up in the background, unless that was done in the last 30 s."""
        self._look_up_soon(MAX_AGE_S)

    def look_up_soon(self) -> None:
        """Look the name up in the background, since its addresses fail; at most once a second."""
        self._look_up_soon(LOOK_UP_PAUSE_S)

    def note_silence(self) -> None:
        """Do the same, since its addresses only say nothing; at most once in 5 s."""
        self._look_up_soon(SILENT_PAUSE_S)

    def look_up_again(self) -> None:
        """Look the name up as `look_up_soon` does, and wait for a moment for what that yields."""
        self.look_up_soon()
        self._crew.wait_empty(LOOK_UP_WAIT_S)

    def _look_up_soon(self, pause_s: float) -> None:
        now_s = time.monotonic()
        is_worth_it = self._changes or not self.known
        if is_worth_it and not len(self._crew) and now_s - self._looked_up_s >= pause_s:
            self._looked_up_s = now_s
            self._crew.spawn(self.look_up)

    def put_last(self, address: Sockaddr) -> None:
        """Try this address after all others from now on."""
        self.known.sort(key=lambda each: each[1] == address)
        self._preferred = self.known[0][1]

    def has(self, address: Sockaddr) -> bool:
        """Tell whether the place still has this address."""
        return any(address == known for _, known in self.known)

    def prefer(self, address: Sockaddr) -> None:
        """Try this address first from now on."""
        self._preferred = address
        if self.known and self.known[0][1] != address:
            self.known.sort(key=lambda each: each[1] != address)


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _alternating(found: Addresses) -> Addresses:
    """Return addresses in turn of one family and of the other, the family of the first in front.

    So a family that leads nowhere costs one attempt, RFC 8305, section 4.
    """
    first = [each for each in found if each[0] == found[0][0]]
    others = [each for each in found if each[0] != found[0][0]]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]
