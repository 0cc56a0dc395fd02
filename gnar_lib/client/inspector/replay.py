"""Sends requests to the local service again, and records the answers; knows neither page nor port."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from gnar_lib.client.inspector.edit import Edited
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.errors import ConnError, DialError, ProtocolError
from gnar_lib.http import HTTPError
from gnar_lib.inspect import Conversation, Exchange, Inspector, Origin, State
from gnar_lib.net import Conn, Crew, deadline, give_way

MAX_REPLAYS = 8  # at the same time
ANSWER_S = 60.0  # until an answer is whole
PIECE_BYTES = 64 * 1024
USER = "replay"


class Replayer:
    """Sends requests to the local services of proxies; `find` returns the proxy with a name."""

    def __init__(self, inspector: Inspector, find: Callable[[str], ClientProxy | None]) -> None:
        self.crew = Crew("replay")
        self._inspector = inspector
        self._find = find

    def send(self, exchange: Exchange, request: Edited) -> int:
        """Send a request to where that of `exchange` has gone; return the id of the new exchange.

        The answer is recorded as it comes. Raises `HTTPError`.
        """
        proxy = self._find(exchange.proxy)
        if proxy is None or proxy.udp is not None:
            raise HTTPError(409, f"there is no proxy {exchange.proxy!r} any more")
        if len(self.crew) >= MAX_REPLAYS:
            raise HTTPError(429, "too many requests are being sent again", [("Retry-After", "1")])
        try:
            conn = proxy.dial()
        except DialError as exc:
            raise HTTPError(502, f"the local service does not answer: {exc}") from exc
        conversation = self._inspector.conversation(Origin(exchange.proxy, USER, replay_of=exchange.id))
        data = request.encoded()
        with suppress(ProtocolError):
            conversation.requested(data)
        begun = conversation.last
        if begun is None:
            conn.close()
            raise HTTPError(400, "that would be no request of HTTP/1.1")
        self.crew.spawn(_run, conn, conversation, begun, data)
        return begun.id


def _run(conn: Conn, conversation: Conversation, exchange: Exchange, data: bytes) -> None:
    """Send a request, and take its answer to the end."""
    problem = ""
    try:
        with deadline(ANSWER_S, "the whole answer"):
            conn.sendall(data)
            while exchange.state is State.OPEN and (piece := conn.recv(PIECE_BYTES)):
                conversation.answered(piece)
                give_way()  # a fast service would leave no time for users
    except (ConnError, ProtocolError) as exc:
        problem = str(exc)
    finally:
        conn.close()
        conversation.give_up(problem)
