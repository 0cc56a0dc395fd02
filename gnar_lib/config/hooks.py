"""Reads `[[hooks]]`, the tables that say whom to tell of which events; knows not how that is done."""

from __future__ import annotations

import difflib
import os.path
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import urlsplit

from gnar_lib import events
from gnar_lib.config import values
from gnar_lib.config.files import read_secret
from gnar_lib.config.model import MAX_PORT, NO_SECRET, HookConfig, Secret
from gnar_lib.config.sources import read_table, read_value, rows_of
from gnar_lib.config.values import Reader
from gnar_lib.errors import ConfigError
from gnar_lib.events import Side

HOOK_SECRET = "GNAR_HOOK_SECRET"  # noqa: S105  (the name of a variable)
MOST_HOOKS = 100  # each of which has a greenlet and a queue
MOST_HEADERS = 32

# Events of one end; all others are of both.
_OF_SERVER = {
    "login-refused",
    "login-given-up",
    "client-came",
    "client-returned",
    "client-gone",
    "user-refused",
    "udp-user-came",
}
_OF_CLIENT = {
    "connected",
    "connect-failed",
    "data-conns-fail",
    "data-conns-work",
    "service-unreachable",
    "service-reached",
}
# Events that something has gone, after which another event can say that it is back.
DELAYED = ("client-gone", "proxy-closed", "connect-failed", "data-conns-fail", "service-unreachable")
COMMON_FIELDS = ("event", "at", "delivery", "host", "side")  # of every event
_FORMATS = ("json", "text", "slack")
_ONLY_OF_URL = ("secret", "secret-file", "headers", "format", "text", "retry-for")
_NOT_YOURS = re.compile(r"host|content-length|transfer-encoding|connection|x-gnar-.*", re.IGNORECASE)
_URL = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?([/?][!-~]*)?", re.IGNORECASE | re.ASCII
)
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a table stands, and what holds for all tables there."""

    where: str  # such as gnar.toml: hooks[1]
    folder: str  # of the file
    side: Side
    secret: Secret  # of hooks that name none


def hooks_of(tables: dict[str, Any], side: Side, env: Mapping[str, str]) -> tuple[HookConfig, ...]:
    """Return the hooks among a file's unread tables, and remove them from there; raises `ConfigError`."""
    where = next((each for each in tables if each.endswith(": hooks")), "")
    if not where:
        return ()
    rows = rows_of(where, tables.pop(where))
    if len(rows) > MOST_HOOKS:
        raise ConfigError(f"{where}: {len(rows)} of them; expected at most {MOST_HOOKS}")
    folder = os.path.dirname(where.removesuffix(": hooks"))
    text = env.get(HOOK_SECRET, "")
    secret = read_value(values.secret, text, HOOK_SECRET) if text.strip() else NO_SECRET
    return tuple(_hook_of(row, _Place(place, folder, side, secret)) for place, row in rows)


def _hook_of(row: Mapping[str, Any], place: _Place) -> HookConfig:
    """Return the hook of one table; raises `ConfigError`."""
    given = read_table(_READERS, row, f"{place.where}.", hints=[*_READERS])
    if "events" not in given:
        raise ConfigError(f'{place.where}.events: missing; expected a list such as ["client-gone"]')
    if ("url" in given) == ("command" in given):
        raise ConfigError(f"{place.where}: expected either url or command")
    names = tuple(_names(given["events"], place))
    if "command" in given:
        for key in _ONLY_OF_URL:
            if key in given:
                raise ConfigError(f"{place.where}.{key}: goes with url alone")
        given["command"] = _beside(given["command"], place.folder)
    else:
        given["secret"] = _secret(given, place)
    if "delay" in given and not set(names) & set(DELAYED):
        raise ConfigError(f"{place.where}.delay: goes with {' or '.join(DELAYED)}")
    if "text" in given:
        _check_text(given, names, place)
    seconds = {f"{key.replace('-', '_')}_s": given.pop(key) for key in _SECONDS if key in given}
    given.pop("secret-file", None)
    return HookConfig(**{**given, "events": names}, **seconds)


def _names(patterns: list[str], place: _Place) -> Iterator[str]:
    """Yield the names of the events that are meant, each once; raises `ConfigError`."""
    elsewhere = _OF_CLIENT if place.side is Side.SERVER else _OF_SERVER
    known = [name for name in events.BY_NAME if name not in elsewhere]
    for pattern in patterns:
        if pattern in elsewhere:
            other = "client" if place.side is Side.SERVER else "server"
            raise ConfigError(f"{place.where}.events: {pattern} is said by a {other} alone; write it there")
        if not any(fnmatchcase(name, pattern) for name in known):
            hint = _suggestion(pattern, known)
            raise ConfigError(f"{place.where}.events: {pattern!r}: no such event{hint}")
    yield from (name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns))


def _secret(given: Mapping[str, Any], place: _Place) -> Secret:
    """Return what signs the messages of a hook; raises `ConfigError`."""
    if "secret-file" not in given:
        secret: Secret = given.get("secret", place.secret)
        return secret
    if "secret" in given:
        raise ConfigError(f"{place.where}.secret-file: does not go with secret; leave one of them out")
    return read_secret(os.path.join(place.folder, given["secret-file"]))


def _beside(command: tuple[str, ...], folder: str) -> tuple[str, ...]:
    """Return a command whose program, if it is a relative path, is relative to the folder of the file."""
    program = command[0]
    return (os.path.join(folder, program) if os.path.dirname(program) else program, *command[1:])


def _check_text(given: Mapping[str, Any], names: tuple[str, ...], place: _Place) -> None:
    """Check that a text goes with the format, and names fields that events have; raises `ConfigError`."""
    if given.get("format", "json") == "json":
        raise ConfigError(f'{place.where}.text: goes with format = "text" or format = "slack"')
    known = {*COMMON_FIELDS, *(field.name for name in names for field in fields(events.BY_NAME[name]))}
    for word in PLACEHOLDER.findall(given["text"]):
        if word not in known:
            hint = _suggestion(word, sorted(known))
            raise ConfigError(f"{place.where}.text: {{{word}}}: no field of these events{hint}")


def _suggestion(word: str, known: Collection[str]) -> str:
    """Return the end of an error about an unknown word: the most similar known one, or all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"


# ---- values ------------------------------------------------------------------------------------------------


def _texts(example: str) -> Reader:
    """Return a reader of a list of texts, none of which is empty, and of which there is one at least."""

    def read_list(value: object) -> list[str]:
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{value!r}: expected a list such as {example}")
        for each in value:
            if not isinstance(each, str) or not each:
                raise ConfigError(f"{each!r}: expected texts in a list such as {example}")
        return value

    return read_list


def _proxies(value: object) -> tuple[str, ...]:
    return tuple(_texts('["web", "ssh"]')(value))


def _url(value: object) -> Secret:
    """Read the URL to post to, which may hold a secret, and is in no error for that."""
    if not isinstance(value, str) or not _URL.fullmatch(value) or not _has_good_place(value):
        reason = "; a password goes into headers" if "@" in str(value).partition("?")[0] else ""
        raise ConfigError(f"expected a URL such as https://example.com/hook{reason}")
    return Secret(value)


def _has_good_place(url: str) -> bool:
    """Tell whether a URL names a port, if any, and a host that there can be."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if ":" in host:
            IPv6Address(host)  # of which older Pythons let `urlsplit` take anything
        host.encode("idna")  # as a look-up does; refuses labels that are empty or too long
        return parts.port is None or 1 <= parts.port <= MAX_PORT
    except ValueError:
        return False


def _command(value: object) -> tuple[str, ...]:
    """Read the words of a command, which a text has as a shell would split it."""
    example = '["notify-send", "gnar"]'
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as exc:
            raise ConfigError(f"{value!r}: {str(exc).lower()}; expected a command, or {example}") from None
    if not isinstance(value, list) or not value or not value[0]:
        raise ConfigError(f"{value!r}: expected a command, or a list of its words such as {example}")
    for word in value:
        if not isinstance(word, str) or "\0" in word:
            raise ConfigError(f"{word!r}: expected texts in a list such as {example}")
    return tuple(value)


def _headers(value: object) -> tuple[tuple[str, Secret], ...]:
    """Read headers, whose values may be secret, and are in no error for that."""
    example = '{ Priority = "high" }'
    if not isinstance(value, dict) or len(value) > MOST_HEADERS:
        raise ConfigError(f"expected a table of at most {MOST_HEADERS} headers, such as {example}")
    for name, text in value.items():
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
            raise ConfigError(f"{name!r}: expected the name of a header")
        if _NOT_YOURS.fullmatch(name):
            raise ConfigError(f"{name}: is set by gnar; leave it out")
        if not isinstance(text, str) or not text.isprintable():
            raise ConfigError(f"{name}: expected printable text in quotes")
    return tuple((name, Secret(text)) for name, text in value.items())


_SECONDS: dict[str, Reader] = {
    "timeout": values.timeout,
    "retry-for": values.seconds,
    "delay": values.timeout,
}
_READERS: dict[str, Reader] = {
    "events": _texts('["client-gone"]'),
    "url": _url,
    "command": _command,
    "secret": values.secret,
    "secret-file": values.path,
    "headers": _headers,
    "format": values.one_of(*_FORMATS),
    "text": values.text,
    "proxies": _proxies,
    **_SECONDS,
}
