"""How a try to deliver an event has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gnar_lib.hooks.message import Message


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one try; `reason` is empty if the event was delivered."""

    reason: str = ""
    may_retry: bool = False  # another try can end better
    wait_s: float = 0.0  # how long the receiver asks to be left alone

    def __bool__(self) -> bool:
        return not self.reason


class Deliverer(Protocol):
    """Delivers messages of one hook, one at a time."""

    def deliver(self, message: Message) -> Outcome:
        """Try once, for as long as the hook's time limit allows; raises nothing but `GreenletExit`."""
