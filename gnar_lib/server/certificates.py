"""The certificates of a server: those of its settings, or one that it makes for itself; knows no conn."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from gnar_lib import logger
from gnar_lib.config import ServerConfig
from gnar_lib.errors import UsageError

if TYPE_CHECKING:
    from gnar_lib.transport.certificates import Certificates
    from gnar_lib.transport.identity import Identity

_log = logger.get("TLS")


@cache
def _of_process() -> Identity:
    """Return the certificate of this process, which has one for its life."""
    from gnar_lib.transport.identity import load_or_make

    return load_or_make("")


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
    return Certificates.self_made(load_or_make(config.state_dir) if config.state_dir else _of_process())


def tell(config: ServerConfig, certificates: Certificates) -> None:
    """Say by which certificate clients know the server, so that a person can pin it."""
    is_kept = config.state_dir or config.tls_cert
    kept = "" if is_kept else ", until this process ends (state-dir would keep it)"
    _log.info("the certificate has the SHA-256 %s%s", certificates.fingerprint, kept)
