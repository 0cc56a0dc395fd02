"""A server's certificates: read from files, also when these change, and chosen by name; knows no conn."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from gnar_lib import logger
from gnar_lib.errors import ConfigError
from gnar_lib.transport.engine import CIPHERS_OF_1_2, NO_FIT, ServerContext, reason_of
from gnar_lib.transport.identity import MAX_FILE_BYTES, Identity
from gnar_lib.transport.x509 import Certificate, fingerprint_of, first_certificate

KEY: Final = "tls-key"  # the setting that names the file of a key

_Signature = tuple[tuple[int, int, int] | None, ...]

Prepare = Callable[[ssl.SSLContext], None]

_log = logger.get("TLS")


def _for_http(context: ssl.SSLContext) -> None:
    context.set_alpn_protocols(["http/1.1"])


class Certificates:
    """Some certificates with their keys. The first is for clients that name no host, or an unknown one.

    `TlsConn.certificate` tells which one a client was shown.
    """

    def __init__(
        self, files: Sequence[_Files], default: ServerContext | None = None, prepare: Prepare = _for_http
    ) -> None:
        self.context = _new_context(prepare)  # for `TlsConn.accept`; stays the same when certificates change
        self.context.sni_callback = self._choose
        self._files = files
        self._default = default or files[0].context
        self._by_name = dict[str, ServerContext]()
        for each in files:
            each.warn_if_expired()
        self._index()

    @classmethod
    def load(
        cls, certs: Sequence[str], keys: Sequence[str], prepare: Prepare = _for_http, key_option: str = KEY
    ) -> Certificates:
        """Read files of certificates, each with what stands between it and its authority, and their keys.

        Without `keys`, each key is in its certificate's file. `prepare` sets what else there is to be set for
        each certificate. `key_option` names a key's file, for errors. Raises `ConfigError`.
        """
        if not certs:
            raise ConfigError("tls-cert: expected the file of a certificate")
        if keys and len(keys) != len(certs):
            raise ConfigError(
                f"tls-key: {len(keys)} for {len(certs)} of tls-cert; expected as many, or none where each key"
                " is in the file of its certificate"
            )
        files = [
            _Files(cert, key, prepare, key_option) for cert, key in zip(certs, keys or certs, strict=True)
        ]
        return cls(files, None, prepare)

    @classmethod
    def self_made(cls, identity: Identity, prepare: Prepare = _for_http) -> Certificates:
        """Return the one certificate of a server that has no files of others; raises `ConfigError`."""
        context = _new_context(prepare)
        identity.load_into(context)
        context.certificate = identity.fingerprint
        return cls([], context, prepare)

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of the certificate for clients that name no host, or an unknown one."""
        return self._default.certificate

    def tend(self) -> None:
        """Read files again that have changed; to be called every few seconds.

        A file that has changed is read once it has not changed between two calls, since somebody may still be
        writing it. If it cannot be used, the log says so once, and what was read before stays.
        """
        for files in self._files:
            files.read_again()
            files.warn_if_expired()
        self._index()

    def _index(self) -> None:
        if self._files:
            self._default = self._files[0].context
        self._by_name = {
            name: files.context for files in reversed(self._files) for name in files.certificate.names
        }

    def _choose(self, tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
        """Have `tls` use the certificate for a name: the one that has the name, or a fitting wildcard."""
        name = (name or "").lower().removesuffix(".")
        parent = name.partition(".")[2]
        tls.context = self._by_name.get(name) or self._by_name.get(f"*.{parent}") or self._default


def read_certificate(cert: str, key: str) -> Certificate:
    """Return what the certificate in a file says of itself; raises `ConfigError` if it cannot be used."""
    return _Files(cert, key).certificate


class _Files:
    """A certificate's file, and its key's, which may be the same one. Raises `ConfigError`."""

    def __init__(self, cert: str, key: str, prepare: Prepare = _for_http, key_option: str = KEY) -> None:
        self._cert, self._key, self._key_option = cert, key, key_option
        self._prepare = prepare
        self._seen = self._changed = self._signature()
        self._has_warned = False
        self.context, self.certificate = self._read()

    def read_again(self) -> None:
        """Read the files again if they have changed before the last call, and not since."""
        signature = self._signature()
        is_settled = signature == self._changed
        self._changed = signature
        if signature == self._seen or not is_settled:
            return
        self._seen = signature
        try:
            self.context, self.certificate = self._read()
        except ConfigError as exc:
            _log.warning("the new certificate is not used, and the one before stays: %s", exc)
            return
        self._has_warned = False
        _log.info(
            "%s: new certificate for %s, until %s", self._cert, self._names, _day(self.certificate.ends)
        )

    def warn_if_expired(self) -> None:
        """Say once that the certificate has expired, or that its time has not begun."""
        now, certificate = datetime.now(timezone.utc), self.certificate
        if self._has_warned:
            return
        if now > certificate.ends:
            _log.warning("%s: the certificate has expired on %s", self._cert, _day(certificate.ends))
        elif now < certificate.begins:
            _log.warning("%s: the certificate is valid from %s on", self._cert, _day(certificate.begins))
        else:
            return
        self._has_warned = True

    @property
    def _names(self) -> str:
        return ", ".join(self.certificate.names) or "no name"

    def _signature(self) -> _Signature:
        """Return what changes when one of the files does."""
        return tuple(_signature_of(path) for path in (self._cert, self._key))

    def _read(self) -> tuple[ServerContext, Certificate]:
        context = _new_context(self._prepare)
        certificate, context.certificate = load_chain(context, self._cert, self._key, self._key_option)
        return context, certificate


def load_chain(
    context: ssl.SSLContext, cert: str, key: str, key_option: str = KEY
) -> tuple[Certificate, str]:
    """Have `context` show the certificate in a file; return what it says of itself, and its fingerprint.

    Raises `ConfigError`.
    """

    def refuse_password() -> str:
        raise ConfigError(
            f"{key}: a password protects the key, and nobody is there to ask; write a key without one:"
            f" openssl pkey -in {key} -out FILE"
        )

    found = _certificate_in(cert)
    if b"PRIVATE KEY-----" not in _read_file(key):
        other = f"; name the key's file with {key_option}" if key == cert else ""
        raise ConfigError(f"{key}: there is no private key in PEM form{other}")
    try:
        context.load_cert_chain(cert, key, password=refuse_password)
    except ssl.SSLError as exc:
        if exc.reason in NO_FIT:
            raise ConfigError(f"{key}: the key does not fit the first certificate of {cert}") from exc
        raise ConfigError(f"{cert}: the certificate or its key is unusable: {reason_of(exc)}") from exc
    except OSError as exc:  # it has gone since it was read above
        raise ConfigError(f"{cert}: cannot read it: {exc.strerror}") from exc
    return found


def _new_context(prepare: Prepare) -> ServerContext:
    """Return settings of a server: TLS 1.2 and 1.3 alone."""
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could have this end calculate again and again
    context.set_ciphers(CIPHERS_OF_1_2)
    prepare(context)
    return context


def _certificate_in(path: str) -> tuple[Certificate, str]:
    """Return what the first certificate in a file says of itself, and its fingerprint."""
    data = _read_file(path)
    try:
        certificate = first_certificate(data)
    except (ValueError, IndexError) as exc:
        raise ConfigError(f"{path}: the first certificate is damaged: {exc}") from exc
    if certificate is None:
        raise ConfigError(
            f"{path}: there is no certificate in PEM form, which has a line -----BEGIN CERTIFICATE-----"
        )
    return certificate, fingerprint_of(data)


def _read_file(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or exc
        raise ConfigError(f"{path}: cannot read it: {reason}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_FILE_BYTES >> 20} MiB; is it another file?")
    return data


def _signature_of(path: str) -> tuple[int, int, int] | None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d}"
