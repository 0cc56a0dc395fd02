"""What an engine of a layer is: the methods on which `LayeredConn` relies; no code."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol


class Made(Protocol):
    """What a layer has made for the conn below, and nobody has fetched."""

    @property
    def pending(self) -> int:
        """How many bytes there are."""

    def read(self) -> bytes | bytearray:
        """Return all of them: from then on they are gone."""


class LayerEngine(Protocol):
    """One end of a layer: what has come goes into `receive`, and what is to be sent comes out of `made`."""

    FRAME_BYTES: ClassVar[int]  # the most that one `write` takes
    READS_BEFORE_GOODBYE: ClassVar[bool]  # all that has come has to be read before `say_goodbye`
    peer_ended: bool  # the peer has said that it sends no more
    why_broken: str  # why nothing can be read any more

    @property
    def has_more(self) -> bool:
        """Whether the last `read_into` has ended early, with something, so that others have their turn."""

    @property
    def made(self) -> Made:
        """What is to be sent on the conn below."""

    @property
    def receive(self) -> Callable[[memoryview], object]:
        """Takes what has come from the conn below, in memory that is reused afterwards."""

    def read_into(self, buffer: memoryview, /) -> int:
        """Put what has come into `buffer`, as far as it fits, and return how many bytes that were.

        After 0, `peer_ended` and `why_broken` tell whether more can come.
        """

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Make a frame of up to `FRAME_BYTES`, and return how many bytes of `data` it carries.

        Raises `WriteError`.
        """

    def say_goodbye(self) -> None:
        """Tell the peer that this end sends no more."""
