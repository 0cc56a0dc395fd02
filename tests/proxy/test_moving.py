"""A direction moves from its stream to a conn beside it, at any moment: all bytes arrive, or a reset does."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnError
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.limit import Bucket
from gnar_lib.proxy import stream as stream_module
from gnar_lib.proxy import ways
from gnar_lib.proxy.stream import stream
from gnar_lib.yamux import Stream
from tests.helpers.conns import tcp_pair
from tests.helpers.loop import wait_until
from tests.helpers.moving import Moving, moving_pair

KIB, MIB = 1 << 10, 1 << 20
TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield


@dataclass
class Tunnel:
    """A user and a service, with both ends of a tunnel between them that joins them by a stream."""

    user: net.SocketConn
    service: net.SocketConn
    sessions: Moving
    at_server: Stream
    at_client: Stream
    crew: net.Crew
    errors: list[ConnError] = field(default_factory=list)

    def join(self, a: net.Conn, b: net.Conn) -> None:
        try:
            stream(a, b)
        except ConnError as exc:
            self.errors.append(exc)

    def have_moved(self, *, up: bool = False, down: bool = False) -> bool:
        ends = [(self.at_client, up), (self.at_server, down)]
        return all(not wanted or each.reads_on is not None for each, wanted in ends)


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    yield from make_tunnel(random.Random(0))  # noqa: S311  (no secret)


def make_tunnel(chance: random.Random) -> Iterator[Tunnel]:
    def before() -> bool:
        gevent.sleep(chance.uniform(0.0, 0.02))
        return True

    crew = net.Crew("tunnel")
    sessions = moving_pair(crew, before)
    (user, at_server), (at_client, service) = tcp_pair(), tcp_pair()
    to_client = sessions.server.open()
    made = Tunnel(user, service, sessions, to_client, sessions.client.accept(), crew)
    crew.spawn(made.join, at_server, made.at_server)
    crew.spawn(made.join, made.at_client, at_client)
    yield made
    user.close()
    service.close()
    assert crew.wait_empty(TIMEOUT_S), "both ends of the tunnel are left"
    sessions.close()


def send_in_bursts(conn: net.Conn, chance: random.Random, total: int) -> str:
    """Send so many bytes, with random pauses, end the direction, and return the hash of the bytes."""
    digest, block = hashlib.sha256(), chance.randbytes(2 * MIB)
    while total:
        piece = block[: min(total, chance.choice([1, 100, 5 * KIB, 64 * KIB, 300 * KIB, 2 * MIB]))]
        conn.sendall(piece)
        digest.update(piece)
        total -= len(piece)
        if chance.random() < 0.2:
            gevent.sleep(chance.uniform(0.0, 0.01))
    conn.shutdown(1)
    return digest.hexdigest()


def move_some(src: net.Conn, dst: net.Conn) -> None:
    """Send a MiB, and receive it."""
    sending = gevent.spawn(src.sendall, bytes(MIB))
    left = MIB
    while left:
        left -= len(dst.recv(left))
    sending.get()


def read_to_end(conn: net.Conn, chance: random.Random) -> str:
    digest = hashlib.sha256()
    while data := conn.recv(chance.choice([1000, 64 * KIB, MIB])):
        digest.update(data)
        if chance.random() < 0.02:
            gevent.sleep(chance.uniform(0.0, 0.01))
    return digest.hexdigest()


@pytest.mark.parametrize("seed", range(6))
def test_every_byte_arrives_whenever_either_direction_moves(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)  # noqa: S311  (the same every time)
    monkeypatch.setattr(ways, "BULK_READS", chance.choice([1, 4, 30]))
    for tunnel in make_tunnel(chance):
        totals = [chance.choice([0, 1, MIB, 6 * MIB, 12 * MIB]) for _ in range(2)]
        ends = [(tunnel.user, tunnel.service), (tunnel.service, tunnel.user)]
        sent = [
            gevent.spawn(send_in_bursts, here, random.Random(seed + n), totals[n])  # noqa: S311
            for n, (here, _) in enumerate(ends)
        ]
        received = [
            gevent.spawn(read_to_end, there, random.Random(seed + n))  # noqa: S311
            for n, (_, there) in enumerate(ends)
        ]
        assert [each.get() for each in sent] == [each.get() for each in received]
        assert tunnel.crew.wait_empty(TIMEOUT_S)
        assert tunnel.errors == []
        if max(totals) >= 6 * MIB:
            assert tunnel.sessions.besides, "no direction has moved"


def test_direction_moves_by_itself_and_the_other_one_stays(tunnel: Tunnel) -> None:
    while not tunnel.have_moved(down=True):
        move_some(tunnel.service, tunnel.user)
    assert tunnel.at_client.reads_on is None
    for word in (b"more", b"and more"):
        tunnel.user.sendall(word)
        assert tunnel.service.recv(100) == word
        tunnel.service.sendall(word)
        assert tunnel.user.recv(100) == word


def test_stream_is_forgotten_once_both_directions_have_moved_and_its_session_may_end(tunnel: Tunnel) -> None:
    while not tunnel.have_moved(up=True, down=True):
        move_some(tunnel.service, tunnel.user)
        move_some(tunnel.user, tunnel.service)
    assert tunnel.sessions.server.stream(tunnel.at_server.id) is None
    tunnel.sessions.server.drain()
    wait_until(lambda: tunnel.sessions.client.closed, "the session has ended")
    for here, there in ((tunnel.user, tunnel.service), (tunnel.service, tunnel.user)):
        here.sendall(b"still here")
        assert there.recv(100) == b"still here"
    tunnel.user.shutdown(1)
    assert tunnel.service.recv(1) == b""
    tunnel.service.sendall(b"bye")
    assert tunnel.user.recv(100) == b"bye"


@pytest.mark.parametrize("lost", ["session", "conn at the server", "conn at the client"])
def test_loss_of_either_connection_resets_the_user_and_is_never_an_end(tunnel: Tunnel, lost: str) -> None:
    def download() -> None:
        with suppress(ConnError):
            tunnel.service.sendall(bytes(64 * MIB))

    gevent.spawn(download)
    while not tunnel.have_moved(down=True):
        assert tunnel.user.recv(64 * KIB)
    theirs, ours = tunnel.sessions.besides[0]
    match lost:
        case "session":
            tunnel.sessions.client.abort()
        case "conn at the server":
            theirs.abort()
        case _:
            ours.abort()
    with pytest.raises(ConnError):
        read_to_end(tunnel.user, random.Random(0))  # noqa: S311


def test_stream_goes_on_by_itself_where_no_conn_can_be_brought(tunnel: Tunnel) -> None:
    tunnel.sessions.client.bring = lambda _: None
    chance = random.Random(1)  # noqa: S311
    sent = gevent.spawn(send_in_bursts, tunnel.service, chance, 5 * MIB)
    assert read_to_end(tunnel.user, random.Random(2)) == sent.get()  # noqa: S311
    assert tunnel.at_server.reads_on is None


def test_conn_that_the_peer_never_takes_is_given_up_and_the_stream_goes_on(tunnel: Tunnel) -> None:
    near, far = tcp_pair()
    assert tunnel.at_client.attach(near, is_ready=False)
    chance = random.Random(1)  # noqa: S311
    sent = gevent.spawn(send_in_bursts, tunnel.service, chance, 3 * MIB)
    received = gevent.spawn(read_to_end, tunnel.user, random.Random(2))  # noqa: S311
    gevent.sleep(0)
    assert not tunnel.at_client.detach()  # the peer may have it, and its word be on the way
    far.abort()
    wait_until(lambda: near.has_hung_up, "the client has heard of it")
    assert tunnel.at_client.detach()
    assert near.closed
    assert sent.get() == received.get()


@pytest.mark.parametrize("end", ["client", "server"])
def test_loss_of_a_conn_to_which_nothing_has_moved_harms_nobody(end: str, tunnel: Tunnel) -> None:
    near, far = tcp_pair()
    stream = tunnel.at_client if end == "client" else tunnel.at_server
    assert stream.attach(near, is_ready=end == "server")
    assert not stream.why_gone(monotonic())
    far.abort()
    wait_until(lambda: bool(near.why_gone(monotonic())), "the conn has gone")
    assert not stream.why_gone(monotonic())


def test_conn_that_the_peer_has_given_up_is_not_moved_to(tunnel: Tunnel) -> None:
    tunnel.sessions.client.bring = lambda _: None
    near, far = tcp_pair()
    assert tunnel.at_server.attach(near, is_ready=True)
    far.abort()
    wait_until(lambda: near.has_hung_up, "the server has heard of it")
    sent = gevent.spawn(send_in_bursts, tunnel.user, random.Random(1), 3 * MIB)  # noqa: S311
    assert read_to_end(tunnel.service, random.Random(2)) == sent.get()  # noqa: S311


def test_peer_that_goes_on_over_a_conn_that_is_not_there_loses_this_stream_alone(tunnel: Tunnel) -> None:
    other = tunnel.sessions.server.open()
    at_client = tunnel.sessions.client.accept()
    near, far = tcp_pair()
    assert other.attach(near, is_ready=True)
    assert other.move()
    with pytest.raises(ConnError, match="a connection that is not there"):
        at_client.recv(1)
    for conn in (other, at_client, far):
        conn.close()
    tunnel.user.sendall(b"still here")
    assert tunnel.service.recv(100) == b"still here"


def test_limit_of_a_proxy_holds_for_a_direction_that_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "BULK_READS", 1)
    crew, flow = net.Crew("limited"), Flow(Bucket(4 * MIB))
    sessions = moving_pair(crew)
    (user, at_server), (at_client, service) = tcp_pair(), tcp_pair()
    to_client = sessions.server.open()
    crew.spawn(stream, at_server, to_client, None, flow)
    crew.spawn(stream, sessions.client.accept(), at_client)
    sending = gevent.spawn(service.sendall, bytes(64 * MIB))
    taken, began_s = 0, gevent.get_hub().loop.now()
    while taken < 7 * MIB:
        taken += len(user.recv(MIB))
    lasted_s = gevent.get_hub().loop.now() - began_s
    assert to_client.reads_on is not None
    assert flow.bytes >= taken
    assert lasted_s > 0.5  # one second's worth is saved up; the rest comes at the limit
    sending.kill()
    for conn in (user, service):
        conn.close()
    crew.kill()
    assert crew.wait_empty(TIMEOUT_S)
    sessions.close()


def test_what_a_limited_reader_has_not_read_from_the_stream_comes_before_what_has_moved() -> None:
    crew = net.Crew("limited")
    sessions = moving_pair(crew)
    at_server = sessions.server.open()
    at_client = sessions.client.accept()
    at_client.ask_beside()
    wait_until(at_client.move, "the direction has moved")
    at_client.sendall(b"moved")
    at_client.shutdown(1)
    wait_until(lambda: at_server.reads_on is not None, "the server knows")
    on_stream = [bytes([number]) * 64 * KIB for number in (1, 2, 3)]
    for chunk in reversed(on_stream):  # as they are while the limit holds the reader up
        at_server.unread(chunk)
    near, far = tcp_pair()
    crew.spawn(ways.copy_to_end, at_server, near, Flow(Bucket(64 * MIB)))
    crew.wait_empty()
    near.shutdown(1)
    received = b""
    while data := far.recv(MIB):
        received += data
    assert received == b"".join([*on_stream, b"moved"])
    for conn in (near, far, at_server, at_client):
        conn.close()
    sessions.close()


def test_direction_that_has_moved_goes_on_after_it_was_idle(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "IDLE_CHECK_S", 0.01)
    while not tunnel.have_moved(up=True, down=True):
        move_some(tunnel.service, tunnel.user)
        move_some(tunnel.user, tunnel.service)
    wait_until(lambda: not stream_module.busy_pairs(), "the ways back have no greenlet any more")
    for _ in range(3):
        for here, there in ((tunnel.user, tunnel.service), (tunnel.service, tunnel.user)):
            here.sendall(b"a word")
            assert there.recv(100) == b"a word"
            move_some(here, there)
    sent = gevent.spawn(send_in_bursts, tunnel.service, random.Random(1), 5 * MIB)  # noqa: S311
    assert read_to_end(tunnel.user, random.Random(2)) == sent.get()  # noqa: S311
