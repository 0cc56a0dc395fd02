"""Which settings of a server about names go together, and what they come to where they are not given."""

from __future__ import annotations

from typing import Any

from gnar_lib.config.model import (
    DEFAULT_HTTP_PORT,
    DEFAULT_HTTP_PORT_BEHIND_CADDY,
    DEFAULT_HTTPS_PORT,
    DEFAULT_PORT,
    LOOPBACK,
)
from gnar_lib.errors import ConfigError

_NEED_NAMES = ("http-port", "https-port", "hsts", "caddy-api", "error-page")


def settle_names(settings: dict[str, Any]) -> None:
    """Add what a server's settings about names come to; raises `ConfigError` if some do not go together.

    A port for users that is the control port is none of its own: the control port takes users anyway.
    """
    has_names = bool(settings.get("domain") or settings.get("allow-hosts"))
    for key in _NEED_NAMES:
        if settings.get(key) and not has_names:
            raise ConfigError(f"{key}: goes with domain or allow-hosts: without them there are no names")
    _check_tls(settings)
    if settings.get("caddy-remove") and not settings.get("caddy-api"):
        raise ConfigError("caddy-remove: goes with caddy-api")
    if not has_names:
        return
    is_behind_caddy = bool(settings.get("caddy-api"))
    default = DEFAULT_HTTP_PORT_BEHIND_CADDY if is_behind_caddy else DEFAULT_HTTP_PORT
    settings.setdefault("http-port", default)
    settings.setdefault("http-bind", LOOPBACK if is_behind_caddy else settings.get("bind", ""))
    settings.setdefault("https-port", DEFAULT_HTTPS_PORT if settings.get("tls-cert") else 0)
    is_one_address = settings["http-bind"] == settings.get("bind", "")
    control_port = settings.get("port", DEFAULT_PORT)
    if is_behind_caddy and settings["http-port"] in ((0, control_port) if is_one_address else (0,)):
        raise ConfigError(
            "http-port: is where Caddy sends users, so with caddy-api it is neither off nor the control port"
        )
    if is_one_address and settings["http-port"] == control_port:
        settings["http-port"] = 0
    if settings["https-port"] == control_port:
        settings["https-port"] = 0
    if is_one_address and settings["http-port"] == settings["https-port"] != 0:
        port = settings["https-port"]
        raise ConfigError(f"https-port: {port} is the http-port, too; each needs its own")


def _check_tls(settings: dict[str, Any]) -> None:
    certs, keys = settings.get("tls-cert", ()), settings.get("tls-key", ())
    if keys and len(keys) != len(certs):
        raise ConfigError(
            f"tls-key: {len(keys)} for {len(certs)} of tls-cert; give one for each, or none if the files of "
            "the certificates have the keys"
        )
    if settings.get("hsts") and not (certs or settings.get("caddy-api")):
        raise ConfigError("hsts: goes with tls-cert or caddy-api, since browsers are to use HTTPS then")
