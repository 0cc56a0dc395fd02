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


# The members by themselves, since each frame asks for some, and to look one up in its class takes a while.
OPEN, WE_ENDED, PEER_ENDED, ENDED, RESET = State
OVER: Final = (ENDED, RESET)
SEND_FIN, RECEIVE_FIN, SEND_RST, RECEIVE_RST = Event

# A transition that is not here must not happen: a second FIN of the peer, say, breaks the protocol.
TRANSITIONS: Final = {
    (OPEN, SEND_FIN): WE_ENDED,
    (OPEN, RECEIVE_FIN): PEER_ENDED,
    (OPEN, SEND_RST): RESET,
    (OPEN, RECEIVE_RST): RESET,
    (WE_ENDED, RECEIVE_FIN): ENDED,
    (WE_ENDED, SEND_RST): RESET,
    (WE_ENDED, RECEIVE_RST): RESET,
    (PEER_ENDED, SEND_FIN): ENDED,
    (PEER_ENDED, SEND_RST): RESET,
    (PEER_ENDED, RECEIVE_RST): RESET,
}
