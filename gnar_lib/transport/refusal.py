"""Tells a peer whose handshake of TLS has failed why, and sees any peer off that was told something last.

Knows nothing of certificates.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from typing import Final

from gnar_lib.errors import ConnError, WriteError
from gnar_lib.net import Conn, deadline

PART_S: Final = 1.0  # for a peer to end its direction, too
MAX_READ_BYTES: Final = 64 * 1024  # that a peer sends meanwhile
_READ_BYTES = 16 * 1024

# What a browser or curl sends that is told http:// by mistake. The first segment may be a part of a word.
_HTTP = re.compile(rb"[A-Z]{1,20}(?: |$)")
_ANSWER_BODY = b"This port speaks HTTPS. Write https:// in front of the address.\n"
_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: close\r\n"
    b"\r\n%b" % (len(_ANSWER_BODY), _ANSWER_BODY)
)
# A record that holds an alert, which is fatal: `decode_error` (RFC 8446, section 6).
_ALERT = b"\x15\x03\x03\x00\x02\x02\x32"


def refuse(conn: Conn, received: bytes) -> None:
    """Answer a peer whose first bytes, which are `received`, are no ClientHello, and see it off.

    Waits for up to `PART_S`. The caller closes `conn`.
    """
    with suppress(WriteError):
        conn.send_now(_ANSWER if _HTTP.match(received) else _ALERT)
    see_off(conn)


def see_off(conn: Conn) -> None:
    """Read what the peer still sends, since a reset would take away what it was told last.

    Waits for up to `PART_S`. The caller closes `conn`.
    """
    with suppress(ConnError), deadline(PART_S, "the peer's end"):
        conn.shutdown(socket.SHUT_WR)
        count = 0
        while count < MAX_READ_BYTES and (data := conn.recv(_READ_BYTES)):
            count += len(data)
