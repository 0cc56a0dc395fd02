"""socat's options in front of the addresses, such as `-d -d -T 60`: what they mean to a relay of gnar."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, replace

from gnar_lib.errors import UsageError
from gnar_lib.relay.address import Role
from gnar_lib.relay.options import read_seconds

_WITH_VALUE = re.compile("(-(?:[bTtrRLW]|l[fp]))(.*)", re.DOTALL)  # the value may be a word of its own
# How much is logged and in which form, and the size of a buffer: gnar decides that itself.
_NO_EFFECT = re.compile("-(d+|d[0-4]|D|l[suhp]|b)")
_LOG_ELSEWHERE = re.compile("-l[fym].*", re.DOTALL)  # the name of a syslog facility may follow
_FAMILIES = {"-4": int(socket.AF_INET), "-6": int(socket.AF_INET6)}
OF_GNAR_WITH_VALUE = (
    "--grace",
    "--dead-after",
    "--half-close-timeout",
    "--udp-timeout",
    "-a",
    "--admin-port",
    "--admin-bind",
    "--admin-password",
    "--admin-password-file",
    "--admin-read-token",
    "--admin-read-token-file",
    "--log-format",
    "--log-level",
)
_OF_GNAR = re.compile(r"--.*|-a\d*", re.DOTALL)  # socat has no -a
_SILENT = {"-u": Role.LISTEN, "-U": Role.TARGET}
_WHY_NOT = {
    **dict.fromkeys(("-v", "-x", "-r", "-R"), ": gnar does not show the bytes that it carries"),
    **dict.fromkeys(("-L", "-W"), ": use flock(1)"),
    **dict.fromkeys(("-V", "-hh", "-?"), ": see gnar --version, gnar relay --help"),
}


@dataclass(frozen=True, slots=True)
class SocatOptions:
    """What the options in front of the addresses say."""

    idle_timeout_s: float = 0.0  # the end of a connection, or a UDP session, without bytes; 0: never
    half_close_timeout_s: float | None = None  # how long one end may say nothing after the other's end
    silent: Role | None = None  # the side to which nothing is written
    family: int = int(socket.AF_UNSPEC)  # of addresses that do not say which
    ignored: tuple[str, ...] = ()  # options of which the user has to be told that they do nothing


NO_OPTIONS = SocatOptions()


def take_options(words: list[str]) -> tuple[list[str], SocatOptions]:
    """Return the words of a command line without socat's options, and what these say. Raises `UsageError`.

    A word with one dash in front is an option of socat, or the value of one of gnar's own, which have two.
    Only -a is gnar's own.
    """
    rest: list[str] = []
    options, words = SocatOptions(), [*words]
    while words:
        word = words.pop(0)
        if word == "--":
            return [*rest, word, *words], options
        is_value = bool(rest) and rest[-1] in OF_GNAR_WITH_VALUE
        if not word.startswith("-") or word == "-" or _OF_GNAR.fullmatch(word) or is_value:
            rest.append(word)
            continue
        value = ""
        if found := _WITH_VALUE.fullmatch(word):
            word, value = found.groups()
            if not value and not words:
                raise UsageError(f"the value of {word} is missing")
            value = value or words.pop(0)
        options = _with(options, word, value)
    return rest, options


def _with(options: SocatOptions, name: str, value: str) -> SocatOptions:
    """Return the options with one more; raises `UsageError` when it is unknown or wrong."""
    if name == "-T":
        options = replace(options, idle_timeout_s=_seconds(name, value))
    elif name == "-t":
        options = replace(options, half_close_timeout_s=_seconds(name, value))
    elif name in _SILENT:
        options = replace(options, silent=_SILENT[name])
    elif name in _FAMILIES:
        options = replace(options, family=_FAMILIES[name])
    elif _LOG_ELSEWHERE.fullmatch(name):
        options = replace(options, ignored=(*options.ignored, f"{name} {value}".rstrip()))
    elif not _NO_EFFECT.fullmatch(name):
        raise UsageError(f"option {name} of socat is not supported{_WHY_NOT.get(name, '')}")
    return options


def _seconds(name: str, text: str) -> float:
    try:
        return read_seconds(text, 0.0)
    except UsageError as exc:
        raise UsageError(f"{name} {text} {exc}") from None
