"""Reads one value of a setting about names, HTTP or users' addresses, as `values` does for the others."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, TypeVar

from gnar_lib.config import values
from gnar_lib.config.hosts import ascii_host, whole_host
from gnar_lib.config.model import Secret
from gnar_lib.config.values import wrong
from gnar_lib.errors import ConfigError

MAX_ITEMS = 64  # of one list
MAX_PATH = 255
MAX_HSTS_S = 63_072_000  # two years, which lists of browsers ask for
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_HEADER = re.compile(rf"(?P<removed>-)?(?P<name>{_TOKEN.pattern})\s*(?::(?P<value>.*))?")
_HOST_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE | re.ASCII)
_FRAMING = {  # fields that say where a message ends, or are about one connection alone
    "connection",
    "content-length",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}

T = TypeVar("T")


def _items(value: object, expected: str) -> list[str]:
    """Return the texts in a list, or in a text that separates them by commas."""
    items = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(each, str) for each in items):
        raise wrong(value, expected)
    return items


def _several(value: object, read: Callable[[str], T], expected: str, most: int = MAX_ITEMS) -> tuple[T, ...]:
    items = _items(value, expected)
    if len(items) > most:
        raise ConfigError(f"{len(items)} of them: expected at most {most}")
    return tuple(dict.fromkeys(read(each) for each in items))


# ---- of a server -------------------------------------------------------------------------------------------


def domain(value: object) -> str:
    """Read a domain name, or an empty text; returns it in ASCII."""
    if value == "":
        return ""
    if not isinstance(value, str):
        raise wrong(value, "a domain such as example.com")
    try:
        return whole_host(value)
    except ConfigError as exc:
        raise ConfigError(f"{value!r}: expected a domain such as example.com ({exc})") from None


def port_or_off(value: object) -> int:
    """Read a port from 1 on; 0 stands for `off`."""
    if value is False or value == "off":
        return 0
    try:
        return values.port(value)
    except ConfigError as exc:
        raise ConfigError(f"{exc}, or off") from None


def paths(value: object) -> tuple[str, ...]:
    """Read the path of a file, or several in a list, or with commas between them."""
    return _several(value, values.path, "paths of files")


def hsts(value: object) -> int:
    """Read for how many seconds browsers are to use HTTPS alone; 0 says nothing to them."""
    return int(values.seconds(value, 0.0, MAX_HSTS_S))


def host_patterns(value: object) -> tuple[str, ...]:
    """Read host names that clients may have, such as www.customer.org; `*` is one label."""
    expected = "names such as www.customer.org or *.customer.org"

    def read(text: str) -> str:
        try:
            host = whole_host(text, wildcard=True)
        except ConfigError as exc:
            raise ConfigError(f"{text!r}: expected {expected} ({exc})") from None
        if "." not in host.removeprefix("*."):
            raise wrong(text, expected)
        return host

    return _several(value, read, expected)


def labels(value: object) -> tuple[str, ...]:
    """Read labels, such as www; an empty list is one, too."""
    expected = "labels such as www, mail"

    def read(text: str) -> str:
        if "." in text:
            raise wrong(text, expected)
        return ascii_host(text)

    return _several(value, read, expected, 1000)


def networks_or_none(value: object) -> tuple[str, ...]:
    """Read networks; `none` stands for no network."""
    return () if value == "none" else networks(value)


def caddy_api(value: object) -> str:
    """Read where the admin API of Caddy is: a URL, or a Unix socket as Caddy writes it; empty for nowhere."""
    if value == "":
        return ""
    if not isinstance(value, str) or not re.fullmatch(r"http://[^\s/@]+/?|unix//\S+", value):
        raise wrong(value, "a URL such as http://127.0.0.1:2019, or unix//run/caddy/admin.sock")
    return value


# ---- of a proxy --------------------------------------------------------------------------------------------


def subdomain(value: object) -> str:
    """Read a name, under the server's domain or a whole one, in ASCII; empty has the server choose one."""
    if value == "":
        return ""
    if not isinstance(value, str):
        raise wrong(value, "a name such as blog")
    try:
        return ascii_host(value, wildcard=True)
    except ConfigError as exc:
        raise ConfigError(f"{value!r}: expected a name such as blog ({exc})") from None


def path_prefix(value: object) -> str:
    """Read where the paths of a proxy begin, such as /api; returns it without a slash at its end."""
    if not isinstance(value, str) or not re.fullmatch(r"(/[!-~]*)?", value) or re.search("[?#]", value):
        raise wrong(value, "a path such as /api")
    if len(value) > MAX_PATH:
        raise ConfigError(f"expected at most {MAX_PATH} characters")
    return value.rstrip("/")


def host_header(value: object) -> str:
    """Read what takes the place of users' Host: a host, with or without a port, or `local`."""
    if not isinstance(value, str) or (value and not _HOST_HEADER.fullmatch(value)):
        raise wrong(value, "a host such as localhost:3000, or local")
    return value


def headers(value: object) -> tuple[str, ...]:
    """Read fields of a header: a table, or lines, of which each is `Name: value`, or `-Name` to remove one.

    Returns the lines.
    """
    if isinstance(value, dict):
        value = [f"{name}: {text}" if text else f"-{name}" for name, text in _texts_of(value)]
    lines = [line for line in value.splitlines() if line.strip()] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise wrong(value, 'lines such as "X-Name: value" or "-X-Name", or a table')
    if len(lines) > MAX_ITEMS:
        raise ConfigError(f"{len(lines)} of them: expected at most {MAX_ITEMS}")
    return tuple(map(_header, lines))


def _texts_of(table: dict[Any, Any]) -> list[tuple[str, str]]:
    if not all(isinstance(text, str) for text in table.values()):
        raise wrong(table, 'texts, as in { "X-Name" = "value" }')
    return [*table.items()]


def _header(line: str) -> str:
    found = _HEADER.fullmatch(line.strip())
    value = found["value"].strip() if found and found["value"] else ""
    if (
        found is None
        or bool(found["removed"]) == bool(value)
        or not (value.isascii() and value.isprintable())
    ):
        raise wrong(line, '"X-Name: value", or "-X-Name" to remove it')
    if found["name"].lower() == "host":
        raise ConfigError("Host: host-header sets it")
    if found["name"].lower() in _FRAMING:
        raise ConfigError(f"{found['name']}: cannot be set or removed, since gnar needs it")
    return f"-{found['name']}" if found["removed"] else f"{found['name']}: {value}"


def basic_auth(value: object) -> tuple[Secret, ...]:
    """Read users with their passwords, or hashes of them: one in a text, several in a list."""
    users = [value] if isinstance(value, str) else value
    if not isinstance(users, list) or not users or not all(isinstance(user, str) for user in users):
        raise ConfigError("expected a text such as user:password, or a list of them")
    for user in users:
        name, colon, password = user.partition(":")
        if not (name and colon and password and user.isprintable()):
            raise ConfigError("expected user:password, or user:hash")
    if len(users) > MAX_ITEMS:
        raise ConfigError(f"{len(users)} of them: expected at most {MAX_ITEMS}")
    return tuple(map(Secret, users))


def networks(value: object) -> tuple[str, ...]:
    """Read networks and addresses, such as 10.0.0.0/8; an address stands for itself alone."""
    expected = "networks such as 10.0.0.0/8, 2001:db8::/32"

    def read(text: str) -> str:
        try:
            return str(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise wrong(text, expected) from None

    return _several(value, read, expected)
