"""The programs that play users and clients: what they count is what has happened."""

from __future__ import annotations

import re
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

from bench import user
from bench.contestants import start_gnar_server
from bench.fleet import SERVICE_PORT, clients_of
from bench.launch import Gnar, Launch
from bench.procs import LOOPBACK, Crew, answer_of
from bench.services import TcpEcho
from bench.work import Route, crowd
from tests.helpers.harness import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent


class _SlowWeb(socketserver.BaseRequestHandler):
    """Answers each request after 20 ms, in two parts; notes how many came on each connection."""

    asked: ClassVar[list[int]] = []

    def handle(self) -> None:
        count = 0
        while self.request.recv(4096):
            count += 1
            time.sleep(0.02)
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Len")
            self.request.sendall(b"gth: 2\r\n\r\nok")
        self.asked.append(count)


def test_users_of_both_kinds_are_timed_side_by_side() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _SlowWeb) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        times = user.mixed("127.0.0.1", server.server_address[1], 3, 2, 1)
        server.shutdown()
        thread.join(10)
    asked = _SlowWeb.asked  # of all connections: leaving the block has waited for them
    assert len(asked) == 3 + len(times["short"])
    assert sum(asked) == 3 + len(times["kept"]) + len(
        times["short"]
    )  # the first of each that stays is not timed
    assert min(times["kept"] + times["short"]) >= 20


def test_clients_in_one_process_come_from_addresses_of_their_own_and_stay(tmp_path: Path) -> None:
    gnar = (sys.executable, str(ROOT / "gnar.py"))
    with Crew(tmp_path) as crew:
        launch = Launch(crew, LOOPBACK, LOOPBACK, "tcp", SERVICE_PORT)
        control = start_gnar_server(launch, Gnar(gnar, gnar))
        with clients_of(control, 5, ("-m",)) as (players, _):
            assert players.stdin is not None
            players.stdin.close()
            assert answer_of(players, 15) == {"lost": 0}
        log = launch.procs[0].log
        opened = re.compile(r"is open for (127\.0\.1\.\d+):")
        wait_until(lambda: len({*opened.findall(log.read_text())}) == 5, "five clients have a proxy each")


def test_crowd_tells_who_is_served_and_who_is_not(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew:
        echo = TcpEcho(crew, LOOPBACK)
        route = Route(LOOPBACK, LOOPBACK.ip, echo.port, [], echo)
        told = crowd(route, 300, 15)
        assert (told["served"], told["refused"], told["wrong"], told["silent"]) == (300, 0, 0, 0)
        assert 0 < told["p50_ms"] <= told["longest_ms"] < 15_000
        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=_refuse_then_answer_wrongly, args=(server,))
            thread.start()
            told = crowd(Route(LOOPBACK, LOOPBACK.ip, server.getsockname()[1], [], echo), 3, 3)
            thread.join(10)
    assert (told["served"], told["refused"], told["wrong"], told["silent"]) == (0, 1, 1, 1)
    assert told["longest_ms"] >= 3000


def _refuse_then_answer_wrongly(server: socket.socket) -> None:
    """Take three users: hang up on one, send other bytes back to the next, and say nothing to the last."""
    users = [server.accept()[0] for _ in range(3)]
    users[0].close()
    users[1].sendall(bytes(1024))
    while users[2].recv(2048):
        pass
    for each in users:
        each.close()
