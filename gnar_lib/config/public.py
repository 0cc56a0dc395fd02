"""Which settings of a server about names go together, and what they come to where they are not given."""

from __future__ import annotations

from typing import Any

from gnar_lib.config.model import (
    DEFAULT_HTTP_PORT,
    DEFAULT_HTTP_PORT_BEHIND_CADDY,
    DEFAULT_HTTPS_PORT,
    LOOPBACK,
)
from gnar_lib.errors import ConfigError

_NEED_NAMES = ("http-port", "https-port", "caddy-api", "error-page")


def settle_names(settings: dict[str, Any]) -> None:
    """Add what a server's settings about names come to; raises `ConfigError` if some do not go together."""
    has_names = bool(settings.get("domain") or settings.get("allow-hosts"))
    for key in _NEED_NAMES:
        if settings.get(key) and not has_names:
            raise ConfigError(f"{key}: goes with domain or allow-hosts: without them there are no names")
    _check_tls(settings, has_names=has_names)
    if settings.get("caddy-remove") and not settings.get("caddy-api"):
        raise ConfigError("caddy-remove: goes with caddy-api")
    if not has_names:
        return
    is_behind_caddy = bool(settings.get("caddy-api"))
    default = DEFAULT_HTTP_PORT_BEHIND_CADDY if is_behind_caddy else DEFAULT_HTTP_PORT
    http_port = settings.setdefault("http-port", default)
    settings.setdefault("http-bind", LOOPBACK if is_behind_caddy else settings.get("bind", ""))
    https_port = settings.setdefault("https-port", DEFAULT_HTTPS_PORT if settings.get("tls-cert") else 0)
    if not (http_port or https_port):
        raise ConfigError("http-port: with off, users of names need https-port")
    if is_behind_caddy and not http_port:
        raise ConfigError("http-port: is where Caddy sends users, so it cannot be off with caddy-api")
    if http_port == https_port and settings["http-bind"] == settings.get("bind", ""):
        raise ConfigError(f"https-port: {https_port} is the http-port, too; each needs its own")


def _check_tls(settings: dict[str, Any], *, has_names: bool) -> None:
    certs, keys = settings.get("tls-cert", ()), settings.get("tls-key", ())
    if keys and len(keys) != len(certs):
        raise ConfigError(
            f"tls-key: {len(keys)} for {len(certs)} of tls-cert; give one for each, or none if the files of "
            "the certificates have the keys"
        )
    if certs and has_names and settings.get("https-port") == 0:
        raise ConfigError("https-port: tls-cert has no effect when it is off")
    if settings.get("hsts") and not (certs or settings.get("caddy-api")):
        raise ConfigError("hsts: goes with tls-cert or caddy-api, since browsers are to use HTTPS then")
    if settings.get("hsts") and not has_names:
        raise ConfigError("hsts: goes with domain or allow-hosts: without them there are no names")
