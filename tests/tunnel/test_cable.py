"""A pulled cable: the link between two hosts loses every packet, and neither end is told.

These tests wait for timeouts of many seconds, so all of them wait at the same time, behind one cut.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.procs import Host
from bench.wan import LongPath
from tests.helpers.harness import TOKEN, wait_until
from tests.helpers.hosts import ECHO, SERVICE, START_S, Program, long_path

DELAY_MS = 2  # one way
CONTROL_PORT = 8910
PLAIN, MULTIPLEXED, GO = 9000, 9001, 9002  # proxied ports
# Between two of our own ends. A patient server and its clients outlive a cut, hasty ones give each other up.
HASTY_CONTROL_PORT, HASTY, HASTY_GO = 8911, 9010, 9012
HASTE = ("--dead-after", "8", "--heartbeat", "1")
CUT_S = 22.0  # longer than a server may be silent until a client tries another connection
BACK_S = 45.0  # the client's longest pause between two tries is 36 s

# The Go client of 2024: Login and ProxyReq, then it only reads.
GO_CLIENT = r"""
import hashlib, json, socket, struct, sys, time
host, port, remote_port, token = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def frame(kind, **fields):
    body = json.dumps(fields, separators=(",", ":")).encode()
    return struct.pack(">BH", kind, len(body)) + body
now = int(time.time())
md5 = hashlib.md5(f"{token}{now}".encode()).hexdigest()
conn = socket.create_connection((host, port))
conn.sendall(frame(1, token=md5, version="v0.0.1-", timestamp=now)
             + frame(3, remote_port=remote_port, proxy_name="go", subdomain="", proxy_type="tcp"))
while data := conn.recv(4096):
    print(data, flush=True)
"""

# A user at the server's host who stays: says a word, waits for it to come back, pauses, and so on.
LASTING_USER = """
import select, socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 15) as user:
    user.settimeout(None)
    try:
        while True:
            user.sendall(b"ping")
            print(user.recv(4).decode().replace("ping", "echo"), flush=True)
            if select.select([user], [], [], float(sys.argv[2]))[0]:
                raise OSError(user.recv(1))
    except OSError as exc:
        print("ended:", exc, flush=True)
"""

# A user at the server's host: connects, says a word, and tells what came back.
USER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 15) as user:
    user.sendall(b"ping")
    user.shutdown(socket.SHUT_WR)
    print(user.makefile("rb").read().decode())
"""


def listens(host: Host, port: int) -> bool:
    return bool(host.run(["ss", "-Hltn", f"sport = :{port}"]).stdout.strip())


def connections(host: Host, port: int) -> int:
    """Return how many connections to a port are open on the host."""
    return len(host.run(["ss", "-Htn", "state", "established", f"sport = :{port}"]).stdout.splitlines())


def ask(host: Host, port: int) -> str:
    return host.run([sys.executable, "-c", USER, port], check=False, timeout=40).stdout.strip()


def wait_served(host: Host, port: int) -> None:
    """Have users come one after the other until one is served, as each is within 10 s or never."""
    wait_until(lambda: ask(host, port) == "ping", f"a user of {port} is served", BACK_S)


@pytest.fixture
def path() -> Iterator[LongPath]:
    with long_path(DELAY_MS, "THE PULLED CABLE") as hosts:
        yield hosts


class Scene:
    """Servers on one host; on the other their clients, among them a Go client, and a service."""

    def __init__(self, pyz: Path, path: LongPath, folder: Path) -> None:
        self.near, self.far = path.a, path.b
        self._pyz = pyz
        self._folder = folder
        self._programs: list[Program] = []
        self.server = self.start_server("server", CONTROL_PORT)
        self.start(self.near, "service", sys.executable, "-c", ECHO)
        self.client = self.start_client("client", CONTROL_PORT, PLAIN, "--no-multiplex")
        self.go = self.start_go_client("go", CONTROL_PORT, GO)
        self.client.wait_log("open at")
        self.go.wait_log("success")
        wait_until(lambda: connections(self.far, CONTROL_PORT) >= 4, "two data connections wait", START_S)

    def start(self, host: Host, name: str, *argv: object) -> Program:
        program = Program(host, self._folder, name, *argv)
        self._programs.append(program)
        return program

    def start_server(self, name: str, port: int, *options: str) -> Program:
        program = self.start(self.far, name, self._pyz, "server", port, *options)
        program.wait_log("listening on")
        return program

    def start_client(self, name: str, port: int, proxied_port: int, *options: str) -> Program:
        address = f"{self.far.ip}:{port}"
        return self.start(
            self.near, name, self._pyz, "client", address, f"{SERVICE}:{proxied_port}", *options
        )

    def start_go_client(self, name: str, port: int, proxied_port: int) -> Program:
        return self.start(
            self.near, name, sys.executable, "-c", GO_CLIENT, self.far.ip, port, proxied_port, TOKEN
        )

    def start_user(self, name: str, port: int, pause_s: float) -> Program:
        """Start a user who says a word every `pause_s` seconds for as long as it comes back."""
        program = self.start(self.far, name, sys.executable, "-c", LASTING_USER, port, pause_s)
        program.wait_log("echo")
        return program

    def close(self, *, failed: bool) -> None:
        for program in self._programs:
            program.kill()
            if failed:
                print(f"---- {program.name} ----\n{program.log}")
        for program in self._programs:
            if program.name != "service":
                assert "Traceback" not in program.log, program.log


@pytest.fixture
def scene(gnar_pyz: Path, path: LongPath, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    failures = request.session.testsfailed
    made = Scene(gnar_pyz, path, tmp_path)
    yield made
    made.close(failed=request.session.testsfailed > failures)


@pytest.mark.waits
def test_users_outlive_a_pulled_cable_unless_it_is_pulled_for_longer_than_they_are_patient(
    path: LongPath, scene: Scene
) -> None:
    far = scene.far
    multiplexed = scene.start_client("multiplexed", CONTROL_PORT, MULTIPLEXED, "-m")
    hasty_server = scene.start_server("hasty server", HASTY_CONTROL_PORT, *HASTE)
    hasty = scene.start_client("hasty", HASTY_CONTROL_PORT, HASTY, *HASTE)
    hasty_go = scene.start_go_client("hasty go", HASTY_CONTROL_PORT, HASTY_GO)
    for client in (multiplexed, hasty):
        client.wait_log("open at")
    hasty_go.wait_log("success")
    lasting = [
        scene.start_user(f"user {kind} of {port}", port, pause_s)
        for port in (PLAIN, MULTIPLEXED)
        for kind, pause_s in (("idle", 2 * CUT_S), ("busy", 0.1))
    ]
    given_up = [scene.start_user(f"user {pause_s} of hasty", HASTY, pause_s) for pause_s in (2 * CUT_S, 0.1)]
    path.cut()
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        for program in (hasty_server, *given_up):
            program.wait_log("has gone" if program is hasty_server else "ended", CUT_S)
        wait_until(
            lambda: not any(listens(far, port) for port in (HASTY, HASTY_GO)), "both are given up", 5.0
        )
        time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
        assert [listens(far, port) for port in (PLAIN, MULTIPLEXED)] == [True, True]
        path.mend()
        late = [pool.submit(wait_served, far, port) for port in (PLAIN, MULTIPLEXED)]
        for served in late:
            served.result()
        for user in lasting:
            if "busy" in user.name:  # it goes on where it stood
                echoes = user.log.count("echo")
                user.wait_log("echo", BACK_S, count=echoes + 2)
        for client in (scene.client, multiplexed):
            client.wait_log("connected to", BACK_S, count=2)
        hasty.wait_log("open at", BACK_S, count=2)
        assert ask(far, HASTY) == "ping"
    for user in lasting:
        if "idle" in user.name:
            user.wait_log("echo", BACK_S, count=2)
        assert "ended" not in user.log
    assert "lost the server" not in scene.client.log + multiplexed.log


def local_ports(host: Host) -> set[int]:
    """Return the local ports of a client's connections to the control port."""
    rows = host.run(["ss", "-Htn", "state", "established", f"dport = :{CONTROL_PORT}"]).stdout.splitlines()
    return {int(row.split()[2].rpartition(":")[2]) for row in rows}


def server_has(host: Host, port: int) -> bool:
    return bool(host.run(["ss", "-Htn", f"sport = :{CONTROL_PORT} and dport = :{port}"]).stdout.strip())


def forget(host: Host, port: int) -> None:
    """Have the kernel drop a connection; while the cable is out, its reset reaches nobody."""
    host.run(["ss", "-K", "-tn", f"sport = :{port}"])
    if port in local_ports(host):
        pytest.skip("DEAD WAITING CONNECTIONS ARE NOT TESTED: this kernel has no INET_DIAG_DESTROY")


@pytest.mark.waits
def test_waiting_connections_that_died_unnoticed_are_given_to_no_user(path: LongPath, scene: Scene) -> None:
    controls = {int(port) for port in re.findall(r"client [\d.]+:(\d+) \(", scene.server.log)}
    assert len(controls) == 2
    dead = local_ports(scene.near) - controls
    assert len(dead) >= 2
    path.cut()
    for port in dead:
        forget(scene.near, port)
    path.mend()
    wait_until(lambda: len(local_ports(scene.near) - controls) >= 2, "the client has replaced them", START_S)
    fresh = local_ports(scene.near) - controls
    wait_until(
        lambda: all(server_has(scene.far, port) for port in fresh), "the server has the new ones", START_S
    )
    assert [ask(scene.far, PLAIN) for _ in range(6)] == ["ping"] * 6
    wait_until(lambda: not any(server_has(scene.far, port) for port in dead), "the dead are closed", START_S)
    assert [ask(scene.far, PLAIN) for _ in range(6)] == ["ping"] * 6
    assert "lost the server" not in scene.client.log
