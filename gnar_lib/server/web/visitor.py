"""One connection of a user to a web port: its requests, one after the other, each routed by itself.

Who serves the connection is one greenlet, which reads heads, asks who has the name, and has each request
passed on. What gnar itself answers is here as well.
"""

from __future__ import annotations

import math
import time
from socket import SHUT_WR

from gnar_lib import logger
from gnar_lib.errors import ConnClosed, ConnError, DeadlineError
from gnar_lib.events import UserRefused, emit
from gnar_lib.http.h2 import PREFACE_HEAD
from gnar_lib.http.head import HeadBuffer
from gnar_lib.http.heads import RequestToPass, read_request
from gnar_lib.http.message import HTTPError, phrase
from gnar_lib.net import Conn, Sockaddr, SocketConn, deadline, give_way, network_of
from gnar_lib.net.options import half_close_timeout_s
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.web import ask
from gnar_lib.server.web.basic import CHALLENGE
from gnar_lib.server.web.forwarded import Origin, Peer
from gnar_lib.server.web.forwarding import HEAD_END, PIECE_BYTES, Forwarding, NoAnswerError
from gnar_lib.server.web.lane import Lane
from gnar_lib.server.web.pages import page
from gnar_lib.server.web.site import Site, is_small

MOST_LANES = 4  # of one connection: behind a proxy such as Caddy, requests for many names take turns on it
GONE_S = 60.0  # a user who sends no more may still want the answer, but not for longer than this
BODY_S = 60.0  # within which something has to come of the body of a request
LINGER_S = 5.0  # for a user who has got the last answer to hang up
LINGER_IDLE_S = 2.0
GOODBYE_S = 0.3  # for a program of gRPC, which could take an end that comes at once for a failed request
LINGER_PIECE_BYTES = 64 * 1024
HTTPS_PORT = 443
# Requests that may be sent twice (RFC 9110, section 9.2.2); those with a body cannot, since it is gone.
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})

_log = logger.get("web")


class Visitor:
    """A user's connection; `run` serves it and closes it. `look` and `expire` are called in the hub."""

    def __init__(self, site: Site, conn: Conn, scheme: str) -> None:
        self.until_s = 0.0  # when a wait for a head ends; 0 while there is none
        self._site = site
        self._conn = conn
        self._address = conn.getpeername()
        self._scheme = scheme
        self._peer = Peer(self._address, scheme, site.trust)
        self._lanes: dict[Proxy, Lane] = {}  # the last used one is the last
        self._passing: Forwarding | None = None  # the request that is being passed on
        self._moved, self._moved_s = -1, 0.0
        self._has_begun_head = False
        self._last_head, self._last = b"", RequestToPass()  # the last head, and what it says
        self._last_origin: Origin | None = None
        self._has_to_linger = False  # behind the last answer, since the user may have sent more
        self._is_first = True  # no request has been answered yet

    def run(self) -> None:
        """Serve until either end has enough."""
        conn = self._conn
        try:
            if isinstance(conn, SocketConn):
                conn.keep_reading = True
            while self._serve_one():
                self._is_first = False
            if self._has_to_linger:
                self._close_lanes()
                self._linger()
        except ConnError as exc:
            _log.debug("%s", exc)
        finally:
            self._stop_reading()
            self._close_lanes()
            conn.close()

    def _close_lanes(self) -> None:
        for lane in [*self._lanes.values()]:
            self._drop(lane)

    def _serve_one(self) -> bool:
        """Serve the next request; returns whether another may follow."""
        try:
            received = self._receive_head()
            if received is None:
                return False
            head, rest = received
            if head != self._last_head:  # else the same is asked for again, as programs do
                if head == PREFACE_HEAD and self._is_first:
                    return self._pass_through(head + rest)
                self._last = read_request(head, self._site.limits)
                self._last_head = head
            request = self._last
        except HTTPError as exc:
            return self._answer(exc, None)
        if rest and not request.length:  # the next requests
            self._conn.unread(rest)
            rest = b""
            give_way()  # a pipeline, which has not to wait for anything: others have their turn
        try:
            return self._pass_on(request, rest)
        except HTTPError as exc:
            return self._answer(exc, request)

    def _pass_through(self, data: bytes) -> bool:
        """Serve a connection of HTTP/2, which begins with `data`, to its end."""
        from gnar_lib.server.web import h2  # few connections need it

        if h2.pass_through(self._site, self._conn, self._scheme, data):
            self._linger(GOODBYE_S)
        return False

    # ---- heads ---------------------------------------------------------------------------------------------

    def _receive_head(self) -> tuple[bytes, bytes] | None:
        """Return the next head and what came behind it, None if the user has enough. Raises `HTTPError`."""
        site, conn = self._site, self._conn
        if site.is_closing:  # since the last answer, which still said that another may follow
            return None
        if not is_small(self._last_head, self._last.pairs):
            self._forget()
        self.until_s = time.monotonic() + site.limits.idle_s
        site.crowd.begin_wait(conn)
        try:
            data = conn.recv(PIECE_BYTES)
            end = data.find(HEAD_END)
            if 0 < end < site.surely_short and data[:1] != b"\r":
                return data[: end + 4], data[end + 4 :]
            return self._receive_rest(data) if data else None
        finally:
            self.until_s = 0.0
            site.crowd.end_wait(conn)

    def _forget(self) -> None:
        """Let go of the last request, which is large: the connection may wait for long now."""
        self._last_head, self._last, self._last_origin = b"", RequestToPass(), None
        for lane in self._lanes.values():
            lane.forget_request()

    def _receive_rest(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return a head of which more than `data` has to come."""
        buffer = HeadBuffer(self._site.limits)
        buffer.received += data
        self.until_s = time.monotonic() + self._site.limits.head_s
        self._has_begun_head = True
        try:
            while (head := buffer.take()) is None:
                more = self._conn.recv(PIECE_BYTES)
                if not more:
                    return None
                buffer.received += more
        finally:
            self._has_begun_head = False
        return head, buffer.take_all()

    def waited_s(self, now_s: float) -> float:
        """Return for how many seconds a head has been awaited, or has been coming; infinite if none is."""
        if not self.until_s:
            return math.inf
        limits = self._site.limits
        return now_s - self.until_s + (limits.head_s if self._has_begun_head else limits.idle_s)

    def expire(self, now_s: float) -> None:
        """End a wait for a head that has lasted for too long."""
        if 0.0 < self.until_s < now_s:
            self.until_s = 0.0
            if self._has_begun_head:
                self._conn.interrupt(HTTPError(408, "the head of the request took too long"))
            else:
                self._conn.close()

    # ---- requests ------------------------------------------------------------------------------------------

    def _pass_on(self, request: RequestToPass, body: bytes) -> bool:
        """Find out who has the name, and pass a request on; returns whether another may follow.

        `body` is what has come of the body, and of what follows it.
        """
        if self._last_origin is None or self._last_origin.request is not request:
            self._last_origin = self._peer.origin_of(request)
        origin = self._last_origin
        proxy = self._site.names.find(request.host, request.path)
        if proxy is None:
            is_known = ask.answer_of(self._site.names, self._peer, request)
            if is_known:
                return self._send(200, b"", b"text/plain", b"yes\n", request)
            raise HTTPError(404, f"nobody has the name {request.host} here")
        address = self._address_of(origin)
        self._check(proxy, request, origin, address)
        return self._forward(proxy, request, origin, address, body)

    @property
    def _has_unreceived(self) -> bool:
        """Whether the user may have sent more than was read, so that `close` could take the answer away."""
        conn = self._conn
        return not isinstance(conn, SocketConn) or conn.has_unread or conn.has_unreceived

    def _address_of(self, origin: Origin) -> Sockaddr:
        return (origin.user, 0) if self._peer.is_trusted else self._address

    def _check(self, proxy: Proxy, request: RequestToPass, origin: Origin, address: Sockaddr) -> None:
        """Raise `HTTPError` if a request is not to reach the service."""
        if reason := proxy.rules.refusal(address):
            emit(UserRefused, proxy.name, proxy.kind, address, reason)
            raise HTTPError(403, "your address may not come here")
        settings = proxy.web
        if settings.redirects_https and origin.scheme == "http":
            port = "" if self._site.https_port == HTTPS_PORT else f":{self._site.https_port}"
            where = f"https://{request.host}{port}{request.target.decode('latin-1')}"
            raise HTTPError(308, "this name is served by HTTPS alone", [("Location", where)])
        if settings.basic_auth:
            self._stop_reading()  # a hash may take a while, in a thread
            given = (request.seen.get(b"authorization") or [b""])[0]
            if not settings.basic_auth.check(given, network_of(address)):
                raise HTTPError(401, "a user name and a password are needed", [CHALLENGE])
        if proxy.is_away:
            raise HTTPError(503, f"{proxy.name} is away at the moment", [("Retry-After", "10")])

    def _forward(
        self, proxy: Proxy, request: RequestToPass, origin: Origin, address: Sockaddr, body: bytes
    ) -> bool:
        """Pass a request on, if need be by another lane; returns whether another request may follow."""
        while True:
            lane = self._lane_to(proxy, address)
            was_used = lane.is_used
            forwarding = Forwarding(self._site, self._conn, request, origin, lane)
            self._passing = forwarding
            self._moved, self._moved_s = -1, time.monotonic()
            try:
                goes_on = forwarding.run(body)
                if forwarding.keeps_lane:
                    lane.is_used = True
                else:
                    self._drop(lane)
                if not goes_on and not forwarding.has_switched:
                    self._has_to_linger = bool(request.length) or self._has_unreceived
                return goes_on
            except NoAnswerError as exc:
                self._drop(lane, str(exc))
                if was_used and request.length == 0 and request.method in _IDEMPOTENT:
                    continue
                if was_used and not self._is_first:
                    # The user knows this: a connection may end between two requests (RFC 9110, 9.2.2).
                    self._conn.abort()
                    raise
                raise HTTPError(502, f"{proxy.name} does not answer") from exc
            except HTTPError:
                self._drop(lane)
                if forwarding.has_begun:
                    self._conn.abort()
                    raise ConnClosed("the answer has begun") from None
                raise
            except BaseException as exc:
                self._drop(lane, str(exc))
                self._conn.abort()
                raise
            finally:
                self._passing = None
                self._keep_reading()

    def _lane_to(self, proxy: Proxy, address: Sockaddr) -> Lane:
        """Return an open lane. Raises `HTTPError`."""
        lane = self._lanes.pop(proxy, None)
        if lane is not None:
            self._lanes[proxy] = lane
            if lane.may_carry(address):
                return lane
            self._drop(lane)
        if len(self._lanes) >= MOST_LANES:
            self._drop(next(iter(self._lanes.values())))
        lane = Lane(proxy, self._conn, address, counts_address=not self._peer.is_trusted)
        self._lanes[proxy] = lane
        try:
            lane.open()
        except BaseException:
            self._drop(lane)
            raise
        return lane

    def _drop(self, lane: Lane, reason: str = "") -> None:
        if self._lanes.get(lane.proxy) is lane:
            del self._lanes[lane.proxy]
        if reason:
            lane.abort(reason)
        lane.close()

    def look(self, now_s: float) -> None:
        """End what goes on if user or service has gone without a word."""
        passing = self._passing
        if passing is None:
            return
        lane = passing.lane
        if (moved := lane.up.bytes + lane.down.bytes) != self._moved:
            self._moved, self._moved_s = moved, now_s
        silent_s = now_s - self._moved_s
        reason = self._conn.why_gone(now_s) or lane.why_gone(now_s)
        if not reason and silent_s > min(GONE_S, half_close_timeout_s()) and self._conn.has_hung_up:
            reason = "the user has hung up"
        if not reason and lane.idle_timeout_s and silent_s > lane.idle_timeout_s:
            reason = f"idle for {lane.idle_timeout_s:g} s"
        if reason:
            lane.abort(reason)
            self._conn.abort()
        elif passing.waits_for_body and silent_s > BODY_S:
            self._conn.interrupt(DeadlineError("the body of the request took too long"))

    # ---- what gnar itself answers --------------------------------------------------------------------------

    def _answer(self, error: HTTPError, request: RequestToPass | None) -> bool:
        """Answer with an error; returns whether another request may follow."""
        _log.debug("%s: %d %s", self._conn, error.status, error)
        content_type, body = page(error, [] if request is None else request.pairs, self._own_page(request))
        lines = "".join(f"{name}: {value}\r\n" for name, value in error.headers).encode("latin-1")
        return self._send(error.status, lines, content_type, body, request)

    def _send(
        self, status: int, lines: bytes, content_type: bytes, body: bytes, request: RequestToPass | None
    ) -> bool:
        """Send a whole answer; returns whether another request may follow."""
        goes_on = request is not None and request.keeps_alive and not request.length
        goes_on = goes_on and not self._site.is_ending
        head = (
            b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nCache-Control: no-store\r\n%b%b\r\n"
        ) % (
            status,
            phrase(status).encode(),
            content_type,
            len(body),
            lines,
            b"" if goes_on else b"Connection: close\r\n",
        )
        is_for_head = request is not None and request.method == b"HEAD"
        self._site.answers[status // 100] += 1
        with deadline(self._site.limits.send_s, f"{self._conn}: sending"):
            self._conn.sendall(head if is_for_head else head + body)
        if not goes_on:
            self._linger()
        return goes_on

    def _own_page(self, request: RequestToPass | None) -> str:
        """Return somebody's own page for errors: that of the proxy, or of the server."""
        proxy = None if request is None else self._site.names.find(request.host, request.path)
        return (proxy.web.error_page if proxy is not None else "") or self._site.error_page

    def _linger(self, goodbye_s: float = 0.0) -> None:
        """Wait until the user has the last answer: with bytes unread, `close` could take the answer away.

        The user, who knows that this is the last one, has `goodbye_s` to end the connection first.
        """
        conn = self._conn
        self._stop_reading()
        self._site.crowd.begin_wait(conn)
        try:
            if not (goodbye_s and self._reads_end(goodbye_s, goodbye_s)):
                conn.shutdown(SHUT_WR)
                self._reads_end(LINGER_S, LINGER_IDLE_S)
        finally:
            self._site.crowd.end_wait(conn)

    def _reads_end(self, seconds: float, idle_s: float) -> bool:
        """Read until the user ends the connection; False after `seconds`, or after `idle_s` of silence."""
        until_s = time.monotonic() + seconds
        try:
            while time.monotonic() < until_s:
                with deadline(idle_s, f"{self._conn}: closing"):
                    if not self._conn.recv(LINGER_PIECE_BYTES):
                        return True
                give_way()
        except DeadlineError:
            pass
        return False

    def _stop_reading(self) -> None:
        """Have nothing wake this greenlet for the user or a lane, until it waits for them again."""
        if isinstance(self._conn, SocketConn):
            self._conn.stop_reading()
        for lane in self._lanes.values():
            lane.stop_reading()

    def _keep_reading(self) -> None:
        if isinstance(self._conn, SocketConn):
            self._conn.keep_reading = True
