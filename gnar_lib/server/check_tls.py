"""The part of a server's check about TLS: which certificates it shows, and to whom; shakes no hands."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Final

from gnar_lib.checklist import Checklist
from gnar_lib.config import ServerConfig
from gnar_lib.config.hosts import fits
from gnar_lib.errors import ConfigError

SOON: Final = timedelta(days=14)  # in which a certificate should have been renewed
_WHAT: Final = "certificate"


class TlsCheck:
    """One check."""

    def __init__(self, config: ServerConfig, checklist: Checklist) -> None:
        self._config = config
        self._list = checklist

    def run(self) -> None:
        """Check everything about TLS."""
        config = self._config
        try:
            import gnar_lib.transport.certificates  # noqa: F401  (loads OpenSSL, if this Python has it)
        except ImportError:
            self._tell_no_tls()
            return
        if config.tls == "require":
            self._list.ok("tls", "clients need it, so those of the Go program cannot come")
        else:
            self._list.ok("tls", "clients use it, unless they are told otherwise, or are the Go program's")
        if config.tls_cert:
            self._tell_certificates()
        else:
            self._tell_self_made()

    def _tell_no_tls(self) -> None:
        config = self._config
        if config.tls_cert or config.tls == "require":
            self._list.wrong("tls", "this Python has no TLS; use another one, or a Caddy in front")
        else:
            self._list.warn("tls", "this Python has no TLS: clients need --tls off, and all can be read")

    def _tell_self_made(self) -> None:
        """Tell whether the certificate that the server makes for itself is kept."""
        from gnar_lib.transport.identity import load

        folder = self._config.state_dir
        if not folder:
            self._list.ok(_WHAT, "made at each start; state-dir keeps one, which clients could pin")
            return
        try:
            identity = load(folder)
        except ConfigError as exc:
            self._list.wrong(_WHAT, str(exc).removeprefix("state-dir: "))
            return
        if identity is None:
            self._list.ok(_WHAT, f"made at the first start, and kept in {folder}")
        else:
            self._list.ok(_WHAT, f"self-made, kept in {folder}: SHA-256 {identity.fingerprint}")

    def _tell_certificates(self) -> None:
        """Tell of each certificate of the settings, and of names for which there is none."""
        from gnar_lib.transport.certificates import read_certificate

        config, names = self._config, set[str]()
        for cert, key in zip(config.tls_cert, config.tls_key or config.tls_cert, strict=True):
            try:
                certificate = read_certificate(cert, key)
            except ConfigError as exc:
                self._list.wrong(_WHAT, str(exc))
                continue
            names.update(certificate.names)
            covered = ", ".join(certificate.names) or "no name at all"
            self._tell_dates(f"{cert}: for {covered}", certificate.begins, certificate.ends)
        wanted = [f"*.{config.domain}"] if config.domain else []
        missing = [
            each for each in (*wanted, *config.allow_hosts) if not any(fits(each, name) for name in names)
        ]
        if names and missing:
            text = f"none is for {', '.join(missing)}: of these, browsers refuse names that no line above has"
            self._list.warn(_WHAT, text)

    def _tell_dates(self, text: str, begins: datetime, ends: datetime) -> None:
        now = datetime.now(timezone.utc)
        if now > ends:
            self._list.wrong(_WHAT, f"{text}; expired on {ends:%Y-%m-%d}: renew it")
        elif now < begins:
            self._list.wrong(
                _WHAT, f"{text}; not valid before {begins:%Y-%m-%d %H:%M} UTC: is the clock right?"
            )
        elif ends - now < SOON:
            self._list.warn(_WHAT, f"{text}; expires on {ends:%Y-%m-%d}: is it renewed by itself?")
        else:
            self._list.ok(_WHAT, f"{text}; until {ends:%Y-%m-%d}")
