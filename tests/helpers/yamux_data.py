"""Reads Data frames that a session of ours has sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.peers.mux import (
    Peer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def next_data(peer: Peer) -> tuple[int, int, int, bytes]:
    """Return the next Data frame."""
    while each := peer.recv():
        kind, flags, stream_id, content = each
        if isinstance(content, bytes):
            return kind, flags, stream_id, content
    pytest.fail("the end, instead of data")


def data_frames_before(peer: Peer, content: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Return the Data frames that come before one with this content."""
    while (each := next_data(peer))[3] != content:
        yield each
