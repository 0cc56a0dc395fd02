"""gnar on Windows and macOS, as far as Linux shows it: `helpers/platforms.py` takes away what they lack."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gnar_lib import logger, net
from gnar_lib.config import load_server
from gnar_lib.errors import DialError, ListenError
from gnar_lib.net import datagram_conn, endpoint, switching
from gnar_lib.net.datagram import is_out_of_files
from gnar_lib.net.datagram_conn import connect_udp
from tests.helpers.conns import accept
from tests.helpers.descriptors import descriptors_of_this_process
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    Gnar,
    Service,
    Tunnels,
    answer_at_end,
    ask,
    dial,
    echo,
    exchange_both_ways,
    free_port,
    is_open,
    read_all,
    tunnels_of_test,
    wait_until,
)
from tests.helpers.platforms import MACOS_OPEN_MAX, PLATFORMS, WINDOWS_SOCKETS
from tests.helpers.udp import UdpService, ask_udp, user_of

ROOT = Path(__file__).resolve().parent.parent.parent
BULK = random.Random(1).randbytes(3 << 20)  # noqa: S311  (the same every time)
SOCKETS = 40  # how many the loop can watch in a test that reaches the limit


def script_for(platform: str, folder: Path) -> Path:
    """Return a program that takes the arguments of gnar.pyz, and runs gnar as on that platform."""
    script = folder / f"gnar-on-{platform}"
    lines = (f"#!{sys.executable}", "import sys", f"sys.path.insert(0, {str(ROOT)!r})")
    run = (
        f"sys.argv.insert(1, {platform!r})",
        "from tests.helpers import platforms",
        "sys.exit(platforms.main())",
    )
    script.write_text("\n".join((*lines, *run, "")))
    script.chmod(0o755)
    return script


@pytest.fixture(params=sorted(PLATFORMS))
def platform(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def programs(platform: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Start gnar as on a platform."""
    yield from tunnels_of_test(script_for(platform, tmp_path), tmp_path, request)


@pytest.fixture
def windows(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Start gnar as on Windows."""
    yield from tunnels_of_test(script_for("windows", tmp_path), tmp_path, request)


@pytest.fixture
def macos(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Start gnar as on macOS."""
    yield from tunnels_of_test(script_for("macos", tmp_path), tmp_path, request)


def gnar(platform: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command of gnar until it ends."""
    return subprocess.run(
        [script_for(platform, folder), *args], capture_output=True, text=True, timeout=60, check=False
    )


def port_of(process: Gnar) -> int:
    """Return the port that a relay listens on."""
    return int(process.wait_log(r"relaying \w+:(?:\S+:)?(\d+) to")[1])


# ---- what is not there -------------------------------------------------------------------------------------


def type_errors(platform: str, *files: str | Path) -> list[str]:
    """Return the errors that mypy finds in files for a platform, such as names that are missing there."""
    command = [sys.executable, "-m", "mypy", "--platform", platform, "--no-warn-unreachable"]
    cache = ROOT / "build" / "cache" / f"mypy-{platform}"
    found = subprocess.run(
        [*command, "--cache-dir", cache, *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode in (0, 1), found.stderr
    return [line for line in found.stdout.splitlines() if ": error: " in line]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_gnar_uses_nothing_that_a_platform_lacks(platform: str) -> None:
    assert type_errors(platform, "gnar.py", "gnar_lib") == []


def test_what_windows_lacks_is_found(tmp_path: Path) -> None:
    lines = (
        "import fcntl, os, signal, socket",
        "os.fork()",
        "signal.SIGHUP",
        "socket.AF_UNIX",
        "socket.socket().sendmsg([])",
        "fcntl.ioctl(0, 0)",
    )
    (tmp_path / "uses.py").write_text("\n".join(lines))
    found = type_errors("win32", tmp_path / "uses.py")
    assert [int(line.split(":")[1]) for line in found] == [2, 3, 4, 5, 6]


# ---- the commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode",
    [pytest.param((), marks=pytest.mark.slow, id="plain"), pytest.param(("-m",), id="multiplexed")],
)
def test_tunnel_carries_bulk_half_closes_and_datagrams(
    programs: Tunnels, mode: tuple[str, ...], tmp_path: Path
) -> None:
    with Service(echo) as echoes, Service(answer_at_end) as counter, UdpService() as datagrams:
        _, port = programs.server()
        config = tmp_path / "client.toml"
        config.write_bytes(
            "\ufeff".encode()  # editors on Windows begin a file with this
            + "".join(
                f'[[proxys]]\r\nproxy-name = "{name}"\r\nlocal-port = {local}\r\nproxy-type = "{kind}"\r\n'
                for name, local, kind in (
                    ("echo", echoes.port, "tcp"),
                    ("数", counter.port, "tcp"),
                    ("udp", datagrams.port, "udp"),
                )
            ).encode()
        )
        command = ("client", "-s", f"{LOOPBACK}:{port}", "-c", str(config), *mode)
        client = programs.run(*command, env={"GNAR_TOKEN": TOKEN, "PYTHONIOENCODING": "cp1252"})
        client.wait_log(r"open at \S+:(\d+)", count=3)
        wait_until(lambda: client.out.count("->") == 3, "the proxies are shown")
        echo_port, counter_port, udp_port = map(int, re.findall(r":(\d+)  ->", client.out))
        assert "\\u6570" in client.out  # the encoding cp1252 does not have this letter

        assert exchange_both_ways(echo_port, BULK) == hashlib.sha256(BULK).hexdigest()
        counted = f"{len(BULK)} {hashlib.sha256(BULK).hexdigest()}\n"
        assert ask(counter_port, BULK).decode() == counted
        assert ask_udp(udp_port) == b"ping"
        large = BULK[:20_000]
        with user_of(udp_port) as user:
            user.send(large)
            assert user.recv(65536) == large


def test_relay_carries_bulk_and_half_closes(programs: Tunnels) -> None:
    with Service(echo) as service:
        port = port_of(programs.run("relay", "tcp:127.0.0.1:0", f"tcp:{LOOPBACK}:{service.port}"))
        assert exchange_both_ways(port, BULK) == hashlib.sha256(BULK).hexdigest()
        with dial(port) as user:
            user.sendall(b"and the end")
            user.shutdown(socket.SHUT_WR)
            assert read_all(user) == b"and the end"


def test_relay_says_why_it_cannot_connect(windows: Tunnels) -> None:
    relay = windows.run("relay", "tcp:127.0.0.1:0", f"tcp:{LOOPBACK}:{free_port()}")
    port = port_of(relay)
    assert ask(port) == b""
    relay.wait_log("Connection refused by a table")


def test_relay_of_datagrams_finds_a_service_that_comes_back(windows: Tunnels) -> None:
    with UdpService() as service:
        port = port_of(windows.run("relay", "udp:127.0.0.1:0", f"udp:{LOOPBACK}:{service.port}"))
        assert ask_udp(port) == b"ping"
    with user_of(port, timeout_s=0.2) as user, contextlib.suppress(TimeoutError, ConnectionRefusedError):
        user.send(b"nobody is there")
        user.recv(100)
    with UdpService(port=service.port):
        assert ask_udp(port, b"again") == b"again"


def test_demo_works(platform: str, tmp_path: Path) -> None:
    with Gnar(script_for(platform, tmp_path), tmp_path / "run", "demo") as demo:
        wait_until(lambda: "It works" in demo.out or demo.process.poll() is not None, "the page is shown")
        demo.signal(signal.SIGINT)
        assert demo.wait_exit() == 0
        assert "It works" in demo.out
        assert "Traceback" not in demo.log


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])  # SIGUSR2 stands for ^Break
def test_each_signal_of_windows_stops_it(name: str, windows: Tunnels) -> None:
    server, port = windows.server()
    server.signal(getattr(signal, name))
    assert server.wait_exit() == 0
    assert not is_open(port)


def test_commands_that_need_nothing_and_wrong_ones_say_so(platform: str, tmp_path: Path) -> None:
    assert gnar(platform, tmp_path, "--version").stdout.startswith("gnar ")
    wrong = gnar(platform, tmp_path, "server", "--prot", "1")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    with socket.create_server((LOOPBACK, 0)) as taken:
        number = taken.getsockname()[1]
        twice = gnar(platform, tmp_path, "server", str(number), "--bind", LOOPBACK)
    assert (twice.returncode, twice.stderr) == (1, f"gnar: {LOOPBACK}:{number} is already in use\n")


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("unix:/tmp/x.sock", "tcp:localhost:80"),
        ("tcp:0", "unix:/tmp/x.sock"),
        ("udp:0", "unix-dgram:/tmp/x.sock"),
    ],
)
def test_unix_sockets_are_refused_in_one_line_where_there_are_none(
    listen: str, target: str, tmp_path: Path
) -> None:
    refused = gnar("windows", tmp_path, "relay", listen, target)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"gnar: \S+x\.sock\S*: this platform has no Unix sockets\n", refused.stderr, re.IGNORECASE
    )


# ---- limits ------------------------------------------------------------------------------------------------


def test_users_past_what_the_loop_can_watch_harm_no_other_and_leave_nothing(windows: Tunnels) -> None:
    with Service(echo) as service:
        command = ("relay", "tcp:127.0.0.1:0", f"tcp:{LOOPBACK}:{service.port}")
        relay = windows.run(*command, env={WINDOWS_SOCKETS: str(SOCKETS)})
        port = port_of(relay)
        with contextlib.ExitStack() as stack:
            users = [stack.enter_context(dial(port)) for _ in range(SOCKETS // 2 - 2)]
            for user in users:
                user.sendall(b"here")
                assert user.recv(100) == b"here"
            more = [stack.enter_context(dial(port)) for _ in range(10)]
            relay.wait_log("cannot connect|accepting waits")
            users[0].sendall(b"still")
            assert users[0].recv(100) == b"still"
            assert more
        wait_until(lambda: ask(port, b"later") == b"later", "served again")


def test_macos_gives_as_many_descriptors_as_it_has(macos: Tunnels) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server, _ = macos.server()
    limits = Path(f"/proc/{server.pid}/limits").read_text()
    found = re.search(r"Max open files\s+(\d+)", limits)
    assert found
    assert int(found[1]) == min(MACOS_OPEN_MAX, hard)


def test_unix_datagrams_are_sent_without_a_name_on_macos(macos: Tunnels, tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user,
    ):
        service.bind(str(tmp_path / "service"))
        service.settimeout(20)
        port = port_of(macos.run("relay", "udp:127.0.0.1:0", f"unix-dgram:{tmp_path / 'service'}"))
        user.sendto(b"one way", (LOOPBACK, port))
        assert service.recvfrom(100) == (b"one way", None)


class _FullLoop:
    """A loop that watches no more sockets, like the loop of gevent on Windows once it watches 1,024."""

    def io(self, _fd: int, _events: int) -> object:
        raise OSError("cannot watch more than 1024 sockets")


class _Hub:
    loop = _FullLoop()
    switch = None


def test_a_socket_that_cannot_be_watched_counts_as_out_of_files_and_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = (LOOPBACK, free_port())
    before = descriptors_of_this_process()
    monkeypatch.setattr(switching, "get_hub", _Hub)
    monkeypatch.setattr(endpoint, "get_hub", _Hub)
    monkeypatch.setattr("gnar_lib.net.datagram.get_hub", _Hub)
    with pytest.raises(DialError, match="cannot watch") as dialled:
        net.dial(socket.AF_INET, address)
    with pytest.raises(DialError, match="cannot watch") as connected:
        connect_udp(socket.AF_INET, address)
    with pytest.raises(ListenError, match="cannot watch") as listened:
        net.listen(LOOPBACK, 0)
    with pytest.raises(ListenError, match="cannot watch") as bound:
        net.bind_udp(LOOPBACK, 0)
    assert all(is_out_of_files(found.value) for found in (dialled, connected, listened, bound))
    assert descriptors_of_this_process() <= before


# ---- smaller differences -----------------------------------------------------------------------------------


def test_gnar_takes_libev_whatever_gevent_would_prefer() -> None:
    code = """
import sys
sys.modules["gevent.libuv._corecffi"] = None  # gnar.pyz does not carry it
import gevent, gnar
gnar.main()
print(type(gevent.get_hub().loop).__module__)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "GEVENT_LOOP": "libuv-cffi"},  # this is what gevent chooses on Windows
        capture_output=True,
        text=True,
        check=False,
    )
    assert "gevent.libev.corecext" in found.stdout.splitlines(), found.stderr


def test_a_port_is_taken_exclusively_where_windows_offers_that() -> None:
    code = """
import socket
socket.SO_EXCLUSIVEADDRUSE = socket.SO_KEEPALIVE  # an option that Linux has
from gnar_lib.net import bind_udp, listen
for sock in (listen("127.0.0.1", 0).sock, bind_udp("127.0.0.1", 0).sock):
    options = socket.SO_REUSEADDR, socket.SO_EXCLUSIVEADDRUSE
    print([sock.getsockopt(socket.SOL_SOCKET, option) for option in options])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[0, 1]\n[0, 1]\n"


def test_accepted_sockets_get_their_options_where_they_do_not_inherit_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "_INHERITS_OPTIONS", False)
    with contextlib.closing(net.listen(LOOPBACK, 0)) as listener:
        for level, option in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ):
            listener.sock.setsockopt(level, option, 0)
        with dial(listener.port), contextlib.closing(accept(listener)) as conn:
            assert conn.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_keepalive_is_set_by_the_name_that_macos_has() -> None:
    code = """
import gevent.socket, socket
number, socket.TCP_KEEPALIVE = socket.TCP_KEEPIDLE, socket.TCP_KEEPIDLE
del socket.TCP_KEEPIDLE
from gnar_lib.net import listen
print(listen("127.0.0.1", 0).sock.getsockopt(socket.IPPROTO_TCP, number))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "30\n"


def test_a_port_where_nobody_receives_is_noticed_also_where_windows_calls_it_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagram_conn, "_IS_LINUX", False)

    class Socket:
        error: OSError | None = ConnectionResetError(errno.ECONNRESET, "reset")

        def call(self, _: object) -> int:
            error, self.error = self.error, None
            if error is not None:
                raise error
            raise BlockingIOError

        send = recv = call

    with contextlib.closing(connect_udp(socket.AF_INET, (LOOPBACK, free_port()))) as conn:
        real = conn.sock
        for use in (conn.send, lambda _: conn._on_readable()):
            conn.sock, conn.is_refused = Socket(), False  # type: ignore[assignment]  # only these two are used
            use(b"x")
            assert conn.is_refused
        conn.sock = real


def test_accepting_on_a_closed_socket_ends_also_where_that_has_another_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Closed:
        tries = 0

        def _accept(self) -> None:
            self.tries += 1
            assert self.tries < 10, "it is tried for ever"
            raise OSError(errno.ENOTSOCK, "not a socket")

        def fileno(self) -> int:
            return -1

        def close(self) -> None:
            pass

    with contextlib.closing(net.listen(LOOPBACK, 0)) as listener:
        monkeypatch.setattr(listener, "sock", Closed())
        assert listener._accept_one() is None
        monkeypatch.undo()


def test_escapes_are_for_terminals_that_are_not_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    assert logger.takes_escapes(Terminal())  # type: ignore[arg-type]  # nothing else of a stream is asked
    monkeypatch.setattr(sys, "platform", "win32")
    assert not logger.takes_escapes(Terminal())  # type: ignore[arg-type]  # as above


def test_a_file_may_begin_with_the_mark_of_utf_8(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_bytes(b"\xef\xbb\xbfport = 1234\r\n")
    assert load_server({"config": str(config)}, {}).port == 1234
