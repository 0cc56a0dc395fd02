"""TLS over a conn, for either end; knows not what it carries."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Final

from gnar_lib.errors import ConnClosed, ConnError, ForeignProtocolError, ProtocolError
from gnar_lib.net import EventedConn
from gnar_lib.proto import packet
from gnar_lib.transport.engine import CIPHERS_OF_1_2, Engine
from gnar_lib.transport.freed import freed
from gnar_lib.transport.hello import MAX_HELLO_BYTES, server_name
from gnar_lib.transport.layer import LayeredConn
from gnar_lib.transport.refusal import refuse, see_off

HEADER_BYTES: Final = 5  # of a record (RFC 8446, section 5.1)
_HANDSHAKE_OR_ALERT: Final = (0x16, 0x15)  # the types of records with which a server may begin
_GONE: Final = "the other end has gone in the handshake of TLS"


def client_context() -> ssl.SSLContext:
    """Return settings that take a peer whose certificate the system trusts, for the name that is dialled."""
    return ssl.create_default_context()


def unverified_context() -> ssl.SSLContext:
    """Return settings that take any peer: whoever uses them proves the peer in another way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # the certificate stays the one that was looked at
    context.set_ciphers(CIPHERS_OF_1_2)
    return context


class TlsConn(LayeredConn[Engine]):
    """A conn whose bytes travel encrypted on another conn. Fulfils `EventedConn`, which describes it.

    `close` and `abort` close the conn below, too. The end of the conn below without the end of TLS
    (`close_notify`) is an error, since anybody on the way could have cut off the rest.
    """

    __slots__ = ("server_name",)

    _NAME = "TLS"

    def __init__(self, conn: EventedConn, engine: Engine, server_name: str) -> None:
        super().__init__(conn, engine)
        self.server_name = server_name  # the host that the client wants; empty if it names none

    # ---- handshake -----------------------------------------------------------------------------------------

    @classmethod
    def accept(cls, conn: EventedConn, context: ssl.SSLContext) -> TlsConn:
        """Shake hands with a client, and return the conn to it.

        Raises `ConnError`, behind a word to the client: the caller has a deadline around this, and closes
        `conn` then.
        """
        hello = b""
        try:
            while (name := server_name(hello)) is None:
                if not (more := conn.recv(MAX_HELLO_BYTES - len(hello))):
                    raise ConnClosed(f"{conn}: the other end has gone before the handshake of TLS")
                hello += more
        except ProtocolError as exc:
            refuse(conn, hello)
            raise ConnError(f"{conn}: {exc}") from exc
        engine = Engine(context, is_server=True)
        engine.receive(hello)
        tls = cls(conn, engine, name)
        tls._shake_hands()
        return tls

    @classmethod
    def connect(
        cls, conn: EventedConn, context: ssl.SSLContext, host: str, session: ssl.SSLSession | None = None
    ) -> TlsConn:
        """Shake hands with a server, whose certificate has to be for `host`, and return the conn to it.

        `session` is that of an earlier conn of the same `context` to the same server, which the server may
        resume, so that nobody has to sign. Raises `ConnError`, also as `ForeignProtocolError`.
        The caller has a deadline around this, and closes `conn` then.
        """
        try:
            engine = Engine(context, is_server=False, host=host, session=session)
        except ValueError as exc:
            raise ConnError(f"{conn}: TLS: {host!r}: {exc}") from exc
        tls = cls(conn, engine, host)
        tls._begin()
        tls._shake_hands()
        return tls

    def _begin(self) -> None:
        """Send the ClientHello, and look whether the answer is TLS; raises `ForeignProtocolError` if not."""
        if not self._engine.shake_hands():
            self._outgoing.flush()
            start = self._conn.recv(HEADER_BYTES)
            if not start:
                raise ConnClosed(f"{self}: {_GONE}")
            if start[0] not in _HANDSHAKE_OR_ALERT:
                found = packet.protocol_of(start)
                raise ForeignProtocolError(f"{self}: TLS: this is {found}", found)
            self._conn.unread(start)

    def _shake_hands(self) -> None:
        try:
            while not self._engine.shake_hands():
                self._outgoing.flush()
                self._receive()
                if self._why_cut_off:
                    raise ConnClosed(f"{self}: {_GONE}")
        except ConnClosed:
            raise
        except ConnError as exc:
            self._flush_if_possible()  # tells the peer why
            see_off(self._conn)
            raise ConnError(f"{self}: {exc}") from exc
        self._outgoing.flush()

    def _close(self, close_below: Callable[[], None]) -> None:
        super()._close(close_below)
        freed.note()

    @property
    def version(self) -> str:
        """What both ends speak, such as "TLS 1.3"."""
        return self._engine.version

    @property
    def session(self) -> ssl.SSLSession | None:
        """What the server can resume on another conn; None before its ticket has come, and has been read."""
        return self._engine.session

    @property
    def certificate(self) -> str:
        """The SHA-256 of the certificate that the server has shown, in hex, as `Engine` knows it."""
        return self._engine.certificate

    @property
    def why_broken(self) -> str:
        """Why nothing more can be decrypted, such as an alert of the peer's; empty as long as all is well."""
        return self._engine.why_broken

    @property
    def peer_certificate(self) -> bytes:
        """The peer's certificate (DER); empty if the peer has shown none."""
        return self._engine.peer_certificate
