"""What TLS adds to what `tests/net/test_contract.py` says of every conn."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

import gevent
import pytest

from gnar_lib.errors import ConnError, WriteError
from gnar_lib.net import LENT_BYTES, SocketConn, give_way
from gnar_lib.net.options import DEFAULT_DEAD_AFTER_S, set_dead_after
from gnar_lib.proxy.stream import stream
from gnar_lib.transport import outgoing
from gnar_lib.transport.engine import RECORD_BYTES, Engine
from gnar_lib.transport.layer import FIRST_READ_BYTES
from gnar_lib.transport.outgoing import lingering
from gnar_lib.transport.tls import TlsConn
from tests.helpers.conns import MIB, Waiter, read_all, tcp_pair
from tests.helpers.loop import turn, wait_until
from tests.helpers.tls import HOST, client_context, server_context, shake_hands, tls_pair

GONE = "gone without the end of TLS"
ADDED_BYTES = 17  # that TLS 1.3 adds to what a record carries: a type, and 16 that prove it


class Peer:
    """A client whose bytes the test sends as it likes: what it has encrypted is in its hands."""

    def __init__(self) -> None:
        self.below, far = tcp_pair()
        self.engine = Engine(client_context(), is_server=False, host=HOST)
        accepting = gevent.spawn(TlsConn.accept, far, server_context())
        while not self.engine.shake_hands():
            self.below.sendall(self.engine.made.read())
            self.engine.receive(self.below.recv(MIB))
        self.below.sendall(self.engine.made.read())
        self.conn: TlsConn = accepting.get()  # what the test looks at

    def encrypted(self, data: bytes) -> bytes:
        self.engine.write(data)
        return self.engine.made.read()

    def decrypted(self, size: int) -> bytes:
        buffer = memoryview(bytearray(size))
        while not (count := self.engine.read_into(buffer)) and not self.engine.why_broken:
            if not (data := self.below.recv(MIB)):
                break
            self.engine.receive(data)
        return bytes(buffer[:count])

    def close(self) -> None:
        self.below.close()
        self.conn.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def pair() -> Iterator[tuple[TlsConn, TlsConn]]:
    near, far = tls_pair()
    yield near, far
    near.close()
    far.close()
    turn()


def fill(conn: TlsConn) -> bytes:
    """Send until nothing fits any more, and return what counts as sent."""
    sent, data = bytearray(), os.urandom(MIB)
    while count := conn.send_now(data):
        sent += data[:count]
    return bytes(sent)


# ---- the end -----------------------------------------------------------------------------------------------


def test_end_of_the_conn_below_without_the_end_of_tls_is_an_error_behind_the_bytes(peer: Peer) -> None:
    peer.below.sendall(peer.encrypted(b"all that came"))
    peer.below.shutdown(socket.SHUT_WR)
    assert peer.conn.recv(MIB) == b"all that came"
    for _ in range(2):
        with pytest.raises(ConnError, match=GONE):
            peer.conn.recv(MIB)


def test_record_that_is_cut_off_is_an_error(peer: Peer) -> None:
    peer.below.sendall(peer.encrypted(b"hello")[:-1])
    peer.below.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnError, match=GONE):
        peer.conn.recv(MIB)


def test_cut_off_stream_calls_back_and_is_an_error_for_who_does_not_wait(peer: Peer) -> None:
    called: list[object] = []
    peer.conn.call_once_readable(lambda: called.append(1))
    peer.below.shutdown(socket.SHUT_WR)
    wait_until(lambda: called, "the callback")
    with pytest.raises(ConnError, match=GONE):
        peer.conn.recv_now(1)


def test_half_close_ends_tls_and_the_conn_below_and_leaves_the_other_direction_open(peer: Peer) -> None:
    peer.conn.sendall(b"answer")
    peer.conn.shutdown(socket.SHUT_WR)
    assert peer.decrypted(MIB) == b"answer"
    assert peer.decrypted(MIB) == b""
    assert peer.engine.peer_ended
    assert peer.below.recv(1) == b""
    peer.below.sendall(peer.encrypted(b"still here"))
    assert peer.conn.recv(MIB) == b"still here"


def test_half_close_loses_nothing_that_has_come_and_is_unread(peer: Peer) -> None:
    records = peer.encrypted(b"one ") + peer.encrypted(b"two ") + peer.encrypted(b"three ")
    peer.below.sendall(records[:-5])
    assert peer.conn.recv(1) == b"o"
    peer.conn.shutdown(socket.SHUT_WR)
    peer.below.sendall(records[-5:] + peer.encrypted(b"four"))
    peer.engine.say_goodbye()
    peer.below.sendall(peer.engine.made.read())
    assert read_all(peer.conn) == b"ne two three four"


def test_changed_byte_is_an_error_of_which_the_peer_is_told(peer: Peer) -> None:
    record = bytearray(peer.encrypted(b"hello"))
    record[-1] ^= 1
    peer.below.sendall(peer.encrypted(b"") + bytes(record))
    for _ in range(2):
        with pytest.raises(ConnError, match="TLS: "):
            peer.conn.recv(MIB)
    with pytest.raises(WriteError, match="TLS: "):
        peer.conn.sendall(b"x")
    assert peer.decrypted(MIB) == b""
    assert "alert" in peer.engine.why_broken


# ---- callbacks ---------------------------------------------------------------------------------------------


def test_nobody_is_called_for_a_part_of_a_record(peer: Peer) -> None:
    calls: list[str] = []
    record = peer.encrypted(b"hello")
    peer.conn.call_once_readable(lambda: calls.append("once"))
    for at in range(len(record)):
        assert calls == []
        peer.below.sendall(record[at : at + 1])
        turn()
    assert calls == ["once"]
    assert peer.conn.recv_now(MIB) == b"hello"
    peer.conn.call_when_readable(lambda: calls.append("when"))
    peer.below.sendall(peer.encrypted(b"hello")[:-1])
    turn()
    assert calls == ["once"]


def test_bytes_of_a_record_that_is_there_already_call_back(peer: Peer) -> None:
    """They are in no socket any more, so that no event of the loop tells of them."""
    peer.below.sendall(peer.encrypted(b"ab") + peer.encrypted(b"cd"))
    turn()
    assert peer.conn.recv(1) == b"a"
    for expected in (b"b", b"c", b"d"):
        calls: list[bytes | None] = []
        peer.conn.call_once_readable(lambda to=calls: to.append(peer.conn.recv_now(1)))  # type: ignore[misc]
        turn()
        assert calls == [expected]
    heard: list[bytes | None] = []
    peer.below.sendall(peer.encrypted(b"ef") + peer.encrypted(b"gh"))
    turn()
    assert peer.conn.recv(1) == b"e"
    peer.conn.call_when_readable(lambda: heard.append(peer.conn.recv_now(1)))
    wait_until(lambda: len(heard) == 3, "three callbacks")
    turn()
    assert heard == [b"f", b"g", b"h"]


def test_end_of_tls_calls_back_also_when_it_has_been_decrypted(pair: tuple[TlsConn, TlsConn]) -> None:
    near, far = pair
    far.sendall(b"x")
    far.shutdown(socket.SHUT_WR)
    turn()
    calls: list[int] = []
    near.call_once_readable(lambda: calls.append(1))
    turn()
    assert near.recv(1) == b"x"
    near.call_once_readable(lambda: calls.append(2))
    turn()
    assert calls == [1, 2]
    assert near.recv(1) == b""
    assert near.has_hung_up


# ---- what did not fit --------------------------------------------------------------------------------------


def test_what_counts_as_sent_arrives_although_its_sender_has_closed(pair: tuple[TlsConn, TlsConn]) -> None:
    near, far = pair
    reader = Waiter(lambda: near.recv(1))
    sent = fill(near)
    near.close()
    assert isinstance(reader.result(), ConnError)
    assert len(lingering) == 1
    assert read_all(far) == sent
    wait_until(lambda: not len(lingering), "the conn below is closed")


def test_what_counts_as_sent_arrives_before_a_half_close(pair: tuple[TlsConn, TlsConn]) -> None:
    near, far = pair
    sent = fill(near)
    near.shutdown(socket.SHUT_WR)
    assert read_all(far) == sent
    far.sendall(b"answer")
    assert near.recv(MIB) == b"answer"


def test_what_counts_as_sent_arrives_before_a_reset(pair: tuple[TlsConn, TlsConn]) -> None:
    near, far = pair
    sent, received = fill(near), bytearray()
    near.abort()
    while len(received) < len(sent):
        received += far.recv(MIB)
    assert received == sent
    with pytest.raises(ConnError):
        far.recv(1)


def test_close_in_the_middle_of_a_write_is_no_orderly_end(pair: tuple[TlsConn, TlsConn]) -> None:
    near, far = pair
    writer = Waiter(lambda: near.sendall(bytes(32 * MIB)))
    near.close()
    assert isinstance(writer.result(), WriteError)
    with pytest.raises(ConnError):
        read_all(far)


def test_peer_that_takes_nothing_is_given_up(
    pair: tuple[TlsConn, TlsConn], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = pair
    monkeypatch.setattr(outgoing, "LOOK_EVERY_S", 0.01)
    fill(near)
    set_dead_after(0.05)
    try:
        near.close()
        assert len(lingering) == 1
        wait_until(lambda: not len(lingering), "the peer is given up")
    finally:
        set_dead_after(DEFAULT_DEAD_AFTER_S)
    with pytest.raises(ConnError):
        read_all(far)


def test_a_conn_whose_conn_below_was_closed_does_not_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes too long to log in loses the socket below, and then the layers on it are closed."""
    monkeypatch.setattr(outgoing, "LOOK_EVERY_S", 0.01)
    near, far = tcp_pair()
    client, server = shake_hands(near, far)
    fill(server)
    far.abort()
    server.close()
    wait_until(lambda: not len(lingering), "nothing is left to be sent")
    client.close()


def test_few_conns_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MAX_LINGERING", 2)
    pairs = [tls_pair() for _ in range(4)]
    for near, _ in pairs:
        fill(near)
        near.close()
    assert len(lingering) == 2
    for _, far in pairs[:2]:  # those that lingered longest
        with pytest.raises(ConnError):
            read_all(far)
    for _, far in pairs[2:]:
        read_all(far)
    wait_until(lambda: not len(lingering), "the others are closed")
    for _, far in pairs:
        far.close()


# ---- much and little ---------------------------------------------------------------------------------------


def record_sizes(sent: bytes) -> list[int]:
    """Return how long the records are that somebody has sent, without the five bytes in front of each."""
    sizes, at = [], 0
    while at < len(sent):
        sizes.append(int.from_bytes(sent[at + 3 : at + 5], "big"))
        at += 5 + sizes[-1]
    return sizes


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what every socket is given to send from now on, one write after the other."""
    found: list[bytes] = []
    send_now = SocketConn.send_now

    def send(conn: SocketConn, data: bytes | bytearray | memoryview) -> int:
        found.append(bytes(data))
        return send_now(conn, data)

    monkeypatch.setattr(SocketConn, "send_now", send)
    return found


def test_bulk_leaves_in_full_records_and_four_of_them_in_one_write(
    pair: tuple[TlsConn, TlsConn], writes: list[bytes]
) -> None:
    near, far = pair
    near.send_now(memoryview(bytes(2 * LENT_BYTES)))
    assert [record_sizes(each) for each in writes] == [[RECORD_BYTES + ADDED_BYTES] * 4] * 2
    assert far.recv(MIB)


def test_small_frames_of_one_call_share_a_record(pair: tuple[TlsConn, TlsConn], writes: list[bytes]) -> None:
    near, far = pair
    near.sendmsg_now([b"header", bytearray(b"payload"), memoryview(b"next")])
    assert [record_sizes(each) for each in writes] == [[len("headerpayloadnext") + ADDED_BYTES]]
    assert far.recv(MIB) == b"headerpayloadnext"
    near.sendmsg_now([bytes(12), memoryview(bytes(2 * RECORD_BYTES))])
    assert len(writes) == 2


def test_reads_grow_when_much_comes_and_then_end_with_a_record(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    recv_into = SocketConn.recv_into

    def receive(conn: SocketConn, buffer: memoryview) -> int:
        asked.append(len(buffer))
        return recv_into(conn, buffer)

    peer.below.sendall(b"".join(peer.encrypted(bytes(LENT_BYTES)) for _ in range(4)))
    turn()
    monkeypatch.setattr(SocketConn, "recv_into", receive)
    while sum(asked) < 3 * LENT_BYTES:
        peer.conn.borrow()
    assert asked[0] < LENT_BYTES
    assert {*asked[1:]} == {4 * (5 + RECORD_BYTES + ADDED_BYTES)}


def test_short_messages_do_not_make_reads_grow(pair: tuple[TlsConn, TlsConn]) -> None:
    near, far = pair
    for _ in range(5):
        near.sendall(bytes(20_000))
        received = 0
        while received < 20_000:
            received += len(far.recv(MIB))
    assert far._read_bytes == FIRST_READ_BYTES


def test_who_is_called_back_gets_all_that_has_come_at_once(peer: Peer) -> None:
    """To know that there is something, the conn reads a little ahead: the rest follows in the same read."""
    data = os.urandom(3 * RECORD_BYTES // 2)
    heard: list[bytes | None] = []
    peer.conn.call_when_readable(lambda: heard.append(peer.conn.recv_now(MIB)))
    peer.below.sendall(peer.encrypted(data))
    wait_until(lambda: heard, "the callback")
    turn()
    assert heard == [data]


def test_what_did_not_fit_is_freed_once_it_is_sent(pair: tuple[TlsConn, TlsConn]) -> None:
    near, far = pair
    sent = fill(near)
    received = bytearray()
    while len(received) < len(sent):
        received += far.recv(MIB)
    turn()
    assert received == sent
    assert not near._outgoing.is_full
    assert near._outgoing._rest.obj == b""


# ---- carrying ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_user_of_tls_is_joined_with_a_plain_service(most: ssl.TLSVersion) -> None:
    user, (near, service) = tcp_pair(), tcp_pair()
    client, server = shake_hands(*user, most)
    joined = gevent.spawn(stream, server, near)
    request, answer = os.urandom(MIB), os.urandom(3 * MIB)

    def serve() -> None:
        assert read_all(service) == request
        service.sendall(answer)
        service.close()

    serving = gevent.spawn(serve)
    client.sendall(request)
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == answer
    joined.get()
    serving.get()
    client.close()


def test_tls_travels_on_tls(pair: tuple[TlsConn, TlsConn]) -> None:
    client, server = shake_hands(*pair, ssl.TLSVersion.TLSv1_3)
    data = os.urandom(MIB)
    sending = gevent.spawn(client.sendall, data)
    received = b""
    while len(received) < len(data):
        received += server.recv(MIB)
    assert received == data
    sending.get()
    client.close()
    assert server.recv(1) == b""
    server.close()


def test_peer_whose_bytes_never_end_leaves_others_their_turn(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []

    def count() -> None:
        while True:
            give_way()
            turns.append(1)

    def recv_into(buffer: memoryview) -> int:  # never waits
        record = peer.encrypted(bytes(RECORD_BYTES))
        buffer[: len(record)] = record
        return len(record)

    counting = gevent.spawn(count)
    monkeypatch.setattr(SocketConn, "recv_into", lambda _conn, buffer: recv_into(buffer))
    for _ in range(200):
        peer.conn.borrow()
    assert len(turns) > 5
    counting.kill()
