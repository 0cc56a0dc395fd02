"""What a client shows on a terminal, and that it works without standard streams."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from gnar_lib import logger
from gnar_lib.client.proxies import ClientProxy
from gnar_lib.client.serve import show
from gnar_lib.config import Address, ProxyConfig
from gnar_lib.pio.meter import Meter
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    WAIT_S,
    Service,
    Tunnels,
    ask,
    echo,
    free_port,
    is_open,
    wait_until,
)


def test_links_can_be_clicked_on_a_terminal_and_nowhere_else(plain_tunnels: Tunnels, gnar_pyz: Path) -> None:
    with Service(echo) as service:
        _, server_port = plain_tunnels.server()
        plain, port = plain_tunnels.client(server_port, str(service.port))
        wait_until(lambda: "->" in plain.out, "the block is shown")
        assert "\033" not in plain.out
        ours, theirs = pty.openpty()
        words = ["client", f"{LOOPBACK}:{server_port}", str(service.port)]
        terminal = subprocess.Popen(
            [gnar_pyz, *words],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"GNAR_TOKEN": TOKEN},
        )
        os.close(theirs)
        with terminal, os.fdopen(ours, "rb", buffering=0) as screen:
            shown = b""
            while b"->" not in shown:
                shown += screen.read(4096)
            terminal.terminate()
            assert terminal.wait(WAIT_S) == 0
        found = re.search(rb"\033\]8;;http://(127\.0\.0\.1:\d+)\033\\\1\033\]8;;\033\\  ->  ", shown)
        assert found, shown
        assert int(found[1].split(b":")[1]) != port


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "| true"])
def test_client_serves_whatever_became_of_its_standard_streams(
    plain_tunnels: Tunnels, gnar_pyz: Path, streams: str
) -> None:
    with Service(echo) as service:
        _, server_port = plain_tunnels.server()
        port = free_port()
        words = f"client {LOOPBACK}:{server_port} {service.port}:{port} --grace 0"
        client = subprocess.Popen(
            ["sh", "-c", f'"$0" {words} {streams}', gnar_pyz],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"GNAR_TOKEN": TOKEN},
            start_new_session=True,
        )
        with client:
            try:
                wait_until(lambda: is_open(port), "the proxy is open")
                assert ask(port) == b"ping"
                assert ask(port) == b"ping"
            finally:
                os.killpg(client.pid, signal.SIGTERM)


@pytest.mark.parametrize("command", ["server", "client"])
def test_process_whose_terminal_has_gone_ends(plain_tunnels: Tunnels, gnar_pyz: Path, command: str) -> None:
    port = free_port()
    words = ["server", f"{port}", "--bind", LOOPBACK]
    if command == "client":
        _, server_port = plain_tunnels.server()
        words = ["client", f"{LOOPBACK}:{server_port}", f"1:{port}"]
    pid, screen = pty.fork()
    if pid == 0:
        os.execve(gnar_pyz, [str(gnar_pyz), *words], os.environ | {"GNAR_TOKEN": TOKEN})  # noqa: S606
    with os.fdopen(screen, "rb", buffering=0):
        wait_until(lambda: is_open(port), "it listens")
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(found)

    try:
        wait_until(has_ended, "it has ended")
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert ended == [0]
    wait_until(lambda: not is_open(port), "the port is free")


def test_domain_that_a_server_tells_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    proxy = ClientProxy(ProxyConfig(proxy_name="x", local_port=1), Meter())
    proxy.domain = "a.example\033[2J\033]0;title\007"
    show(Address(LOOPBACK, 1), [proxy])
    logger.close()
    assert "https://a.example" in (shown := capsys.readouterr().out)
    assert shown.replace("\n", "").isprintable()
