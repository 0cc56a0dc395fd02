"""Clients that come and go, or want what others have: who has a name, and what users see meanwhile."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from gnar_lib.proto import Exchange, ProxyReq, ProxyResp, to_frame
from tests.helpers.harness import LOOPBACK, TOKEN, WAIT_S, Forwarder, dial, free_port, wait_until
from tests.helpers.local_web import HALF_BYTES, get, host_of, users_of
from tests.helpers.terminals import Terminal
from tests.peers.plain import go_login, recv_message
from tests.tunnel.names.conftest import Names

OPTIONS = {"plain": ("--no-multiplex",), "mux": ()}
PARTIAL, RESET = 18, 56  # of curl: the file is short, the connection was lost


@contextmanager
def downloads(names: Names, label: str, folder: Path, *framings: str) -> Iterator[list[Popen[str]]]:
    """Have users download something of which half has come, and the other half has to wait for `go_on`."""
    running, files = [], [folder / framing for framing in framings]
    for file in files:
        url = names.url(label, f"/half/{file.name}")
        command = ["curl", "-sSN", "--noproxy", "*", "--max-time", "60", "-o", str(file), url]
        running.append(Popen(command, stderr=PIPE, text=True))
    try:
        wait_until(lambda: all(_has_half(file) for file in files), "half has come")
        yield running
    finally:
        for user in running:
            user.kill()
            user.communicate()


def _has_half(file: Path) -> bool:
    return file.exists() and file.stat().st_size == HALF_BYTES


def test_client_that_is_killed_breaks_downloads_off_and_its_next_start_has_the_name_at_once(
    names: Names, way: str, tmp_path: Path
) -> None:
    client = names.client(f"killed-{way}", *OPTIONS[way])
    framings = ["length", "chunked"]
    if way == "mux":  # else the kernel ends the data connection in order, which is how such a body ends
        framings.append("close")
    with downloads(names, f"killed-{way}", tmp_path, *framings) as users:
        client.kill()
        for user in users:
            assert user.wait(WAIT_S) in {PARTIAL, RESET}
        names.app.go_on.release(len(framings))
    away = get(names.http, f"killed-{way}")
    assert (away.status, away.headers["Retry-After"]) == (503, "10")
    names.client(f"killed-{way}", *OPTIONS[way])
    assert get(names.http, f"killed-{way}").status == 200


def test_client_is_restarted_and_no_user_sees_an_error(names: Names, way: str) -> None:
    old = names.client(f"again-{way}", *OPTIONS[way])
    with users_of(names.http, f"again-{way}") as users:
        assert old.stop() == 0
        names.client(f"again-{way}", *OPTIONS[way])
        users.wait_served(20)


def test_second_client_that_wants_a_name_is_told_that_it_is_taken(names: Names) -> None:
    wanted = ("-l", "1", "-y", "http", "-d", "app-plain")
    second, _ = names.tunnels.client(names.control, *wanted, wait=False)
    second.wait_log(f"the name {re.escape(host_of('app-plain'))} is taken")
    assert get(names.http, "app-plain").status == 200
    second.stop()


def test_name_is_shared_by_path_by_two_clients(names: Names) -> None:
    rest = names.client("shared")
    names.client("shared", "--path", "/api", "-m")
    paths = ("/api", "/api/users?x=1", "/apis", "/show")
    shown = {path: get(names.http, "shared", path).json["path"] for path in paths}
    assert shown == {path: path for path in paths}
    rest.kill()
    wait_until(lambda: get(names.http, "shared").status == 503, "the rest is away")
    assert [get(names.http, "shared", path).status for path in paths] == [200, 200, 503, 503]


def test_name_that_the_server_has_chosen_stays_when_the_connection_is_lost(names: Names, way: str) -> None:
    path = Forwarder(names.control)
    client, _ = names.tunnels.client(
        path.port, "-l", str(names.app.port), "-y", "http", "-d", "", *OPTIONS[way], wait=False
    )
    name = client.wait_log(r"open at \w+://([a-z0-9-]+)\.")[1]
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d+", name)
    assert get(names.http, name).status == 200
    path.cut()
    again = client.wait_log(r"open at \w+://([a-z0-9-]+)\.", count=2)[1]
    assert again == name
    assert get(names.http, name).status == 200


def test_go_client_with_a_subdomain_is_reached_by_its_name_and_by_its_port(names: Names) -> None:
    port = free_port()
    with dial(names.control) as control:
        control.sendall(go_login() + to_frame(ProxyReq(port, "go", "from-go", "tcp")))
        assert recv_message(control) == ProxyResp(host_of("from-go"), "success")
        for where, request in ((names.http, b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n"), (port, b"hello %b")):
            with dial(where) as user:
                user.sendall(request % host_of("from-go").encode())
                exchange = recv_message(control)
                assert isinstance(exchange, Exchange)
                with dial(names.control) as data:
                    data.sendall(go_login() + to_frame(exchange))
                    assert data.recv(100).startswith(request[:5])
                    data.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    assert user.recv(100).endswith(b"ok")


def test_gnar_http_on_a_terminal_shows_the_url(names: Names, gnar_pyz: Path) -> None:
    words = ("http", str(names.app.port), "-n", "shown", "-s", f"{LOOPBACK}:{names.control}")
    with Terminal(str(gnar_pyz), *words, "--inspect", "off", env={"GNAR_TOKEN": TOKEN}) as terminal:
        terminal.wait_shown(f"https://{host_of('shown')}:{names.https}")
        assert get(names.http, "shown").status == 200
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait_exit() == 0
