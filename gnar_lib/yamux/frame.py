"""Frames: a header of 12 bytes and, behind Data alone, a payload; a codec that does no I/O.

The numbers are those of hashicorp/yamux, spec.md. They are plain integers, since every frame passes here.
"""

from __future__ import annotations

import struct
from typing import Final, NoReturn

from gnar_lib.errors import ProtocolError

VERSION: Final = 0  # the only one there is

DATA: Final = 0  # `length` bytes of payload follow
WINDOW_UPDATE: Final = 1  # the receiver of this frame may send `length` bytes more on the stream
PING: Final = 2  # with SYN a question, with ACK its answer, which repeats the `length`
GO_AWAY: Final = 3  # no further streams; `length` says why

# Flags are bits. A Data or WindowUpdate frame may carry any of them.
SYN: Final = 1  # opens the stream
ACK: Final = 2  # the other end has accepted the stream
FIN: Final = 4  # the sender of this frame sends no more data on the stream
RST: Final = 8  # ends the stream in both directions at once

# The reasons of a GoAway frame.
NORMAL: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2

SESSION_ID: Final = 0  # the stream id of frames that concern the whole session
MAX_STREAM_ID: Final = 0xFFFFFFFF
MAX_WINDOW_BYTES: Final = 0xFFFFFFFF  # an implementation may count windows in 32 bits
INITIAL_WINDOW_BYTES: Final = 256 * 1024  # of each direction of a new stream; no frame says so

# The first field is the version and the type: with the one version that there is, the type alone.
_HEADER = struct.Struct(">HHII")
HEADER_BYTES: Final = _HEADER.size

pack: Final = _HEADER.pack
"""Return the header of one frame, of its kind, flags, stream id and length."""

unpack_from: Final = _HEADER.unpack_from
"""Return kind, flags, stream id and length of a header. The kind is whatever the peer has sent."""


def refuse_kind(kind: int) -> NoReturn:
    """Raise `ProtocolError` for an unknown version or kind."""
    version = kind >> 8
    if version != VERSION:
        raise ProtocolError(f"version {version} of the multiplexing protocol, where {VERSION} was expected")
    raise ProtocolError(f"a multiplexing frame of unknown type {kind}")


def unpack(data: bytes | memoryview, at: int = 0) -> tuple[int, int, int, int]:
    """Return kind, flags, stream id and length of the header that begins at `at`.

    Raises `ProtocolError` for an unknown version or kind.
    """
    kind, flags, stream_id, length = unpack_from(data, at)
    if kind > GO_AWAY:
        refuse_kind(kind)
    return kind, flags, stream_id, length
