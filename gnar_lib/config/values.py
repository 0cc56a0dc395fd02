"""Reads one value, which is text from a flag or a variable, and typed from a file.

Each reader returns the checked value, or raises `ConfigError` with what it expected.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Any

from gnar_lib.config.model import LOOPBACK, MAX_PORT, Address, PortRanges, Rate, Secret
from gnar_lib.errors import ConfigError

Reader = Callable[[Any], Any]

_BYTES_PER_UNIT = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|kb|mb|gb)(?:/s)?", re.IGNORECASE)
_RATE_EXAMPLE = "a speed such as 100kb, 1.5mb or 1gb/s"
MAX_SECONDS = 86400.0
MIN_TIMEOUT_S = 0.1  # an answer takes that long on a slow path
MIN_DEAD_AFTER_S = 5.0  # the kernel asks six times within that time
MIN_HEARTBEAT, MAX_HEARTBEAT = 1, 60  # seconds
MIN_MEMORY = 64 << 20  # the process without any peer takes 30 MiB
MAX_KEPT = 16 << 20  # bytes of one body
MAX_NAME = 100
MAX_TOKEN = 1024
MAX_ADDRESS = 512  # characters: a host name has 255 at most
QUOTES = "\"'\u201c\u201d\u201e\u201f\u00ab\u00bb\u2018\u2019\u201a\u201b"
# What word processors and web pages put in place of plain characters, and the plain ones.
_PLAIN = {
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"'),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("\u00a0\u2007\u202f", "a space"),
}


def name_of_odd(text: str) -> str:
    """Return words that name the first character of a text which looks like a plain one; empty if none does.

    Such as the curly quotes of a word processor.
    """
    odd = next((char for char in text if char in _PLAIN), "")
    return f" ({odd} is U+{ord(odd):04X}; write {_PLAIN[odd]} instead)" if odd else ""


def wrong(value: object, expected: str) -> ConfigError:
    """Return the error that a value is not what was expected."""
    odd = name_of_odd(value) if isinstance(value, str) else ""
    return ConfigError(f"{value!r}: expected {expected}{odd}")


def text(value: object) -> str:
    """Read a text; every text is allowed."""
    if not isinstance(value, str):
        raise wrong(value, "text in quotes")
    return value


def name(value: object) -> str:
    """Read the name of a proxy."""
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MAX_NAME:
        raise wrong(value, f"a name of 1 to {MAX_NAME} printable characters")
    return value


def host(value: object) -> str:
    """Read a host name or an IP address without a port; IPv6 may have brackets, which are removed."""
    found = re.fullmatch(r"\[([^\s/\[\]]+)\]|([^\s/\[\]]+)", value) if isinstance(value, str) else None
    if found is None or _has_port(found[0]):
        without = " without a port" if isinstance(value, str) and _has_port(value) else ""
        raise wrong(value, f"a host name or an IP address{without}")
    return found[1] or found[2]


def _has_port(text: str) -> bool:
    """Tell whether a port follows a host, such as in 192.0.2.1:80 or [::1]:80."""
    return bool(re.fullmatch(r"(\[.*\]|[^:]*):\d+", text))


def bind(value: object) -> str:
    """Read an address to listen on; IPv6 may have brackets, which are removed. Empty is every address."""
    found = re.fullmatch(r"\[([^\[\]]+)\]", text(value))
    host = found[1] if found else text(value)
    if _has_port(text(value)) or (":" in host and not _is_ipv6(host)):
        raise wrong(value, "an address without a port")
    return host


def is_loopback(bind: str) -> bool:
    """Tell whether an address to listen on can be reached from this machine alone."""
    try:
        return bind == "localhost" or ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False


def path(value: object) -> str:
    """Read the path of a file."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise wrong(value, "the path of a file")
    return value


def secret(value: object) -> Secret:
    """Read a token without the white space around it; the text of a token is in no error."""
    if not isinstance(value, str):
        raise ConfigError("expected text in quotes")
    stripped = value.strip()
    if len(stripped) > MAX_TOKEN:
        raise ConfigError(f"expected at most {MAX_TOKEN} characters")
    try:
        stripped.encode()
    except UnicodeEncodeError:  # a variable or flag whose bytes are not UTF-8
        raise ConfigError("expected text in UTF-8") from None
    return Secret(stripped)


def _integer(value: object) -> int | None:
    """Return the integer that a value is or spells, or None."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip(), re.ASCII):
        return int(value.strip())  # of which int() alone would leave some control characters
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def port(value: object) -> int:
    """Read a port from 1 on."""
    number = _integer(value)
    if number is None or not 1 <= number <= MAX_PORT:
        raise wrong(value, f"a port from 1 to {MAX_PORT}")
    return number


def port_or_0(value: object) -> int:
    """Read a port, or 0, which lets somebody else choose a port."""
    number = _integer(value)
    if number is None or not 0 <= number <= MAX_PORT:
        raise wrong(value, f"a port from 0 to {MAX_PORT}")
    return number


def count(most: int) -> Reader:
    """Return a reader of a number from 1 to `most`."""

    def read(value: object) -> int:
        number = _integer(value)
        if number is None or not 1 <= number <= most:
            raise wrong(value, f"a number from 1 to {most}")
        return number

    return read


def flag(value: object) -> bool:
    """Read true or false; a text may also be yes or no, on or off, 1 or 0."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in {"1", "true", "yes", "on"}:
        return True
    if isinstance(value, str) and value.strip().lower() in {"0", "false", "no", "off", ""}:
        return False
    raise wrong(value, "true or false")


def seconds(value: object, least_s: float = 0.0, most_s: float = MAX_SECONDS) -> float:
    """Read a time in seconds, from `least_s` to `most_s`, a day."""
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not least_s <= number <= most_s:
        raise wrong(value, f"seconds from {least_s:g} to {most_s:.10g}")
    return number


def timeout(value: object) -> float:
    """Read a time in seconds after which a wait is given up; 0 is refused."""
    return seconds(value, MIN_TIMEOUT_S)


def dead_after(value: object) -> float:
    """Read a time in seconds after which a silent peer is given up."""
    return seconds(value, MIN_DEAD_AFTER_S)


def heartbeat(value: object) -> int:
    """Read the whole seconds between two heartbeats."""
    number = _integer(value)
    if number is None or not MIN_HEARTBEAT <= number <= MAX_HEARTBEAT:
        raise wrong(value, f"whole seconds from {MIN_HEARTBEAT} to {MAX_HEARTBEAT}")
    return number


def memory(value: object) -> int:
    """Read a size of memory with its unit, such as 256mb; returns bytes. An empty text is the default, 0."""
    if value == "":
        return 0
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    number = float(found[1]) * _BYTES_PER_UNIT[found[2].lower()] if found else 0.0
    if not MIN_MEMORY <= number < math.inf or "/" in str(value):
        raise wrong(value, f"a size of at least {MIN_MEMORY >> 20}mb, such as 256mb or 1gb")
    return int(number)


def kept_size(value: object) -> int:
    """Read how much of something is kept, such as 64kb, or 0 for nothing; returns bytes."""
    if _integer(value) == 0:
        return 0
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    number = float(found[1]) * _BYTES_PER_UNIT[found[2].lower()] if found else math.inf
    if number > MAX_KEPT or "/" in str(value):
        raise wrong(value, f"a size of at most {MAX_KEPT >> 20}mb, such as 64kb, or 0")
    return int(number)


def inspect(value: object) -> Address | None:
    """Read where the page of the inspector is: a port, an address of loopback with its port, on or off.

    Returns None for off. `on` has the port 0, which stands for the first free one of the inspector's own.
    """
    expected = "on, off, a port, or an address of this machine such as 127.0.0.1:4040"
    words = {"on", "off", "true", "false", "yes", "no"}
    if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in words):
        return Address(LOOPBACK, 0) if flag(value) else None
    try:
        if _integer(value) is not None:
            return Address(LOOPBACK, port(value))
        found: Address = address(0)(value)
    except ConfigError:
        raise wrong(value, expected) from None
    if not is_loopback(found.host):
        raise ConfigError(
            f"{value!r}: whoever reaches the page sees everything, so its address has to be one of this "
            "machine, such as 127.0.0.1:4040; from elsewhere, go through ssh -L"
        )
    return found


def one_of(*words: str) -> Reader:
    """Return a reader that accepts these words."""

    def read(value: object) -> str:
        if value not in words:
            raise wrong(value, " or ".join(words))
        return str(value)

    return read


def rate(value: object) -> Rate:
    """Read a speed for both directions, such as 100kb, or a table with `up`, `down` or both."""
    if isinstance(value, dict):
        unknown = value.keys() - {"up", "down"}
        if unknown or not value:
            raise wrong(value, 'a table such as { up = "1mb", down = "10mb" }')
        return Rate(**{direction: _speed(speed) for direction, speed in value.items()})
    speed = _speed(value)
    return Rate(up=speed, down=speed)


def _speed(value: object) -> int | None:
    """Read bytes per second with their unit; an empty text is no limit."""
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and not value:
        return None
    number = float(found[1]) * _BYTES_PER_UNIT[found[2].lower()] if found else 0.0
    if not 1 <= number < math.inf:
        raise wrong(value, _RATE_EXAMPLE)
    return int(number)


def port_ranges(value: object) -> PortRanges:
    """Read ports and ranges of ports, such as 9000-9100,9200, in a text or in a list.

    An empty text allows every port. An empty list is refused, since it could also mean that none is allowed.
    """
    parts = value if isinstance(value, list) else [value]
    joined = ",".join(map(str, parts))
    ranges = []
    for part in joined.replace(" ", "").split(",") if value != "" else []:
        found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part, re.ASCII)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= low <= high <= MAX_PORT:
            raise wrong(value, "ports such as 9000-9100,9200")
        ranges.append((low, high))
    return PortRanges(joined, tuple(sorted(ranges)))


def _is_ipv6(text: str) -> bool:
    import ipaddress

    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _seems_to_have_port(text: str, default_port: int) -> bool:
    """Tell whether an IPv6 address is more likely an address in front of a port, such as ::1:8910."""
    import ipaddress

    in_front, _, last = text.rpartition(":")
    if not last.isdecimal() or not _is_ipv6(in_front):
        return False
    ip = ipaddress.IPv6Address(text)
    is_in_no_network = ip.packed.startswith(bytes(8)) and ip.ipv4_mapped is None
    return is_in_no_network or int(last) == default_port


def address(default_port: int) -> Reader:
    """Return a reader of `host` and `host:port`; IPv6 needs brackets in front of a port."""

    def read(value: object) -> Address:
        expected = "an address such as example.com:8910"
        if not isinstance(value, str) or len(value) > MAX_ADDRESS:
            raise wrong(value, expected)
        found = re.fullmatch(r"\[([^\[\]\s]+)\](?::(\d+))?|([^:\s\[\]/]+)(?::(\d+))?", value)
        if found is None:
            if not re.search("::|(.*:){7}", value) or "/" in value:
                raise wrong(value, expected)
            if not _is_ipv6(value) or _seems_to_have_port(value, default_port):
                raise wrong(value, "an IPv6 address in brackets, such as [2001:db8::1]:8910")
            return Address(value, default_port)
        number = found[2] or found[4] or default_port
        try:
            return Address(found[1] or found[3], port(number))
        except ConfigError:
            raise wrong(value, f"a port from 1 to {MAX_PORT}") from None

    return read
