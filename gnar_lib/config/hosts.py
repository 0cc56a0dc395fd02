"""Host names: in which form they are kept and compared, and what is none; looks nothing up."""

from __future__ import annotations

import re

from gnar_lib.errors import ConfigError

MAX_HOST = 253  # characters, RFC 1035, 2.3.4, without the length of the root
MAX_LABEL = 63
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
# Letters which the codec of Python and browsers encode in different ways (IDNA 2003 and 2008).
_DEVIATING = "\u00df\u03c2\u200c\u200d"


def ascii_host(text: str, *, wildcard: bool = False) -> str:
    """Return a host name, or some of its labels, in lower case and ASCII; raises `ConfigError`.

    With `wildcard`, the first of several labels may be `*`.
    """
    name = text.removesuffix(".")
    star, rest = ("*.", name[2:]) if wildcard and name.startswith("*.") else ("", name)
    host = star + ".".join(map(_ascii_label, rest.split(".")))
    if len(host) > MAX_HOST:
        raise ConfigError(f"a name of more than {MAX_HOST} characters")
    if re.fullmatch(r"\d+(\.\d+){3}", host):
        raise ConfigError(f"{host} looks like an IP address, which is no name")
    return host


def whole_host(text: str, *, wildcard: bool = False) -> str:
    """Return a host name that is whole, as `ascii_host` does; such a name does not end with a number."""
    host = ascii_host(text, wildcard=wildcard)
    if host.rpartition(".")[2].isdigit():
        raise ConfigError("no name ends with a number")
    return host


def _ascii_label(text: str) -> str:
    label = text.lower()
    if not label.isascii():
        label = _encoded(text)
    if not label:
        raise ConfigError("an empty label: a dot too many, or no name at all")
    if len(label) > MAX_LABEL:
        raise ConfigError(f"{label[:20]}...: a label of more than {MAX_LABEL} characters")
    if label == "*" or not _LABEL.fullmatch(label):
        what = "* can be the first label alone" if "*" in label else _WRONG_LABEL
        raise ConfigError(f"{label!r}: {what}")
    if label[2:4] == "--" and not (label.startswith("xn--") and _decodes(label)):
        raise ConfigError(f"{label!r}: no name that is encoded (IDNA) has this form")
    return label


_WRONG_LABEL = "a label has letters, digits and hyphens, and neither begins nor ends with a hyphen"


def _encoded(label: str) -> str:
    if any(letter in label for letter in _DEVIATING):
        raise ConfigError(f"{label!r}: browsers disagree about a letter; write the name as xn--...")
    try:
        return label.encode("idna").decode().lower()
    except UnicodeError:
        raise ConfigError(f"{label!r}: cannot be encoded as a name (IDNA)") from None


def _decodes(label: str) -> bool:
    """Tell whether a label that begins with `xn--` is what some text is encoded to."""
    try:
        text = label[4:].encode().decode("punycode")
        return text.isprintable() and not text.isascii() and text.encode("punycode").decode() == label[4:]
    except (UnicodeError, ValueError, OverflowError):
        return False


def fits(host: str, pattern: str) -> bool:
    """Tell whether a host is what a pattern allows: the same, or with `*` one label in its place."""
    return host == pattern or (pattern.startswith("*.") and host.partition(".")[2] == pattern[2:])
