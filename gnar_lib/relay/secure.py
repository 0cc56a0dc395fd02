"""Shakes hands by TLS for a relay, with users and with the target; knows not how bytes are carried."""

from __future__ import annotations

import encodings.idna  # noqa: F401  (Python loads it for the first name, when no file may be readable)
import os
import ssl
from functools import partial
from typing import Any, Final, Protocol

from gevent.hub import get_hub

from gnar_lib import logger, net
from gnar_lib.errors import ConfigError, ConnClosed, ConnError, DialError
from gnar_lib.http.share import handshakes
from gnar_lib.relay.tls_options import TlsSettings
from gnar_lib.transport.certificates import Certificates, load_chain
from gnar_lib.transport.engine import reason_of
from gnar_lib.transport.hello import MAX_HELLO_BYTES
from gnar_lib.transport.identity import load_or_make
from gnar_lib.transport.tls import TlsConn
from gnar_lib.transport.x509 import is_among, names_of

HANDSHAKE_S = 10.0
READ_CERTIFICATES_EVERY_S = 5.0
_KEY: Final = "key="  # the option that names the file of a key
_VERSIONS = {12: ssl.TLSVersion.TLSv1_2, 13: ssl.TLSVersion.TLSv1_3}
# What to do when OpenSSL does not take a target's certificate, by its X509_V_ERR numbers (x509_vfy.h).
_TRUST = "; name whom to trust by cafile=FILE, or the certificate by fingerprint=SHA256"
_NAME = "; name for whom the certificate is by commonname=NAME"
_ADVICE = {**dict.fromkeys((18, 19, 20, 21), _TRUST), **dict.fromkeys((62, 64), _NAME)}

_log = logger.get("relay")


class Dials(Protocol):
    """What dials one address for one user after the other."""

    def dial(self) -> net.EventedConn:
        """Return a conn, which the caller closes; raises `DialError`."""


class UserTls:
    """Shakes hands with users.

    The constructor reads files, or makes a certificate and logs its SHA-256, with `name` in front. It raises
    `ConfigError`.
    """

    def __init__(self, settings: TlsSettings, name: str) -> None:
        self._settings = settings
        self._failed = logger.Burst()  # warnings about users with whom no handshake comes to an end
        self._timer: Any = None
        prepare = partial(_prepare, settings=settings)
        if settings.cert:
            keys = [settings.key] if settings.key else []
            self._certificates = Certificates.load([settings.cert], keys, prepare, _KEY)
        else:
            identity = load_or_make("")
            self._certificates = Certificates.self_made(identity, prepare)
            _log.info(
                "%s: a certificate for this run, with the SHA-256 %s; cert= would keep one",
                name,
                identity.fingerprint,
            )

    def tend(self) -> None:
        """Read the file of the certificate again when it changes, from now on until `close`."""
        if self._settings.cert:
            self._timer = get_hub().loop.timer(READ_CERTIFICATES_EVERY_S, READ_CERTIFICATES_EVERY_S)
            self._timer.start(self._certificates.tend)

    def close(self) -> None:
        """Read no file any more."""
        if self._timer is not None:
            self._timer.stop()

    def accept(self, user: net.SocketConn) -> TlsConn:
        """Shake hands with a user, and return the conn to him.

        Raises `ConnError`, for which the log has a line unless the user has said nothing. The caller closes
        `user` then.
        """
        with net.deadline(HANDSHAKE_S, f"{user}: the first byte"):
            hello = user.recv(MAX_HELLO_BYTES)
        if not hello:
            raise ConnClosed(f"{user}: gone without a word")
        user.unread(hello)
        try:
            with net.deadline(HANDSHAKE_S, f"{user}: the TLS handshake"):
                handshakes.take(net.network_of(user.getpeername()))
                tls = TlsConn.accept(user, self._certificates.context)
            _check_peer(tls, self._settings)
        except ConnError as exc:
            self._failed.warning(_log, "%s; the user is turned away", exc)
            raise
        return tls


class TlsTarget:
    """Dials a target, and shakes hands with it. The constructor reads files; raises `ConfigError`."""

    def __init__(self, target: Dials, settings: TlsSettings) -> None:
        self._target = target
        self._settings = settings
        self._broken_off = logger.Burst()  # warnings about targets that end TLS behind the handshake
        self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = settings.verifies and settings.by_openssl
        _prepare(context, settings)
        if settings.cert:
            load_chain(context, settings.cert, settings.key or settings.cert, _KEY)

    def dial(self) -> TlsConn:
        """Return a conn to the target, which the caller closes; raises `DialError`."""
        conn = self._target.dial()
        try:
            with net.deadline(HANDSHAKE_S, f"{conn}: the TLS handshake"):
                tls = TlsConn.connect(conn, self._context, self._settings.sni)
            _check_peer(tls, self._settings)
        except ConnError as exc:
            conn.close()  # not a reset, which could overtake the word about what is wrong
            raise DialError(f"{exc}{_advice(exc)}") from exc
        except BaseException:
            conn.abort()
            raise
        return tls

    def tell_broken(self, conn: object) -> None:
        """Log why the target has ended TLS with an error, if that is why a conn has failed.

        With TLS 1.3, a server looks at the certificate of this end when this end takes the handshake for
        done.
        """
        if isinstance(conn, TlsConn) and conn.why_broken:
            self._broken_off.warning(_log, "%s: %s", conn, conn.why_broken)


def _advice(error: BaseException | None) -> str:
    """Return what to do about a target whose certificate is the cause of an error; empty for others."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__
    return "" if error is None else _ADVICE.get(error.verify_code, "")


def _prepare(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """Set what a handshake is to be like, and whom to trust. Raises `ConfigError`."""
    context.minimum_version = _VERSIONS[settings.least]
    if settings.most:
        context.maximum_version = _VERSIONS[settings.most]
    try:
        if settings.capath:
            os.scandir(settings.capath).close()  # OpenSSL takes a folder that is not there for an empty one
        if settings.cafile or settings.capath:
            context.load_verify_locations(settings.cafile or None, settings.capath or None)
            # A file may hold the peer's certificate itself, whoever has signed that.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        elif settings.verifies:
            is_server = context.protocol is ssl.PROTOCOL_TLS_SERVER
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH if is_server else ssl.Purpose.SERVER_AUTH)
    except ssl.SSLError as exc:
        raise ConfigError(
            f"{settings.cafile}: there is no certificate in PEM form: {reason_of(exc)}"
        ) from exc
    except OSError as exc:
        where = exc.filename or settings.cafile or settings.capath
        raise ConfigError(f"{where}: cannot read it: {exc.strerror}") from exc
    context.verify_mode = ssl.CERT_REQUIRED if settings.verifies else ssl.CERT_NONE


def _check_peer(tls: TlsConn, settings: TlsSettings) -> None:
    """Raise `ConnError`, behind a reset, unless the peer's certificate is one that the settings want."""
    try:
        _compare(tls, settings)
    except ConnError:
        tls.abort()
        raise


def _compare(tls: TlsConn, settings: TlsSettings) -> None:
    if settings.fingerprints and tls.certificate not in settings.fingerprints:
        raise ConnError(f"{tls}: the certificate has the SHA-256 {tls.certificate}, not that of fingerprint=")
    if not settings.verifies or settings.by_openssl or not settings.peer_name:
        return
    try:
        names = names_of(tls.peer_certificate)
    except (ValueError, IndexError) as exc:
        raise ConnError(f"{tls}: the certificate is damaged: {exc}") from exc
    if not is_among(settings.peer_name, names):
        known = ", ".join(names) or "nobody"
        raise ConnError(f"{tls}: the certificate is for {known}, not for {settings.peer_name}")
