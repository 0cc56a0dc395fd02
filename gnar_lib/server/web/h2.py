"""Connections of users who begin with HTTP/2, as gRPC does: each is passed through to one service, whole.

The first request says which service that is. gnar sees nothing of the others, and so cannot do to them what
it does to requests of HTTP/1.1: proxies that need this refuse HTTP/2, in words that the user can read.
"""

from __future__ import annotations

import time
from urllib.parse import quote

from gnar_lib import logger
from gnar_lib.errors import ConnClosed, ConnError, DeadlineError
from gnar_lib.events import UserRefused, emit
from gnar_lib.http import h2
from gnar_lib.http.h2 import Code, FirstRequest, H2Error
from gnar_lib.http.message import HTTPError
from gnar_lib.net import Conn, SocketConn, deadline
from gnar_lib.proxy.buffer import send_counted
from gnar_lib.proxy.stream import stream
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.web.lane import Lane
from gnar_lib.server.web.pages import page
from gnar_lib.server.web.site import Site

PIECE_BYTES = 16 * 1024
# By these fields, whoever passes on requests of others says so.
_OF_PROXIES = (b"forwarded", b"x-forwarded-for", b"via")
_VERSION_NOT_SUPPORTED = 505
# What gRPC has for a status of HTTP, and UNAVAILABLE for all others (its document http-grpc-status-mapping).
_GRPC_STATUS = {400: 3, 403: 7, 404: 12, 405: 12, _VERSION_NOT_SUPPORTED: 12}
_GRPC_UNAVAILABLE = 14

_log = logger.get("web")


def pass_through(site: Site, user: Conn, scheme: str, data: bytes) -> bool:
    """Serve a connection that begins with `data`, which are at least `PREFACE_HEAD`.

    Returns True if the user has been refused, and has yet to take the answer; else both ends are closed.
    Raises `ConnError` if either end has gone.
    """
    return _Passage(site, user, scheme).run(data)


class _Passage:
    def __init__(self, site: Site, user: Conn, scheme: str) -> None:
        self._site = site
        self._user = user
        self._scheme = scheme
        self._opening = h2.Opening()
        self._own_page = site.error_page

    def run(self, data: bytes) -> bool:
        if isinstance(self._user, SocketConn):
            self._user.stop_reading()
        try:
            request = self._receive(data)
        except H2Error as exc:
            self._refuse(h2.goaway(exc.code, str(exc)), str(exc))
            return True
        try:
            self._check(request)
            self._pass_on(self._proxy_for(request))
        except HTTPError as exc:
            self._refuse(self._answer(exc, request), str(exc))
            return True
        return False

    # ---- the first request ---------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> FirstRequest:
        """Return the first request. Raises `H2Error`, also if the request does not come."""
        crowd, limits = self._site.crowd, self._site.limits
        until_s, what = time.monotonic() + limits.idle_s, "no request has come for too long"
        has_begun = False
        crowd.begin_wait(self._user)
        try:
            while (request := self._opening.feed(data)) is None:
                if self._opening.waits_for_settings:
                    # Most clients of gRPC send no request before they have got these.
                    self._send(h2.SETTINGS)
                    self._opening.expect_ack()
                if self._opening.has_begun and not has_begun:
                    has_begun, what = True, "the head of the request took too long"
                    until_s = time.monotonic() + limits.head_s
                with deadline(max(until_s - time.monotonic(), 0.0), what):
                    data = self._user.recv(PIECE_BYTES)
                if not data:
                    raise ConnClosed("the user has left without a request")
        except DeadlineError as exc:
            raise H2Error(Code.NO_ERROR, what) from exc
        finally:
            crowd.end_wait(self._user)
        return request

    def _check(self, request: FirstRequest) -> None:
        """Raise `HTTPError` if a request can be for no service."""
        if request.method == b"CONNECT":
            raise HTTPError(405, "CONNECT is not served here")
        if not request.host or not request.target:
            raise HTTPError(400, "the request does not say its host and path as it should")
        if any(request.value(name) for name in _OF_PROXIES):
            # Who passes on requests of many users would send those for other names on this connection, too.
            raise HTTPError(_VERSION_NOT_SUPPORTED, "whoever passes requests on has to use HTTP/1.1 here")

    def _proxy_for(self, request: FirstRequest) -> Proxy:
        """Return the proxy that has the name. Raises `HTTPError` if the connection is not to reach it."""
        proxy = self._site.names.find(request.host, request.path)
        if proxy is None:
            raise HTTPError(404, f"nobody has the name {request.host} here")
        self._own_page = proxy.web.error_page or self._own_page
        address = self._user.getpeername()
        if reason := proxy.rules.refusal(address):
            emit(UserRefused, proxy.name, proxy.kind, address, reason)
            raise HTTPError(403, "your address may not come here")
        settings = proxy.web
        if not settings.passes_http2:
            raise HTTPError(_VERSION_NOT_SUPPORTED, "this name is served by HTTP/1.1 alone, without http2")
        if self._site.names.has_paths(request.host):  # later requests may be for any path
            raise HTTPError(_VERSION_NOT_SUPPORTED, "a path of this name is served by HTTP/1.1 alone")
        if settings.redirects_https and self._scheme == "http":
            raise HTTPError(_VERSION_NOT_SUPPORTED, "this name is served by HTTPS alone")
        if settings.basic_auth or settings.host_header or settings.request_edits or settings.response_edits:
            raise HTTPError(_VERSION_NOT_SUPPORTED, "this name is served by HTTP/1.1 alone")
        if proxy.is_away:
            raise HTTPError(503, f"{proxy.name} is away at the moment", [("Retry-After", "10")])
        return proxy

    # ---- the service ---------------------------------------------------------------------------------------

    def _pass_on(self, proxy: Proxy) -> None:
        """Join user and service to their end. Raises `HTTPError` while the user can still be answered."""
        user = self._user
        lane = Lane(proxy, user, user.getpeername(), counts_address=True)
        try:
            lane.open()
            self._begin(lane)
            lane.stop_reading()
            stream(user, lane.conn, lane.up, lane.down, lane.idle_timeout_s)
        except BaseException as exc:
            lane.abort(str(exc))
            raise
        finally:
            lane.close()

    def _begin(self, lane: Lane) -> None:
        """Give the service what has come, and see that it speaks HTTP/2. Raises `HTTPError`."""
        name = lane.proxy.name
        try:
            send_counted(self._opening.take_all(), lane.conn, lane.up)
            with deadline(self._site.limits.head_s, f"{name}: SETTINGS"):
                first = lane.conn.recv(PIECE_BYTES)
        except ConnError as exc:
            raise HTTPError(502, f"{name} does not answer") from exc
        if not first:
            raise HTTPError(502, f"{name} does not answer")
        if not h2.is_settings(first):
            raise HTTPError(502, f"{name} does not speak HTTP/2")
        lane.note_answer()
        lane.conn.unread(first)

    # ---- what gnar itself answers --------------------------------------------------------------------------

    def _answer(self, error: HTTPError, request: FirstRequest) -> bytes:
        """Return the answer to the first request, and the end of the connection."""
        self._site.answers[error.status // 100] += 1
        if request.value(b"content-type").startswith(b"application/grpc"):
            answer = h2.answer(request.stream, _grpc_fields(error))
        else:
            content_type, body = page(error, request.pairs, self._own_page)
            if request.method == b"HEAD" or len(body) > min(self._opening.window_bytes, h2.FRAME_BYTES):
                body = b""
            fields = [(b":status", b"%d" % error.status), (b"content-type", content_type)]
            fields += [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers]
            answer = h2.answer(request.stream, [*fields, (b"cache-control", b"no-store")], body)
        is_version = error.status == _VERSION_NOT_SUPPORTED
        code = Code.HTTP_1_1_REQUIRED if is_version else Code.NO_ERROR
        return answer + h2.goaway(code, error.detail, request.stream)

    def _refuse(self, frames: bytes, reason: str) -> None:
        _log.debug("%s: %s", self._user, reason)
        self._send(frames if self._opening.has_settings else h2.SETTINGS + frames)

    def _send(self, data: bytes) -> None:
        with deadline(self._site.limits.send_s, f"{self._user}: sending"):
            self._user.sendall(data)


def _grpc_fields(error: HTTPError) -> list[tuple[bytes, bytes]]:
    """Return an answer of gRPC without a message (Trailers-Only), in which the error is told by trailers."""
    return [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"%d" % _GRPC_STATUS.get(error.status, _GRPC_UNAVAILABLE)),
        (b"grpc-message", quote(error.detail, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()),
    ]
