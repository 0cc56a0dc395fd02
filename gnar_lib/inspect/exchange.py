"""What is kept of a request and its answer; knows neither how bytes become one nor who looks at it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

Field = tuple[bytes, bytes]
"""A header field as it came: its name and its value."""

MAX_MESSAGES = 200  # of one WebSocket that are kept, the last ones
FIELD_BYTES = 150  # what Python needs for a field besides its text
MESSAGE_BYTES = 300  # the same for a message


class State(Enum):
    """How far an exchange has come."""

    OPEN = "open"
    DONE = "done"
    BROKEN = "broken"


class Body:
    """The first `limit` bytes of a body, and the size of all of it."""

    __slots__ = ("data", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.limit = limit
        self.size = 0

    @property
    def is_truncated(self) -> bool:
        """Whether there was more than is kept."""
        return self.size > len(self.data)

    def add(self, piece: memoryview, *, is_kept: bool = True) -> int:
        """Take in what comes next, or only count it; return how many bytes of it are kept."""
        self.size += len(piece)
        kept = piece[: max(self.limit - len(self.data), 0) if is_kept else 0]
        self.data += kept
        return len(kept)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a WebSocket."""

    number: int  # of the messages of both directions, from 1
    at: float  # as time.time() says
    is_of_user: bool
    kind: str  # "text", "binary", "close", "ping" or "pong"
    size: int  # in bytes, decompressed where that was possible to its end
    data: bytes  # the beginning
    is_compressed: bool = False  # it could not be decompressed to its end


@dataclass(eq=False, slots=True)
class Exchange:
    """A request, and what came back."""

    id: int
    proxy: str
    user: str  # the user's address, empty if it is not known
    method: str
    target: bytes
    version: str  # such as "1.1"
    request_fields: list[Field]
    request_head_bytes: int
    request_body: Body
    response_body: Body
    is_forwarded: bool = False  # the server has said in its fields whom the request is from, and what for
    replay_of: int = 0  # id of the exchange whose request was sent again; 0 for none
    began_at: float = field(default_factory=time.time)
    began_s: float = field(default_factory=time.monotonic)
    status: int = 0  # 0 until there is an answer
    reason: bytes = b""
    response_version: str = ""
    response_fields: list[Field] = field(default_factory=list)
    response_head_bytes: int = 0
    interim: list[int] = field(default_factory=list)  # statuses below 200 that came before the answer
    request_s: float | None = None  # from the beginning to the end of the request
    first_byte_s: float | None = None  # from the beginning to the head of the answer
    duration_s: float | None = None  # from the beginning to the end of both
    is_answered: bool = False  # the answer is whole
    state: State = State.OPEN
    problem: str = ""  # why it is broken
    is_websocket: bool = False
    is_switched: bool = False  # both ends speak something else than HTTP now
    has_lost_messages: bool = False  # there are further messages that could not be read
    messages: deque[Message] = field(default_factory=lambda: deque(maxlen=MAX_MESSAGES))
    messages_total: int = 0
    is_kept: bool = True  # False: the store has let go of it
    cost_bytes: int = 0  # of memory, about
    change: int = 0  # number of its last change

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """What stands behind the question mark."""
        return self.target.partition(b"?")[2]

    @property
    def seconds(self) -> float:
        """How long it has taken until now, or to its end."""
        return time.monotonic() - self.began_s if self.duration_s is None else self.duration_s

    @property
    def elapsed_s(self) -> float:
        """The seconds since it began, whether it has ended or not."""
        return time.monotonic() - self.began_s

    def let_go(self) -> None:
        """Forget all that is large."""
        self.is_kept = False
        for body in (self.request_body, self.response_body):
            body.limit = 0
            body.data.clear()
        self.request_fields = []
        self.response_fields = []
        self.messages.clear()


def text_of(raw: bytes | bytearray) -> str:
    """Return the text of bytes that are UTF-8, or else Latin-1."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def value_of(fields: list[Field], name: bytes) -> bytes:
    """Return the values of a field, joined by commas; `name` is in lower case."""
    return b", ".join(value for other, value in fields if other.lower() == name)
