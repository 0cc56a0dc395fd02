"""How a stream ends: its states, what changes them, and the one table of both."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """What has been said about the end of a stream."""

    OPEN = "open"
    WE_ENDED = "we send no more"
    PEER_ENDED = "the peer sends no more"
    ENDED = "both have ended"
    RESET = "reset"


class Event(Enum):
    """What can end a stream, or half of it."""

    SEND_FIN = "we send FIN"
    GET_FIN = "the peer sends FIN"
    SEND_RST = "we send RST"
    GET_RST = "the peer sends RST"


# What is not here must not happen: a second FIN of the peer is an error of the protocol.
TRANSITIONS: Final = {
    (State.OPEN, Event.SEND_FIN): State.WE_ENDED,
    (State.OPEN, Event.GET_FIN): State.PEER_ENDED,
    (State.OPEN, Event.SEND_RST): State.RESET,
    (State.OPEN, Event.GET_RST): State.RESET,
    (State.WE_ENDED, Event.GET_FIN): State.ENDED,
    (State.WE_ENDED, Event.SEND_RST): State.RESET,
    (State.WE_ENDED, Event.GET_RST): State.RESET,
    (State.PEER_ENDED, Event.SEND_FIN): State.ENDED,
    (State.PEER_ENDED, Event.SEND_RST): State.RESET,
    (State.PEER_ENDED, Event.GET_RST): State.RESET,
}
