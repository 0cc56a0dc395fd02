"""Conversations of HTTP without conns: what one end says after the other, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from gnar_lib.errors import ProtocolError
from gnar_lib.inspect import Conversation, Exchange, Inspector, Origin

Said = tuple[Literal["user", "service"], bytes]


MAX_SHORT = 125  # the longest payload whose length is one byte


def cut(said: Iterable[Said], size: int) -> Iterator[Said]:
    """Yield the same in pieces of at most `size` bytes."""
    for who, data in said:
        for at in range(0, len(data), size):
            yield who, data[at : at + size]


def hear(said: Iterable[Said], body_bytes: int = 1000, *, tells_users: bool = False) -> list[Exchange]:
    """Return the exchanges of one connection, which ends in order after all has been said."""
    inspector = Inspector(body_bytes)
    conversation = inspector.conversation(Origin("web", "192.0.2.1:4000", tells_users=tells_users))
    problem = ""
    try:
        for who, data in said:
            tell(conversation, who, data)
    except ProtocolError as exc:
        problem = str(exc)
    conversation.give_up(problem)
    return [*inspector.store]


def tell(conversation: Conversation, who: str, data: bytes) -> None:
    """Let a conversation know what one end has sent."""
    (conversation.requested if who == "user" else conversation.answered)(data)


def frame(code: int, payload: bytes, *, mask: bytes = b"", first: int = 0x80) -> bytes:
    """Return a frame of a WebSocket: a whole message unless `first` says something else."""
    size = len(payload)
    if size > MAX_SHORT:
        length = b"\x7e" + size.to_bytes(2, "big") if size < 1 << 16 else b"\x7f" + size.to_bytes(8, "big")
    else:
        length = bytes([size])
    if mask:
        length = bytes([length[0] | 0x80]) + length[1:]
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return bytes([first | code]) + length + mask + payload
