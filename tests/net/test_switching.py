"""The invariants of `gnar_lib/net/switching.py`: whoever breaks one of them is told so by an assertion."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.net import Crew, SocketConn, deadline, give_way, switching, wait_for
from tests.helpers.loop import turn
from tests.peers.mux import conn_pair

TIMEOUT_S = 10.0


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Let no test wait for ever."""
    with deadline(TIMEOUT_S, "the test"):
        yield


@pytest.fixture
def pair() -> Iterator[tuple[SocketConn, SocketConn]]:
    """Yield two conns that are joined."""
    near, far = conn_pair()
    yield near, far
    near.close()
    far.close()


Pair = tuple[SocketConn, SocketConn]


class Raw:
    """A greenlet without gevent's own way of waiting, as those of a crew are; `error` is what ended it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self.greenlet = greenlet(self._run, get_hub())
        get_hub().loop.run_callback(self.greenlet.switch, call)
        turn()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as exc:  # noqa: BLE001  (the test looks at it)
            self.error = exc


def in_hub(call: Callable[[], object]) -> BaseException | None:
    """Call something in a callback of the hub, and return the error that it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as exc:  # noqa: BLE001  (the test looks at it)
            errors.append(exc)

    get_hub().loop.run_callback(run)
    turn()
    return errors[0] if errors else None


# ---- I1: the hub does not wait, and nobody but the hub switches --------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda conn: conn.recv(1),
        lambda conn: conn.wait_writable(),
        lambda _: wait_for(object()),
        lambda _: give_way(),
    ],
)
def test_callback_of_the_hub_must_not_wait(pair: Pair, wait: Callable[[SocketConn], object]) -> None:
    error = in_hub(lambda: wait(pair[0]))
    assert isinstance(error, AssertionError)
    assert str(error).startswith("I1: a callback of the hub waits")


def test_job_starts_in_the_hub_alone() -> None:
    crew = Crew("test")
    with pytest.raises(AssertionError, match="I1: a job is started outside the hub"):
        crew.enter(lambda: None)


def test_greenlet_is_interrupted_from_the_hub_alone(pair: Pair) -> None:
    with pytest.raises(AssertionError, match="I1: a greenlet is interrupted from outside the hub"):
        pair[0].interrupt(ValueError())


# ---- I2: a token of somebody else's is a read watcher ------------------------------------------------------


@pytest.mark.parametrize(
    "wait", [lambda conn: conn.wait_readable(), lambda conn: conn.wait_writable(), lambda _: wait_for("mine")]
)
@pytest.mark.parametrize("make", [lambda: None, object, lambda: get_hub().loop.timer(1), lambda: "yours"])
def test_any_other_token_is_told_of(
    pair: Pair, wait: Callable[[SocketConn], None], make: Callable[[], object]
) -> None:
    near, _ = pair
    while near.send_now(b"x" * 65536):  # so that a wait to write waits
        pass
    waiting = Raw(lambda: wait(near))
    in_hub(lambda: waiting.greenlet.switch(make()))
    assert isinstance(waiting.error, AssertionError)
    assert str(waiting.error).startswith("I2: ")


def test_read_watcher_of_an_earlier_wait_is_put_off_and_its_event_is_not_lost(pair: Pair) -> None:
    near, far = pair
    near.keep_reading = True
    got: list[bytes] = []

    def read() -> None:
        got.append(near.recv(10))
        wait_for(got)
        got.append(near.recv(10))

    reader = Raw(read)
    far.sendall(b"one")
    turn()
    assert got == [b"one"]
    assert near._reader.active
    far.sendall(b"two")
    turn()
    assert not near._reader.active
    in_hub(lambda: reader.greenlet.switch(got))
    turn()
    assert got == [b"one", b"two"]
    assert reader.error is None


# ---- I3, I4: who waits ------------------------------------------------------------------------------------


def test_started_watcher_of_another_greenlet_is_not_waited_for(pair: Pair) -> None:
    near, far = pair
    near.keep_reading = True
    Raw(lambda: near.recv(10))  # and no `stop_reading`
    far.sendall(b"x")
    turn()
    with pytest.raises(AssertionError, match="I3: the read watcher was started for another greenlet"):
        near.recv(10)


def test_started_watcher_of_another_greenlet_is_not_waited_for_when_passing_on(pair: Pair) -> None:
    near, far = pair
    near.keep_reading = True
    Raw(lambda: near.recv(1))
    far.sendall(b"x")
    turn()
    near.unread(b"y")
    with pytest.raises(AssertionError, match="I3"):
        near.pass_on(far, Counter())


class Counter:
    """Counts bytes, for `pass_on`."""

    bytes = 0


@pytest.mark.parametrize("keep_reading", [False, True])
def test_two_greenlets_do_not_wait_to_read_one_socket(pair: Pair, *, keep_reading: bool) -> None:
    near, far = pair
    near.keep_reading = keep_reading
    first = Raw(lambda: near.recv(10))
    with pytest.raises(AssertionError, match="I4: two greenlets wait to read one socket"):
        near.recv(10)
    far.sendall(b"x")
    turn()
    assert first.greenlet.dead
    assert first.error is None


def test_two_greenlets_do_not_wait_to_write_to_one_socket(pair: Pair) -> None:
    near, far = pair
    data = b"x" * (8 << 20)
    first = Raw(lambda: near.sendall(data))
    with pytest.raises(AssertionError, match="I4: two greenlets wait to write to one socket"):
        near.sendall(b"y")
    received = 0
    while received < len(data):
        received += len(far.recv(1 << 20))
    turn()
    assert first.greenlet.dead
    assert first.error is None


# ---- I5: spare greenlets -----------------------------------------------------------------------------------


def test_spare_greenlet_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = greenlet(lambda: None)
    dead.switch()
    monkeypatch.setattr(switching, "_spare", [dead])
    error = in_hub(lambda: Crew("test").enter(lambda: None))
    assert isinstance(error, AssertionError)
    assert str(error) == "I5: a spare greenlet has ended"


def test_watcher_of_the_last_job_is_put_off_by_the_spare_greenlet(pair: Pair) -> None:
    near, far = pair
    near.keep_reading = True
    crew, seen = Crew("test"), list[greenlet]()

    def job() -> None:
        seen.append(getcurrent())
        near.recv(10)

    crew.spawn(job)
    turn()
    far.sendall(b"x")
    assert crew.wait_empty(TIMEOUT_S)
    assert near._reader.active
    far.sendall(b"x")  # wakes the spare greenlet
    turn()
    assert not near._reader.active
    assert not seen[0].dead
    assert seen[0] in switching._spare


def test_greenlet_that_is_interrupted_becomes_a_spare_one(pair: Pair) -> None:
    crew, ended = Crew("test"), list[str]()

    def job() -> None:
        try:
            pair[0].recv(1)
        except ZeroDivisionError:
            ended.append("interrupted")

    before = switching.busy_greenlets()
    crew.spawn(job)
    turn()
    assert switching.busy_greenlets() == before + 1
    in_hub(lambda: pair[0].interrupt(ZeroDivisionError()))
    assert ended == ["interrupted"]
    assert switching.busy_greenlets() <= before


# ---- give way ----------------------------------------------------------------------------------------------


def test_give_way_lets_sockets_have_their_turn(pair: Pair) -> None:
    near, far = pair
    got: list[bytes] = []
    Raw(lambda: got.append(near.recv(1)))
    far.sendall(b"x")
    for _ in range(2):  # the first turn of the loop has the timer's event before the socket's
        give_way()
    assert got == [b"x"]
