"""Real services behind names, and real users: nothing is lost, changed, or held up on the way."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.helpers.harness import LOOPBACK, WAIT_S, Gnar, free_port, wait_until
from tests.helpers.local_web import DOMAIN, EVENTS, MIB, WebSocket, curl, get, get_on, h2load, host_of
from tests.tunnel.names.conftest import Names

UPLOAD_BYTES = 100 * MIB
GROWN_BYTES = 30 * MIB  # that a process may grow by while an upload passes
NORMAL = 1000  # the code of a WebSocket that is closed in order (RFC 6455, 7.4.1)
TOLD = ("-w", "%{http_code} %{num_connects}\n")


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Make a file of 100 MiB, and return it with what a service says that gets it."""
    path, digest = tmp_path_factory.mktemp("upload") / "large", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(UPLOAD_BYTES // MIB):
            digest.update(piece := os.urandom(MIB))
            file.write(piece)
    return path, f"{UPLOAD_BYTES} {digest.hexdigest()}"


def test_curl_gets_files_from_nginx_on_one_connection(names: Names, way: str) -> None:
    page, large = names.url(f"nginx-{way}"), names.url(f"nginx-{way}", "/large")
    shown = curl(*TOLD, page, "--next", "-sS", *TOLD, large, "-o", os.devnull, "--next", "-sS", *TOLD, page)
    assert shown == "a page200 1\n200 0\na page200 0\n"
    expected = (names.folder / "site" / "large").read_bytes()
    got = get(names.http, f"nginx-{way}", "/large", Range="bytes=1000-2999")
    assert (got.status, got.body) == (206, expected[1000:3000])
    assert get(names.http, f"nginx-{way}", "/large").body == expected


def test_curl_gets_files_from_pythons_own_server_of_http_1_0(names: Names, way: str) -> None:
    page, missing = names.url(f"files-{way}"), names.url(f"files-{way}", "/missing")
    assert curl("-w", " %{http_code}", page) == "a page 200"
    assert curl("-o", os.devnull, "-w", "%{http_code}", missing) == "404"
    assert curl("-I", page).startswith("HTTP/1.1 200 OK\r\nServer: SimpleHTTP")


def test_chunks_come_as_they_are_sent(names: Names, way: str) -> None:
    shown = curl("-i", names.url(f"app-{way}", "/chunked"))
    assert "transfer-encoding: chunked" in shown.lower()
    assert shown.endswith("\r\n\r\none two three")


def test_each_event_comes_before_the_next_one_is_sent(names: Names, way: str) -> None:
    command = ["curl", "-sSN", "--noproxy", "*", "--max-time", "60", names.url(f"app-{way}", "/events")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        for number in range(EVENTS):
            assert user.stdout.readline() == f"data: {number}\n"
            assert user.stdout.readline() == "\n"
            names.app.go_on.release()
        assert user.stdout.read() == ""
    names.app.go_on.acquire()  # nobody has waited for the last one
    assert user.returncode == 0


def test_websocket_carries_messages_of_any_size_both_ways(names: Names, way: str) -> None:
    with WebSocket(names.http, f"app-{way}") as user:
        for message in ("hello", b"\x00\xff", "", os.urandom(3 * MIB)):
            assert user.ask(message) == message
        user.ping()
        assert user.close() == NORMAL


def test_crowd_of_users_is_answered_without_an_error(names: Names, way: str) -> None:
    h2load(names.http, f"nginx-{way}", "/index.html", requests=600, users=24)


@pytest.mark.parametrize(("way", "framing"), [("plain", "length"), ("mux", "chunked")])
def test_upload_of_100_mib_is_never_held(
    names: Names, large_file: tuple[Path, str], way: str, framing: str
) -> None:
    path, expected = large_file
    processes = (names.server, names.clients[way])
    before = [_forget_peak(process) for process in processes]
    chunked = ["-H", "Transfer-Encoding: chunked"] if framing == "chunked" else []
    assert curl("-T", path, *chunked, names.url(f"app-{way}", "/upload")) == expected
    for process, held in zip(processes, before, strict=True):
        assert _memory(process, "VmHWM") - held < GROWN_BYTES, process.args[0]


def _forget_peak(process: Gnar) -> int:
    """Have the kernel forget how much memory a process has used at most; returns how much it uses now."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return _memory(process, "VmRSS")


def _memory(process: Gnar, key: str) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) * 1024


def test_service_sees_the_user_and_the_name(names: Names, way: str) -> None:
    headers = get(names.http, f"app-{way}", **{"X-Forwarded-For": "192.0.2.1"}).json["headers"]
    assert headers["Host"] == host_of(f"app-{way}")
    assert headers["X-Forwarded-For"] == f"192.0.2.1, {LOOPBACK}"  # loopback may say who is behind it
    assert headers["X-Forwarded-Proto"] == "http"


def test_speed_limit_of_a_proxy_holds_for_its_name(names: Names) -> None:
    began = time.monotonic()
    assert len(get(names.http, "slow-mux", "/large").body) == 4 * MIB
    assert time.monotonic() - began > 1.0


def test_user_beyond_those_that_a_proxy_may_have_is_told_when_to_come_again(names: Names, way: str) -> None:
    first = HTTPConnection(LOOPBACK, names.http, timeout=WAIT_S)
    host = {"Host": host_of(f"one-{way}")}
    first.request("GET", "/show", headers=host)
    assert first.getresponse().read()
    refused = get(names.http, f"one-{way}")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
    first.request("GET", "/show", headers=host)
    assert first.getresponse().status == 200
    first.close()
    wait_until(lambda: get(names.http, f"one-{way}").status == 200, "the place is free")


def test_limits_of_the_server_hold_for_names(names: Names) -> None:
    http = free_port()
    limits = ("--max-users", "1", "--max-speed", "2mb")
    _, control = names.tunnels.server("--domain", DOMAIN, "--http-port", str(http), *limits)
    client, _ = names.tunnels.client(control, f"app={names.app.port}", wait=False)
    client.wait_log("open at")
    with closing(HTTPConnection(LOOPBACK, http, timeout=2 * WAIT_S)) as first:
        began = time.monotonic()
        assert len(get_on(first, "app", f"/length/{4 * MIB}").body) == 4 * MIB
        assert time.monotonic() - began > 1.0
        refused = get(http, "app")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert get_on(first, "app").status == 200
