"""Makes exchanges of what both ends of one connection send: which answer is for which request.

Sans I/O; knows neither the conn nor who looks at the exchanges.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gnar_lib.errors import ProtocolError
from gnar_lib.inspect.exchange import FIELD_BYTES, Body, Exchange, Message, State, text_of
from gnar_lib.inspect.parser import Budget, Framing, Head, Parser
from gnar_lib.inspect.store import Store
from gnar_lib.inspect.websocket import INFLATER_BYTES, FrameParser, Inflater, Part

MAX_UNANSWERED = 64  # requests of one connection
MAX_INTERIM = 8  # answers that came before the answer
SWITCHING, FIRST_FINAL, FIRST_REDIRECTION = 101, 200, 300
_BODILESS = (204, 304)
_FORWARDED = b"x-forwarded-for"
_DEFLATE = re.compile(r"permessage-deflate\b([^,]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where exchanges are kept, and how much of each."""

    store: Store
    budget: Budget
    body_bytes: int  # of each body


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose connection it is.

    With `tells_users`, who the user is stands in each request: the server carries requests of several users
    on one connection, and has made sure of that field.
    """

    proxy: str
    user: str
    tells_users: bool = False
    replay_of: int = 0  # id of the exchange whose request is sent again


class Conversation:
    """The exchanges of one connection. Each method raises `ProtocolError` when what comes is no HTTP/1.

    Then nothing but `give_up` may follow.
    """

    def __init__(self, keeping: Keeping, origin: Origin) -> None:
        self._store = keeping.store
        self._budget = keeping.budget
        self._body_bytes = keeping.body_bytes
        self._origin = origin
        self.last: Exchange | None = None  # that has begun
        self._unanswered: deque[Exchange] = deque()
        self._requests = _Requests(self)
        self._answers = _Answers(self)
        self._request_parser = Parser(self._requests, self._budget, is_request=True)
        self._answer_parser = Parser(self._answers, self._budget, is_request=False)
        self._inflaters = 0

    def requested(self, data: bytes) -> None:
        """Take in what the user has sent."""
        self._request_parser.feed(data)

    def answered(self, data: bytes) -> None:
        """Take in what the local service has sent."""
        self._answer_parser.feed(data)

    def answers_end(self) -> None:
        """Take note that the local service sends no more."""
        self._answer_parser.end()

    def give_up(self, problem: str) -> None:
        """End everything that is open: with a `problem`, or in order if that is empty."""
        self._request_parser.drop()
        if not problem:
            self._answer_parser.end()
        self._answer_parser.drop()
        self._budget.change(self._inflaters * INFLATER_BYTES, 0)
        self._inflaters = 0
        left = [*self._unanswered]
        self._unanswered.clear()
        for exchange in (self._requests.present, self._answers.present):
            if exchange is not None and exchange not in left:
                left.append(exchange)
        self._requests.present = self._answers.present = None
        for exchange in left:
            is_over = exchange.is_answered or (exchange.is_switched and not problem)
            self._end(exchange, "" if is_over else problem or "the connection has ended before the answer")

    # ---- what the parsers find -----------------------------------------------------------------------------

    def begin(self, head: Head) -> Exchange:
        """Return the exchange that a request begins."""
        if len(self._unanswered) >= MAX_UNANSWERED:
            raise ProtocolError("too many requests have no answer")
        method, target, version = head.first
        user = self._origin.user
        if self._origin.tells_users and (told := head.values(_FORWARDED)):
            user = text_of(told[0].partition(b",")[0].strip())
        exchange = Exchange(
            id=self._store.next_id(),
            proxy=self._origin.proxy,
            user=user,
            method=method.decode(),
            target=target,
            version=text_of(version.strip()[5:]),
            request_fields=head.fields,
            request_head_bytes=head.size,
            request_body=Body(self._body_bytes),
            response_body=Body(self._body_bytes),
            is_forwarded=self._origin.tells_users,
            replay_of=self._origin.replay_of,
        )
        self._unanswered.append(exchange)
        self.last = exchange
        self._store.add(exchange, _cost_of(head))
        return exchange

    def request_ended(self, exchange: Exchange) -> None:
        """Take note that a request is whole."""
        exchange.request_s = exchange.elapsed_s
        if exchange.is_answered:
            self._end(exchange, "")
        elif not exchange.is_switched and _asks_for_upgrade(exchange):
            self._request_parser.hold()

    def unanswered(self) -> Exchange:
        """Return the exchange whose answer comes next."""
        if not self._unanswered:
            raise ProtocolError("an answer without a request")
        return self._unanswered[0]

    def answer_begun(self, exchange: Exchange, head: Head) -> tuple[Framing, int]:
        """Take the head of an answer; tell how the end of its body is found."""
        status = int(head.first[1])
        if status < FIRST_FINAL and status != SWITCHING:
            if len(exchange.interim) < MAX_INTERIM:
                exchange.interim.append(status)
            self._store.grown(exchange)
            return Framing.NONE, 0
        exchange.status = status
        exchange.reason = head.first[2].strip()
        exchange.response_version = text_of(head.first[0][5:])
        exchange.response_head_bytes = head.size
        exchange.first_byte_s = exchange.elapsed_s
        if exchange.is_kept:
            exchange.response_fields = head.fields
        self._store.grown(exchange, _cost_of(head))
        is_raw = status == SWITCHING or (exchange.method == "CONNECT" and status < FIRST_REDIRECTION)
        if is_raw:
            self._switch(exchange, head)
        if exchange is self.last:
            self._request_parser.release(is_raw=is_raw)
        if is_raw:
            return Framing.RAW, 0
        if exchange.method == "HEAD" or status in _BODILESS:
            return Framing.NONE, 0
        return head.framing()

    def answer_ended(self, exchange: Exchange) -> None:
        """Take note that an answer is whole."""
        self._unanswered.popleft()
        exchange.is_answered = True
        if exchange.request_s is not None:
            self._end(exchange, "")
        else:  # an early answer: the request goes on
            self._store.grown(exchange)

    def add_body(self, exchange: Exchange, body: Body, piece: memoryview) -> None:
        """Take a piece of a body."""
        kept = body.add(piece, is_kept=not exchange.is_websocket)
        self._store.grown(exchange, kept)

    def _end(self, exchange: Exchange, problem: str) -> None:
        exchange.duration_s = exchange.elapsed_s
        exchange.problem = problem
        exchange.state = State.BROKEN if problem else State.DONE
        self._store.ended(exchange)

    # ---- WebSockets ----------------------------------------------------------------------------------------

    def _switch(self, exchange: Exchange, head: Head) -> None:
        """From now on both ends speak something else."""
        exchange.is_switched = True
        self._requests.present = self._answers.present = exchange
        kinds = b",".join(head.values(b"upgrade")).lower()
        if exchange.status != SWITCHING or kinds != b"websocket":
            return
        exchange.is_websocket = True
        found = _DEFLATE.search(text_of(b",".join(head.values(b"sec-websocket-extensions"))))
        for sink, role, is_of_user in ((self._requests, "client", True), (self._answers, "server", False)):
            inflater = None
            if found and self._has_room_for_inflater():
                inflater = Inflater(forgets=f"{role}_no_context_takeover" in found[1])
            sink.frames = FrameParser(self._on_message(exchange, is_of_user=is_of_user), inflater)

    def _has_room_for_inflater(self) -> bool:
        try:
            self._budget.change(0, INFLATER_BYTES)
        except ProtocolError:
            return False
        self._inflaters += 1
        return True

    def _on_message(self, exchange: Exchange, *, is_of_user: bool) -> Callable[[Part], None]:
        def add(part: Part) -> None:
            number = exchange.messages_total + 1
            data, kind = bytes(part.data), part.kind
            message = Message(number, part.at, is_of_user, kind, part.size, data, part.is_compressed)
            self._store.add_message(exchange, message)

        return add


class _Requests:
    """Gets what is found in the user's bytes."""

    def __init__(self, of: Conversation) -> None:
        self._of = of
        self.present: Exchange | None = None
        self.frames: FrameParser | None = None

    def on_head(self, head: Head) -> tuple[Framing, int]:
        self.present = self._of.begin(head)
        framing, length = head.framing()
        return (Framing.NONE, 0) if framing is Framing.UNTIL_CLOSE else (framing, length)

    def on_body(self, piece: memoryview) -> None:
        if self.present is not None:
            self.frames = _took(self._of, self.present, self.present.request_body, self.frames, piece)

    def on_end(self) -> None:
        exchange = self.present
        if exchange is not None:
            self.present = exchange if exchange.is_switched else None
            self._of.request_ended(exchange)


class _Answers:
    """Gets what is found in the bytes of the local service."""

    def __init__(self, of: Conversation) -> None:
        self._of = of
        self.present: Exchange | None = None
        self.frames: FrameParser | None = None

    def on_head(self, head: Head) -> tuple[Framing, int]:
        exchange = self._of.unanswered()
        found = self._of.answer_begun(exchange, head)
        self.present = exchange if exchange.status else None
        return found

    def on_body(self, piece: memoryview) -> None:
        if self.present is not None:
            self.frames = _took(self._of, self.present, self.present.response_body, self.frames, piece)

    def on_end(self) -> None:
        exchange, self.present = self.present, None
        if exchange is not None:  # else it was an interim answer
            self._of.answer_ended(exchange)


def _took(
    of: Conversation, exchange: Exchange, body: Body, frames: FrameParser | None, piece: memoryview
) -> FrameParser | None:
    """Take a piece of a body, or of a WebSocket, of which only messages are kept.

    Returns what reads the frames from now on: None once they make no sense.
    """
    of.add_body(exchange, body, piece)
    try:
        if frames is not None:
            frames.feed(piece)
    except ProtocolError:
        exchange.has_lost_messages = True
        return None
    return frames


def _cost_of(head: Head) -> int:
    return head.size + FIELD_BYTES * len(head.fields)


def _asks_for_upgrade(exchange: Exchange) -> bool:
    return exchange.method == "CONNECT" or any(
        name.lower() == b"upgrade" for name, _ in exchange.request_fields
    )
