"""The relay: addresses in both spellings, real sockets in this process, and real processes with signals."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
import pytest

import gnar_lib
from gnar_lib import net
from gnar_lib.errors import ConnError, DialError, ListenError, PortTakenError, UsageError
from gnar_lib.net import target
from gnar_lib.relay import Address, Relay, Role, parse_address, run_relay, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(gnar_lib.__file__).parent.parent
TIMEOUT_S = 20.0
RUN = """
import sys
from gnar_lib.relay import run_relay
sys.exit(run_relay(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""
V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield


# ---- addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:9000", Address("tcp", port=9000)),
        ("tcp:0", Address("tcp", port=0)),
        ("tcp:127.0.0.1:9000", Address("tcp", host="127.0.0.1", port=9000)),
        ("tcp:[::1]:9000", Address("tcp", host="::1", port=9000)),
        ("unix:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("unix:/run/a:b", Address("unix", path="/run/a:b")),
        ("unix:/run/x.sock,mode=600", Address("unix", path="/run/x.sock", mode=0o600)),
        ("TCP-LISTEN:9000,reuseaddr,fork", Address("tcp", port=9000)),
        ("tcp-listen:9000", Address("tcp", port=9000, fork=False)),
        ("TCP-L:9000,fork=0", Address("tcp", port=9000, fork=False)),
        ("TCP-LISTEN:http,fork=1", Address("tcp", port=80)),
        ("TCP-LISTEN:9000,BIND=[::1],fork", Address("tcp", host="::1", port=9000)),
        ("TCP4-LISTEN:9000,fork", Address("tcp", V4, "0.0.0.0", 9000)),
        ("TCP6-LISTEN:9000,fork", Address("tcp", V6, "::", 9000)),
        (
            "UNIX-LISTEN:/run/x.sock,reuseaddr,fork,mode=660,unlink-early,unlink-close=0",
            Address("unix", path="/run/x.sock", mode=0o660, keep_file=True),
        ),
        ("UNIX-L:/run/x.sock,unlink-close=1", Address("unix", path="/run/x.sock", fork=False)),
        (r"UNIX-LISTEN:/run/a\,b\:c\\,fork", Address("unix", path="/run/a,b:c\\")),
        ("UNIX-LISTEN:'/run/a,b:(c',fork", Address("unix", path="/run/a,b:(c")),
        ('UNIX-LISTEN:"/run/a,b",fork', Address("unix", path="/run/a,b")),
        ("udp:53", Address("udp", port=53)),
        ("udp:127.0.0.1:53", Address("udp", host="127.0.0.1", port=53)),
        ("UDP-LISTEN:53,reuseaddr,fork", Address("udp", port=53)),
        ("UDP4-L:53,bind=127.0.0.1", Address("udp", V4, "127.0.0.1", 53, fork=False)),
        ("UDP6-RECVFROM:53,fork", Address("udp", V6, "::", 53)),
        ("UDP-RECV:53", Address("udp", port=53, answers=False)),
        ("unix-dgram:/run/x.sock,mode=660", Address("unix-dgram", path="/run/x.sock", mode=0o660)),
        ("UNIX-RECVFROM:/run/x.sock,fork", Address("unix-dgram", path="/run/x.sock")),
        ("UNIX-RECV:/run/x.sock", Address("unix-dgram", path="/run/x.sock", answers=False)),
        ("UNIX-LISTEN:/run/{a,b}(,)[:],fork", Address("unix", path="/run/{a,b}(,)[:]")),
    ],
)
def test_listening_address_in_both_spellings(text: str, address: Address) -> None:
    assert parse_address(text, Role.LISTEN) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:3000", Address("tcp", host="localhost", port=3000)),
        ("tcp:host:9299", Address("tcp", host="host", port=9299)),
        ("unix:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("TCP:host:9299", Address("tcp", host="host", port=9299)),
        ("TCP:[2001:db8::1]:80", Address("tcp", host="2001:db8::1", port=80)),
        ("tcp-connect:host:80,bind=127.0.0.2", Address("tcp", host="host", port=80, source="127.0.0.2")),
        ("TCP4:host:80", Address("tcp", V4, "host", 80)),
        ("TCP6:host:80", Address("tcp", V6, "host", 80)),
        ("UNIX-CONNECT:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("UNIX:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("udp:53", Address("udp", host="localhost", port=53)),
        ("udp:[::1]:53", Address("udp", host="::1", port=53)),
        ("UDP:host:domain", Address("udp", host="host", port=53)),
        ("UDP4-SENDTO:host:53,bind=127.0.0.2", Address("udp", V4, "host", 53, source="127.0.0.2")),
        ("UDP6-CONNECT:host:53", Address("udp", V6, "host", 53)),
        ("unix-dgram:/run/x.sock", Address("unix-dgram", path="/run/x.sock")),
        ("UNIX-SENDTO:/run/x.sock", Address("unix-dgram", path="/run/x.sock")),
    ],
)
def test_target_address_in_both_spellings(text: str, address: Address) -> None:
    assert parse_address(text, Role.TARGET) == address


@pytest.mark.parametrize(
    ("text", "role", "said"),
    [
        ("TCP-LISTEN:80,su=nobody", Role.LISTEN, "option 'su' is not supported"),
        ("TCP-LISTEN:80,fork,keepalive", Role.LISTEN, "option 'keepalive' is not supported"),
        ("TCP-LISTEN:80,mode=660", Role.LISTEN, "option 'mode' is not supported"),
        ("UNIX-LISTEN:/x,bind=y", Role.LISTEN, "option 'bind' is not supported"),
        ("TCP:host:80,fork", Role.TARGET, "option 'fork' is not supported"),
        ("UNIX-CONNECT:/x,unlink-close", Role.TARGET, "option 'unlink-close' is not supported"),
        ("TCP-LISTEN:80,reuseaddr=0", Role.LISTEN, "'reuseaddr=0' is not supported"),
        ("tcp:80,fork=0", Role.LISTEN, "needs socat's spelling"),
        ("TCP-LISTEN:80,fork=maybe", Role.LISTEN, "neither 0 nor 1"),
        ("UNIX-LISTEN:/x,mode=888", Role.LISTEN, "000 to 777"),
        ("UNIX-LISTEN:/x,mode=4777", Role.LISTEN, "000 to 777"),
        ("TCP:host:80,bind=host", Role.TARGET, "not an IP address"),
        ("TCP-LISTEN:127.0.0.1:80", Role.LISTEN, "bind=HOST"),
        ("TCP-CONNECT:80", Role.TARGET, "HOST:PORT"),
        ("tcp:::1:80", Role.TARGET, "IPv6 in brackets"),
        ("tcp:[::1:80", Role.TARGET, "closing ] is missing"),
        ("tcp:70000", Role.LISTEN, "out of range"),
        ("tcp:0", Role.TARGET, "out of range"),
        ("tcp:nosuchservice", Role.TARGET, "no service has that name"),
        ("tcp:\u00b2", Role.TARGET, "not a port"),
        ("unix:", Role.LISTEN, "path is missing"),
        ("UDP-RECVFROM:53", Role.LISTEN, "without option 'fork'"),
        ("UNIX-RECVFROM:/x", Role.LISTEN, "without option 'fork'"),
        ("UDP-LISTEN:53,fork,broadcast", Role.LISTEN, "option 'broadcast' is not supported"),
        ("UDP-SENDTO:h:53", Role.LISTEN, "does not listen"),
        ("UNIX-RECV:/x", Role.TARGET, "cannot be dialled"),
        ("OPENSSL:host:443", Role.TARGET, "'OPENSSL' is not an address that gnar knows"),
        ("TCP-LISTEN:80", Role.TARGET, "cannot be dialled"),
        ("TCP-CONNECT:host:80", Role.LISTEN, "does not listen"),
        ("", Role.LISTEN, "not an address"),
        ("-", Role.TARGET, "not an address"),
    ],
)
def test_a_wrong_address_is_refused_by_name(text: str, role: Role, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_address(text, role)
    assert said in str(refused.value)
    assert str(refused.value).startswith(text)


# ---- in this process -------------------------------------------------------------------------------------


class Service:
    """A listener of the test's own, and what its conns did."""

    def __init__(self, listener: net.Listener, handle: Callable[[net.SocketConn], None]) -> None:
        self.crew = net.Crew("service")
        self.listener = listener
        self.conns: list[net.SocketConn] = []
        self._handle = handle
        listener.serve(self.crew, self._serve)

    @property
    def address(self) -> str:
        """What a relay calls this service."""
        name = self.listener.getsockname()
        return f"unix:{name}" if isinstance(name, str) else f"tcp:127.0.0.1:{name[1]}"

    def _serve(self, conn: net.SocketConn) -> None:
        self.conns.append(conn)
        try:
            self._handle(conn)
        finally:
            conn.close()

    def close(self) -> None:
        """Close the listener and every conn."""
        self.listener.close()
        self.crew.kill()
        assert self.crew.wait_empty(TIMEOUT_S)


def read_all(conn: net.SocketConn) -> bytes:
    """Read to the end of the stream."""
    data = b""
    while got := conn.recv(65536):
        data += got
    return data


def answer_at_the_end(conn: net.SocketConn) -> None:
    """Answer only when the user has said everything."""
    conn.sendall(b"answer to " + read_all(conn))


def speak_first(conn: net.SocketConn) -> None:
    """Say everything before the user says a word; then hear it out."""
    conn.sendall(b"hello")
    conn.shutdown(socket.SHUT_WR)
    service_heard.append(read_all(conn))


service_heard: list[bytes] = []


@contextmanager
def serving(
    handle: Callable[[net.SocketConn], None] = answer_at_the_end, listener: net.Listener | None = None
) -> Iterator[Service]:
    """Run a service for the block."""
    service = Service(listener or net.listen("127.0.0.1", 0), handle)
    try:
        yield service
    finally:
        service.close()


@contextmanager
def relaying(listen: str, target: str) -> Iterator[Relay]:
    """Relay for the block; afterwards nothing is left."""
    ends: list[int] = []
    running = Relay(
        parse_address(listen, Role.LISTEN), parse_address(target, Role.TARGET), lambda: ends.append(1)
    )
    try:
        yield running
    finally:
        running.close()
        running.users.kill()
        assert running.users.wait_empty(TIMEOUT_S)


def dial(running: Relay) -> net.SocketConn:
    """Connect as a user."""
    name = running.listener.getsockname()
    if isinstance(name, str):
        return net.dial(socket.AF_UNIX, name)
    return net.dial(V4, ("127.0.0.1", name[1]))


def ask(running: Relay, question: bytes = b"question") -> bytes:
    """Ask as `nc -N` would: everything is said before an answer is read."""
    user = dial(running)
    try:
        user.sendall(question)
        user.shutdown(socket.SHUT_WR)
        return read_all(user)
    finally:
        user.close()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that sends no event; the test's time limit ends it."""
    while not true():
        gevent.sleep(0.005)


@pytest.mark.parametrize("listen", ["tcp:127.0.0.1:0", "TCP4-LISTEN:0,fork", "unix", "UNIX-LISTEN"])
@pytest.mark.parametrize("to_unix", [False, True])
def test_half_close_of_the_user_keeps_the_answer_coming(listen: str, to_unix: bool, tmp_path: Path) -> None:
    if listen.lower().startswith("unix"):
        listen = f"{listen}:{tmp_path}/relay.sock" + (",fork" if "LISTEN" in listen else "")
    listener = net.listen_unix(f"{tmp_path}/service.sock") if to_unix else None
    with serving(listener=listener) as service, relaying(listen, service.address) as running:
        assert ask(running) == b"answer to question"
        assert ask(running, b"x" * 300_000) == b"answer to " + b"x" * 300_000


def test_half_close_of_the_service_keeps_the_user_heard() -> None:
    with serving(speak_first) as service, relaying("tcp:127.0.0.1:0", service.address) as running:
        user = dial(running)
        assert read_all(user) == b"hello"
        service_heard.clear()
        user.sendall(b"still here")
        user.close()
        wait_until(lambda: bool(service_heard))
        assert service_heard == [b"still here"]


def test_a_user_that_resets_tears_the_service_down() -> None:
    failures: list[ConnError] = []

    def wait_for_end(conn: net.SocketConn) -> None:
        conn.sendall(b"hello")
        try:
            read_all(conn)
        except ConnError as exc:
            failures.append(exc)

    with serving(wait_for_end) as service, relaying("tcp:127.0.0.1:0", service.address) as running:
        user = dial(running)
        assert user.recv(5) == b"hello"
        user.abort()
        wait_until(lambda: bool(failures))
        wait_until(lambda: not len(running.users))


def test_many_users_at_once_each_get_their_own_answer_and_leave_nothing() -> None:
    with serving() as service, relaying("tcp:127.0.0.1:0", service.address) as running:
        ask(running)
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0

        def check(index: int) -> None:
            assert ask(running, b"%d" % index) == b"answer to %d" % index

        gevent.joinall([gevent.spawn(check, index) for index in range(100)], raise_error=True)
        wait_until(lambda: not len(running.users) and not len(service.crew))
        if before:
            # Pipes may be kept for the next bulk transfer; a hundred users would have left two hundred.
            assert len(os.listdir("/proc/self/fd")) < before + 50


def test_bind_sets_the_address_that_the_service_sees() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 on loopback")
    with serving() as service:
        target = f"TCP:127.0.0.1:{service.listener.port},bind=127.0.0.2"
        with relaying("TCP-LISTEN:0,bind=127.0.0.1,fork", target) as running:
            ask(running)
            assert net.host_of(service.conns[0].getpeername()) == "127.0.0.2"


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving() as service, relaying(f"unix:{path}", service.address) as running:
        assert ask(running) == b"answer to question"


@pytest.mark.parametrize("options", ["", ",unlink-early"])
def test_a_socket_in_use_is_not_replaced(tmp_path: Path, options: str) -> None:
    with serving(listener=net.listen_unix(f"{tmp_path}/x.sock")) as service:
        with (
            pytest.raises(PortTakenError, match=r"x\.sock is already in use"),
            relaying(f"UNIX-LISTEN:{tmp_path}/x.sock,fork{options}", service.address),
        ):
            pass
        wait_until(lambda: not len(service.crew))
        user = net.dial(socket.AF_UNIX, f"{tmp_path}/x.sock")
        user.close()


def test_a_datagram_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(f"{tmp_path}/x.sock")
        with pytest.raises(PortTakenError):
            net.listen_unix(f"{tmp_path}/x.sock")


@pytest.mark.parametrize("options", ["", ",unlink-early"])
def test_a_file_that_is_not_a_socket_is_not_touched(tmp_path: Path, options: str) -> None:
    path = tmp_path / "notes"
    path.write_text("precious")
    with (
        pytest.raises(ListenError, match="not a socket"),
        relaying(f"UNIX-LISTEN:{path},fork{options}", "tcp:127.0.0.1:1"),
    ):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("path", ["/nonexistent/x.sock", "/" + "x" * 200])
def test_a_path_that_cannot_be_made_is_refused(path: str) -> None:
    with pytest.raises(ListenError, match="cannot listen on /"):
        net.listen_unix(path)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_mode_is_exact_whatever_the_umask_is(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o027)
    try:
        with relaying(f"unix:{tmp_path}/x.sock,mode={mode:o}", "tcp:127.0.0.1:1"):
            assert stat.S_IMODE((tmp_path / "x.sock").stat().st_mode) == mode
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_the_file_goes_when_listening_ends_unless_it_is_to_stay(tmp_path: Path) -> None:
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    with relaying(f"UNIX-LISTEN:{gone},fork", "tcp:127.0.0.1:1") as running:
        assert gone.exists()
        running.close()
        assert not gone.exists()
    with relaying(f"UNIX-LISTEN:{kept},fork,unlink-close=0", "tcp:127.0.0.1:1"):
        pass
    assert kept.exists()


def test_the_file_of_another_that_took_the_path_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with relaying(f"unix:{path}", "tcp:127.0.0.1:1") as running:
        path.unlink()
        with serving(listener=net.listen_unix(str(path))):
            running.close()
            assert path.exists()


def test_without_fork_one_user_is_served_and_no_other() -> None:
    with serving() as service, relaying("TCP4-LISTEN:0", service.address) as running:
        port = running.listener.port
        assert ask(running) == b"answer to question"
        with pytest.raises(DialError):
            net.dial(V4, ("127.0.0.1", port))
        assert len(service.conns) == 1
        assert running.error is None


def test_users_of_a_target_that_is_down_are_reset_at_once_and_served_when_it_is_up() -> None:
    with serving() as service:
        port = service.listener.port
    with relaying("tcp:127.0.0.1:0", f"tcp:127.0.0.1:{port}") as running:
        for _ in range(3):
            with pytest.raises(ConnError):
                ask(running)
        with serving(listener=net.listen("127.0.0.1", port)):
            assert ask(running) == b"answer to question"


def known_to(running: Relay) -> list[tuple[int, net.Sockaddr]]:
    """Return the addresses of a relay's target, in the order in which they are tried."""
    assert isinstance(running._target, target.Target)
    return running._target._place.known


def test_a_name_is_looked_up_again_when_its_addresses_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        dead = ("127.0.0.1", gone.listener.port)
    with serving() as service:
        answers = [[(V4, dead)], [(V4, ("127.0.0.1", service.listener.port))]]
        monkeypatch.setattr(target, "resolve", lambda *_: answers.pop(0))
        monkeypatch.setattr(target, "LOOK_UP_PAUSE_S", 0.0)
        with relaying("tcp:127.0.0.1:0", "tcp:moved.example:80") as running:
            assert ask(running) == b"answer to question"
            assert ask(running) == b"answer to question"
        assert answers == []


def test_a_name_that_stays_down_is_not_looked_up_for_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        dead = ("127.0.0.1", gone.listener.port)
    asked: list[str] = []

    def resolve(host: str, *_: object) -> list[tuple[int, net.Sockaddr]]:
        asked.append(host)
        return [(V4, dead)]

    monkeypatch.setattr(target, "LOOK_UP_PAUSE_S", 1000.0)
    with relaying("tcp:127.0.0.1:0", "tcp:localhost:80") as running:
        monkeypatch.setattr(target, "resolve", resolve)
        known_to(running)[:] = resolve("")
        for _ in range(5):
            with pytest.raises(ConnError):
                ask(running)
    assert asked == [""]


def test_the_address_that_answered_is_tried_first_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        dead = ("127.0.0.1", gone.listener.port)
    with serving() as service:
        alive = ("127.0.0.1", service.listener.port)
        monkeypatch.setattr(target, "resolve", lambda *_: [(V4, dead), (V4, alive)])
        with relaying("tcp:127.0.0.1:0", "tcp:two.example:80") as running:
            ask(running)
            assert known_to(running) == [(V4, alive), (V4, dead)]


def test_an_unknown_name_and_a_missing_family_fail_at_the_start() -> None:
    with pytest.raises(DialError, match="cannot resolve"), relaying("tcp:0", "tcp:no..such..name:80"):
        pass
    with pytest.raises(DialError, match="no IPv6 address"), relaying("tcp:0", "TCP6:127.0.0.1:80"):
        pass


def test_users_wait_while_the_backlog_of_a_unix_target_is_full(tmp_path: Path) -> None:
    sock = net.listen_unix(f"{tmp_path}/busy.sock")
    sock.sock.listen(0)  # one conn may wait
    with relaying("tcp:127.0.0.1:0", f"unix:{tmp_path}/busy.sock") as running:
        asking = [gevent.spawn(ask, running, b"%d" % index) for index in range(20)]
        wait_until(lambda: len(running.users) == len(asking))
        with serving(listener=sock):
            assert [each.get() for each in asking] == [b"answer to %d" % index for index in range(20)]


# ---- processes -------------------------------------------------------------------------------------------


@contextmanager
def process(*args: str, grace_s: float = 30.0) -> Iterator[subprocess.Popen[str]]:
    """Run a relay for the block; it is killed when it has not ended by then."""
    running = subprocess.Popen(
        [sys.executable, "-c", RUN, *args, str(grace_s)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        if running.stderr is not None:
            running.stderr.close()


def wait_for_end(running: subprocess.Popen[str]) -> int:
    """Return the exit status, while the service in this process goes on."""
    wait_until(lambda: running.poll() is not None)
    return running.returncode


def dial_path(path: Path) -> net.SocketConn:
    """Connect as soon as the path is listened on."""
    while True:
        try:
            return net.dial(socket.AF_UNIX, str(path))
        except DialError:
            gevent.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_users_finish_and_removes_the_file(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "x.sock"
    with serving() as service, process(f"unix:{path}", service.address) as running:
        user = dial_path(path)
        wait_until(lambda: bool(service.conns))
        running.send_signal(number)
        wait_until(lambda: not path.exists())
        user.sendall(b"late question")
        user.shutdown(socket.SHUT_WR)
        assert read_all(user) == b"answer to late question"
        user.close()
        assert wait_for_end(running) == 0


def test_a_second_signal_ends_users_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with serving() as service, process(f"unix:{path}", service.address) as running:
        user = dial_path(path)
        wait_until(lambda: bool(service.conns))
        running.terminate()
        wait_until(lambda: not path.exists())
        before = time.monotonic()
        running.terminate()
        assert wait_for_end(running) == 0
        assert time.monotonic() - before < 15  # half of the grace
        user.close()


@pytest.mark.parametrize(
    ("listen", "target", "said"),
    [
        ("tcp:127.0.0.1:0", "tcp:127.0.0.1:1", "users=0"),
        ("udp:127.0.0.1:0", "udp:127.0.0.1:1", "udp_sessions=0"),
    ],
)
def test_a_relay_tells_what_there_is(tmp_path: Path, listen: str, target: str, said: str) -> None:
    log = tmp_path / "log"
    code = "from gnar_lib import logger; logger.setup()\n" + RUN
    with log.open("wb") as stream:
        running = subprocess.Popen(
            [sys.executable, "-c", code, listen, target, "1"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=stream,
        )
    try:
        wait_until(lambda: "relaying" in log.read_text())
        running.send_signal(signal.SIGUSR1)
        wait_until(lambda: f"status: {said}" in log.read_text())
        running.terminate()
        assert running.wait(TIMEOUT_S) == 0
    finally:
        running.kill()
        running.wait()


def test_a_process_without_fork_ends_with_its_user(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with serving() as service, process(f"UNIX-LISTEN:{path}", service.address) as running:
        user = dial_path(path)
        user.sendall(b"question")
        user.shutdown(socket.SHUT_WR)
        assert read_all(user) == b"answer to question"
        user.close()
        assert wait_for_end(running) == 0
        assert not path.exists()


def test_a_process_without_fork_fails_when_its_target_is_down(tmp_path: Path) -> None:
    with process(f"UNIX-LISTEN:{tmp_path}/x.sock", f"unix:{tmp_path}/nobody") as running:
        dial_path(tmp_path / "x.sock").close()
        assert wait_for_end(running) == 1
        assert running.stderr is not None
        assert "cannot connect to" in running.stderr.read()


def test_a_killed_relay_is_followed_by_another_on_the_same_path(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with serving() as service:
        with process(f"unix:{path}", service.address) as running:
            dial_path(path).close()
            running.kill()
            wait_for_end(running)
        assert path.exists()
        with process(f"unix:{path}", service.address):
            user = dial_path(path)
            user.shutdown(socket.SHUT_WR)
            assert read_all(user) == b"answer to "
            user.close()


def test_wrong_addresses_are_refused_before_anything_is_listened_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run_relay(f"unix:{tmp_path}/x.sock", "tcp:nowhere", 0.0)
    with pytest.raises(UsageError, match="one is for connections, the other for datagrams"):
        run_relay(f"unix:{tmp_path}/x.sock", "udp:53", 0.0)
    assert not (tmp_path / "x.sock").exists()


def test_a_tcp_port_that_is_taken_is_said() -> None:
    with serving() as service, pytest.raises(PortTakenError, match="is already in use"):
        serve._listen(parse_address(f"tcp:127.0.0.1:{service.listener.port}", Role.LISTEN))
