"""The live view of a client in a real terminal, and lines where there is none."""

from __future__ import annotations

import re
import signal
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    Service,
    Tunnels,
    ask,
    dial,
    echo,
    free_port,
    wait_until,
)
from tests.helpers.terminals import CTRL_C, CTRL_Q, CTRL_S, CTRL_Z, ENTERS, LEAVES, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = b"x" * 65536
ENV = {"GNAR_TOKEN": TOKEN}


def pour(conn: socket.socket) -> None:
    """Send without end."""
    while True:
        conn.sendall(BLOCK)


@pytest.fixture(scope="module")
def server_port(gnar_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Return the port of a server that the tests share."""
    with Tunnels(gnar_pyz, tmp_path_factory.mktemp("server"), ()) as tunnels:
        yield tunnels.server()[1]


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(echo) as made:
        yield made


@contextmanager
def client(
    pyz: Path, server_port: int, service: Service, *args: str, columns: int = 100, lines: int = 24
) -> Iterator[tuple[Terminal, int]]:
    """Run a client in a terminal until its proxy is open; yield the terminal and the port for users."""
    port = free_port()
    argv = [str(pyz), "client", f"{LOOPBACK}:{server_port}", f"{service.port}:{port}", *args]
    with Terminal(*argv, columns=columns, lines=lines, env=ENV) as terminal:
        wait_until(lambda: f"{LOOPBACK}:{port}".encode() in terminal.raw, "the proxy is open")
        yield terminal, port


@pytest.mark.waits
def test_link_and_figures_are_shown_and_move(server_port: int, gnar_pyz: Path) -> None:
    with Service(pour) as service, client(gnar_pyz, server_port, service) as (terminal, port):
        text = terminal.wait_shown("connected for", f"{LOOPBACK}:{port}", f"{LOOPBACK}:{service.port}")
        assert re.search(r"Round trip [\d.]+ ms", text)
        assert "Encryption TLS 1.3" in text
        assert "Users 0 now, 0 in all" in text
        assert f"\x1b]8;;http://{LOOPBACK}:{port}\x1b\\".encode() in terminal.raw
        with dial(port) as user:

            def grows(text: str) -> bool:
                user.recv(1 << 20)
                return bool(re.search(r"Down [1-9][\d.]* [KMG]iB/s", text)) and "Users 1 now" in text

            terminal.wait_for(grows, "a rate")
        terminal.wait_shown("Users 0 now, 1 in all")


def test_log_lines_are_in_the_view_and_on_the_terminal_afterwards(
    server_port: int, gnar_pyz: Path, service: Service
) -> None:
    with client(gnar_pyz, server_port, service) as (terminal, port):
        terminal.wait_shown("connected for")
        before = terminal.raw
        service.stop()
        assert ask(port) == b""
        terminal.wait_shown(f"TCP [tcp-{service.port}] the local service does not answer")
        terminal.wait_shown(f"{LOOPBACK}:{service.port} no answer")
        assert b"WARN" not in terminal.raw[len(before) :]
        terminal.type(CTRL_C)
        assert terminal.wait_exit() == 0
        text = terminal.wait_shown("stopping")
        assert not terminal.is_other
        assert "WARN  TCP" in text
        assert "INFO  client connected to" in text  # from before the view


def test_interrupt_gives_the_terminal_back_as_it_was(
    server_port: int, gnar_pyz: Path, service: Service
) -> None:
    with client(gnar_pyz, server_port, service) as (terminal, _):
        wait_until(lambda: terminal.is_other, "the live view")
        terminal.wait_shown("connected for")
        assert (terminal.has_cursor, terminal.echoes) == (False, False)
        terminal.type("qQ")  # does not end a tunnel
        terminal.wait_shown("connected for 1 s")
        terminal.type(CTRL_C)
        assert terminal.wait_exit() == 0
        wait_until(lambda: not terminal.is_other, "the usual buffer")
        assert (terminal.has_cursor, terminal.echoes) == (True, True)
        assert terminal.raw.count(ENTERS) == terminal.raw.count(LEAVES) == 1
        assert "connected for" not in terminal.text


def test_signals_that_end_the_client_give_the_terminal_back(
    server_port: int, gnar_pyz: Path, service: Service
) -> None:
    with ExitStack() as stack:
        ends = {signal.SIGTERM: 0, signal.SIGHUP: 0, signal.SIGQUIT: -signal.SIGQUIT}
        terminals = [stack.enter_context(client(gnar_pyz, server_port, service))[0] for _ in ends]
        for terminal, number in zip(terminals, ends, strict=True):
            terminal.wait_shown("connected for")
            terminal.process.send_signal(number)
        for terminal, status in zip(terminals, ends.values(), strict=True):
            assert terminal.wait_exit() == status
            wait_until(terminal.is_given_back, "the usual buffer")


def test_narrow_windows_show_what_matters_most(server_port: int, gnar_pyz: Path, service: Service) -> None:
    with client(gnar_pyz, server_port, service) as (terminal, port):
        terminal.wait_shown("connected for", "DOWN/s")
        terminal.resize(40, 10)
        terminal.wait_for(lambda text: "DOWN/s" not in text and f":{port}" in text, "forty columns")
        terminal.resize(20, 5)
        terminal.wait_for(lambda text: "USERS" not in text and f":{port}" in text, "twenty columns")
        assert terminal.shown[0].startswith("gnar client")
        terminal.resize(120, 30)
        terminal.wait_shown("TOTAL", f"{LOOPBACK}:{port}")


def test_suspended_client_gives_the_terminal_to_the_shell_and_comes_back(
    server_port: int, gnar_pyz: Path, service: Service
) -> None:
    port = free_port()
    with Terminal("sh", "-i", env={**ENV, "PS1": "ready> ", "ENV": ""}) as terminal:
        terminal.wait_shown("ready>")
        terminal.type(f"{gnar_pyz} client {LOOPBACK}:{server_port} {service.port}:{port}\n")
        terminal.wait_shown("connected for")
        terminal.type(CTRL_Z)
        text = terminal.wait_for(lambda text: text.endswith("ready>"), "the shell")
        assert not terminal.is_other
        assert "connected for" not in text
        assert (terminal.has_cursor, terminal.echoes) == (True, True)
        terminal.type("fg\n")
        terminal.wait_shown("connected for", f"{LOOPBACK}:{port}")
        assert ask(port) == b"ping"
        terminal.type(CTRL_Z)
        terminal.wait_for(lambda text: text.endswith("ready>"), "the shell again")
        terminal.type("bg\n")
        wait_until(lambda: ask(port) == b"ping", "users of a client in the background")
        assert not terminal.is_other
        terminal.type("fg\n")
        terminal.wait_shown("connected for", f"{LOOPBACK}:{port}")
        terminal.type(CTRL_C)
        terminal.wait_for(lambda text: text.endswith("ready>"), "the shell at the end")
        terminal.type("echo status=$?\n")
        terminal.wait_shown("status=0")


def test_stopped_terminal_stops_no_user(server_port: int, gnar_pyz: Path, service: Service) -> None:
    with client(gnar_pyz, server_port, service) as (terminal, port):
        terminal.wait_shown("connected for")
        terminal.type(CTRL_S)
        assert [ask(port) for _ in range(20)] == [b"ping"] * 20
        assert "20 in all" not in terminal.text
        terminal.type(CTRL_Q)
        terminal.wait_shown("20 in all")
        terminal.type(CTRL_S)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait_exit() == 0
        wait_until(terminal.is_given_back, "the usual buffer")


@pytest.mark.waits
def test_lost_server_is_seen_and_the_client_comes_back(
    plain_tunnels: Tunnels, gnar_pyz: Path, service: Service
) -> None:
    server, server_port = plain_tunnels.server()
    with client(gnar_pyz, server_port, service) as (terminal, port):
        terminal.wait_shown("connected for")
        server.kill()
        terminal.wait_shown("trying again", "not open yet")
        plain_tunnels.server(port=server_port)
        terminal.wait_shown("connected for", f"{LOOPBACK}:{port}")


def test_more_proxies_than_lines_can_be_scrolled(server_port: int, gnar_pyz: Path, service: Service) -> None:
    mappings = [f"{service.port}:0"] * 40
    with client(gnar_pyz, server_port, service, *mappings) as (terminal, _):
        terminal.wait_shown("of 41", f"tcp-{service.port}-2 ")
        terminal.type("\x1b[F")
        terminal.wait_shown("-41 of 41", f"tcp-{service.port}-41 ")
        terminal.type("\x1b[5~\x1b[5~\x1b[5~\x1b[5~")
        terminal.wait_shown(" 1-", f"tcp-{service.port}-2 ")


def test_refused_token_is_an_error_without_a_view(server_port: int, gnar_pyz: Path, service: Service) -> None:
    argv = [str(gnar_pyz), "client", f"{LOOPBACK}:{server_port}", f"{service.port}"]
    with Terminal(*argv, env={"GNAR_TOKEN": "wrong"}) as terminal:
        assert terminal.wait_exit() == 1
        terminal.wait_shown("ERROR client")
        assert not terminal.is_other


def test_client_without_a_terminal_to_draw_on_writes_lines(
    server_port: int, gnar_pyz: Path, service: Service
) -> None:
    words = [str(gnar_pyz), "client", f"{LOOPBACK}:{server_port}", f"{service.port}"]
    redirected = ["sh", "-c", f"exec {' '.join(words)} 2>&1 >/dev/null"]
    with ExitStack() as stack:
        terminals = [
            stack.enter_context(Terminal(*argv, env={**ENV, **env}, term=term))
            for argv, env, term in (
                ([*words, "--plain"], {}, "xterm"),
                (words, {"GNAR_PLAIN": "1"}, "xterm"),
                (words, {}, "dumb"),
                ([*words, "--log-format", "json"], {}, "xterm"),
                (redirected, {}, "xterm"),
            )
        ]
        for terminal in terminals:
            terminal.wait_shown("connected to ", "open at ")
        for terminal in terminals[:-1]:
            terminal.wait_shown(f"  ->  {LOOPBACK}:{service.port}")
        for terminal in terminals:
            terminal.type(CTRL_C)
            assert terminal.wait_exit() == 0
            terminal.wait_shown("stopping")
            assert ENTERS not in terminal.raw


def test_a_debugger_sees_every_line(server_port: int, gnar_pyz: Path, service: Service) -> None:
    port = free_port()
    argv = [str(gnar_pyz), "client", f"{LOOPBACK}:{server_port}", f"{service.port}:{port}"]
    with Terminal(*argv, env={**ENV, "DEBUG": "1"}) as terminal:
        terminal.wait_shown("connected for")
        assert ask(port) == b"ping"
        terminal.wait_shown("has left after")
        terminal.type(CTRL_C)
        assert terminal.wait_exit() == 0
        wait_until(lambda: LEAVES in terminal.raw and b"stopping" in terminal.raw, "the lines")
        assert re.search(rb"DEBUG.* TCP \[.*has left after", terminal.raw.partition(LEAVES)[2])
