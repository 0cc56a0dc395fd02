"""Requests and responses over a conn, with bodies in pieces: h11 between bytes and meaning; knows no service.

`ServerCodec` receives requests and sends responses, `ClientCodec` the other way round. Their methods wait.
The caller sets deadlines for what is received. What is sent has a deadline here, by its length, so that a
slow peer gets a long body, and a peer that takes next to nothing does not hold the sender.
"""

from __future__ import annotations

from dataclasses import dataclass

import h11

from gnar_lib.errors import ConnClosed, ProtocolError
from gnar_lib.http.head import HeadBuffer, check_request, check_response
from gnar_lib.http.limits import Limits
from gnar_lib.http.message import Fields, HTTPError, phrase
from gnar_lib.http.paced import Wire
from gnar_lib.net import deadline

HEAD_PIECE_BYTES = 16 * 1024  # received at once of a head; what follows it has to be kept
PIECE_BYTES = 64 * 1024  # of a body, received at once
# What a peer may send besides the bytes of a body, for chunk sizes, extensions and trailers: a chunk of a
# single byte needs 5 more.
SPARE_BYTES, SPARE_PER_BYTE = 16 * 1024, 8
_UNFINISHED = (h11.IDLE, h11.SEND_RESPONSE, h11.SEND_BODY, h11.ERROR)  # states of whoever sends a message
_BODILESS = frozenset({204, 304})

RawFields = list[tuple[bytes, bytes]]
"""Header fields as they came, the names in lower case."""


@dataclass(frozen=True, slots=True)
class _Head:
    fields: RawFields

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of all fields with a name."""
        return [value for other, value in self.fields if other == name]


@dataclass(frozen=True, slots=True)
class RequestHead(_Head):
    """The request line and the header fields of a request."""

    method: str
    target: str
    version: str  # "1.0" or "1.1"


@dataclass(frozen=True, slots=True)
class ResponseHead(_Head):
    """The status and the header fields of a response."""

    status: int


def _encoded(fields: Fields) -> RawFields:
    """Return fields as they are sent; a byte of a field that was received is a character here."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]


class _Codec:
    """What both roles share: a body that is received, and one that is sent."""

    def __init__(self, conn: Wire, limits: Limits, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self._conn = conn
        self._limits = limits
        self._role = role
        self._buffer = HeadBuffer(limits)
        self._start()

    def _start(self) -> None:
        """Get ready for the next request and its response."""
        self._h11 = h11.Connection(self._role)
        self._fed = b""  # what h11 got last
        self._raw_bytes = self._body_bytes = 0  # of the body that is received, as it came and as it is
        self._is_chunked = False
        self.trailers: RawFields = []  # that have come behind the body, which is whole then
        self._is_broken = False

    # ---- receiving -----------------------------------------------------------------------------------------

    @property
    def has_received(self) -> bool:
        """Whether bytes have come that nobody has taken."""
        return bool(self._buffer.received)

    def wait_for_head(self) -> bool:
        """Wait for the first byte of the next message; return False at the end of the stream."""
        return self.has_received or self._receive()

    def _receive(self) -> bool:
        data = self._conn.recv(HEAD_PIECE_BYTES)
        self._buffer.received += data
        return bool(data)

    def _receive_head(self) -> bytes:
        while (head := self._buffer.take()) is None:
            if not self._receive():
                raise HTTPError(400, "the stream has ended within a head")
        return head

    def receive_body(self) -> bytes:
        """Return the next piece of the body, `b""` at its end. Raises `HTTPError`."""
        while not self.has_whole_body:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as exc:
                raise HTTPError(exc.error_status_hint, "the body is malformed") from exc
            if event is h11.NEED_DATA:
                self._feed()
            elif isinstance(event, h11.Data):
                self._body_bytes += len(event.data)
                return bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._end_body(event)
            else:
                raise ConnClosed(f"{self._conn}: closed within a body")
        return b""

    def _feed(self) -> None:
        """Give h11 more of a body."""
        spare_bytes = SPARE_BYTES + SPARE_PER_BYTE * self._body_bytes + PIECE_BYTES
        if self._raw_bytes - self._body_bytes > spare_bytes:
            raise HTTPError(400, "the body consists of too little")
        data = self._buffer.take_all() or self._conn.recv(PIECE_BYTES)
        self._raw_bytes += len(data)
        if data and self._is_chunked:
            self._fed = self._fed[-3:] + data
        self._h11.receive_data(data)

    def _end_body(self, end: h11.EndOfMessage) -> None:
        rest, _ = self._h11.trailing_data
        last = self._fed[: len(self._fed) - len(rest)]
        # h11 would take a bare line feed as the end of the trailers, and somebody in front of gnar would not.
        if self._is_chunked and not last.endswith(b"\r\n\r\n"):
            self._is_broken = True
            raise HTTPError(400, "a line does not end with carriage return and line feed")
        self.trailers = [*end.headers]
        self._fed = b""
        self._buffer.put_back(rest)

    @property
    def has_whole_body(self) -> bool:
        """Whether the body has been received to its end; also if there is none."""
        return not self._is_broken and self._h11.their_state not in _UNFINISHED

    # ---- sending -------------------------------------------------------------------------------------------

    def encode_body(self, data: bytes) -> bytes:
        """Return what is to be sent for a piece of the body."""
        return self._h11.send(h11.Data(data=data)) or b""

    def send_body(self, data: bytes) -> None:
        """Send a piece of the body."""
        self.send_encoded(self.encode_body(data))

    def end_body(self) -> None:
        """Say that the body ends here."""
        self.send_encoded(self._h11.send(h11.EndOfMessage()) or b"")

    def send_encoded(self, data: bytes) -> None:
        """Send bytes that are encoded already; raises `DeadlineError` if the peer does not take them."""
        seconds = self._limits.send_s + len(data) / self._limits.send_bytes_per_s
        with deadline(seconds, f"{self._conn}: sending"):
            self._conn.sendall(data)

    def start_next(self) -> bool:
        """Get ready for the next request, if the conn may be used for one; tells whether that is so."""
        # Trailers are where h11 takes bare line feeds, so that what comes behind them may be forged.
        is_done = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        if not is_done or self.trailers or self._is_broken:
            return False
        self._start()
        return True


class ServerCodec(_Codec):
    """Receives requests and sends responses. What a peer does wrong is an `HTTPError` with its status."""

    def __init__(self, conn: Wire, limits: Limits) -> None:
        super().__init__(conn, limits, h11.SERVER)

    def _start(self) -> None:
        super()._start()
        self._is_for_head = False  # the request is HEAD, whose answer has no body

    def receive_head(self) -> RequestHead:
        """Wait for the head of the next request. Raises `HTTPError`."""
        raw = self._receive_head()
        check_request(raw, self._limits)
        try:
            self._h11.receive_data(raw)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            raise HTTPError(exc.error_status_hint, "the head is malformed") from exc
        if not isinstance(event, h11.Request):
            raise HTTPError(400, "the head is malformed")
        version = event.http_version.decode()
        head = RequestHead([*event.headers], event.method.decode(), event.target.decode(), version)
        self._is_for_head = head.method == "HEAD"
        self._is_chunked = bool(head.values(b"transfer-encoding"))
        if not self._is_chunked and not any(map(int, head.values(b"content-length"))):
            super().receive_body()  # of which there is none, so this does not wait
        return head

    def receive_body(self) -> bytes:
        """Return the next piece of the body, `b""` at its end; tells a peer to send it that waits."""
        if self._h11.they_are_waiting_for_100_continue and not self.has_received:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.send_encoded(self._h11.send(go_on) or b"")
        return super().receive_body()

    def send_head(self, status: int, fields: Fields) -> None:
        """Begin a response: `send_body` and `end_body` follow. Without a length, the body is chunked."""
        self.send_encoded(self._encode_head(status, fields))

    def send_whole(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a whole response; the body of an answer to HEAD is left out, its length is not."""
        has_body = status not in _BODILESS
        length = [("Content-Length", str(len(body)))] if has_body else []
        parts = [self._encode_head(status, [*fields, *length])]
        if body and has_body and not self._is_for_head:
            parts.append(self.encode_body(body))
        parts.append(self._h11.send(h11.EndOfMessage()) or b"")
        self.send_encoded(b"".join(parts))

    def _encode_head(self, status: int, fields: Fields) -> bytes:
        """Raises `ValueError` if a field or the status cannot be sent."""
        try:
            response = h11.Response(status_code=status, headers=_encoded(fields), reason=phrase(status))
        except h11.LocalProtocolError as exc:
            raise ValueError(str(exc)) from exc
        return self._h11.send(response) or b""


class ClientCodec(_Codec):
    """Sends requests and receives responses. What a peer does wrong is a `ProtocolError`."""

    def __init__(self, conn: Wire, limits: Limits) -> None:
        super().__init__(conn, limits, h11.CLIENT)

    def send_head(self, method: str, target: str, fields: Fields) -> None:
        """Begin a request; `send_body`, if the fields tell of a body, and `end_body` follow.

        Raises `ValueError` if a field cannot be sent.
        """
        try:
            request = h11.Request(method=method, target=target, headers=_encoded(fields))
        except h11.LocalProtocolError as exc:
            raise ValueError(str(exc)) from exc
        self.send_encoded(self._h11.send(request) or b"")

    def receive_head(self) -> ResponseHead:
        """Wait for the head of the final response. Raises `ProtocolError`."""
        try:
            while True:
                raw = self._receive_head()
                check_response(raw, self._limits)
                self._h11.receive_data(raw)
                event = self._h11.next_event()
                if isinstance(event, h11.Response):
                    head = ResponseHead([*event.headers], event.status_code)
                    self._is_chunked = bool(head.values(b"transfer-encoding"))
                    return head
        except (HTTPError, h11.RemoteProtocolError) as exc:
            raise ProtocolError(f"{self._conn}: what has come is no HTTP response") from exc

    def receive_body(self) -> bytes:
        """Return the next piece of the body, `b""` at its end. Raises `ProtocolError`."""
        try:
            return super().receive_body()
        except HTTPError as exc:
            raise ProtocolError(f"{self._conn}: {exc}") from exc
