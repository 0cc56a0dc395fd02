"""What systemd is told: real processes of gnar.pyz notify a socket of the test."""

from __future__ import annotations

import errno
import io
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from gnar_lib import logger, notify
from gnar_lib.notify import STOP_MARGIN_S, Notifier
from tests.helpers.descriptors import descriptors_of_this_process
from tests.helpers.harness import LOOPBACK, TOKEN, WAIT_S, Gnar, Service, dial, echo, free_port, is_open

ROOT = Path(__file__).resolve().parent.parent
WATCHDOG_S = 0.2


class Systemd:
    """The socket that processes notify, at a path or under an abstract name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self._socket.settimeout(WAIT_S)

    def close(self) -> None:
        self._socket.close()

    def env(self, watchdog_s: float = 0.0) -> dict[str, str]:
        """Return the variables that a process of a unit gets."""
        watchdog = {"WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"} if watchdog_s else {}
        return {"NOTIFY_SOCKET": self.name, "GNAR_TOKEN": TOKEN, **watchdog}

    def hear(self) -> dict[str, str]:
        """Return the next message."""
        lines = self._socket.recv(65536).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def hear_all(self) -> list[dict[str, str]]:
        """Return all messages that have come, without waiting."""
        heard = []
        self._socket.setblocking(False)
        try:
            while True:
                heard.append(self.hear())
        except BlockingIOError:
            return heard
        finally:
            self._socket.settimeout(WAIT_S)

    def hears_nothing_for(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            self.hear()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(WAIT_S)
        return False


@pytest.fixture(params=["path", "abstract"])
def any_systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    """Return a socket to notify, for each kind of name."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@gnar-{secrets.token_hex(8)}"
    systemd = Systemd(name)
    yield systemd
    systemd.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """Return a socket to notify."""
    one = Systemd(str(tmp_path / "notify"))
    yield one
    one.close()


# ---- processes ---------------------------------------------------------------------------------------------


def test_server_says_when_it_listens_reloads_and_stops(
    gnar_pyz: Path, tmp_path: Path, any_systemd: Systemd
) -> None:
    config, port = tmp_path / "server.toml", free_port()
    config.write_text("grace = 1\n")
    args = ("server", str(port), "--bind", LOOPBACK, "-c", str(config))
    with Gnar(gnar_pyz, tmp_path / "run", *args, env=any_systemd.env()) as server:
        ready = any_systemd.hear()
        assert ready.pop("STATUS").startswith("clients=0 proxies=0")
        assert ready == {"READY": "1"}
        assert is_open(port)
        for text, said in (("grace = 2\n", "configuration reloaded"), ("grce = 2\n", "nothing is changed")):
            config.write_text(text)
            before_usec = time.monotonic_ns() // 1000
            server.signal(signal.SIGHUP)
            reloading = any_systemd.hear()
            assert before_usec <= int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
            assert reloading == {"RELOADING": "1"}
            assert any_systemd.hear()["READY"] == "1"
            server.wait_log(said)
        server.signal(signal.SIGTERM)
        assert any_systemd.hear() == {"STOPPING": "1"}
        assert server.wait_exit() == 0
        assert any_systemd.hear_all() == []


def test_client_is_ready_when_its_proxies_have_been_answered(
    gnar_pyz: Path, tmp_path: Path, systemd: Systemd
) -> None:
    port, run, env = free_port(), tmp_path / "run", systemd.env()
    allowed, refused = free_port(), free_port()
    mappings = (f"3000:{allowed}", f"3001:{refused}")
    with Gnar(gnar_pyz, run, "client", f"{LOOPBACK}:{port}", *mappings, env=env) as client:
        client.wait_log("trying again")
        assert systemd.hear_all() == []
        server_args = ("server", str(port), "--bind", LOOPBACK, "--allow-ports", str(allowed))
        with Gnar(gnar_pyz, run, *server_args, env={"GNAR_TOKEN": TOKEN}):
            ready = systemd.hear()
            assert ready["READY"] == "1"
            assert "proxies=1 " in ready["STATUS"]
            assert is_open(allowed)
            assert client.stop() == 0
            assert systemd.hear() == {"STOPPING": "1"}


def test_client_that_is_refused_is_never_ready(gnar_pyz: Path, tmp_path: Path, systemd: Systemd) -> None:
    port, run = free_port(), tmp_path / "run"
    with Gnar(
        gnar_pyz, run, "server", str(port), "--bind", LOOPBACK, env={"GNAR_TOKEN": "another"}
    ) as server:
        server.wait_log("listening")
        with Gnar(gnar_pyz, run, "client", f"{LOOPBACK}:{port}", "3000:0", env=systemd.env()) as client:
            assert client.wait_exit() == 1
            assert systemd.hear_all() == [{"STOPPING": "1"}]


def test_relay_says_when_it_listens_and_asks_for_the_time_that_its_users_have(
    gnar_pyz: Path, tmp_path: Path, systemd: Systemd
) -> None:
    with Service(echo) as service:
        port = free_port()
        args = ("relay", f"tcp:{LOOPBACK}:{port}", f"tcp:{LOOPBACK}:{service.port}", "--grace", "600")
        with Gnar(gnar_pyz, tmp_path / "run", *args, env=systemd.env()) as relay:
            assert systemd.hear() == {"READY": "1", "STATUS": "users=0"}
            with dial(port) as user:
                user.sendall(b"x")
                assert user.recv(1) == b"x"
                relay.signal(signal.SIGTERM)
                assert systemd.hear() == {"STOPPING": "1"}
                assert int(systemd.hear()["EXTEND_TIMEOUT_USEC"]) >= (600 + STOP_MARGIN_S) * 1e6
            assert relay.wait_exit() == 0


def test_a_process_that_is_frozen_is_not_said_to_live(
    gnar_pyz: Path, tmp_path: Path, systemd: Systemd
) -> None:
    args = ("relay", f"tcp:{LOOPBACK}:0", f"tcp:{LOOPBACK}:1")
    with Gnar(gnar_pyz, tmp_path / "run", *args, env=systemd.env(WATCHDOG_S)) as relay:
        assert "READY" in systemd.hear()
        for _ in range(3):
            assert systemd.hear() == {"WATCHDOG": "1", "STATUS": "users=0"}
        relay.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, relay.pid, os.WSTOPPED | os.WNOWAIT)
        systemd.hear_all()
        assert systemd.hears_nothing_for(2 * WATCHDOG_S)
        relay.signal(signal.SIGCONT)
        assert systemd.hear()["WATCHDOG"] == "1"
        assert relay.stop() == 0


@pytest.mark.parametrize("name", ["/nowhere/notify", "@nobody-listens-here", "notify", "vsock:2:1234"])
def test_a_socket_that_is_broken_is_one_line_in_the_log(gnar_pyz: Path, tmp_path: Path, name: str) -> None:
    env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000"}
    args = ("server", str(free_port()), "--bind", LOOPBACK)
    with Gnar(gnar_pyz, tmp_path / "run", *args, env=env) as server:
        server.wait_log("listening")
        server.signal(signal.SIGHUP)
        server.wait_log("configuration reloaded")
        assert server.stop() == 0
        assert server.log.count("NOTIFY_SOCKET") == server.log.count(f"NOTIFY_SOCKET={name}: ") == 1
        assert "Traceback" not in server.log


# ---- a loop that hangs, and a server that never comes ------------------------------------------------------

HANGING = """
import sys, gevent
from gnar_lib.lifecycle import Stopper
stopper = Stopper()

def hang():
    gevent.sleep(0)
    print("hangs", flush=True)
    sys.stdin.readline()

gevent.spawn(hang)
stopper.wait()
"""

UNUSABLE = """
from gevent.event import Event
from gnar_lib import lifecycle
lifecycle.READY_WAIT_S = 0.01
lifecycle.Stopper().wait(Event())
"""


class Child:
    """A Python process that runs code of this test."""

    def __init__(self, code: str, systemd: Systemd, watchdog_s: float = 0.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | systemd.env(watchdog_s) | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_loop_that_hangs_is_not_said_to_live(systemd: Systemd) -> None:
    with Child(HANGING, systemd, WATCHDOG_S) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "hangs\n"
        systemd.hear_all()
        assert systemd.hears_nothing_for(2 * WATCHDOG_S)
        process.stdin.write("\n")
        process.stdin.flush()
        assert "WATCHDOG" in systemd.hear()


def test_what_is_never_usable_is_ready_all_the_same(systemd: Systemd) -> None:
    with Child(UNUSABLE, systemd):
        assert systemd.hear() == {"READY": "1", "STATUS": ""}


# ---- the notifier itself -----------------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Return the record of log lines."""
    before = logger._root.handlers
    stream = io.StringIO()
    logger.setup(stream)
    yield stream
    logger._root.handlers = before


def notifier_with(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> Notifier:
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    return Notifier(lambda: "fine")


def test_the_variables_are_gone_for_child_processes(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = systemd.env(1.0) | {"WATCHDOG_PID": str(os.getpid())}
    notifier = notifier_with(monkeypatch, env)
    assert notifier.is_on
    assert {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}.isdisjoint(os.environ)
    notifier.close()


def say_everything(notifier: Notifier) -> None:
    notifier.start_watchdog()
    notifier.ready()
    notifier.reloading()
    notifier.stopping()
    notifier.extend_timeout(1)


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1000"}, {"WATCHDOG_USEC": "9"}])
def test_without_a_socket_nothing_is_opened_timed_or_logged(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    before = descriptors_of_this_process()
    notifier = notifier_with(monkeypatch, env)
    say_everything(notifier)
    assert not notifier.is_on
    assert not notifier._timers
    assert not notifier._unsent
    assert descriptors_of_this_process() <= before
    assert log.getvalue() == ""


def test_a_platform_without_unix_sockets_says_nothing(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    with monkeypatch.context() as without:
        without.delattr(socket, "AF_UNIX")
        notifier = notifier_with(without, systemd.env(1.0))
        say_everything(notifier)
    assert systemd.hear_all() == []
    assert log.getvalue() == ""


def test_a_unit_that_allows_no_unix_sockets_is_one_line_in_the_log(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(notify, "socket_class", refuse)
    notifier = notifier_with(monkeypatch, systemd.env(1.0))
    say_everything(notifier)
    assert not notifier.is_on
    assert log.getvalue().count("\n") == 1
    assert os.strerror(errno.EAFNOSUPPORT) in log.getvalue()


@pytest.mark.parametrize(
    ("usec", "pid", "expected_s"),
    [
        ("3000000", None, 3.0),
        ("3000000", "its own", 3.0),
        ("3000000", "1", 0.0),
        ("0", None, 0.0),
        ("soon", None, 0.0),
        ("-5", None, 0.0),
    ],
)
def test_the_watchdog_is_for_the_process_that_is_meant(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None, expected_s: float
) -> None:
    meant = str(os.getpid()) if pid == "its own" else pid
    env = systemd.env() | {"WATCHDOG_USEC": usec} | ({"WATCHDOG_PID": meant} if meant else {})
    notifier = notifier_with(monkeypatch, env)
    notifier.start_watchdog()
    assert notifier._watchdog_s == expected_s
    assert len(notifier._timers) == bool(expected_s)
    notifier.close()


def test_a_systemd_that_reads_late_hears_everything_in_order(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = notifier_with(monkeypatch, systemd.env(0.001))
    sent = 0
    while not notifier._unsent:  # the queue of the socket is full
        notifier.extend_timeout(sent)
        sent += 1
    for _ in range(5):
        notifier.extend_timeout(sent)
        sent += 1
    notifier.start_watchdog()
    heard: list[dict[str, str]] = []
    with gevent.Timeout(WAIT_S):
        while not heard or "WATCHDOG" not in heard[-1]:
            gevent.sleep(0.002)  # the pace of asking; the notifier has the loop meanwhile
            heard += systemd.hear_all()
    notifier.close()
    told = [message for message in heard if "EXTEND_TIMEOUT_USEC" in message]
    expected = [f"{(number + STOP_MARGIN_S) * 1e6:.0f}" for number in range(sent)]
    assert [message["EXTEND_TIMEOUT_USEC"] for message in told] == expected
    assert heard[: len(told)] == told  # no beat came before


def test_nothing_about_a_reload_follows_the_stop(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    notifier = notifier_with(monkeypatch, systemd.env())
    notifier.reloading()
    notifier.stopping()
    notifier.ready()
    notifier.reloading()
    assert [next(iter(message)) for message in systemd.hear_all()] == ["RELOADING", "STOPPING"]
    notifier.close()


def test_a_status_cannot_forge_a_message(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
    notifier = Notifier(lambda: "a\nMAINPID=1")
    notifier.ready()
    assert systemd.hear() == {"READY": "1", "STATUS": r"a\nMAINPID=1"}
    notifier.close()
