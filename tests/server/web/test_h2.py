"""Connections that begin with HTTP/2: which service gets them, and how users are refused who cannot come."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gnar_lib.http.h2 import MAX_OPENING_BYTES, PREFACE, SETTINGS, Code
from gnar_lib.net import SocketConn, deadline, recv_exactly
from gnar_lib.server.web.site import LIMITS
from tests.helpers import h2
from tests.helpers.h2 import ACK, END_HEADERS, GET, HEADERS, block, frame, opening
from tests.helpers.harness import free_port, is_open
from tests.helpers.loop import turn, wait_until
from tests.helpers.sites import SiteOfTest, scripted, site_before
from tests.helpers.web import LOOPBACK, curl, output_of, responses

WAIT_S = 20.0
START = PREFACE + frame(h2.SETTINGS)
REQUEST = frame(HEADERS, block(), END_HEADERS | h2.END_STREAM, 1)
GRPC = [(b":method", b"POST"), *GET[1:], (b"content-type", b"application/grpc+proto")]
BODY = frame(h2.DATA, b"x" * 16384, 0, 1)
HEADERS_OF = {b":status": b"404", b"cache-control": b"no-store", b"content-type": b"text/html; charset=utf-8"}


class Echo:
    """A service that speaks HTTP/2 as far as its SETTINGS, and then gives back all that it gets."""

    def __init__(self) -> None:
        self.got = b""

    def __call__(self, conn: SocketConn) -> None:
        conn.sendall(SETTINGS)
        while data := conn.recv(1 << 16):
            self.got += data
            conn.sendall(data)


@contextmanager
def echo_behind(**settings: Any) -> Iterator[tuple[SiteOfTest, Echo]]:
    """Have an `Echo` behind the name `a` for the block."""
    echo = Echo()
    with scripted(echo) as service, site_before(service.port, **settings) as site:
        yield site, echo


def asked(data: bytes, wanted: dict[str, Any] | None = None, **settings: Any) -> bytes:
    """Return what a user gets who is refused, whom no service may see."""
    with echo_behind(wanted=wanted, **settings) as (site, echo):
        got = site.ask(data)
    assert echo.got == b""
    return got


def nothing(_conn: SocketConn) -> None:
    """Serve nobody."""


# ---- what is passed through --------------------------------------------------------------------------------


def test_a_connection_reaches_the_service_as_it_came() -> None:
    data = opening(flags=0) + BODY
    with echo_behind() as (site, echo):
        got = site.ask(data, end=True)
    assert echo.got == data
    assert got == SETTINGS + data


def test_a_connection_may_come_byte_by_byte() -> None:
    answered = frame(h2.SETTINGS, flags=ACK)  # to the settings that gnar sends, as no request has come yet
    with echo_behind() as (site, echo):
        conn = site.dial()
        with deadline(WAIT_S, "an echo"):
            for each in START:
                conn.sendall(bytes([each]))
                turn()
            assert recv_exactly(conn, len(SETTINGS)) == SETTINGS
            for each in answered + REQUEST:
                conn.sendall(bytes([each]))
                turn()
            assert recv_exactly(conn, len(SETTINGS + START + REQUEST)) == SETTINGS + START + REQUEST
        conn.close()
    assert echo.got == START + REQUEST


def test_a_client_that_waits_for_settings_gets_some_and_the_service_no_answer_to_them() -> None:
    with echo_behind() as (site, echo):
        conn = site.dial()
        with deadline(WAIT_S, "settings"):
            conn.sendall(START)
            assert recv_exactly(conn, len(SETTINGS)) == SETTINGS
            conn.sendall(frame(h2.SETTINGS, flags=ACK) + REQUEST)
            assert recv_exactly(conn, len(SETTINGS + START + REQUEST)) == SETTINGS + START + REQUEST
        conn.close()
        assert echo.got == START + REQUEST


def test_a_connection_counts_as_one_user_and_its_bytes_are_counted() -> None:
    data = opening(flags=0) + BODY
    with echo_behind() as (site, _):
        proxy = site.names.proxies["a"]
        conn = site.dial()
        with deadline(WAIT_S, "an echo"):
            conn.sendall(data)
            recv_exactly(conn, len(SETTINGS + data))
        assert len(proxy.meter.connections) == 1
        conn.close()
        wait_until(lambda: not proxy.meter.connections, "the user has left")
        assert (proxy.meter.up.bytes, proxy.meter.down.bytes) == (len(data), len(SETTINGS + data))


def test_a_request_behind_one_of_http_1_cannot_begin_http_2() -> None:
    with site_before(1) as site:
        got = site.ask(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n" + opening())
    assert [each.status for each in responses(got)] == [404, 505]


# ---- who is refused, and how -------------------------------------------------------------------------------


def test_a_name_that_nobody_has_is_answered_with_a_page_and_a_goodbye() -> None:
    got = asked(opening([*GET[:2], (b":authority", b"b&c"), GET[3]]))
    assert got.startswith(SETTINGS)
    assert h2.fields_of(got) == HEADERS_OF
    assert b"nobody has the name b&amp;c here" in h2.body_of(got)
    assert h2.goodbye(got) == (1, Code.NO_ERROR, "nobody has the name b&c here")


def test_a_program_of_grpc_gets_the_words_as_it_knows_them() -> None:
    got = asked(opening([*GRPC[:2], (b":authority", b"b"), *GRPC[3:]]))
    assert h2.fields_of(got) == {
        b":status": b"200",
        b"content-type": b"application/grpc",
        b"grpc-status": b"12",
        b"grpc-message": b"nobody has the name b here",
    }
    assert h2.body_of(got) == b""


@pytest.mark.parametrize(
    "wanted",
    [
        {"host_header": "b"},
        {"request_headers": ("X: y",)},
        {"response_headers": ("-X",)},
        {"basic_auth": ("ann:$2b$04$5dSeL6InYVzkh8Lcqn7iJuJHviixOmWPybMRcNdGfSnRkO1zVT/Xa",)},
        {"redirect_https": True},
        {"http2": False},
    ],
)
def test_a_proxy_that_has_requests_treated_is_served_by_http_1_alone(wanted: dict[str, Any]) -> None:
    got = asked(opening(), wanted)
    assert h2.fields_of(got)[b":status"] == b"505"
    assert h2.goodbye(got)[:2] == (1, Code.HTTP_1_1_REQUIRED)
    assert "alone" in h2.goodbye(got)[2]


def test_a_name_with_paths_is_served_by_http_1_alone_since_others_could_follow_on_the_connection() -> None:
    with echo_behind() as (site, echo):
        site.names.with_paths.add("a")
        got = site.ask(opening())
    assert echo.got == b""
    assert h2.fields_of(got)[b":status"] == b"505"
    assert h2.goodbye(got)[:2] == (1, Code.HTTP_1_1_REQUIRED)


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded", b"via"])
def test_a_proxy_in_front_is_refused_since_it_would_send_requests_for_other_names_as_well(
    name: bytes,
) -> None:
    got = asked(opening([*GET, (name, b"192.0.2.1")]), trust_forwarded=("127.0.0.0/8",))
    assert h2.fields_of(got)[b":status"] == b"505"
    assert h2.goodbye(got)[2] == "whoever passes requests on has to use HTTP/1.1 here"


REFUSALS: dict[str, tuple[Callable[[Any], None], bytes, str]] = {
    "away": (lambda proxy: setattr(proxy, "is_away", True), b"503", "web is away at the moment"),
    "address": (lambda proxy: proxy.rules.refused.add(LOOPBACK), b"403", "your address may not come here"),
    "places": (
        lambda proxy: setattr(proxy.places, "enter", lambda _network: "full"),
        b"503",
        "there are too many users at the moment",
    ),
    "no way": (
        lambda proxy: setattr(proxy, "connect", lambda _user, _address: None),
        b"503",
        "web cannot be reached at the moment",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_user_who_cannot_come_is_told_why(why: str) -> None:
    change, status, words = REFUSALS[why]
    with echo_behind() as (site, _):
        change(site.names.proxies["a"])
        got = site.ask(opening())
    assert h2.fields_of(got)[b":status"] == status
    assert (h2.fields_of(got).get(b"retry-after") is not None) == (status == b"503")
    assert h2.goodbye(got)[2] == words


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(b":method", b"CONNECT"), GET[2]], b"405"),
        ([*GET[:3], (b":path", b"x")], b"400"),
        ([*GET[:2], GET[3]], b"400"),
        ([*GET[:2], (b":authority", b"a b"), GET[3]], b"400"),
    ],
)
def test_a_request_that_can_be_for_nobody_is_answered(fields: list[h2.Field], status: bytes) -> None:
    assert h2.fields_of(asked(opening(fields)))[b":status"] == status


def says_http_1(conn: SocketConn) -> None:
    conn.recv(1 << 16)
    conn.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("serve", "words"),
    [(says_http_1, "web does not speak HTTP/2"), (nothing, "web does not answer")],
)
def test_a_service_that_does_not_speak_http_2_is_told_of(
    serve: Callable[[SocketConn], None], words: str
) -> None:
    with scripted(serve) as service, site_before(service.port) as site:
        got = site.ask(opening(GRPC))
    assert h2.fields_of(got)[b"grpc-status"] == b"14"
    assert h2.goodbye(got)[2] == words


def test_a_service_that_says_nothing_is_not_waited_for_long() -> None:
    def silent(conn: SocketConn) -> None:
        while conn.recv(1 << 16):
            pass

    with scripted(silent) as service, site_before(service.port, limits=replace(LIMITS, head_s=0.1)) as site:
        got = site.ask(opening())
    assert h2.goodbye(got)[2] == "web does not answer"


def test_bytes_that_are_no_http_2_are_answered_with_a_goodbye() -> None:
    got = asked(START + frame(h2.DATA, b"x", 0, 1))
    assert got.startswith(SETTINGS)
    assert h2.goodbye(got) == (0, Code.PROTOCOL_ERROR, "there has to be a request first")
    got = asked(START + frame(h2.PING, bytes(8)) * (MAX_OPENING_BYTES // 17))
    assert h2.goodbye(got)[1] == Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (START, "no request has come for too long"),
        (START + REQUEST[:-1], "the head of the request took too long"),
    ],
)
def test_a_request_that_does_not_come_is_not_waited_for_long(data: bytes, words: str) -> None:
    got = asked(data, limits=replace(LIMITS, idle_s=0.1, head_s=0.1))
    assert [each[0] for each in h2.frames(got)] == [h2.SETTINGS, h2.GOAWAY]
    assert h2.goodbye(got) == (0, Code.NO_ERROR, words)


def test_a_page_is_left_out_where_the_user_takes_none() -> None:
    head = opening([(b":method", b"HEAD"), *GET[1:2], (b":authority", b"b"), GET[3]])
    small = opening([*GET[:2], (b":authority", b"b"), GET[3]], settings=bytes.fromhex("000400000010"))
    for data in (head, small):
        got = asked(data)
        assert h2.fields_of(got) == HEADERS_OF
        assert h2.body_of(got) == b""


def test_a_page_of_ones_own_is_shown() -> None:
    with echo_behind(wanted={"error_page": "{status} {detail}"}) as (site, _):
        site.names.proxies["a"].is_away = True
        assert h2.body_of(site.ask(opening())) == b"503 web is away at the moment"


def test_whoever_waits_for_a_request_goes_when_somebody_else_needs_the_place() -> None:
    limits = replace(LIMITS, connections=1, connections_of_network=1)
    with echo_behind(limits=limits) as (site, _):
        conn = site.dial()
        with deadline(WAIT_S, "settings"):
            conn.sendall(START)
            recv_exactly(conn, len(SETTINGS))
            turn()
            assert site.ask(opening(), end=True) == SETTINGS + opening()
            assert conn.recv(1) == b""
        conn.close()


# ---- real programs -----------------------------------------------------------------------------------------


@contextmanager
def running(*command: str, is_ready: Callable[[], bool], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the block."""
    process = subprocess.Popen(command, **options)
    try:
        wait_until(lambda: is_ready() or process.poll() is not None, f"{command[0]} is ready")
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


NGINX = """
daemon off; master_process off; error_log stderr; pid {folder}/pid;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder}; client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port} http2;
    root {folder};
    location /put {{ dav_methods PUT; create_full_put_path on; }}
    location /said {{ return 200 "$server_protocol $host [$http_x_forwarded_for]"; }}
  }}
}}
"""


@contextmanager
def nginx_behind(folder: Path) -> Iterator[SiteOfTest]:
    """Have an nginx with HTTP/2 behind the name `a` for the block."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port))
    command = ("nginx", "-p", str(folder), "-c", str(config))
    with running(*command, is_ready=lambda: is_open(port)), site_before(port) as site:
        yield site


needs_nginx = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("curl")), reason="nginx or curl is not installed"
)


@needs_nginx
def test_curl_reaches_nginx_by_http_2_and_its_bodies_are_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    with nginx_behind(tmp_path) as site:
        served: Any = site
        h2c = ("--http2-prior-knowledge", "-H", "Host: a")
        said = curl(served, *h2c, "@/said")
        curl(served, *h2c, "-o", str(tmp_path / "got"), "@/file")
        curl(served, *h2c, "-T", str(tmp_path / "file"), "@/put/new")
    assert said == "HTTP/2.0 a []"
    assert (tmp_path / "got").read_bytes() == (tmp_path / "put" / "new").read_bytes() == content


@needs_nginx
def test_curl_shows_the_words_of_a_refusal(tmp_path: Path) -> None:
    with nginx_behind(tmp_path) as site:
        served: Any = site
        shown = curl(served, "--http2-prior-knowledge", "-H", "Host: b", "-w", "%{http_code}", "@/")
    assert "nobody has the name b here" in shown
    assert shown.endswith("404")


@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load is not installed")
@needs_nginx
def test_many_requests_share_a_few_connections(tmp_path: Path) -> None:
    with nginx_behind(tmp_path) as site:
        where = f"http://{LOOPBACK}:{site.port}/said"
        shown = output_of("h2load", "-n", "400", "-c", "4", "-m", "10", "-H", ":authority: a", where)
        assert site.names.proxies["a"].connects == 4
    assert "400 succeeded, 0 failed" in shown


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    """Run a service of gRPC; yields its port."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    command = (sys.executable, "-m", "tests.peers.grpc_peer", "serve")
    pipes = SimpleNamespace(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with running(*command, is_ready=lambda: True, **vars(pipes)) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


def called(port: int, authority: str) -> Any:
    """Return what a client of gRPC gets."""
    shown = output_of(sys.executable, "-m", "tests.peers.grpc_peer", "call", str(port), authority)
    return json.loads(shown.splitlines()[-1])


def test_grpc_works_from_end_to_end(grpc_port: int) -> None:
    with site_before(grpc_port) as site:
        assert called(site.port, "a") == [True, ["A", "B"]]
        assert site.names.proxies["a"].connects == 1


def test_a_client_of_grpc_is_told_in_words_that_nobody_has_a_name(grpc_port: int) -> None:
    with site_before(grpc_port) as site:
        assert called(site.port, "b") == ["UNIMPLEMENTED", "nobody has the name b here"]


def test_a_client_of_grpc_is_told_in_words_that_a_service_speaks_http_1_alone() -> None:
    with scripted(says_http_1) as service, site_before(service.port) as site:
        assert called(site.port, "a") == ["UNAVAILABLE", "web does not speak HTTP/2"]
