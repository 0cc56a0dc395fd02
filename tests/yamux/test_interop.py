"""Sessions of ours with hashicorp's library, in both roles; interop/peer.go is the other end."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent.threadpool import ThreadPool

from gnar_lib import net
from gnar_lib.errors import MuxError
from gnar_lib.yamux import Session
from gnar_lib.yamux import session as session_module
from gnar_lib.yamux.frame import INITIAL_WINDOW_BYTES
from tests.helpers.conns import accept
from tests.helpers.harness import first_of_workers
from tests.helpers.loop import wait_until
from tests.peers.mux import read_all, stream_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnar_lib.yamux import Stream

ROOT = Path(__file__).resolve().parent.parent.parent
GO_CODE = Path("/usr/share/gocode")  # where Debian's packages put libraries
QUICKLY = ("-gcflags=all=-N -l",)  # compiled in half of the time, without optimizing
TIMEOUT_S = 40.0
BULK_BYTES = 64 << 20
PIECE = bytes(range(251)) * 251
ROLES = pytest.mark.parametrize("role", ["client", "server"])


@pytest.fixture(scope="module")
def peer_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the Go program with the library that Debian ships, without the network."""
    if not (GO_CODE / "src/github.com/hashicorp/yamux").is_dir():
        pytest.skip("golang-github-hashicorp-yamux-dev is not installed")
    program = ROOT / "build" / "interop" / "peer"
    environment = os.environ | {
        "GO111MODULE": "off",
        "CGO_ENABLED": "0",
        "GOPATH": str(GO_CODE),
        "GOCACHE": str(ROOT / "build" / "cache" / "go"),
    }
    source = ROOT / "tests" / "yamux" / "interop" / "peer.go"
    with first_of_workers(tmp_path_factory, "peer") as is_first:
        if is_first:  # several at once would each compile Go's own library
            subprocess.run(["go", "build", *QUICKLY, "-o", program, source], env=environment, check=True)
    return program


class GoPeer:
    """A running Go peer, and our session with it."""

    def __init__(self, program: Path, role: str, *actions: str) -> None:
        listener = net.listen("127.0.0.1", 0)
        command: list[str | Path] = [program, role, f"127.0.0.1:{listener.port}", *actions]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        self.session = Session(accept(listener), is_client=role == "server")
        listener.close()
        self.crew = net.Crew("handlers")
        self.session.serve(self.crew, answer)
        self._threads = ThreadPool(1)  # blocking reads of pipes

    def wait_done(self) -> None:
        """Wait until the Go peer has done all its actions."""
        assert self.process.stdout is not None
        assert self._threads.spawn(self.process.stdout.readline).get() == b"done\n"

    def stop(self) -> str:
        """End the Go peer and the session; return the error output of the Go peer."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        complaints = self._threads.spawn(self.process.stderr.read).get()
        self._threads.spawn(self.process.wait).get()
        return (complaints or b"").decode()

    def kill(self) -> None:
        """Kill the Go peer, close the session, and end the threads."""
        self.session.close()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self._threads.kill()


@contextmanager
def go_peer(program: Path, role: str, *actions: str) -> Iterator[GoPeer]:
    """Run a Go peer; fail if its library logs an error, or if a handler or a stream is left."""
    with gevent.Timeout(TIMEOUT_S):
        peer = GoPeer(program, role, *actions)
        try:
            yield peer
            assert peer.crew.wait_empty(5)
            while stream_count(peer.session):  # until the deadline above: its last FIN may be on the way
                peer.session.ping()
            assert "[ERR]" not in peer.stop()
        finally:
            peer.kill()


def answer(stream: Stream) -> None:
    """Answer the request of the opener of a stream, as peer.go does."""
    stream.claim()
    try:
        kind = stream.recv(1)
        if kind == b"e":
            while data := stream.recv(65536):
                stream.sendall(data)
        elif kind == b"u":
            stream.sendall(take_bytes(stream, read_count(stream)))
        elif kind == b"d":
            stream.sendall(send_bytes(stream, read_count(stream)))
    finally:
        stream.close()


def take_bytes(stream: Stream, count: int) -> bytes:
    """Receive so many bytes and return their SHA-256."""
    digest = hashlib.sha256()
    while count:
        data = stream.recv(min(count, 100_000))
        digest.update(data)
        count -= len(data)
    return digest.digest()


def read_count(stream: Stream) -> int:
    return int.from_bytes(read_exactly(stream, 8), "big")


def read_exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        assert more
        data += more
    return data


def send_bytes(stream: Stream, count: int) -> bytes:
    """Send bytes in odd pieces and return their SHA-256."""
    digest = hashlib.sha256()
    while count:
        piece = PIECE[:count]
        stream.sendall(piece)
        digest.update(piece)
        count -= len(piece)
    return digest.digest()


def ask(session: Session, kind: bytes, count: int) -> Stream:
    stream = session.open()
    stream.sendall(kind + count.to_bytes(8, "big"))
    return stream


def echo(session: Session, text: bytes) -> None:
    stream = session.open()
    stream.sendall(b"e" + text)
    assert read_exactly(stream, len(text)) == text
    stream.shutdown(socket.SHUT_WR)
    assert read_all(stream) == b""
    stream.close()


@ROLES
def test_streams_that_go_opens_are_served(peer_program: Path, role: str) -> None:
    with go_peer(peer_program, role, "echo=1", "ping", "echo=200") as peer:
        peer.wait_done()


@ROLES
def test_thousand_streams_at_once_that_go_opens(peer_program: Path, role: str) -> None:
    with go_peer(peer_program, role, "echo=1000") as peer:
        peer.wait_done()


@ROLES
def test_thousand_streams_at_once_that_we_open(peer_program: Path, role: str) -> None:
    with go_peer(peer_program, role) as peer:
        crew = net.Crew("openers")
        for number in range(1000):
            crew.spawn(echo, peer.session, b"%d" % number)
        assert crew.wait_empty(TIMEOUT_S)


@ROLES
@pytest.mark.parametrize("action", ["upload", "download"])
def test_bulk_with_go_arrives_whole_whoever_opens(peer_program: Path, role: str, action: str) -> None:
    with go_peer(peer_program, role, f"{action}={BULK_BYTES}") as peer:
        peer.wait_done()
        stream = ask(peer.session, action[:1].encode(), BULK_BYTES)
        digest = send_bytes(stream, BULK_BYTES) if action == "upload" else take_bytes(stream, BULK_BYTES)
        assert read_exactly(stream, 32) == digest
        stream.close()


@ROLES
def test_half_close_reaches_go_and_its_answer_comes_after_it(peer_program: Path, role: str) -> None:
    with go_peer(peer_program, role) as peer:
        stream = peer.session.open()
        stream.sendall(b"e" + PIECE[:50_000])
        stream.shutdown(socket.SHUT_WR)
        assert read_all(stream) == PIECE[:50_000]
        stream.close()


@ROLES
def test_go_reader_that_stops_holds_up_no_other_stream(peer_program: Path, role: str) -> None:
    with go_peer(peer_program, role) as peer:
        count, digests = 4 * INITIAL_WINDOW_BYTES, []
        stream = ask(peer.session, b"s", count)
        writer = net.Crew("writer")
        writer.spawn(lambda: digests.append(send_bytes(stream, count)))
        for number in range(100):
            echo(peer.session, b"%d" % number)
        assert len(writer) == 1
        release = peer.session.open()
        release.sendall(b"r")
        release.close()
        assert [read_exactly(stream, 32)] == digests
        stream.close()


@ROLES
def test_go_that_does_not_read_what_it_asked_for_goes_on_elsewhere(peer_program: Path, role: str) -> None:
    with go_peer(peer_program, role, f"stall={4 * INITIAL_WINDOW_BYTES}") as peer:
        peer.wait_done()
        # It has closed that stream and reads no more, so ours waits for a window that never opens.
        assert len(peer.crew) == 1
        peer.crew.kill()


@ROLES
def test_pings_and_keep_alives_cross(peer_program: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "KEEPALIVE_S", 0.05)
    sent: list[Session] = []
    tick = Session.tick

    def tick_and_note(session: Session, now_s: float) -> None:
        sent.append(session)
        tick(session, now_s)

    monkeypatch.setattr(Session, "tick", tick_and_note)
    with go_peer(peer_program, role, "ping") as peer:
        peer.wait_done()
        for count in range(1, 11):
            wait_until(lambda count=count: len(sent) >= count, "a keep-alive")  # type: ignore[misc]
            assert 0 < peer.session.ping() < TIMEOUT_S
        echo(peer.session, b"still here")


@ROLES
def test_go_away_from_go(peer_program: Path, role: str) -> None:
    with go_peer(peer_program, role, "echo=1", "goaway") as peer:
        peer.wait_done()
        peer.session.ping()
        with pytest.raises(MuxError, match="no further streams"):
            peer.session.open()


@ROLES
def test_go_away_to_go_and_its_streams_are_refused(peer_program: Path, role: str) -> None:
    with go_peer(peer_program, role) as peer:
        peer.session.go_away()
        echo(peer.session, b"ours go on")


@ROLES
def test_end_of_go_ends_the_session_and_the_streams(peer_program: Path, role: str) -> None:
    with gevent.Timeout(TIMEOUT_S):
        peer = GoPeer(peer_program, role)
        try:
            stream = peer.session.open()
            stream.sendall(b"e")
            peer.stop()
            peer.session.wait_end()
            assert peer.session.closed
        finally:
            peer.kill()
