"""What both of gnar's own ends share after a login: the session, whose key signs data connections; no I/O."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from gnar_lib.config import Secret
from gnar_lib.proto.numbers import FEATURES, HEARTBEAT_S


def mac(token: Secret, role: str, client_nonce: str, server_nonce: str, certificate: str = "") -> str:
    """Return, in hex, what only an end with the token can compute; each end has a `role` of its own.

    `certificate` is the SHA-256, in hex, of the certificate of the server's end of TLS; empty without TLS.
    Somebody in between who lacks its key has another certificate, and then what one end computes is of no use
    at the other.
    """
    text = f"gnar-{role}\0{client_nonce}\0{server_nonce}"
    if certificate:
        text = f"gnar-tls-{role}\0{certificate}\0{client_nonce}\0{server_nonce}"
    return hmac.digest(token.reveal().encode(), text.encode(), "sha256").hex()


def same(ours: str, theirs: str) -> bool:
    """Compare a proof with the one expected, in constant time."""
    return hmac.compare_digest(ours.encode(), theirs.encode(errors="replace"))


@dataclass(frozen=True, slots=True, repr=False)
class Session:
    """What the two ends of one login share.

    `features` are those that both ends have named. `heartbeat` is the number of seconds between two
    Heartbeats on which the ends have agreed; 0 if they have not, as with earlier versions.
    """

    id: str
    key: bytes
    features: frozenset[str]
    heartbeat: int = 0

    @classmethod
    def of(
        cls,
        token: Secret,
        session_id: str,
        nonces: tuple[str, str] | tuple[str, str, str],
        features: tuple[str, ...],
        heartbeat: int = 0,
    ) -> Session:
        """Return the session of a login with these nonces (client's, server's), to a peer with `features`.

        Behind the nonces comes the certificate that the proofs cover, as for `mac`.
        """
        key = bytes.fromhex(mac(token, "session", *nonces))
        return cls(session_id, key, frozenset(features) & frozenset(FEATURES), heartbeat)

    @property
    def heartbeat_s(self) -> float:
        """The seconds between two Heartbeats of one end."""
        return float(self.heartbeat) or HEARTBEAT_S

    def sign(self, conn_id: str) -> str:
        """Return the proof that a data connection for `conn_id` belongs to this session."""
        return hmac.digest(self.key, conn_id.encode(), "sha256").hex()

    def is_signed(self, conn_id: str, proof: str) -> bool:
        """Tell, in constant time, whether `proof` is this session's signature of `conn_id`."""
        return same(self.sign(conn_id), proof)


def waiting_id(number: int) -> str:
    """Return what the `number`-th waiting data connection of a session signs in place of a `conn_id`."""
    return f"waiting {number}"


def carrier_id(number: int) -> str:
    """Return what the `number`-th further multiplexed session signs in place of a `conn_id`."""
    return f"carrier {number}"


def beside_id(stream: str) -> str:
    """Return what the connection beside a stream, such as "0:12", signs in place of a `conn_id`."""
    return f"beside {stream}"


class ReplayWindow:
    """Accepts each number once, in about the order in which the numbers were given out.

    The idea is that of RFC 4303, 3.4.3. A number that is `SIZE` or more behind the highest is refused,
    whether it was seen or not.
    """

    SIZE = 4096
    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        # Of the last SIZE numbers up to the highest, by number modulo SIZE; empty before the first number.
        self._seen = bytearray()

    def accept(self, number: int) -> bool:
        """Tell whether `number` is new, and remember it."""
        if number <= self._highest - self.SIZE or number < 1:
            return False
        if number > self._highest:
            if self._seen and number - self._highest < self.SIZE:
                for skipped in range(self._highest + 1, number + 1):
                    self._seen[skipped % self.SIZE] = 0
            else:
                self._seen = bytearray(self.SIZE)
            self._highest = number
        is_new = not self._seen[number % self.SIZE]
        self._seen[number % self.SIZE] = 1
        return is_new
