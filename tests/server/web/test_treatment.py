"""What a service is told of the user, and what happens to requests that its client wants treated."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from gnar_lib.errors import ConfigError, ProxyRefusedError
from gnar_lib.http.heads import read_request
from gnar_lib.http.limits import Limits
from gnar_lib.net import SocketConn
from gnar_lib.proto import ProxyReq
from gnar_lib.server.web.basic import MAX_AT_ONCE
from gnar_lib.server.web.basic import _checks_of_process as checks_of_process
from gnar_lib.server.web.forwarded import Origin, Peer, Trust
from gnar_lib.server.web.settings import WebSettings
from gnar_lib.server.web.site import read_page
from tests.helpers.sites import read_until, scripted, site_before
from tests.helpers.web import Got, responses

END = b"\r\n\r\n"
SESAME = "$2b$04$5dSeL6InYVzkh8Lcqn7iJuJHviixOmWPybMRcNdGfSnRkO1zVT/Xa"  # of "sesame"
PROXIES = Trust(["127.0.0.0/8", "::1/128", "10.0.0.0/8"])


def origin(lines: bytes, host: str = "192.0.2.1", scheme: str = "http", authority: bytes = b"a:80") -> Origin:
    """Return where a request comes from that somebody at `host` sends."""
    head = b"GET / HTTP/1.1\r\nHost: " + authority + b"\r\n" + lines + b"\r\n"
    return Peer((host, 1), scheme, PROXIES).origin_of(read_request(head, Limits()))


def told(fields: bytes) -> dict[str, str]:
    """Return what a service is told."""
    return dict(line.split(": ", 1) for line in fields.decode().splitlines())


SPOOFED = (
    b"X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n"
    b"Forwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\n"
)


def test_what_users_say_about_themselves_is_replaced() -> None:
    found = origin(SPOOFED)
    assert (found.user, found.scheme) == ("192.0.2.1", "http")
    assert told(found.fields) == {
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "a:80",
        "Forwarded": 'for=192.0.2.1;host="a:80";proto=http',
    }


def test_what_those_say_who_are_trusted_is_appended_to() -> None:
    lines = b"X-Forwarded-For: 6.6.6.6, 192.0.2.9, 10.1.1.1\r\nX-Forwarded-Proto: https\r\n"
    lines += b"X-Forwarded-Host: b\r\nForwarded: for=192.0.2.9\r\nX-Real-IP: 192.0.2.9\r\n"
    found = origin(lines, "127.0.0.1")
    assert (found.user, found.scheme) == ("192.0.2.9", "https")
    assert told(found.fields) == {
        "X-Forwarded-For": "6.6.6.6, 192.0.2.9, 10.1.1.1, 127.0.0.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "b",
        "Forwarded": 'for=192.0.2.9, for=127.0.0.1;host="a:80";proto=https',
        "X-Real-IP": "192.0.2.9",
    }


def test_what_else_is_said_of_the_user_is_believed_from_the_same_alone() -> None:
    lines = b"X-Forwarded-Port: 443\r\nX-Forwarded-Prefix: /a\r\n"
    assert b"-port" not in origin(lines).fields.lower()
    assert b"x-forwarded-port: 443\r\nx-forwarded-prefix: /a\r\n" in origin(lines, "127.0.0.1").fields


def test_a_host_adds_nothing_to_what_is_said_of_the_user() -> None:
    fields = told(origin(b"", authority=b"x;for=1.1.1.1").fields)
    assert fields["Forwarded"] == 'for=192.0.2.1;host="x;for=1.1.1.1";proto=http'


@pytest.mark.parametrize(
    ("said", "user"),
    [
        (b"", "127.0.0.1"),
        (b"10.0.0.1, 127.0.0.1", "10.0.0.1"),
        (b"192.0.2.9:5555", "192.0.2.9"),
        (b"[2001:db8::1]:5555", "2001:db8::1"),
        (b"::ffff:192.0.2.9", "192.0.2.9"),
        (b"unknown, 192.0.2.9", "192.0.2.9"),
        (b"nonsense", "127.0.0.1"),
        (b"x" * 5000, "127.0.0.1"),
    ],
)
def test_the_user_is_the_last_whom_nobody_has_to_trust(said: bytes, user: str) -> None:
    lines = b"X-Forwarded-For: " + said + b"\r\n" if said else b""
    assert origin(lines, "127.0.0.1").user == user


def test_a_scheme_and_a_host_that_are_none_are_not_believed() -> None:
    found = origin(b"X-Forwarded-Proto: ftp\r\nX-Forwarded-Host: a b\r\n", "127.0.0.1", "https")
    assert told(found.fields)["X-Forwarded-Proto"] == "https"
    assert told(found.fields)["X-Forwarded-Host"] == "a:80"


def test_addresses_of_ipv6_are_in_brackets_and_quotes_where_they_have_to_be() -> None:
    fields = told(origin(b"", "2001:db8::1").fields)
    assert fields["X-Forwarded-For"] == "2001:db8::1"
    assert fields["Forwarded"] == 'for="[2001:db8::1]";host="a:80";proto=http'
    assert told(origin(b"", "::ffff:192.0.2.1").fields)["X-Forwarded-For"] == "192.0.2.1"


# ---- what the client wants ---------------------------------------------------------------------------------


def seen_and_got(request: bytes, wanted: dict[str, Any], **settings: Any) -> tuple[bytes, Got]:
    """Return the head that a service sees of a request, empty if it sees none, and what the user gets."""
    heads = [b""]

    def serve(conn: Any) -> None:
        while head := read_until(conn, END):
            heads.append(head)
            conn.sendall(b"HTTP/1.1 200 OK\r\nX-Old: 1\r\nServer: x\r\nContent-Length: 2\r\n\r\nok")

    with scripted(serve) as service, site_before(service.port, wanted=wanted, **settings) as site:
        got = responses(site.ask(request))[0]
    return heads[-1], got


GET = b"GET /p?q HTTP/1.1\r\nHost: a:81\r\nConnection: close\r\nX-Old: 1\r\nX-Gone: 1\r\n%b\r\n"


def test_host_may_be_another_for_the_service() -> None:
    head, _ = seen_and_got(GET % b"", {"host_header": "local.test:8000"})
    assert b"\r\nHost: local.test:8000\r\n" in head
    assert b"\r\nX-Forwarded-Host: a:81\r\n" in head


def test_header_fields_are_set_and_removed_both_ways() -> None:
    wanted = {
        "request_headers": ("X-Old: new", "X-More: a b", "-x-gone"),
        "response_headers": ("x-old: other", "-Server"),
    }
    head, got = seen_and_got(GET % b"", wanted)
    assert b"\r\nX-Old: new\r\n" in head
    assert b"\r\nX-More: a b\r\n" in head
    assert b"X-Gone" not in head
    assert head.lower().count(b"x-old") == 1
    assert got.headers.get_all("x-old") == ["other"]
    assert "Server" not in got.headers


WANTED = {"request_headers": ("X-User: guest", "-X-Gone")}


@pytest.mark.parametrize("name", [b"X-User", b"x_user", b"X.User", b"X-Gone", b"X_GONE"])
def test_fields_that_are_set_or_removed_come_in_no_other_spelling(name: bytes) -> None:
    head, _ = seen_and_got(GET % (name + b": admin\r\n"), WANTED)
    assert b"X-User: guest\r\n" in head
    assert b"admin" not in head


@pytest.mark.parametrize("name", [b"X-User", b"x_user", b"X-Gone"])
def test_fields_that_are_set_or_removed_cannot_be_trailers(name: bytes) -> None:
    lines = b"Transfer-Encoding: chunked\r\n"
    chunks = b"1\r\nx\r\n0\r\n%b: admin\r\n\r\n" % name
    head, got = seen_and_got(GET % lines + chunks, WANTED)
    assert (head, got.status) == (b"", 400)


@pytest.fixture
def _threads() -> None:
    """Have all threads that check passwords start: each has a greenlet, which no test may leave behind."""
    pool = checks_of_process()._threads
    pool.size = MAX_AT_ONCE
    for each in [pool.spawn(time.sleep, 0.01) for _ in range(MAX_AT_ONCE)]:
        each.get()


def basic(text: str) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(text.encode()) + b"\r\n"


@pytest.mark.parametrize(
    ("given", "status"),
    [(b"", 401), (basic("ann:no"), 401), (basic("ann:sesame"), 200), (b"Authorization: x\r\n", 401)],
)
@pytest.mark.usefixtures("_threads")
def test_a_password_may_be_needed_and_is_not_for_the_service(given: bytes, status: int) -> None:
    head, got = seen_and_got(GET % given, {"basic_auth": (f"ann:{SESAME}",)})
    assert got.status == status
    assert b"Authorization" not in head
    assert bool(head) == (status == 200)
    if status == 401:
        assert got.headers["WWW-Authenticate"].startswith("Basic realm=")


def test_credentials_of_the_service_reach_it() -> None:
    head, _ = seen_and_got(GET % basic("ann:x"), {})
    assert basic("ann:x") in head


def test_requests_without_tls_may_be_redirected() -> None:
    head, got = seen_and_got(GET % b"", {"redirect_https": True})
    assert (head, got.status, got.headers["Location"]) == (b"", 308, "https://a/p?q")
    head, got = seen_and_got(
        GET % b"X-Forwarded-Proto: https\r\n", {"redirect_https": True}, trust_forwarded=("127.0.0.0/8",)
    )
    assert (bool(head), got.status) == (True, 200)


def test_browsers_are_told_to_use_tls_alone_where_they_do() -> None:
    lines = b"X-Forwarded-Proto: https\r\n"
    _, got = seen_and_got(GET % lines, {}, hsts_s=60, trust_forwarded=("127.0.0.0/8",))
    assert got.headers["Strict-Transport-Security"] == "max-age=60"
    _, got = seen_and_got(GET % lines, {}, hsts_s=60)
    assert "Strict-Transport-Security" not in got.headers


def test_an_address_may_be_refused() -> None:
    with site_before(1) as site:
        site.names.proxies["a"].rules.refused = {"127.0.0.1"}
        got = responses(site.ask(GET % b""))[0]
    assert got.status == 403
    assert site.ingress.site.answers == [0, 0, 0, 0, 1, 0]


def test_an_error_has_the_page_of_the_proxy_or_of_the_server(tmp_path: Any) -> None:
    page = tmp_path / "page.html"
    page.write_text("server: {status} {title} {detail}")
    with site_before(1, error_page=str(page), wanted={"error_page": "proxy: {status} {detail}"}) as site:
        site.names.proxies["a"].is_away = True
        own = responses(site.ask(GET % b""))[0].body
        other = responses(site.ask((GET % b"").replace(b"Host: a", b"Host: <b>")))[0].body
        nobody = responses(site.ask((GET % b"").replace(b"Host: a", b"Host: b&c")))[0].body
    assert own == b"proxy: 503 web is away at the moment"
    assert other == b"server: 400 Bad Request Host is malformed"
    assert nobody == b"server: 404 Not Found nobody has the name b&amp;c here"


@pytest.mark.parametrize("name", ["", "x" * 70_000, b"\xff"])
def test_a_page_that_cannot_be_used_is_refused(name: str | bytes, tmp_path: Any) -> None:
    page = tmp_path / "page.html"
    if name:
        page.write_bytes(name if isinstance(name, bytes) else name.encode())
    with pytest.raises(ConfigError, match="error-page"):
        read_page(str(page))


@pytest.mark.parametrize(
    "field",
    [
        {"host_header": "a b"},
        {"host_header": "a\r\nX: y"},
        {"request_headers": ("no colon",)},
        {"request_headers": ("X: a\r\nY: b",)},
        {"request_headers": ("Host: b",)},
        {"request_headers": ("-Content-Length",)},
        {"request_headers": ("Transfer_Encoding: chunked",)},
        {"request_headers": ("Content.Length: 5",)},
        {"response_headers": ("Keep-Alive: timeout=5",)},
        {"response_headers": ("Transfer-Encoding: chunked",)},
        {"response_headers": tuple(f"X-{number}: y" for number in range(100))},
        {"basic_auth": ("nobody",)},
    ],
)
def test_what_a_client_must_not_want_is_refused(field: dict[str, Any]) -> None:
    request = ProxyReq(remote_port=0, proxy_name="web", subdomain="a", proxy_type="http", **field)
    with pytest.raises(ProxyRefusedError):
        WebSettings.of(request)


def test_caddy_may_ask_whether_a_name_is_in_use() -> None:
    ask = b"GET /.well-known/gnar/ask?domain=%b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"
    with site_before(1, trust_forwarded=("127.0.0.0/8",)) as site:
        statuses = [
            responses(site.ask(ask % words))[0].status
            for words in [(b"a", b"127.0.0.1:8080"), (b"A", b"tunnel"), (b"b", b"127.0.0.1"), (b"a", b"a")]
        ]
    assert statuses == [200, 200, 404, 502]
    with site_before(1) as site:
        assert responses(site.ask(ask % (b"a", b"127.0.0.1")))[0].status == 404


@pytest.mark.parametrize("wanted", [{}, {"tells_address": True}], ids=["as usual", "told once"])
def test_lane_of_a_service_that_is_told_once_whose_it_is_carries_no_other_user(
    wanted: dict[str, Any],
) -> None:
    """Behind a front such as Caddy, the requests of many users come on one connection."""

    def serve(conn: SocketConn) -> None:
        while read_until(conn, END):
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    users = (b"192.0.2.1", b"192.0.2.1", b"192.0.2.2", b"192.0.2.1", b"192.0.2.1")
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %b\r\n\r\n"
    with (
        scripted(serve) as service,
        site_before(service.port, wanted=wanted, trust_forwarded=("127.0.0.0/8",)) as site,
    ):
        got = responses(site.ask(b"".join(request % user for user in users), end=True))
        told = [address[0] for address in site.names.proxies["a"].told]
    assert [each.status for each in got] == [200] * len(users)
    assert told == (["192.0.2.1", "192.0.2.2", "192.0.2.1"] if wanted else ["127.0.0.1"])
