"""Serves HTTP on conns: who asks, who may, who answers, and for how long anybody is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from socket import SHUT_WR

from gnar_lib import logger
from gnar_lib.errors import ConnError, DeadlineError
from gnar_lib.http.codec import ServerCodec
from gnar_lib.http.crowd import Crowd
from gnar_lib.http.limits import Limits
from gnar_lib.http.message import Answer, EventStream, Fields, Handler, HTTPError, Request, Response
from gnar_lib.http.paced import PacedConn
from gnar_lib.http.request import make_request
from gnar_lib.http.routes import Routes
from gnar_lib.http.share import share
from gnar_lib.http.streams import CONTENT_TYPE, run_stream
from gnar_lib.net import SocketConn, deadline

Guard = Callable[[Request], None]
"""Raises `HTTPError` if a request may not be served; sees it before its body is received."""
Call = Callable[[Request], Answer]

LINGER_PIECE_BYTES = 64 * 1024
MAX_LINGER_BYTES = 1 << 20  # that are read, and thrown away, behind the last request
MAX_REFUSING = 64  # conns that get a 503 at the same time; further ones are just closed

DEFECT = "there is a defect in gnar; its log tells more"
_STREAM_FIELDS = (
    ("Content-Type", CONTENT_TYPE),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),  # nginx would keep events back
    ("Connection", "close"),
)

_log = logger.get("http")


class Service:
    """Serves requests by the handlers of some routes. `headers` are added to every answer."""

    def __init__(
        self,
        routes: Routes,
        *,
        guard: Guard | None = None,
        headers: Fields = (),
        limits: Limits | None = None,
        log: logger.Logger = _log,
    ) -> None:
        self.limits = limits or Limits()
        self.log = log
        self.is_closing = False
        self._routes = routes
        self._guard = guard
        self._headers = tuple(headers)
        self.crowd = Crowd(self.limits)
        self._refusing = 0

    def serve(self, conn: SocketConn) -> None:
        """Serve one connection to its end, and close it; for `Listener.serve`."""
        try:
            if self.is_closing or not self.crowd.enter(conn):
                self._refuse(conn)
            else:
                _Connection(self, conn).run()
        except ConnError as exc:
            self.log.debug("%s", exc)
        finally:
            self.crowd.leave(conn)
            conn.close()

    def close(self) -> None:
        """Close all connections that wait for a request; the others end with the answer that is next."""
        self.is_closing = True
        self.crowd.close_waiting()

    def _refuse(self, conn: SocketConn) -> None:
        if self._refusing >= MAX_REFUSING:
            return
        self._refusing += 1
        try:
            PacedConn(conn).take_turn()
            _Connection(self, conn).refuse(
                HTTPError(503, "there are too many connections", [("Retry-After", "5")])
            )
        finally:
            self._refusing -= 1

    # ---- what a connection asks for ------------------------------------------------------------------------

    def find(self, request: Request) -> Call:
        """Return what answers a request once its body is there. Raises `HTTPError`, as the guard does."""
        with self._telling_of_defects(request):
            if self._guard is not None:
                self._guard(request)
            handler, parameters = self._routes.find(request)
        return lambda whole: self._answer(whole, handler, parameters)

    def _answer(self, request: Request, handler: Handler, parameters: dict[str, str]) -> Answer:
        with self._telling_of_defects(request):
            return handler(request, **parameters)

    @contextmanager
    def _telling_of_defects(self, request: Request) -> Iterator[None]:
        """Log any error of the block but `HTTPError`, and raise `HTTPError` 500 in its place."""
        try:
            yield
        except HTTPError:
            raise
        except Exception:
            self.log.exception("a defect in what answers %s %s", request.method, request.path)
            raise HTTPError(500, DEFECT) from None

    def fields(self, own: Fields) -> list[tuple[str, str]]:
        """Return the header fields of an answer; its own ones go before those that are always added."""
        own = list(own)
        names = {name.lower() for name, _ in own}
        date = ("Date", formatdate(time.time(), usegmt=True))
        return [date, *(field for field in self._headers if field[0].lower() not in names), *own]


class _Connection:
    """One connection: requests one after the other, each with its answer."""

    def __init__(self, service: Service, conn: SocketConn) -> None:
        self._service = service
        self._limits = service.limits
        self._conn = conn
        self._paced = PacedConn(conn)
        self._codec = ServerCodec(self._paced, service.limits)

    def run(self) -> None:
        """Serve until either end has enough."""
        self._conn.limit_unsent(self._limits.unsent_bytes)
        with self._service.crowd.waiting(self._conn):
            self._paced.take_turn()
        for left in reversed(range(self._limits.requests)):
            if not self._serve_one(is_last=not left):
                return
            if self._codec.has_received:  # a pipeline, in which nothing has to wait
                self._paced.take_turn()

    def _serve_one(self, *, is_last: bool) -> bool:
        """Serve one request; returns whether another may follow."""
        try:
            request = self._receive_request()
        except HTTPError as exc:
            self.refuse(exc)
            return False
        if request is None:
            return False
        try:
            call = self._service.find(request)
            answer = call(self._with_body(request))
        except HTTPError as exc:
            self._service.log.debug("%s: %d %s", self._conn, exc.status, exc)
            answer = Response.problem(exc)
        if isinstance(answer, EventStream):
            self._serve_stream(answer, is_for_head=request.method == "HEAD")
            return False
        self._send(answer, is_last=is_last or self._service.is_closing)
        if self._codec.start_next():
            return True
        self._linger()
        return False

    # ---- requests ------------------------------------------------------------------------------------------

    def _receive_request(self) -> Request | None:
        """Return the next request, without its body, None if the peer has none.

        Raises `HTTPError`, after which the peer is not listened to any more.
        """
        codec, limits = self._codec, self._limits
        with self._service.crowd.waiting(self._conn):
            with deadline(limits.idle_s, f"{self._conn}: no request"):
                if not codec.wait_for_head():
                    return None
            try:
                with deadline(limits.head_s, "sending the head"):
                    head = codec.receive_head()
            except DeadlineError as exc:
                raise HTTPError(408, str(exc)) from None
        return make_request(head, self._conn.getpeername())

    def _with_body(self, request: Request) -> Request:
        """Return a request with its body. Raises `HTTPError`."""
        if self._codec.has_whole_body:
            return request
        if request.headers.get("expect", "100-continue").lower() != "100-continue":
            raise HTTPError(417, "the only Expect is 100-continue")
        return replace(request, body=self._receive_body(request))

    def _receive_body(self, request: Request) -> bytes:
        limits = self._limits
        too_long = HTTPError(413, f"the body is longer than {limits.body_bytes} bytes")
        if int(request.headers.get("content-length", "0")) > limits.body_bytes:
            raise too_long
        body = bytearray()
        with self._service.crowd.waiting(self._conn):
            try:
                with deadline(limits.body_s, "sending the body"):
                    while piece := self._codec.receive_body():
                        body += piece
                        share.give_way()  # a piece may be a single byte
                        if len(body) > limits.body_bytes:
                            raise too_long
            except DeadlineError as exc:
                raise HTTPError(408, str(exc)) from None
        return bytes(body)

    # ---- answers -------------------------------------------------------------------------------------------

    def refuse(self, error: HTTPError) -> None:
        """Answer with an error, and be done with the peer."""
        self._service.log.debug("%s: %d %s", self._conn, error.status, error)
        self._send(Response.problem(error), is_last=True)
        self._linger()

    def _send(self, response: Response, *, is_last: bool) -> None:
        own = [*response.headers]
        if response.body:
            own.append(("Content-Type", response.content_type))
        if is_last or not self._codec.has_whole_body:  # what is unread would be taken for a request
            own.append(("Connection", "close"))
        with self._service.crowd.waiting(self._conn):
            try:
                self._codec.send_whole(response.status, self._service.fields(own), response.body)
            except ValueError:
                self._service.log.exception("a defect in an answer")
                self._codec.send_whole(500, [("Connection", "close")], DEFECT.encode())

    def _serve_stream(self, stream: EventStream, *, is_for_head: bool) -> None:
        """Send an event stream, which ends the connection."""
        with self._service.crowd.stream() as is_room:
            if not is_room:
                self.refuse(HTTPError(503, "there are too many event streams", [("Retry-After", "5")]))
                return
            own = [*stream.headers, *_STREAM_FIELDS]
            self._codec.send_head(200, self._service.fields(own))
            if is_for_head:
                self._codec.end_body()
            else:
                self._run_stream(stream)
        self._linger()

    def _run_stream(self, stream: EventStream) -> None:
        try:
            run_stream(stream, self._conn, self._codec, self._limits)
        except ConnError:
            raise
        except Exception:
            self._service.log.exception("a defect in an event stream")
            self._conn.abort()

    def _linger(self) -> None:
        """Wait until the peer has the last answer: with bytes unread, `close` could take the answer away."""
        self._conn.shutdown(SHUT_WR)
        left_bytes, what = MAX_LINGER_BYTES, f"{self._conn}: closing"
        with self._service.crowd.waiting(self._conn), deadline(self._limits.linger_s, what):
            while left_bytes > 0 and (data := self._paced.recv(LINGER_PIECE_BYTES)):
                left_bytes -= len(data)
                share.give_way()
