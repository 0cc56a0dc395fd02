"""The certificates of a server: those of its settings, or one that it makes for itself; knows no conn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnar_lib import logger
from gnar_lib.config import ServerConfig
from gnar_lib.errors import UsageError

if TYPE_CHECKING:
    from gnar_lib.transport.certificates import Certificates

_log = logger.get("TLS")


def load(config: ServerConfig) -> Certificates | None:
    """Return the certificates of a server; None where this Python has no TLS, and none are in the settings.

    Raises `UsageError` for files that cannot be used.
    """
    try:
        from gnar_lib.transport.certificates import Certificates  # loads OpenSSL
        from gnar_lib.transport.identity import load_or_make
    except ImportError:
        if config.tls_cert or config.tls == "require":
            reason = "tls-cert" if config.tls_cert else "tls"
            raise UsageError(
                f"{reason}: this Python has no TLS; use another one, or a Caddy in front"
            ) from None
        _log.warning(
            "this Python has no TLS: clients have to come with --tls off, and everything can be read"
        )
        return None
    if config.tls_cert:
        return Certificates.load(config.tls_cert, config.tls_key)
    identity = load_or_make(config.state_dir)
    kept = "" if config.state_dir else ", until this process ends (state-dir would keep it)"
    _log.info("the certificate of the control port has the SHA-256 %s%s", identity.fingerprint, kept)
    return Certificates.self_made(identity)
