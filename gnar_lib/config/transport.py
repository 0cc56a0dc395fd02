"""Reads what settings say of the way between client and server, and shows what they pin; opens nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from gnar_lib.config import values
from gnar_lib.config.model import (
    DEFAULT_PORT,
    DEFAULT_WS_PATH,
    HEALTH_PATH,
    Address,
    ProxyServer,
    Secret,
    WebAddress,
)
from gnar_lib.config.values import wrong
from gnar_lib.errors import ConfigError

_MAX_FINGERPRINTS = 16
SHOWN_DIGITS: Final = 16  # of a fingerprint, for people
_FINGERPRINT = re.compile(r"(?:sha-?256[:=])?([0-9a-f]{2}(?::?[0-9a-f]{2}){31})", re.IGNORECASE)
_PATH = re.compile(r"/[!$&'()*+,;=:@/\w.~%-]*", re.ASCII)
_WEB = re.compile(r"(wss?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_WEB_PORTS = {"ws": 80, "wss": 443}
_PROXY = re.compile(r"([a-z0-9]+)://(?:([^@/]*)@)?([^@/]+)/?", re.IGNORECASE)
_PROXY_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

_address = values.address(DEFAULT_PORT)


def server_address(value: object) -> Address:
    """Read where a server is: a host, with or without a port, or a URL such as wss://example.com/gnar."""
    found = _WEB.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        if isinstance(value, str) and "://" in value:
            raise ConfigError(
                f"expected an address such as example.com:{DEFAULT_PORT}, or a URL such as "
                f"wss://example.com{DEFAULT_WS_PATH}"
            )
        read: Address = _address(value)
        return read
    scheme, where, path = found[1].lower(), found[2], found[3]
    if "@" in where:  # what is in front of it may be a password, which is in no error
        raise ConfigError(f"expected a URL without a user, such as {scheme}://example.com{DEFAULT_WS_PATH}")
    try:
        address: Address = values.address(_WEB_PORTS[scheme])(where)
        path = ws_path(path) if path not in ("", "/") else DEFAULT_WS_PATH
    except ConfigError:
        raise wrong(value, f"a URL such as {scheme}://example.com{DEFAULT_WS_PATH}") from None
    return WebAddress(address.host, address.port, path, scheme == "wss")


def on_or_off(value: object) -> str:
    """Read whether TLS is wanted; returns "on" or "off"."""
    try:
        return "on" if values.flag(value) else "off"
    except ConfigError:
        raise wrong(value, "on or off") from None


def ws_path(value: object) -> str:
    """Read the path of a URL, without a query, at which a server takes WebSockets."""
    if not isinstance(value, str) or not _PATH.fullmatch(value) or len(value) > values.MAX_TOKEN:
        raise wrong(value, f"the path of a URL, such as {DEFAULT_WS_PATH}")
    return value


def own_ws_path(value: object) -> str:
    """Read the path at which a server takes WebSockets, which is not that of its health."""
    path = ws_path(value)
    if path == HEALTH_PATH:
        raise wrong(value, f"another path, such as {DEFAULT_WS_PATH}: this one is for load balancers")
    return path


def fingerprints(value: object) -> tuple[str, ...]:
    """Read SHA-256 fingerprints of certificates, in hex with or without colons; returns them without."""
    texts = value if isinstance(value, list) else re.split(r"[,\s]+", value) if isinstance(value, str) else []
    texts = [each for each in texts if each]
    found = [_FINGERPRINT.fullmatch(each) for each in texts if isinstance(each, str)]
    made = tuple(each[1].replace(":", "").lower() for each in found if each is not None)
    if not 0 < len(made) == len(texts) <= _MAX_FINGERPRINTS:
        raise wrong(value, "the SHA-256 of a certificate, which are 64 hexadecimal digits")
    return made


def shown(fingerprint: str) -> str:
    """Return words for a certificate, by the beginning of its SHA-256; "no certificate" for an empty one.

    A peer may have told the fingerprint, so only hexadecimal digits of it are shown.
    """
    digits = "".join(each for each in fingerprint if each in "0123456789abcdef")[:SHOWN_DIGITS]
    return f"certificate {digits}..." if digits else "no certificate"


def proxy(value: object) -> ProxyServer | None:
    """Read the URL of a proxy to go through, such as http://user:password@proxy:3128; None for `off`.

    The text of a wrong URL is in no error, since it may hold a password.
    """
    if value is False or (isinstance(value, str) and value.strip().lower() in ("off", "none")):
        return None
    found = _PROXY.fullmatch(value.strip()) if isinstance(value, str) else None
    kind = found[1].lower() if found else ""
    if found is None or kind not in _PROXY_PORTS:
        hint = ""
        if isinstance(value, list | dict):
            hint = "; what is to be forwarded goes into [[proxys]]"
        elif found is None and isinstance(value, str) and "@" in value:
            hint = "; in a user or a password, @ is written as %40, and / as %2F"
        raise ConfigError(
            "expected off, or the URL of a proxy such as http://proxy:3128, socks5://proxy or "
            f"socks5h://proxy{hint}"
        )
    try:
        where: Address = values.address(_PROXY_PORTS[kind])(found[3])
    except ConfigError:
        raise ConfigError("expected the URL of a proxy with a host and a port from 1 to 65535") from None
    user, _, password = login(found[2] or "").reveal().partition(":")
    return ProxyServer(kind, where.host, where.port, unquote(user), Secret(unquote(password)))


def login(text: str) -> Secret:
    """Read a user and a password of a proxy. Raises `ConfigError`, which holds neither of them."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a variable or flag whose bytes are not UTF-8
        raise ConfigError("expected a user and a password in UTF-8") from None
    return Secret(text)


def settle_way(settings: dict[str, Any], server: Address, env: Mapping[str, str]) -> None:
    """Add what a client's settings about the way to its server come to; raises `ConfigError`."""
    web = server if isinstance(server, WebAddress) else None
    if web is not None and not settings.setdefault("multiplex", True):
        raise ConfigError("multiplex: cannot be off with a WebSocket, which is one connection for everything")
    is_off = settings.get("tls", "off" if settings.get("auth") == "md5" else "on") == "off"
    if settings.get("fingerprint") and is_off and not (web is not None and web.is_tls):
        raise ConfigError("fingerprint: goes with TLS, which is off")
    if "proxy" not in settings:
        settings["proxy"] = proxy_of_environment(server, env)
    if settings["proxy"] is not None:
        # One connection for everything, on which each direction of a user has an end of its own: proxies end
        # both directions of a connection when one of them ends.
        settings.setdefault("multiplex", True)


def proxy_of_environment(server: Address, env: Mapping[str, str]) -> ProxyServer | None:
    """Return the proxy that the usual variables name for a server; None for none.

    HTTPS_PROXY goes before ALL_PROXY, small letters before large ones, as curl has them. NO_PROXY lists
    hosts that are reached without one; neither is one used for this machine itself. Raises `ConfigError`.
    """
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    name = next((each for each in names if env.get(each, "").strip()), "")
    excluded = env.get("no_proxy") or env.get("NO_PROXY") or ""
    if not name or values.is_loopback(server.host) or _is_excluded(server, excluded):
        return None
    text = env[name].strip()
    try:
        return proxy(text if "://" in text else f"http://{text}")
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc}; --proxy overrides it") from None


def _is_excluded(server: Address, excluded: str) -> bool:
    """Tell whether NO_PROXY names a server: itself, a domain it is in, its network, or all (`*`)."""
    host = server.host.lower().removesuffix(".")
    for each in re.split(r"[,\s]+", excluded.lower()):
        name = each.removesuffix(f":{server.port}") if each.count(":") == 1 else each
        name = name.removeprefix("*.").removeprefix(".")
        if name and (each == "*" or host == name or host.endswith(f".{name}") or _is_in(host, name)):
            return True
    return False


def _is_in(host: str, network: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network.strip("[]"), strict=False)
    except ValueError:
        return False
