"""What a stream has received and nobody has read: chunks, the newest of which are in borrowed memory."""

from __future__ import annotations

from typing import Final

# Smaller chunks are joined: each chunk costs about fifty bytes on top, and a peer may send single bytes.
JOIN_BYTES: Final = 2 * 1024


def copy_borrowed(chunks: list[bytes | memoryview], offset: int) -> int:
    """Replace the memoryviews by copies, since their memory is about to be reused.

    `offset` bytes of the first chunk have been read; returns how many that are afterwards.
    """
    first = len(chunks)
    while first and isinstance(chunks[first - 1], memoryview):
        first -= 1
    if first == len(chunks):
        return offset
    if not first and offset:
        chunks[0], offset = chunks[0][offset:], 0
    if first and len(chunks[first - 1]) < JOIN_BYTES:
        first -= 1
    chunks[first:] = [b"".join(chunks[first:])]
    return offset
