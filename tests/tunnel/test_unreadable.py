"""What tcpdump sees between clients and a server: nothing of what users send, and nothing of who they are."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from tests.helpers.client_file import proxy_table
from tests.helpers.harness import LOOPBACK, TOKEN, WAIT_S, Service, Tunnels, dial, wait_until
from tests.helpers.udp import UdpService, user_of

MODES = {"default": (), "plain": ("--no-multiplex",), "one-connection": ("-m",)}
BULK = 32_768  # times that a word is sent, so that bulk moves to a connection of its own
BUFFER_KIB = "32768"  # for what tcpdump has not written yet


class Capture:
    """All packets to and from a port of loopback, as tcpdump records them."""

    def __init__(self, port: int, folder: Path) -> None:
        self._port = port
        self._packets, self._said = folder / "packets", folder / "tcpdump.log"

    def __enter__(self) -> Capture:
        if not shutil.which("tcpdump"):
            pytest.skip("there is no tcpdump")
        # Packets go to its output, since it gives its rights up before it opens a file.
        command = ["tcpdump", "-i", "lo", "-n", "-U", "-B", BUFFER_KIB, "-w", "-", f"tcp port {self._port}"]
        with self._packets.open("wb") as packets, self._said.open("wb") as said:
            self._process = subprocess.Popen(command, stdout=packets, stderr=said)
        wait_until(lambda: "listening on" in self._said.read_text(), "tcpdump listens")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(WAIT_S)

    def finish(self) -> bytes:
        """Return what was recorded, once the last packet so far has been."""
        last = b"the last packet so far"
        with dial(self._port) as marked, contextlib.suppress(ConnectionError):
            marked.sendall(last)
            marked.recv(100)
        wait_until(lambda: last in self._packets.read_bytes(), "tcpdump has recorded the last packet")
        self._process.send_signal(signal.SIGINT)
        self._process.wait(WAIT_S)
        assert "\n0 packets dropped by kernel" in self._said.read_text()
        return self._packets.read_bytes()


def word(what: str) -> bytes:
    """Return bytes that nobody else sends."""
    return f"<what nobody may read: {what}>".encode()


def shout(conn: socket.socket) -> None:
    """Send back what comes, in capital letters."""
    while data := conn.recv(65536):
        conn.sendall(data.upper())


def send_by_tcp(port: int, said: bytes) -> bytes:
    """Send much as a user, get the answer, and return the user's address."""
    data = said * BULK
    with dial(port) as user:
        sender = threading.Thread(target=user.sendall, args=(data,))
        sender.start()
        left = len(data)
        while left:
            left -= len(user.recv(left))
        sender.join(WAIT_S)
        return f'"{LOOPBACK}:{user.getsockname()[1]}"'.encode()


def send_by_udp(port: int, said: bytes) -> bytes:
    """Send a datagram as a user until it is answered, and return the user's address as it travels."""
    with user_of(port, timeout_s=0.5) as user:
        host, own_port = user.getsockname()
        for _ in range(int(WAIT_S)):
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                user.send(said)
                assert user.recv(100) == said.upper()
                return socket.inet_pton(socket.AF_INET6, f"::ffff:{host}") + struct.pack("!H", own_port)
    raise AssertionError("no answer")


@pytest.mark.parametrize("tls", ["on", "off"])
def test_nothing_of_a_user_is_on_the_path_unless_tls_is_off(gnar_pyz: Path, tmp_path: Path, tls: str) -> None:
    secrets: dict[str, bytes] = {}
    with (
        Tunnels(gnar_pyz, tmp_path / "run", ("--tls", tls)) as tunnels,
        Service(shout) as service,
        UdpService(bytes.upper) as udp_service,
    ):
        _, server_port = tunnels.server()
        with Capture(server_port, tmp_path) as capture:
            for mode, flags in MODES.items():
                tcp, udp, file = f"tcp-of-{mode}", f"udp-of-{mode}", tmp_path / f"{mode}.toml"
                file.write_text(
                    proxy_table(tcp, service.port, 0) + proxy_table(udp, udp_service.port, 0, "udp")
                )
                client, _ = tunnels.client(server_port, "-c", str(file), *flags)
                for name, send in ((tcp, send_by_tcp), (udp, send_by_udp)):
                    port = int(client.wait_log(rf"{name}\] open at \S+:(\d+)")[1])
                    said = word(name)
                    secrets |= {
                        f"{name}: name": name.encode(),
                        f"{name}: question": said,
                        f"{name}: answer": said.upper(),
                        f"{name}: address": send(port, said),
                    }
            recorded = capture.finish()
    assert TOKEN.encode() not in recorded
    seen = {what for what, data in secrets.items() if data in recorded}
    assert seen == (set() if tls == "on" else {*secrets})
