"""Both roles of the login: the messages of each, and what each makes of the other's; no I/O.

Client and server decide when which message is sent.
"""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from gnar_lib import __version__
from gnar_lib.auth.session import Session, beside_id, carrier_id, mac, same, waiting_id
from gnar_lib.config import Secret
from gnar_lib.config.transport import shown
from gnar_lib.errors import AuthError, AuthMethodError, CertificateError, ClockError, ProtocolError
from gnar_lib.proto import Challenge, Login, Proof, Welcome
from gnar_lib.proto.numbers import (
    DEFAULT_HEARTBEAT_S,
    FEATURE_MOVE,
    FEATURES,
    MIN_HEARTBEAT_S,
    NONCE_BYTES,
    slower_heartbeat,
)

MD5_WINDOW_S = 15 * 60  # how far a Go client's clock may be off, either way
VERSION = f"gnar-py/{__version__}"
HMAC, MD5 = "hmac", "md5"
_NO_TOKEN = ""  # in a Login that proves itself in another way

Clock = Callable[[], float]


def md5_token(token: Secret, timestamp: int) -> str:
    """Return the Go program's login token: hex md5 of the token followed by the timestamp in decimal."""
    text = f"{token.reveal()}{timestamp}"
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class ClientLogin:
    """One login of a client: the messages it sends, and what it makes of the answers."""

    def __init__(
        self,
        token: Secret,
        kind: str,
        client_id: str = "",
        clock: Clock = time.time,
        heartbeat: int = DEFAULT_HEARTBEAT_S,
    ) -> None:
        self.token = token
        self.certificate = ""  # SHA-256, in hex, of the server's, as this end sees it; empty without TLS
        self.covered = ""  # the certificate that the proofs of both ends have to cover
        # Which this end names: whoever names FEATURE_MOVE has to multiplex.
        self.features = tuple(each for each in FEATURES if each != FEATURE_MOVE)
        self.is_check = False  # the client only tries whether everything works
        self.client_id = client_id  # by which the server knows a client that comes back
        self.heartbeat = heartbeat  # the seconds between two Heartbeats for which the client asks
        self.proves = bool(token) and kind == HMAC  # without a token there is nothing to prove
        self._clock = clock
        self._nonce = secrets.token_hex(NONCE_BYTES)  # of this login
        self._server_nonce = ""  # of the Challenge, once it has come

    def message(self) -> Login:
        """Return the Login of a control connection; it holds the md5 of the token only with `--auth md5`."""
        now = int(self._clock())
        return Login(
            token=_NO_TOKEN if self.proves else md5_token(self.token, now),
            version=VERSION,
            timestamp=now,
            features=self.features,
            auth=HMAC if self.proves else MD5,
            nonce=self._nonce,
            client_id=self.client_id,
            heartbeat=self.heartbeat,
            check=self.is_check,
            certificate=self.certificate if self.proves else "",
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

    @staticmethod
    def carrier_message(session: Session, number: int) -> Login:
        """Return the Login of the session's `number`-th further multiplexed session."""
        proof = session.sign(carrier_id(number))
        return Login(token=_NO_TOKEN, timestamp=0, session=session.id, carrier=number, proof=proof)

    @staticmethod
    def beside_message(session: Session, stream: str) -> Login:
        """Return the Login of the connection beside a stream, such as "0:12"."""
        proof = session.sign(beside_id(stream))
        return Login(token=_NO_TOKEN, timestamp=0, session=session.id, beside=stream, proof=proof)

    def answer(self, challenge: Challenge) -> Proof:
        """Return the proof that this end knows the token."""
        self._server_nonce = challenge.nonce
        return Proof(mac(self.token, "client", self._nonce, challenge.nonce, self.covered))

    def accept(self, welcome: Welcome) -> Session:
        """Return the session; raises `AuthError` if the server refused the login or proved nothing."""
        if welcome.error:
            hint = "" if self.token else " (this client has no token: set GNAR_TOKEN)"
            raise AuthError(f"the server refused the login: {welcome.error}{hint}")
        if self.proves:
            expected = mac(self.token, "server", self._nonce, self._server_nonce, self.covered)
            if not self._server_nonce or not same(expected, welcome.proof):
                between = ", or somebody stands in between" if self.covered else ""
                raise AuthError(f"the server could not prove that it knows the token{between}")
        nonces = (self._nonce, self._server_nonce or welcome.nonce, self.covered if self.proves else "")
        heartbeat = slower_heartbeat(welcome.heartbeat, MIN_HEARTBEAT_S) if welcome.heartbeat else 0
        features = tuple(each for each in welcome.features if each in self.features)
        return Session.of(self.token, welcome.session, nonces, features, heartbeat)


@dataclass(frozen=True, slots=True)
class Credential:
    """By what a client has logged in. What one login holds is for other logins of the same credential alone.

    Whoever has overheard an md5 login knows no token, so `kind` counts as well as the token.
    """

    kind: str  # HMAC, MD5, or empty where the server asks for no token
    token: Secret


class ServerLogin:
    """One login at a server. `policy` is "any", or "hmac" to refuse the md5 logins of Go clients.

    `heartbeat` is the number of seconds between two Heartbeats that the server wants at least.
    """

    def __init__(
        self,
        token: Secret,
        policy: str,
        login: Login,
        clock: Clock = time.time,
        heartbeat: int = DEFAULT_HEARTBEAT_S,
    ) -> None:
        self.login = login  # the client's message
        # SHA-256, in hex, of the certificate that this end has shown to the client; empty without TLS.
        self.certificate = ""
        self.is_ours = bool(login.nonce)  # the client is one of gnar's own, no Go client
        self.needs_proof = self.is_ours and login.auth == HMAC  # by HMAC; otherwise `check` says it all
        self._token = token
        self._policy = policy
        self._clock = clock
        self._heartbeat = slower_heartbeat(login.heartbeat, heartbeat) if login.heartbeat else 0
        self._nonce = secrets.token_hex(NONCE_BYTES)

    @property
    def credential(self) -> Credential:
        """By what the client logs in; worth something once `check` has returned, and `prove` if necessary."""
        return Credential((HMAC if self.needs_proof else MD5) if self._token else "", self._token)

    def check(self) -> None:
        """Check what the Login alone can tell; raises `AuthError`, whose text does not hold the token."""
        if self.needs_proof:
            if not self._token:
                raise AuthMethodError(
                    "this server has no token; give it the client's token, or start the client without one"
                )
            return
        if not self._token:
            return
        if same(md5_token(Secret(), self.login.timestamp), self.login.token):
            raise AuthError("a token is needed")
        if self._policy == HMAC:
            raise AuthMethodError("this server takes no md5 login (its setting: auth = hmac)")
        if not same(md5_token(self._token, self.login.timestamp), self.login.token):
            raise AuthError("wrong token")
        offset_s = abs(self._clock() - self.login.timestamp)
        if offset_s > MD5_WINDOW_S:
            raise ClockError(f"the clocks of client and server are {offset_s / 60:.0f} minutes apart")

    def challenge(self) -> Challenge:
        """Return the message that only a client with the token can answer."""
        return Challenge(self._nonce, self.certificate)

    @property
    def sees_another(self) -> bool:
        """Whether the client says that it has been shown another certificate than that of this end."""
        return self.login.certificate != self.certificate

    def prove(self, proof: Proof) -> None:
        """Check the client's answer; raises `AuthError`."""
        expected = mac(self._token, "client", self.login.nonce, self._nonce, self.certificate)
        if not same(expected, proof.proof):
            raise self.why_unproven

    @property
    def why_unproven(self) -> AuthError:
        """Why the client cannot prove itself."""
        if self.sees_another:
            theirs, ours = shown(self.login.certificate), shown(self.certificate)
            return CertificateError(
                f"somebody stands in between: the client has seen {theirs}, and this server shows {ours}"
            )
        return AuthError("wrong token")

    def welcome(self, max_proxies: int = 0) -> tuple[Session, Welcome]:
        """Return the session with one of gnar's own clients, and the message that tells the client.

        `max_proxies` is how many proxies the client may have.
        """
        if not self.is_ours:
            raise ProtocolError("a session for a peer that did not ask for one")
        nonces = (self.login.nonce, self._nonce, self.certificate if self.needs_proof else "")
        session = Session.of(self._token, uuid.uuid4().hex, nonces, self.login.features, self._heartbeat)
        message = Welcome(
            features=FEATURES,
            nonce=self._nonce,
            proof=mac(self._token, "server", *nonces) if self.needs_proof else "",
            session=session.id,
            heartbeat=self._heartbeat,
            max_proxies=max_proxies,
            time=int(self._clock()),
        )
        return session, message
