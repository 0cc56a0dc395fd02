"""TLS as OpenSSL does it, from bytes in memory to bytes in memory; does no I/O."""

from __future__ import annotations

import hashlib
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import ClassVar, Final

from gnar_lib.errors import ConnError, WriteError
from gnar_lib.transport.records import Place, records_in

RECORD_BYTES: Final = 16 * 1024  # the most that a record carries (RFC 8446, section 5.1)
# For TLS 1.2: those with forward secrecy and authenticated encryption. Those of TLS 1.3 all have both.
CIPHERS_OF_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
# The reasons by which OpenSSL says that a key and a certificate do not belong together.
NO_FIT: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")

# A peer may change its key, and ask for another of this end's, at any time (RFC 8446, section 4.6.3), and
# OpenSSL sets no limit: 27 bytes take 20 us here, and leave an answer in memory if the peer does not read.
MAX_IDLE_RECORDS: Final = 100  # that carry no data, within `PERIOD_S`; of honest peers there are a few
PERIOD_S: Final = 10.0
MANY_RECORDS: Final = 64  # in what comes at once: OpenSSL then gets it in parts, and what is too much never
PART_BYTES: Final = 1024


class ServerContext(ssl.SSLContext):
    """Settings of a server with one certificate."""

    certificate = ""  # the SHA-256 of that certificate, in hex; empty if nobody has said which it is


class Engine:
    """One end of TLS: what has come goes into `receive`, and what is to be sent comes out of `made`."""

    __slots__ = (
        "_decrypt_into",
        "_encrypt",
        "_held",
        "_idle",
        "_period_s",
        "_place",
        "_received",
        "_tls",
        "made",
        "peer_ended",
        "why_broken",
    )

    FRAME_BYTES: ClassVar[int] = 4 * RECORD_BYTES  # the most that one `write` takes: what a copy loop reads
    READS_BEFORE_GOODBYE: ClassVar[bool] = True  # OpenSSL would take data for an error there
    has_more = False  # a read goes on until the buffer is full, or all is read

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        is_server: bool,
        host: str = "",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._received, self.made = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._place = Place()  # in what has come
        self._held: deque[tuple[bytes, int]] = deque()  # parts for OpenSSL, each with its number of records
        self._idle = 0  # records without data that OpenSSL has got since `_period_s`
        self._period_s = monotonic()
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
            while True:
                try:
                    self._tls.do_handshake()
                    return True
                except ssl.SSLWantReadError:
                    if not self._go_on():
                        break
        except ssl.SSLZeroReturnError as exc:  # which OpenSSL has no words for
            raise ConnError("TLS: the other end has ended TLS within the handshake") from exc
        except ssl.SSLError as exc:
            raise ConnError(f"TLS: {reason_of(exc)}") from exc
        if self.why_broken:
            raise ConnError(self.why_broken)
        return False

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

    def receive(self, data: bytes | memoryview) -> None:
        """Take what has come from the conn below, in memory that is reused afterwards."""
        before = self._place
        count, self._place = records_in(data, before)
        if count <= MANY_RECORDS and not self._held:
            self._idle += count
            self._received.write(data)
            return
        for at in range(0, len(data), PART_BYTES):
            part = bytes(data[at : at + PART_BYTES])
            count, before = records_in(part, before)
            self._held.append((part, count))

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt what has come into `buffer`, as far as it fits, and return how many bytes that were.

        After 0, `peer_ended` and `why_broken` tell whether more can come.
        """
        received, pending, filled, size = self._received, self._tls.pending, 0, len(buffer)
        while filled < size and not (self.peer_ended or self.why_broken):
            if not (received.pending or pending() or self._go_on()):
                break
            try:
                count = self._decrypt_into(size - filled, buffer[filled:])
                filled += count
                self._idle -= 1
                self.peer_ended = not count
            except ssl.SSLWantReadError:  # the rest is the beginning of a record
                if not self._go_on():
                    break
            except ssl.SSLZeroReturnError:
                self.peer_ended = True
            except ssl.SSLError as exc:
                self.why_broken = f"TLS: {reason_of(exc)}"
        return filled

    def _go_on(self) -> bool:
        """Let OpenSSL, which has read all, have the next part; tell whether there is one, and all is well."""
        self._idle = max(self._idle, 0)  # a record of data that was read in two parts pays for no other
        if self._idle > MAX_IDLE_RECORDS:
            now_s = monotonic()
            if now_s - self._period_s < PERIOD_S:
                self.why_broken = "TLS: too many records that carry nothing"
                return False
            self._idle, self._period_s = 0, now_s
        if not self._held:
            return False
        part, count = self._held.popleft()
        self._idle += count
        self._received.write(part)
        return True

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
