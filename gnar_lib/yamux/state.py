"""How a stream ends: its states, the events that change them, and the one table of transitions."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """Which ends of a stream have been ended, and how."""

    __hash__ = object.__hash__  # that of `Enum` is Python, and each end of a stream looks two states up

    OPEN = "open"
    WE_ENDED = "we send no more"
    PEER_ENDED = "the peer sends no more"
    ENDED = "both have ended"
    RESET = "reset"


class Event(Enum):
    """What ends a stream, or one direction of it."""

    __hash__ = object.__hash__  # as above

    SEND_FIN = "we send FIN"
    RECEIVE_FIN = "the peer sends FIN"
    SEND_RST = "we send RST"
    RECEIVE_RST = "the peer sends RST"


# A transition that is not here must not happen: a second FIN of the peer, say, breaks the protocol.
TRANSITIONS: Final = {
    (State.OPEN, Event.SEND_FIN): State.WE_ENDED,
    (State.OPEN, Event.RECEIVE_FIN): State.PEER_ENDED,
    (State.OPEN, Event.SEND_RST): State.RESET,
    (State.OPEN, Event.RECEIVE_RST): State.RESET,
    (State.WE_ENDED, Event.RECEIVE_FIN): State.ENDED,
    (State.WE_ENDED, Event.SEND_RST): State.RESET,
    (State.WE_ENDED, Event.RECEIVE_RST): State.RESET,
    (State.PEER_ENDED, Event.SEND_FIN): State.ENDED,
    (State.PEER_ENDED, Event.SEND_RST): State.RESET,
    (State.PEER_ENDED, Event.RECEIVE_RST): State.RESET,
}
