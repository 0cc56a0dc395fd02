"""Passes one request on to a service, and the answer back; knows neither names nor who may ask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gnar_lib.errors import ConnClosed, ConnError, DeadlineError, ProtocolError
from gnar_lib.http.chunks import Chunks
from gnar_lib.http.heads import (
    CHUNKED,
    UNTIL_CLOSE,
    RequestToPass,
    ResponseToPass,
    lines_of,
    read_response,
)
from gnar_lib.http.message import HTTPError
from gnar_lib.net import Conn, SocketConn
from gnar_lib.proxy.buffer import send_counted
from gnar_lib.proxy.portion import copy_chunked, copy_length
from gnar_lib.proxy.stream import stream
from gnar_lib.proxy.ways import copy_to_end
from gnar_lib.server.web.forwarded import Origin
from gnar_lib.server.web.lane import Lane
from gnar_lib.server.web.site import Site, is_small
from gnar_lib.server.web.upload import Upload

PIECE_BYTES = 16 * 1024  # received at once while a head is awaited
MAX_INTERIM = 32  # answers 1xx before the final one
SWITCHING, CONTINUE, FIRST_FINAL = 101, 100, 200
_WITH_BODY = (b"POST", b"PUT", b"PATCH")
HEAD_END = b"\r\n\r\n"


class NoAnswerError(ConnError):
    """The service has ended the connection before the first byte of an answer."""


class Forwarding:
    """One request on its way over a lane that is open, and its answer."""

    __slots__ = (
        "_is_told_to_go_on",
        "_origin",
        "_request",
        "_site",
        "_upload",
        "_user",
        "has_begun",
        "has_switched",
        "keeps_lane",
        "lane",
    )

    def __init__(self, site: Site, user: Conn, request: RequestToPass, origin: Origin, lane: Lane) -> None:
        self.has_begun = False  # a byte of the final answer may have been sent to the user
        self.has_switched = False  # both ends speak another protocol now
        self.keeps_lane = False  # another request may follow on the lane
        self._site = site
        self._user = user
        self._request = request
        self._origin = origin
        self.lane = lane
        self._is_told_to_go_on = False  # by an answer 100
        self._upload: Upload | None = None  # while there is more of a body than came with the head

    def run(self, body: bytes) -> bool:
        """Pass the request on, whose head was followed by `body`; returns whether another may follow.

        What follows the request is unread at the user's conn. Raises `NoAnswerError`, `HTTPError` while the
        user can still be answered, or a `ConnError` after which nothing can be said to the user.
        """
        try:
            self._send_request(body)
            head, rest = self._receive_head()
            return self._pass_answer(head, rest)
        except (ConnError, HTTPError):
            if self._upload is not None:
                self._end_upload(self._upload)
            raise

    @property
    def waits_for_body(self) -> bool:
        """Whether nothing of an answer has come, and some of the body has yet to come."""
        return self._upload is not None and not (self._upload.has_ended or self.has_begun)

    @property
    def _is_last_on_lane(self) -> bool:
        """Whether no other request may follow on the lane.

        Some services leave the body of a GET unread, and would take it for the next request.
        """
        request = self._request
        return request.is_1_0 or (request.length != 0 and request.method not in _WITH_BODY)

    # ---- the request ---------------------------------------------------------------------------------------

    def _send_request(self, body: bytes) -> None:
        length, lane = self._request.length, self.lane
        copy: Callable[[], None] | None = None
        if length == CHUNKED:
            chunks = Chunks(lane.proxy.web.request_edits.names)
            try:
                taken = chunks.feed(body)
            except ProtocolError as exc:
                raise HTTPError(400, str(exc)) from exc
            if not chunks.has_ended:
                copy = partial(copy_chunked, self._user, lane.conn, chunks, lane.up)
        else:
            taken = min(length, len(body))
            if taken < length:
                copy = partial(copy_length, self._user, lane.conn, length - taken, lane.up)
        if taken < len(body):
            self._user.unread(body[taken:])
            body = body[:taken]
        try:
            send_counted(self._request_head() + body, lane.conn, lane.up)
        except ConnError as exc:
            raise NoAnswerError(str(exc)) from exc
        if copy is not None:
            if isinstance(self._user, SocketConn):
                self._user.stop_reading()  # from now on another greenlet reads it
            self._upload = Upload(self._user, copy, lambda: lane.up.bytes, lane.abort)

    def _request_head(self) -> bytes:
        lane = self.lane
        if lane.sent_for is not self._origin:  # else the same request goes the same way again
            lane.sent_for, lane.sent_head = self._origin, self._make_request_head()
        return lane.sent_head

    def _make_request_head(self) -> bytes:
        request, settings = self._request, self.lane.proxy.web
        edits = settings.request_edits
        more = edits.lines
        if request.seen:
            more += self._special_lines()
        return b"%b %b HTTP/1.%d\r\nHost: %b\r\n%b%b%b\r\n" % (
            request.method,
            request.target,
            not request.is_1_0,
            settings.host_header or request.authority,
            lines_of(edits.without(request.pairs)),
            self._origin.fields,
            more,
        )

    def _special_lines(self) -> bytes:
        """Return the fields that tell of the body and of the connection to the service."""
        request, lines = self._request, b""
        seen = request.seen
        if request.length == CHUNKED:
            lines = b"Transfer-Encoding: chunked\r\n"
        elif b"content-length" in seen:
            lines = b"Content-Length: %d\r\n" % request.length
        if request.upgrade:
            lines += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % request.upgrade
        elif self._is_last_on_lane:
            lines += b"Connection: close\r\n"
        elif request.trailers:
            lines += b"Connection: TE\r\nTE: trailers\r\n"
        if request.expects_continue:
            lines += b"Expect: 100-continue\r\n"
        if b"authorization" in seen and not self.lane.proxy.web.basic_auth:
            lines += b"".join([b"Authorization: %b\r\n" % each for each in seen[b"authorization"]])
        return lines

    # ---- the answer ----------------------------------------------------------------------------------------

    def _receive_head(self) -> tuple[bytes, bytes]:
        """Return the head of the next answer, and what came behind it."""
        conn = self.lane.conn
        try:
            data = conn.recv(PIECE_BYTES)
        except ConnError as exc:
            raise self._why_no_answer(str(exc)) from exc
        if not data:
            raise self._why_no_answer("the service has ended the connection")
        end = data.find(HEAD_END)
        while end < 0:
            if len(data) > self._site.limits.head_bytes:
                raise HTTPError(502, "the service has sent a head that is too long")
            try:
                more = conn.recv(PIECE_BYTES)
            except ConnError:
                more = b""
            if not more:
                raise HTTPError(502, "the service has ended the connection within its answer")
            end, data = (data + more).find(HEAD_END, max(len(data) - 3, 0)), data + more
        return data[: end + 4], data[end + 4 :]

    def _why_no_answer(self, reason: str) -> Exception:
        """Return the error for a connection that has ended without an answer."""
        error = None if self._upload is None else self._upload.error
        if isinstance(error, ProtocolError):
            return HTTPError(400, str(error))
        if isinstance(error, DeadlineError):
            return HTTPError(408, str(error))
        if error is not None:
            return ConnClosed(str(error))  # the user has gone
        return NoAnswerError(reason)

    def _pass_answer(self, head: bytes, rest: bytes) -> bool:
        request, to_head = self._request, self._request.method == b"HEAD"
        response = self._read_response(head, to_head=to_head)
        if not self.lane.has_answered:
            self.lane.note_answer()
        interim = 0
        while response.status < FIRST_FINAL:
            if response.status == SWITCHING:
                return self._switch(response, rest)
            interim += 1
            if interim > MAX_INTERIM:
                raise HTTPError(502, "the service answers without an end")
            if not request.is_1_0 and (response.status != CONTINUE or request.expects_continue):
                self._user.sendall(self._response_head(response))
                self._is_told_to_go_on = self._is_told_to_go_on or response.status == CONTINUE
            if rest:
                self.lane.conn.unread(rest)
            head, rest = self._receive_head()
            response = self._read_response(head, to_head=to_head)
        return self._pass_final(response, rest)

    def _read_response(self, head: bytes, *, to_head: bool) -> ResponseToPass:
        lane = self.lane
        if head == lane.received_head and to_head == lane.was_to_head:  # the same has come again
            return lane.received
        response = read_response(head, self._site.limits, to_head=to_head)
        if is_small(head, response.pairs):
            lane.received, lane.received_head, lane.was_to_head = response, head, to_head
        return response

    def _pass_final(self, response: ResponseToPass, rest: bytes) -> bool:
        """Pass the final answer on; returns whether another request may follow."""
        lane, user, length = self.lane, self._user, response.length
        is_uploading = self._upload is not None and not self._upload.is_whole
        goes_on = (
            self._request.keeps_alive
            and length != UNTIL_CLOSE
            and not is_uploading
            and not self._site.is_ending
        )
        chunks = None
        if length == CHUNKED:
            chunks = Chunks()
            taken = self._feed(chunks, rest)
        else:
            taken = len(rest) if length == UNTIL_CLOSE else min(length, len(rest))
        is_clean = taken == len(rest)  # else the service has sent something that nobody has asked for
        head = self._response_head(response, b"" if goes_on else b"Connection: close\r\n")
        self.has_begun = True
        self._site.answers[response.status // 100] += 1
        send_counted(head + (rest if is_clean else rest[:taken]), user, lane.down)
        if chunks is not None:
            self._pass_chunks(chunks)
        elif length == UNTIL_CLOSE:
            copy_to_end(lane.conn, user, lane.down)
        elif taken < length:
            copy_length(lane.conn, user, length - taken, lane.down)
        self.keeps_lane = (
            is_clean and response.keeps_alive and length != UNTIL_CLOSE and not is_uploading
        ) and not self._is_last_on_lane
        if self._upload is not None:
            self._end_upload(self._upload)
        return goes_on

    def _feed(self, chunks: Chunks, rest: bytes) -> int:
        try:
            return chunks.feed(rest)
        except ProtocolError as exc:
            raise HTTPError(502, "the service has sent a body that is malformed") from exc

    def _pass_chunks(self, chunks: Chunks) -> None:
        """Pass on what has yet to come of a chunked body; raises `ConnClosed` also for a malformed one."""
        try:
            copy_chunked(self.lane.conn, self._user, chunks, self.lane.down)
        except ProtocolError as exc:
            raise ConnClosed(f"the body of the service is malformed: {exc}") from exc

    def _response_head(self, response: ResponseToPass, more: bytes = b"") -> bytes:
        edits = self.lane.proxy.web.response_edits
        if response.status >= FIRST_FINAL and (edits or self._site.hsts):
            more += edits.lines
            if self._origin.scheme == "https":
                more += self._site.hsts
        return b"HTTP/1.1 %d%b\r\n%b%b\r\n" % (
            response.status,
            response.reason,
            lines_of(edits.without(response.pairs)) if edits else response.lines,
            more,
        )

    # ---- what goes on besides ------------------------------------------------------------------------------

    def _switch(self, response: ResponseToPass, rest: bytes) -> bool:
        """Join user and service, which from now on speak another protocol, to their end."""
        if not self._request.upgrade or self._upload is not None:
            raise HTTPError(502, "the service changes to a protocol for which nobody has asked")
        lane, user = self.lane, self._user
        lines = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % (response.upgrade or self._request.upgrade)
        self.has_begun = self.has_switched = True
        user.sendall(self._response_head(response, lines))
        if rest:
            lane.conn.unread(rest)
        lane.stop_reading()
        if isinstance(user, SocketConn):
            user.stop_reading()
        stream(user, lane.conn, lane.up, lane.down, lane.idle_timeout_s)
        return False

    def _end_upload(self, upload: Upload) -> None:
        """Behind the answer: let the service have the rest of the body if it takes it, else stop."""
        if self.has_begun and (self._is_told_to_go_on or not self._request.expects_continue):
            upload.wait_end()
        if not upload.has_ended:
            self.lane.close()
            upload.stop()
