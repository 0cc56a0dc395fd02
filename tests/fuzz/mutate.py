"""Makes new inputs of known ones, by changes that parsers are known to stumble over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

MAX_BYTES = 70_000  # a little more than the largest frame
MAX_CHANGES = 4  # of one input
NUMBERS = (b"0", b"-1", b"65535", b"65536", b"4294967296", b"9223372036854775808", b"1e999", b"NaN", b"0x10")
PIECES = (
    b"",
    b"\0",
    b"\n",
    b"\r\n",
    b'"',
    b"'",
    b"\\",
    b"[",
    b"]",
    b"{",
    b"}",
    b":",
    b",",
    b"=",
    b"%",
    *NUMBERS,
)
NASTY = ("\ufeff", "\u202e", "\u0660", "ß", "\U0001f600", "\u2028")  # a digit that is not ASCII is among them
COUNTS = (2, 10, 100, 1000, 5000)


def mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """Return a changed seed; the same for the same state of `random`."""
    data = random.choice(seeds)
    for _ in range(random.randint(1, MAX_CHANGES)):
        data = random.choice(_CHANGES)(data, seeds, random)[:MAX_BYTES]
    return data


def _span(data: bytes, random: Random) -> tuple[int, int]:
    """Return the beginning and the end of a random part of the data, most often a short one."""
    begin = random.randint(0, len(data))
    longest = random.choice((1, 4, 16, len(data)))
    return begin, min(len(data), begin + random.randint(0, longest))


def _flip(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]


def _replace(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    begin, end = _span(data, random)
    return data[:begin] + random.choice((*PIECES, *(text.encode() for text in NASTY))) + data[end:]


def _randomize(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    begin, end = _span(data, random)
    return data[:begin] + random.randbytes(end - begin) + data[end:]


def _repeat(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    begin, end = _span(data, random)
    count = min(random.choice(COUNTS), MAX_BYTES // max(end - begin, 1))
    return data[:begin] + data[begin:end] * count + data[end:]


def _delete(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    begin, end = _span(data, random)
    return data[:begin] + data[end:]


def _cut(data: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


def _cross(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    """Put a part of another seed into the data."""
    other = random.choice(seeds)
    begin, end = _span(data, random)
    other_begin, other_end = _span(other, random)
    return data[:begin] + other[other_begin:other_end] + data[end:]


def _append(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    return data + random.choice(seeds)


_CHANGES: tuple[Callable[[bytes, Sequence[bytes], Random], bytes], ...] = (
    _flip,
    _replace,
    _randomize,
    _repeat,
    _delete,
    _cut,
    _cross,
    _append,
)
