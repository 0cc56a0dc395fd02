"""The Exchange by which a user is announced on a data connection that is there; knows no conn.

Each user brings one, and those of one proxy differ in nothing but the address of the user. So what stands
before the address is made, and read, once for each proxy.
"""

from __future__ import annotations

from functools import lru_cache
from json.encoder import encode_basestring
from typing import Final

from gnar_lib.errors import MessageTooLongError
from gnar_lib.proto.msg import Exchange, Message, from_frame, to_frame
from gnar_lib.proto.numbers import NO_CONN_ID
from gnar_lib.proto.packet import HEADER, PacketType

MAX_KNOWN: Final = 256  # proxies whose announcements are known; those of others cost as much as any message
MAX_BYTES: Final = 2048  # of an announcement that is worth knowing
MAX_ADDRESS_BYTES: Final = 64  # of a user; there is no plain address that is longer

_USER: Final = b'"user":"'  # how the last field begins
_END: Final = b'"}'
_PLAIN: Final = frozenset(b"0123456789abcdefABCDEF.:[]")  # of which addresses consist

_known: dict[bytes, tuple[str, str, str, str]] = {}  # all fields but the last, by what stands before that


def announcement(proxy: str, user: str) -> bytes:
    """Return the frame that announces a `user`, by address, of a proxy; raises `MessageTooLongError`."""
    try:
        body = f"{_before_user(proxy)}{encode_basestring(user)}}}".encode()
    except UnicodeEncodeError as exc:
        raise MessageTooLongError("an address is not Unicode") from exc
    return HEADER.pack(PacketType.EXCHANGE, len(body)) + body


@lru_cache(MAX_KNOWN)
def _before_user(proxy: str) -> str:
    """Return the text of an announcement up to the address of the user."""
    frame = to_frame(Exchange(conn_id=NO_CONN_ID, proxy_type="tcp", proxy_name=proxy, user="?"))
    return frame[HEADER.size :].decode().removesuffix('"?"}')


def exchange_of(frame: bytes) -> Message:
    """Return the message in the whole frame of an Exchange; raises `ProtocolError`, as `from_frame` does."""
    at = frame.rfind(_USER)
    plain = frame[at + len(_USER) : -len(_END)]
    if at < 0 or not frame.endswith(_END) or len(frame) > MAX_BYTES:
        return from_frame(frame)
    if not 0 < len(plain) <= MAX_ADDRESS_BYTES or not _PLAIN.issuperset(plain):
        return from_frame(frame)
    before, user = frame[HEADER.size : at], plain.decode()
    known = _known.get(before)
    if known is not None:  # JSON that is valid with one plain text as its last value is valid with any other
        return Exchange(*known, user)
    message = from_frame(frame)
    if isinstance(message, Exchange) and (message.conn_id, message.user) == (NO_CONN_ID, user):
        _remember(before, message)
    return message


def _remember(before: bytes, message: Exchange) -> None:
    if len(_known) < MAX_KNOWN:
        _known[before] = message.conn_id, message.proxy_type, message.proof, message.proxy_name
