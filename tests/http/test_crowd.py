"""Who has to go when too many connections are there."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from gnar_lib.http import Limits
from gnar_lib.http.crowd import Crowd

if TYPE_CHECKING:
    from collections.abc import Iterator


class Peer:
    """A conn from an address."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.is_closed = False

    def getpeername(self) -> tuple[str, int]:
        return self.host, 5000

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(Limits(connections=8, connections_of_network=5))


@pytest.fixture
def waiting(crowd: Crowd) -> Iterator[Any]:
    """Return what lets a peer in, which waits from then on, and returns it."""
    with ExitStack() as stack:

        def enter(host: str) -> Peer:
            peer: Any = Peer(host)
            assert crowd.enter(peer)
            stack.enter_context(crowd.waiting(peer))
            return peer  # type: ignore[no-any-return]

        yield enter


def test_one_network_gets_its_part_and_loses_its_own_oldest(crowd: Crowd, waiting: Any) -> None:
    other = waiting("192.0.2.1")
    many = [waiting("192.0.2.2") for _ in range(7)]
    assert [each.is_closed for each in many] == [True, True, *[False] * 5]
    assert not other.is_closed
    assert len(crowd) == 6


def test_one_network_is_refused_when_none_of_its_own_waits(crowd: Crowd, waiting: Any) -> None:
    other = waiting("192.0.2.1")
    peers: list[Any] = [Peer("192.0.2.2") for _ in range(6)]
    assert [crowd.enter(each) for each in peers] == [True] * 5 + [False]
    assert not other.is_closed


def test_whoever_comes_last_gets_a_place_of_the_network_that_has_most(waiting: Any) -> None:
    few = [waiting("192.0.2.1") for _ in range(3)]
    many = [waiting("192.0.2.2") for _ in range(5)]
    waiting("192.0.2.3")
    assert [each.is_closed for each in many] == [True] + [False] * 4
    assert not any(each.is_closed for each in few)


def test_addresses_of_one_ipv6_network_count_as_one(crowd: Crowd, waiting: Any) -> None:
    many = [waiting(f"2001:db8::{number:x}") for number in range(1, 7)]
    assert [each.is_closed for each in many] == [True] + [False] * 5
    assert len(crowd) == 5


def test_who_has_left_takes_no_place(crowd: Crowd, waiting: Any) -> None:
    for _ in range(20):
        crowd.leave(waiting("192.0.2.2"))
    assert len(crowd) == 0
    assert not crowd._networks
