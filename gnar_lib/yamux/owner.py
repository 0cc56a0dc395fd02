"""What a stream needs of the session to which it belongs; no code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gnar_lib.net import Sockaddr
from gnar_lib.yamux.sender import Sender
from gnar_lib.yamux.window import Path


class Owner(Protocol):
    """A session, as its streams see it."""

    closed: bool  # the session has ended
    sender: Sender  # sends the frames of all streams
    path: Path  # what the windows of all streams share
    stored_bytes: int  # received and unread, in all streams
    moves: bool  # streams may go on over conns beside them
    joins_end: bool  # the peer takes the end of a direction in one frame with bytes

    @property
    def why_closed(self) -> str:
        """Why the session has ended, in words."""

    def getpeername(self) -> Sockaddr:
        """Return the address of the session's other end."""

    def forget(self, stream_id: int, *, is_new: bool) -> None:
        """Ignore frames for a stream that has ended."""

    def on_accepted(self, stream_id: int) -> None:
        """The peer has accepted a stream that this end opened, or the stream has ended before."""

    def on_half_gone(self, stream_id: int) -> None:
        """This end has closed a stream that the peer has not ended."""

    def on_claimed(self, stream_id: int) -> None:
        """A stream of the peer has said what it is for."""

    def bring_beside(self, stream_id: int) -> bool:
        """Begin to bring a conn beside a stream; False if this end cannot bring any."""

    def send_window_update(self, frame: bytes) -> None:
        """Send a WindowUpdate `frame`; measure the round trip if no recent measurement is known."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the hub."""
