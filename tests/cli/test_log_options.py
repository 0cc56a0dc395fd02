"""`--log-format` and `--log-level`: on every command that logs, and in files, which a reload reads again."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from gnar_lib import cmd
from tests.helpers.harness import LOOPBACK, WAIT_S, Gnar, Service, ask, echo, free_port, is_open, wait_until

if TYPE_CHECKING:
    from pathlib import Path

LOGGING = [name for name in cmd._COMMANDS if name not in ("completion", "man", "top")]  # these log nothing


@pytest.mark.parametrize("name", LOGGING)
def test_every_command_that_logs_has_both_options(name: str) -> None:
    text, _ = cmd._COMMANDS[name]
    assert "--log-format FORMAT" in text
    assert "--log-level LEVEL" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "relay tcp:1 tcp:2 --log-level loud",
            "--log-level: 'loud': expected debug or info or warning or error",
        ),
        ("demo --log-format xml", "--log-format: 'xml': expected json or text"),
        ("server --log-level=", "--log-level: '': expected debug or info or warning or error"),
    ],
)
def test_another_word_is_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cmd.main(words.split()) == 2
    assert capsys.readouterr().err == f"gnar: {said}\n"


@pytest.mark.parametrize("name", ["relay tcp:1 tcp:2", "health", "demo"])
def test_a_wrong_variable_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GNAR_LOG_FORMAT", "yaml")
    assert cmd.main(name.split()) == 2
    assert capsys.readouterr().err == "gnar: GNAR_LOG_FORMAT: 'yaml': expected json or text\n"


def test_a_relay_logs_as_it_was_told(gnar_pyz: Path, tmp_path: Path) -> None:
    port = free_port()
    with Service(echo) as service:
        addresses = (f"tcp:{LOOPBACK}:{port}", f"tcp:{LOOPBACK}:{service.port}")
        options = ("--log-level", "debug", "--log-format", "json")
        with Gnar(gnar_pyz, tmp_path / "relay", "relay", *addresses, *options) as relay:
            relay.wait_log("relaying")
            assert ask(port) == b"ping"
            relay.wait_log("has left")
            assert relay.stop() == 0
            lines = [json.loads(line) for line in relay.log.splitlines()]
    assert {line["level"] for line in lines} >= {"debug", "info"}


def test_a_health_check_beside_an_address_takes_the_options(gnar_pyz: Path) -> None:
    argv = [str(gnar_pyz), "health", f"{LOOPBACK}:1", "--log-level", "debug", "--log-format", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"gnar: no answer from {LOOPBACK}:1: ")


def test_a_reload_changes_what_is_logged_and_how(gnar_pyz: Path, tmp_path: Path) -> None:
    file, port = tmp_path / "gnar.toml", free_port()
    settings = f'bind = "{LOOPBACK}"\nport = {port}\n'
    file.write_text(f'{settings}log-level = "warning"\n')
    with Gnar(gnar_pyz, tmp_path / "server", "server", "-c", str(file)) as server:
        wait_until(lambda: is_open(port), "the server listens")
        server.status()  # an answer to a signal, which the level does not hold back
        assert "listening" not in server.log
        file.write_text(f'{settings}log-level = "debug"\nlog-format = "json"\n')
        server.signal(signal.SIGHUP)
        server.wait_log("configuration reloaded")
        said = len(server.log)
        health = [str(gnar_pyz), "health", "-c", str(file)]
        subprocess.run(health, check=True, timeout=WAIT_S)
        server.wait_log("a health check")
        lines = [json.loads(line) for line in server.log[said:].splitlines()]
        assert [line["level"] for line in lines if "health" in line["message"]] == ["debug"]
        file.write_text(f'{settings}log-level = "loud"\n')
        server.signal(signal.SIGHUP)
        server.wait_log("nothing is changed: .*'loud'")
        assert server.stop() == 0
