"""TLS as OpenSSL does it, from bytes in memory to bytes in memory; does no I/O."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final

from gnar_lib.errors import ConnError, WriteError

RECORD_BYTES: Final = 16 * 1024  # the most that a record carries (RFC 8446, section 5.1)
# For TLS 1.2: those with forward secrecy and authenticated encryption. Those of TLS 1.3 all have both.
CIPHERS_OF_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
# The reasons by which OpenSSL says that a key and a certificate do not belong together.
NO_FIT: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class ServerContext(ssl.SSLContext):
    """Settings of a server with one certificate."""

    certificate = ""  # the SHA-256 of that certificate, in hex; empty if nobody has said which it is


class Engine:
    """One end of TLS: what has come goes into `receive`, and what is to be sent comes out of `made`."""

    __slots__ = (
        "_decrypt_into",
        "_encrypt",
        "_received",
        "_tls",
        "made",
        "peer_ended",
        "receive",
        "why_broken",
    )

    FRAME_BYTES: ClassVar[int] = 4 * RECORD_BYTES  # the most that one `write` takes: what a copy loop reads

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        is_server: bool,
        host: str = "",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._received, self.made = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.receive: Callable[[bytes | memoryview], int] = self._received.write
        self.peer_ended = False  # the peer has said that it sends no more
        self.why_broken = ""  # why nothing can be decrypted any more
        # An empty name is refused, and None would not be, with settings that compare names.
        is_nameless = not host and not context.check_hostname
        self._tls = context.wrap_bio(
            self._received,
            self.made,
            server_side=is_server,
            server_hostname=None if is_server or is_nameless else host,
            session=session,
        )
        self._encrypt: Callable[[bytes | bytearray | memoryview], int] = self._tls.write
        self._decrypt_into: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]

    def shake_hands(self) -> bool:
        """Go on with the handshake; tell whether it is done, or more has to come from the peer.

        Raises `ConnError`.
        """
        try:
            self._tls.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as exc:
            raise ConnError(f"TLS: {reason_of(exc)}") from exc

    @property
    def certificate(self) -> str:
        """The SHA-256 of the server's certificate, in hex; empty before the handshake, or if it is unknown.

        Of a session that is resumed, a client knows which one it was shown, and a server only which one it
        would show now: so no proof is to rely on a server's word for a resumed session.
        """
        if self._tls.server_side:
            context = self._tls.context
            return context.certificate if isinstance(context, ServerContext) else ""
        shown = self.peer_certificate
        return hashlib.sha256(shown).hexdigest() if shown else ""

    @property
    def version(self) -> str:
        """What the peers have agreed on, such as "TLS 1.3"; empty before."""
        return (self._tls.version() or "").replace("TLSv", "TLS ")

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a server can resume; None if it has sent nothing that could be."""
        session = self._tls.session
        return session if session is not None and session.has_ticket else None

    @property
    def peer_certificate(self) -> bytes:
        """The peer's certificate (DER) behind the handshake; empty if the peer has shown none."""
        return self._tls.getpeercert(binary_form=True) or b""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt up to `FRAME_BYTES`, in full records and a last one, and return how many bytes that were.

        Raises `WriteError`.
        """
        try:
            return self._encrypt(data)
        except ssl.SSLError as exc:
            raise WriteError(f"TLS: {reason_of(exc)}") from exc

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt what has come into `buffer`, as far as it fits, and return how many bytes that were.

        After 0, `peer_ended` and `why_broken` tell whether more can come.
        """
        received, pending, filled, size = self._received, self._tls.pending, 0, len(buffer)
        try:
            while filled < size and (received.pending or pending()) and not self.peer_ended:
                count = self._decrypt_into(size - filled, buffer[filled:])
                filled += count
                self.peer_ended = not count
        except ssl.SSLWantReadError:  # the rest is the beginning of a record
            pass
        except ssl.SSLZeroReturnError:
            self.peer_ended = True
        except ssl.SSLError as exc:
            self.why_broken = f"TLS: {reason_of(exc)}"
        return filled

    def say_goodbye(self) -> None:
        """Tell the peer that this end sends no more (`close_notify`).

        Everything that has come has to be decrypted before: OpenSSL would look for the peer's goodbye, and
        take data in its place for an error.
        """
        with suppress(OSError):  # the peer has not ended its direction yet
            self._tls.unwrap()


def reason_of(exc: ssl.SSLError) -> str:
    """Return the words of an error of OpenSSL, without the place in its source."""
    if exc.reason in NO_FIT:
        return "the key does not fit the certificate"
    reason = (exc.reason or type(exc).__name__).lower().replace("_", " ").removeprefix("sslv3 ")
    if isinstance(exc, ssl.SSLCertVerificationError):
        reason += f": {exc.verify_message.rstrip('.')}"
    return reason
