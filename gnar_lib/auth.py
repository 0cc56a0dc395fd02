"""Both roles of the login, without I/O: when which message is sent is for client and server to know.

Go peers log in with md5(token, timestamp). Our own ends prove that they know the token by HMAC-SHA256 over a
nonce of each, which cannot be replayed; a session key made from the same nonces signs the data connections.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from gnar_lib import __version__
from gnar_lib.config import Secret
from gnar_lib.errors import AuthError, ProtocolError
from gnar_lib.proto import Challenge, Login, Proof, Welcome
from gnar_lib.proto.numbers import FEATURES

MD5_WINDOW_S = 15 * 60  # how far a Go client's clock may be off, either way
VERSION = f"gnar-py/{__version__}"
HMAC, MD5 = "hmac", "md5"
_NO_TOKEN = ""  # in a Login that proves itself in another way

Clock = Callable[[], float]


def md5_token(token: Secret, timestamp: int) -> str:
    """Return the Go program's login token: hex md5 of the token followed by the timestamp in decimal."""
    text = f"{token.reveal()}{timestamp}"
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _mac(token: Secret, role: str, client_nonce: str, server_nonce: str) -> str:
    text = f"gnar-{role}\0{client_nonce}\0{server_nonce}"
    return hmac.digest(token.reveal().encode(), text.encode(), "sha256").hex()


def _same(ours: str, theirs: str) -> bool:
    return hmac.compare_digest(ours.encode(), theirs.encode(errors="replace"))


@dataclass(frozen=True, slots=True, repr=False)
class Session:
    """What both of our own ends hold after the login; `key` signs the data connections of the session."""

    id: str
    key: bytes
    features: frozenset[str]

    def sign(self, conn_id: str) -> str:
        """Return the proof that a data connection for `conn_id` belongs to this session."""
        return hmac.digest(self.key, conn_id.encode(), "sha256").hex()

    def is_signed(self, conn_id: str, proof: str) -> bool:
        """Tell, in constant time, whether `proof` is this session's signature of `conn_id`."""
        return _same(self.sign(conn_id), proof)


def waiting_id(number: int) -> str:
    """Return what a waiting data connection signs in place of a `conn_id`."""
    return f"waiting {number}"


class ReplayWindow:
    """Takes each number once, in about the order in which they were given out (the idea of RFC 4303, 3.4.3).

    A number that is more than `SIZE` behind the highest is refused, whether it was seen or not.
    """

    SIZE = 4096

    def __init__(self) -> None:
        self._highest = 0
        self._seen: set[int] = set()

    def take(self, number: int) -> bool:
        """Tell whether this is the first time."""
        if number in self._seen or number <= self._highest - self.SIZE or number < 1:
            return False
        self._seen.add(number)
        if number > self._highest:
            if number - self._highest < self.SIZE:
                for passed in range(self._highest - self.SIZE + 1, number - self.SIZE + 1):
                    self._seen.discard(passed)
            else:
                self._seen = {number}
            self._highest = number
        return True


def _session(token: Secret, session_id: str, nonces: tuple[str, str], features: tuple[str, ...]) -> Session:
    key = bytes.fromhex(_mac(token, "session", *nonces))
    return Session(session_id, key, frozenset(features) & frozenset(FEATURES))


class ClientLogin:
    """One login of a client: the messages it sends, and what it makes of the answers."""

    def __init__(self, token: Secret, kind: str, client_id: str = "", clock: Clock = time.time) -> None:
        self.token = token
        self.client_id = client_id
        self.proves = bool(token) and kind == HMAC  # without a token there is nothing to prove
        self._clock = clock
        self._nonce = secrets.token_hex(32)
        self._server_nonce = ""

    def message(self) -> Login:
        """Return the Login of a control connection; the md5 of the token is in it only when asked for."""
        now = int(self._clock())
        return Login(
            token=_NO_TOKEN if self.proves else md5_token(self.token, now),
            version=VERSION,
            timestamp=now,
            features=FEATURES,
            auth=HMAC if self.proves else MD5,
            nonce=self._nonce,
            client_id=self.client_id,
        )

    def go_message(self) -> Login:
        """Return the Login of any further connection to a Go server."""
        now = int(self._clock())
        return Login(token=md5_token(self.token, now), version=VERSION, timestamp=now)

    @staticmethod
    def data_message(session: Session) -> Login:
        """Return the Login of a data connection for a user; the Exchange behind it carries the proof."""
        return Login(token=_NO_TOKEN, timestamp=0, session=session.id)

    @staticmethod
    def waiting_message(session: Session, number: int) -> Login:
        """Return the Login of the session's `number`-th data connection that waits for a user."""
        proof = session.sign(waiting_id(number))
        return Login(token=_NO_TOKEN, timestamp=0, session=session.id, waiting=number, proof=proof)

    def answer(self, challenge: Challenge) -> Proof:
        """Return the proof that this end knows the token."""
        self._server_nonce = challenge.nonce
        return Proof(_mac(self.token, "client", self._nonce, challenge.nonce))

    def accept(self, welcome: Welcome) -> Session:
        """Return the session; `AuthError` when the server refused us or failed to prove itself."""
        if welcome.error:
            raise AuthError(f"the server refused the login: {welcome.error}")
        if self.proves:
            expected = _mac(self.token, "server", self._nonce, self._server_nonce)
            if not self._server_nonce or not _same(expected, welcome.proof):
                raise AuthError("the server could not prove that it knows the token")
        nonces = (self._nonce, self._server_nonce or welcome.nonce)
        return _session(self.token, welcome.session, nonces, welcome.features)


class ServerLogin:
    """One login at a server; `policy` is "any" or "hmac"."""

    def __init__(self, token: Secret, policy: str, login: Login, clock: Clock = time.time) -> None:
        self.login = login
        self.is_ours = bool(login.nonce)
        self.needs_proof = self.is_ours and login.auth == HMAC
        self._token = token
        self._policy = policy
        self._clock = clock
        self._nonce = secrets.token_hex(32)

    def check(self) -> None:
        """Check what the Login alone can tell; `AuthError` says why it is refused, without the token."""
        if self.needs_proof:
            if not self._token:
                raise AuthError("this server has no token; start the client without one, or it with one")
            return
        if not self._token:
            return
        if self._policy == HMAC:
            raise AuthError("this server takes no md5 login (its setting: auth = hmac)")
        if not _same(md5_token(self._token, self.login.timestamp), self.login.token):
            raise AuthError("wrong token")
        offset_s = abs(self._clock() - self.login.timestamp)
        if offset_s > MD5_WINDOW_S:
            raise AuthError(f"the clocks of client and server are {offset_s / 60:.0f} minutes apart")

    def challenge(self) -> Challenge:
        """Return the question that only an end with the token can answer."""
        return Challenge(self._nonce)

    def prove(self, proof: Proof) -> None:
        """Check the client's answer; raises `AuthError`."""
        if not _same(_mac(self._token, "client", self.login.nonce, self._nonce), proof.proof):
            raise AuthError("wrong token")

    def welcome(self) -> tuple[Session, Welcome]:
        """Return the session of one of our own clients, and the message that tells it."""
        if not self.is_ours:
            raise ProtocolError("a session for a peer that did not ask for one")
        nonces = (self.login.nonce, self._nonce)
        session = _session(self._token, uuid.uuid4().hex, nonces, self.login.features)
        message = Welcome(
            features=FEATURES,
            nonce=self._nonce,
            proof=_mac(self._token, "server", *nonces) if self.needs_proof else "",
            session=session.id,
        )
        return session, message
