"""`gnar top` as a person uses it: in a real terminal, or without one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.harness import SOON_S, WAIT_S, free_port, wait_until
from tests.helpers.terminals import CTRL_C, CTRL_Z, ENTERS, LEAVES, Terminal
from tests.top.stand_in import StandIn, connection_object, proxy_object

SECRET = "s3cret"


def run_top(pyz: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [pyz, "top", *args],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S * 3,
    )


# ---- without a terminal ------------------------------------------------------------------------------------


def test_without_a_terminal_everything_is_printed_once(gnar_pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    with StandIn(SECRET) as server:
        done = run_top(gnar_pyz, server.url, GNAR_ADMIN_PASSWORD=SECRET)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"^web +example\.com:9000 +192\.0\.2\.7:5123 +3 +120 ", done.stdout, re.MULTILINE)
        assert "\033" not in done.stdout
        by_file = run_top(gnar_pyz, server.url, "--token-file", str(tmp_path / "token"))
        assert by_file.stdout == done.stdout


def test_errors_are_one_line_and_name_what_to_set(gnar_pyz: Path) -> None:
    with StandIn(SECRET) as server:
        done = run_top(gnar_pyz, server.url)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "GNAR_ADMIN_READ_TOKEN or GNAR_ADMIN_PASSWORD" in done.stderr
    done = run_top(gnar_pyz, f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Connection refused" in done.stderr


@pytest.mark.usefixtures("unmeasured")
def test_the_command_does_not_load_gevent() -> None:
    code = "import sys, gnar; status = gnar.main(); assert 'gevent' not in sys.modules; sys.exit(status)"
    with StandIn() as server:
        done = subprocess.run(
            [sys.executable, "-c", code, "top", "--once", server.url],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


# ---- in a terminal -----------------------------------------------------------------------------------------


def test_figures_move_and_events_come(gnar_pyz: Path) -> None:
    with StandIn(SECRET) as server:
        argv = [str(gnar_pyz), "top", server.url]
        with Terminal(*argv, columns=100, env={"GNAR_ADMIN_READ_TOKEN": SECRET}) as terminal:
            text = terminal.wait_shown("Users 3 now, 120 in all", "web", "example.com:9000", "192.0.2.7:5123")
            assert "gnar server 0.9.0" in text
            server.more.put(("state", {"proxies": [{"id": "p5", "users": 44, "users_total": 161}]}))
            server.more.put(("happened", {"event": "client-gone", "at": 5.0, "reason": "away"}))
            terminal.wait_shown(" 44 ", "client-gone reason=away")
            server.more.put(("state", {"removed": ["p5"]}))
            terminal.wait_for(lambda text: "web" not in text, "one proxy less")
            terminal.type("q")
            assert terminal.wait_exit() == 0
            wait_until(terminal.is_given_back, "the usual buffer")
            assert terminal.raw.count(ENTERS) == terminal.raw.count(LEAVES) == 1


def test_keys_lead_to_connections_and_back(gnar_pyz: Path) -> None:
    with StandIn() as server, Terminal(str(gnar_pyz), "top", server.url) as terminal:
        terminal.wait_shown("> api", "  web", "s sort: name")
        terminal.type("s")
        terminal.wait_shown("> web", "s sort: users")
        terminal.type("\x1b[B")
        terminal.wait_shown("> api")
        terminal.type("\x1b[A\r")
        terminal.wait_shown("Proxy web", "198.51.100.2:4242", "198.51.100.3:1", "s sort: age")
        assert server.queries[-1] == {"proxy": "p5", "sort": "age", "order": "desc", "limit": "200"}
        server.connections.append(connection_object(id="u79", user="203.0.113.9:9"))
        terminal.type("s")
        terminal.wait_shown("s sort: down", "203.0.113.9:9")
        assert server.queries[-1]["sort"] == "down"
        terminal.type("\x1b")
        terminal.wait_shown("> web", "s sort: users")
        wait_until(lambda: server.queries[-1] == {}, "a stream without connections")
        terminal.type(CTRL_C)
        assert terminal.wait_exit() == 0


def test_a_server_that_is_restarted_is_seen_again(gnar_pyz: Path) -> None:
    with StandIn() as server, Terminal(str(gnar_pyz), "top", server.url) as terminal:
        terminal.wait_shown("> api")
        server.stop()
        terminal.wait_shown("not connected since", "web")
        server.proxies = [proxy_object(name="other")]
        server.start()
        terminal.wait_for(lambda text: "> other" in text and "not connected" not in text, "the server")


def test_a_server_that_is_not_there_is_one_line(gnar_pyz: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Terminal(str(gnar_pyz), "top", url) as terminal:
        assert terminal.wait_exit() == 1
        terminal.wait_shown(f"gnar: no answer from {url}: Connection refused")
        assert not terminal.is_other


def test_a_password_that_is_changed_ends_it(gnar_pyz: Path) -> None:
    with StandIn() as server, Terminal(str(gnar_pyz), "top", server.url) as terminal:
        terminal.wait_shown("> api")
        server.stop()
        server.secret = SECRET
        server.start()
        assert terminal.wait_exit(SOON_S * 2) == 1
        terminal.wait_shown("wants a password")


def test_signals_end_it_and_give_the_terminal_back(gnar_pyz: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT)
    with StandIn() as server, ExitStack() as stack:
        terminals = [stack.enter_context(Terminal(str(gnar_pyz), "top", server.url)) for _ in numbers]
        for terminal, number in zip(terminals, numbers, strict=True):
            terminal.wait_shown("> api")
            terminal.process.send_signal(number)
        for terminal in terminals:
            assert terminal.wait_exit() == 0
            wait_until(terminal.is_given_back, "the usual buffer")


def test_it_can_be_suspended_and_resized(gnar_pyz: Path) -> None:
    with StandIn() as server, Terminal("sh", "-i", env={"PS1": "ready> ", "ENV": ""}) as terminal:
        terminal.wait_shown("ready>")
        terminal.type(f"{gnar_pyz} top {server.url}\n")
        terminal.wait_shown("> api")
        terminal.type(CTRL_Z)
        terminal.wait_for(lambda text: text.endswith("ready>"), "the shell")
        assert not terminal.is_other
        terminal.type("fg\n")
        terminal.wait_shown("> api")
        terminal.resize(20, 5)
        terminal.wait_for(lambda text: "USERS" not in text and "example.com:9000" in text, "twenty columns")
        terminal.resize(80, 24)
        terminal.wait_shown("USERS")
        terminal.type("q")
        text = terminal.wait_for(lambda text: text.endswith("ready>"), "the shell")
        assert not re.search("> api", text)
