"""What the options behind a target say of a proxy on the way to it, also by socat's names; reads no file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gnar_lib.config import transport
from gnar_lib.config.model import NO_SECRET, ProxyServer, Secret
from gnar_lib.errors import ConfigError, UsageError

# socat's addresses that name a proxy in front of the target: how to speak to it, and its port.
KEYWORDS: Final = {"proxy": ("http", "8080"), "socks5": ("socks5h", "1080")}


@dataclass(frozen=True, slots=True)
class Through:
    """A proxy on the way to a target."""

    server: ProxyServer
    login_file: str = ""  # whose first line is user:password; empty for none
    looks_up_here: bool = False  # even if the kind of proxy leaves names to the proxy


def _proxy(text: str) -> ProxyServer:
    try:
        found = transport.proxy(text)
    except ConfigError as exc:
        raise UsageError(f"is wrong: {exc}") from None
    if found is None:
        raise UsageError("is wrong: leave it out to go without a proxy")
    return found


def _login(text: str) -> Secret:
    if ":" not in text:
        raise UsageError("is not of the form user:password")
    try:
        return transport.login(text)
    except ConfigError as exc:
        raise UsageError(f"is wrong: {exc}") from None


def _anything(text: str) -> str:
    if not text or "\0" in text:
        raise UsageError("is empty")
    return text


def readers(flag: Callable[[str], bool]) -> dict[str, Callable[[str], Any]]:
    """Return what reads the value of each option of proxies; `flag` reads a switch."""
    return {
        "proxy": _proxy,
        "proxyport": _anything,
        "socksport": _anything,
        "proxyauth": _login,
        "proxyauthfile": _anything,
        "resolve": flag,
        "ignorecr": flag,  # changes nothing: an answer may have bare line feeds anyway
    }


ALIASES: Final = {
    "proxy-authorization": "proxyauth",
    "proxy-auth": "proxyauth",
    "proxy-authorization-file": "proxyauthfile",
    "proxy-resolve": "resolve",
    "resolv": "resolve",
}
TARGET: Final = {"proxy", "proxyauthfile"}
OF_KEYWORD: Final = {
    "proxy": {"proxyport", "proxyauth", "proxyauthfile", "resolve", "ignorecr"},
    "socks5": {"socksport"},
}
SECRET: Final = frozenset({"proxy", "proxyauth"})  # options whose values are in no error

_MASKED = (
    re.compile(r"\b(proxy|proxy-?auth|proxy-authorization)(\s*=).*", re.IGNORECASE | re.DOTALL),
    re.compile(r"(:)(//).*@", re.DOTALL),
)


def masked(text: str) -> str:
    """Return an address as it may be shown: without what may be the password of a proxy."""
    return _MASKED[1].sub(r"\1\2***@", _MASKED[0].sub(r"\1\2***", text))


def of_option(values: dict[str, Any]) -> Through | None:
    """Return what `proxy=` says; None without it. Raises `UsageError`."""
    if "proxy" in values:
        return Through(values["proxy"], values.get("proxyauthfile", ""))
    if "proxyauthfile" in values:
        raise UsageError("option 'proxyauthfile' needs option 'proxy'")
    return None


def of_keyword(keyword: str, host: str, port: int, values: dict[str, Any]) -> Through:
    """Return what one of `KEYWORDS` says with its options."""
    user, _, password = values.get("proxyauth", NO_SECRET).reveal().partition(":")
    server = ProxyServer(KEYWORDS[keyword][0], host, port, user, Secret(password))
    return Through(server, values.get("proxyauthfile", ""), looks_up_here=values.get("resolve", False))
