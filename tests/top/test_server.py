"""`gnar top` in front of a real server."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.harness import LOOPBACK, WAIT_S, Service, Tunnels, dial, echo, free_port, wait_until
from tests.helpers.terminals import CTRL_C, Terminal

SECRET = "the read token"
BLOCK = b"x" * 65536


@pytest.mark.waits
def test_users_and_their_connections_are_seen(plain_tunnels: Tunnels, gnar_pyz: Path, tmp_path: Path) -> None:
    admin_port = free_port()
    (tmp_path / "read.token").write_text(SECRET)
    options = ["-a", str(admin_port), "--admin-read-token-file", str(tmp_path / "read.token")]
    server, server_port = plain_tunnels.server(*options)
    url = f"http://{LOOPBACK}:{admin_port}"
    secret = {"GNAR_ADMIN_READ_TOKEN": SECRET}
    with Service(echo) as service, Terminal(str(gnar_pyz), "top", url, columns=100, env=secret) as terminal:
        terminal.wait_shown("Clients 0", "Users 0 now")
        client, port = plain_tunnels.client(server_port, "-l", str(service.port), "-n", "web")
        terminal.wait_shown("> web", str(port), "Clients 1", "client-came")
        with dial(port) as user:
            user.sendall(BLOCK)
            terminal.wait_for(
                lambda text: "Users 1 now" in text and bool(re.search(r"64\.0 KiB|[1-9]\S* KiB/s", text)),
                "bytes",
            )
            terminal.type("\r")
            host, user_port = user.getsockname()
            terminal.wait_shown("Proxy web", f"{host}:{user_port}", "64.0 KiB")
            terminal.type("\x1b")
            terminal.wait_shown("> web", "Users 1 now")
        terminal.wait_shown("Users 0 now, 1 in all")
        done = subprocess.run(
            [gnar_pyz, "top", "--once", url],
            env=os.environ | secret,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(rf"^web .*\b{port}\b", done.stdout, re.MULTILINE)
        client.stop()
        terminal.wait_for(lambda text: bool(re.search(r"Clients 0|gone for", text)), "the client has gone")
        server.stop()
        terminal.wait_shown("not connected since")
        plain_tunnels.server(*options, port=server_port)
        terminal.wait_for(lambda text: "not connected" not in text and "Clients 0" in text, "the server")
        terminal.type(CTRL_C)
        assert terminal.wait_exit() == 0
        wait_until(terminal.is_given_back, "the usual buffer")
