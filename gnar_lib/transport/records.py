"""Counts the records of TLS in a stream of bytes; does no I/O, and decrypts nothing."""

from __future__ import annotations

from typing import Final, NamedTuple

HEADER_BYTES: Final = 5  # the type, the version, and the length of what follows (RFC 8446, section 5.1)


class Place(NamedTuple):
    """Where in a record a piece of the stream has ended."""

    left: int = 0  # bytes of the record, of which the header has come, that are still to come
    header: bytes = b""  # what has come of the next header


def records_in(data: bytes | memoryview, place: Place) -> tuple[int, Place]:
    """Return how many records begin in `data`, which goes on at `place`, and the place behind it.

    A record counts with the last byte of its header.
    """
    if place.header:
        data = place.header + bytes(data)
    count, at, size = 0, place.left, len(data)
    while at + HEADER_BYTES <= size:
        count += 1
        at += HEADER_BYTES + (data[at + 3] << 8) + data[at + 4]
    if at < size:
        return count, Place(0, bytes(data[at:]))
    return count, Place(at - size)
