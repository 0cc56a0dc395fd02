"""Tells by the first bytes of a connection to the control port what comes; does no I/O."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

_TLS: Final = 0x16  # a record that holds a handshake (RFC 8446, section 5.1)
_PROXY_LINE: Final = b"PROXY "  # version 1 of the PROXY protocol
_PROXY_BINARY: Final = b"\r\n\r\n\x00\r\nQUIT\n"  # version 2
_METHOD: Final = re.compile(rb"[A-Z][A-Z-]{0,19} ")  # with which the line of a request begins
_BEGUN_METHOD: Final = re.compile(rb"[A-Z][A-Z-]{0,19}")


class First(Enum):
    """What the first bytes of a connection show."""

    TLS = "TLS"
    HTTP = "HTTP"
    PROXY = "the PROXY protocol"
    OTHER = "a login, or nothing that is known here"


def first_of(data: bytes) -> First | None:
    """Return what begins with `data`; None if more of it is needed to tell."""
    if not data:
        return None
    if data[0] == _TLS:
        return First.TLS
    for start in (_PROXY_LINE, _PROXY_BINARY):
        if data.startswith(start):
            return First.PROXY
        if start.startswith(data):
            return None
    if _METHOD.match(data):
        return First.HTTP
    return None if _BEGUN_METHOD.fullmatch(data) else First.OTHER
