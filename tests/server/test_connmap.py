"""The conn map: each entry is claimed once or expires in time, from any number of threads."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from gnar_lib.net import Conn
from gnar_lib.server.connmap import EXPIRY_S, ConnMap
from tests.helpers.clock import Clock

THREADS = 8
ENTRIES = 400


ANYBODY = "the key that fits"


class Entry:
    """A user who counts how often it has expired."""

    def __init__(self, key: str = ANYBODY) -> None:
        self.key = key
        self.expired = 0

    def deliver(self, conn: Conn) -> None:
        raise AssertionError(f"the conn map delivers nothing by itself, and did so with {conn}")

    def expire(self) -> None:
        self.expired += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(clock: Clock) -> ConnMap:
    return ConnMap(clock=clock)


def test_entry_is_claimed_once(users: ConnMap) -> None:
    entry = Entry()
    conn_id = users.put(entry)
    assert users.claim(conn_id, ANYBODY) is entry
    assert users.claim(conn_id, ANYBODY) is None
    assert len(users) == entry.expired == 0


def test_conn_ids_are_whole_uuid4s_and_all_different(users: ConnMap) -> None:
    ids = [users.put(Entry()) for _ in range(1000)]
    assert len(set(ids)) == len(users) == 1000
    assert all(uuid.UUID(conn_id).version == 4 and str(uuid.UUID(conn_id)) == conn_id for conn_id in ids)


@pytest.mark.parametrize("conn_id", ["", "no such", str(uuid.UUID(int=1, version=4)), "é" * 1024])
def test_unknown_conn_id_claims_nothing(users: ConnMap, conn_id: str) -> None:
    users.put(Entry())
    assert users.claim(conn_id, ANYBODY) is None
    assert len(users) == 1


def test_entry_whose_key_is_another_stays_for_whoever_has_it(users: ConnMap) -> None:
    entry = Entry("one")
    conn_id = users.put(entry)
    assert users.claim(conn_id, "other") is None
    assert users.claim(conn_id, None) is None
    assert users.claim(conn_id, "one") is entry


def test_entry_expires_after_10_s_and_is_closed_once(users: ConnMap, clock: Clock) -> None:
    entry = Entry()
    conn_id = users.put(entry)
    clock.now_s += EXPIRY_S - 0.001
    assert users.expire() == 0
    clock.now_s += 0.001
    assert users.expire() == 1
    assert users.expire() == 0
    assert users.claim(conn_id, ANYBODY) is None
    assert entry.expired == 1
    assert EXPIRY_S == 10


def test_only_those_that_waited_too_long_expire(users: ConnMap, clock: Clock) -> None:
    old, claimed, young = Entry(), Entry(), Entry()
    users.put(old)
    claimed_id = users.put(claimed)
    clock.now_s += EXPIRY_S / 2
    young_id = users.put(young)
    assert users.claim(claimed_id, ANYBODY) is claimed
    clock.now_s += EXPIRY_S / 2
    assert users.expire() == 1
    assert (old.expired, claimed.expired, young.expired) == (1, 0, 0)
    assert users.claim(young_id, ANYBODY) is young


def test_removed_entry_neither_expires_nor_is_claimed(users: ConnMap, clock: Clock) -> None:
    entry, other = Entry(), Entry()
    conn_id = users.put(entry)
    users.put(other)
    users.remove(conn_id)
    users.remove(conn_id)
    assert users.claim(conn_id, ANYBODY) is None
    assert len(users) == 1
    clock.now_s += EXPIRY_S
    assert users.expire() == 1
    assert (entry.expired, other.expired) == (0, 1)


def test_entry_that_puts_another_as_it_expires_does_no_harm(users: ConnMap, clock: Clock) -> None:
    class Restless(Entry):
        def expire(self) -> None:
            super().expire()
            users.put(Entry())

    entry = Restless()
    users.put(entry)
    clock.now_s += EXPIRY_S
    assert users.expire() == 1
    assert len(users) == 1


def test_each_entry_goes_to_exactly_one_of_many_threads(clock: Clock) -> None:
    users: ConnMap = ConnMap(clock=clock)
    entries = [Entry() for _ in range(ENTRIES)]
    ids = [users.put(entry) for entry in entries]
    clock.now_s += EXPIRY_S  # those that expire race with those that are claimed
    start = threading.Barrier(THREADS)

    def claim_all(number: int) -> list[object]:
        start.wait()
        if number == 0:
            users.expire()
        return [entry for conn_id in ids if (entry := users.claim(conn_id, ANYBODY)) is not None]

    with ThreadPoolExecutor(THREADS) as pool:
        claimed = [entry for found in pool.map(claim_all, range(THREADS)) for entry in found]
    times = {id(entry): entry.expired for entry in entries}
    for entry in claimed:
        times[id(entry)] += 1
    assert set(times.values()) == {1}
    assert len(users) == 0


def test_threads_that_put_and_claim_lose_nothing(users: ConnMap) -> None:
    def put_and_claim(_number: int) -> bool:
        entries = [Entry() for _ in range(ENTRIES)]
        ids = [users.put(entry) for entry in entries]
        mine: list[object] = [*entries]
        return [users.claim(conn_id, ANYBODY) for conn_id in ids] == mine

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(put_and_claim, range(THREADS)))
    assert len(users) == 0
