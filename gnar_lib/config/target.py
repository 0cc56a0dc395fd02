"""Reads where a local web service is, as people type it; knows no setting."""

from __future__ import annotations

from gnar_lib.config.model import Address
from gnar_lib.config.values import address, port
from gnar_lib.errors import ConfigError

_HTTP = "http://"
_HTTP_PORT = 80  # of a URL that names none


def web_target(text: str) -> Address:
    """Read a port of this machine, whose host is empty then, or an address, or a URL without a path.

    Raises `ConfigError`.
    """
    if text.startswith("https://"):
        raise ConfigError(
            f"{text!r}: expected a service without TLS; `gnar client` publishes one that has TLS"
        )
    where = text.removeprefix(_HTTP).removesuffix("/")
    if where.isascii() and where.isdecimal():
        return Address("", port(where))
    if ":" not in where and not text.startswith(_HTTP):
        raise ConfigError(f"{text!r}: expected a port such as 3000, or an address such as web.local:8080")
    found: Address = address(_HTTP_PORT)(where)
    return found
