"""The way to the server: through a proxy, TLS and a WebSocket, as far as the settings want them.

Knows neither logins nor what is carried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gnar_lib import logger
from gnar_lib.config import ClientConfig
from gnar_lib.config.model import Address, WebAddress
from gnar_lib.config.transport import shown
from gnar_lib.errors import (
    CertificateError,
    ConnClosed,
    ConnError,
    DeadlineError,
    DialError,
    ForeignProtocolError,
    NoTlsHereError,
    ProtocolError,
)
from gnar_lib.net import EventedConn, SocketConn, deadline, dial, format_address, set_keepalive
from gnar_lib.net.options import dead_after_s
from gnar_lib.net.progress import round_trip_s
from gnar_lib.net.target import Target
from gnar_lib.proto.numbers import LOGIN_DEADLINE_S
from gnar_lib.transport.through import ProxyDialler

if TYPE_CHECKING:
    import ssl

    from gnar_lib.transport.tls import TlsConn

HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443

_log = logger.get("client")


class Reached:
    """A connection to the server on which a login is next; further ones lead to the same server."""

    def __init__(self, way: Way, bottom: EventedConn, conn: EventedConn, tls: TlsConn | None) -> None:
        self.conn = conn  # the outermost; closing it closes all below
        self.certificate = "" if tls is None else tls.certificate  # SHA-256 of the server's, in hex
        self.encryption = "" if tls is None else tls.version  # such as "TLS 1.3"; empty without
        self._way = way
        self._bottom = bottom
        self._latest = tls  # the innermost of the latest connection, which the next one resumes

    def again(self) -> EventedConn:
        """Return a further connection to the same server, which the caller closes.

        Raises `CertificateError` if it is shown another certificate, or `ConnError`.
        """
        bottom = self._way.dial_again(self._bottom)
        reached = self._way.climb(bottom, None if self._latest is None else self._latest.session)
        if reached.certificate != self.certificate:
            reached.conn.abort()
            raise CertificateError(
                f"a further connection to the server was shown {shown(reached.certificate)} in place of "
                f"{shown(self.certificate)}: somebody stands in between, or the server has got another one"
            )
        self._latest = reached._latest
        return reached.conn

    @property
    def round_trip_s(self) -> float | None:
        """How long a round trip to the server takes; None where nobody can tell, as through a proxy."""
        if self._way.has_proxy or not isinstance(self._bottom, SocketConn):
            return None
        return round_trip_s(self._bottom.sock)

    @property
    def is_trusted(self) -> bool:
        """Whether the certificate proves the server by itself: by `--fingerprint`, or by the system's roots.

        To find that out takes another connection, once for each certificate. Raises `ConnError` if that fails
        before anything is known.
        """
        return bool(self.certificate) and self._way.trusts(self)

    def check_trust(self) -> bool:
        """Tell whether the system trusts the certificate for the server's name, by another connection.

        Raises `ConnError` if that has failed before the handshake came so far.
        """
        try:
            reached = self._way.climb(self._way.dial_again(self._bottom), is_verified=True)
        except (ConnClosed, DeadlineError, DialError):
            raise
        except ProtocolError as exc:  # something else has answered this time
            raise ConnError(str(exc)) from exc
        except ConnError as exc:
            _log.debug("the system does not trust the server's certificate: %s", exc)
            return False
        reached.conn.close()
        return reached.certificate == self.certificate


class Way:
    """How a client reaches its server, time after time."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._server = config.server
        self._web = config.server if isinstance(config.server, WebAddress) else None
        self._trusted = "", False  # the last certificate that was checked, and whether the system trusts it
        self._contexts: dict[bool, ssl.SSLContext] = {}  # of TLS: whether the peer is to be verified
        self._target = Target(config.server.host, config.server.port)  # knows which address has worked
        self._proxy = None if config.proxy is None else ProxyDialler(config.proxy)

    @property
    def has_proxy(self) -> bool:
        """Whether connections go through a proxy."""
        return self._proxy is not None

    def dial(self) -> Reached:
        """Connect to the server.

        Raises `DialError`, `ConnError`, `CertificateError` if the certificate is none of those that the user
        has pinned, or `ProtocolError` if something answers that is known not to be a gnar server.
        """
        bottom = self._target.dial() if self._proxy is None else self._dial_through(self._proxy)
        return self.climb(bottom)

    def _dial_through(self, proxy: ProxyDialler) -> EventedConn:
        return proxy.dial(self._server.host, self._server.port)

    def dial_again(self, before: EventedConn) -> EventedConn:
        """Return a new conn to where another one has led; raises `DialError`."""
        if self._proxy is not None:
            return self._dial_through(self._proxy)
        if not isinstance(before, SocketConn):  # which only proxies bring
            raise DialError(f"{before} is no socket")
        return dial(before.sock.family, before.getpeername())

    # ---- what stands on top of a conn ----------------------------------------------------------------------

    def climb(
        self, bottom: EventedConn, session: ssl.SSLSession | None = None, *, is_verified: bool = False
    ) -> Reached:
        """Return what is on top of a conn to the server: TLS and a WebSocket, as the settings want.

        `session` is one of TLS to be resumed. `is_verified`: the system has to trust the certificate. Raises
        `ConnError` or `CertificateError`, and closes `bottom` then.
        """
        try:
            if isinstance(bottom, SocketConn):
                set_keepalive(bottom.sock)
            bottom.set_user_timeout(dead_after_s())  # the server reads all the time
            reached = self._climb(bottom, session, is_verified=is_verified)
            pinned = self._config.fingerprint
            if pinned and reached.certificate not in pinned:
                reached.conn.close()
                raise CertificateError(
                    f"the server has shown {shown(reached.certificate)}, which is not that of --fingerprint: "
                    "somebody stands in between, or the server has got another certificate"
                )
        except BaseException:
            bottom.close()
            raise
        return reached

    def _climb(self, bottom: EventedConn, session: ssl.SSLSession | None, *, is_verified: bool) -> Reached:
        conn, tls, web, inside = bottom, None, self._web, self._config.uses_tls
        if not (web or inside):
            return Reached(self, bottom, conn, None)
        with deadline(LOGIN_DEADLINE_S, self._what_is_slow):
            if web is not None and web.is_tls:
                conn = tls = self._encrypt(conn, None, is_verified=is_verified and not inside)
            if web is not None:
                from gnar_lib.transport.websocket import WebSocketConn

                try:
                    conn = WebSocketConn.connect(conn, _host_field(web), web.path, is_tls=web.is_tls)
                except ConnClosed as exc:
                    raise ConnClosed(f"{web} has hung up without an answer: {_why_no_answer(web)}") from exc
            if inside:
                below = conn
                try:
                    conn = tls = self._encrypt(below, session, is_verified=is_verified)
                except BaseException:
                    below.close()  # a WebSocket is in its rota until then
                    raise
        return Reached(self, bottom, conn, tls)

    def _encrypt(self, conn: EventedConn, session: ssl.SSLSession | None, *, is_verified: bool) -> TlsConn:
        """Return the client's end of TLS over a conn; raises `ConnError`."""
        try:
            from gnar_lib.transport import tls  # loads OpenSSL
        except ImportError:
            raise NoTlsHereError(
                "this Python has no TLS: use another one, or --tls off at your own risk"
            ) from None
        if is_verified not in self._contexts:
            self._contexts[is_verified] = tls.client_context() if is_verified else tls.unverified_context()
        try:
            made = tls.TlsConn.connect(conn, self._contexts[is_verified], self._server.host, session)
        except ConnClosed as exc:
            raise ConnClosed(f"the server ended the connection where TLS begins: {self._why_no_tls}") from exc
        except ForeignProtocolError as exc:
            where = format_address(conn.getpeername())
            advice = "; ws:// goes without TLS" if self._web and exc.protocol == "HTTP" else ""
            raise ProtocolError(f"no gnar server at {where}: this is {exc.protocol}{advice}") from exc
        except DeadlineError:
            raise
        except ConnError as exc:
            raise ConnError(f"TLS with the server has failed: {exc}; {self._why_no_tls}") from exc
        if not made.certificate:  # which would count as no TLS in the login
            raise ConnError("TLS with the server has failed: it has shown no certificate")
        return made

    @property
    def _for_go(self) -> str:
        return "--auth md5" if self._config.token else "--tls off"

    @property
    def _why_no_tls(self) -> str:
        if self._web is not None:
            return f"is it up yet, and is its port that of {self._web}?"
        return (
            f"is it up yet? A Go server needs {self._for_go}, and something in between may let no TLS through"
        )

    @property
    def _what_is_slow(self) -> str:
        if self._web is not None:
            return "connecting by WebSocket"
        return f"TLS with the server (a Go server needs {self._for_go})"

    def trusts(self, reached: Reached) -> bool:
        """Tell whether the certificate of a connection proves the server by itself; raises `ConnError`."""
        if self._config.fingerprint:
            return True  # `climb` has refused all others
        if self._trusted[0] != reached.certificate:
            self._trusted = reached.certificate, reached.check_trust()
        return self._trusted[1]


def _host_field(web: WebAddress) -> str:
    """Return what Host says of a server: no port, if it is the usual one (RFC 9110, section 7.2)."""
    port = HTTPS_PORT if web.is_tls else HTTP_PORT
    return str(Address(web.host, web.port)).removesuffix(f":{port}")


def _why_no_answer(web: WebAddress) -> str:
    return "is it up yet?" if web.is_tls else "is it up yet, and is this a port of TLS (wss://)?"
