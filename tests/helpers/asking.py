"""A proxy that answers from memory."""

from __future__ import annotations

from gnar_lib.transport.dialogue import Dialogue


def hear(dialogue: Dialogue, answer: bytes, size: int = 1 << 20) -> tuple[bytes, bytes]:
    """Answer in pieces of `size` bytes, then hang up; return what was sent, and the tunnel's bytes."""
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    sent, said = b"", next(dialogue)
    try:
        while True:
            if said is None:
                said = dialogue.send(pieces.pop(0) if pieces else b"")
            else:
                sent += said
                said = dialogue.send(b"")
    except StopIteration as end:
        rest: bytes = end.value
        return sent, rest + b"".join(pieces)
