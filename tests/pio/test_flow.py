"""Which limits hold for the flow of one connection: its own, and the one that it shares with others."""

from __future__ import annotations

import pytest

from gnar_lib.pio.flow import Flow, Limit


class Grants:
    """A limit that grants at most `most` bytes at a time, `total` in all, and notes what was taken."""

    def __init__(self, most: int, total: int = 1000) -> None:
        self.most = most
        self.left = total

    def take(self, want: int) -> int:
        granted = min(want, self.most, self.left)
        assert granted, "asked for more than there is"
        self.left -= granted
        return granted

    def take_now(self, count: int) -> bool:
        if count > self.left:
            return False
        self.left -= count
        return True


def flow(own: Limit | None, shared: Limit | None) -> Flow:
    return Flow(own, parent=Flow(shared))


def test_a_flow_without_limits_has_none() -> None:
    assert Flow().limit is None
    assert flow(None, None).limit is None


def test_the_only_limit_is_asked_directly() -> None:
    limit = Grants(10)
    assert Flow(limit).limit is limit
    assert flow(limit, None).limit is limit
    assert flow(None, limit).limit is limit


@pytest.mark.parametrize(("own", "shared", "granted"), [(10, 30, 10), (30, 10, 30), (30, 7, 30)])
def test_both_limits_grant_the_same_bytes(own: int, shared: int, granted: int) -> None:
    one, other = Grants(own), Grants(shared)
    limit = flow(one, other).limit
    assert limit is not None
    assert limit.take(100) == granted
    assert one.left == other.left == 1000 - granted


@pytest.mark.parametrize(("own", "shared"), [(5, 100), (100, 5), (5, 5)])
def test_a_datagram_needs_both_limits(own: int, shared: int) -> None:
    limit = flow(Grants(1, own), Grants(1, shared)).limit
    assert limit is not None
    assert not limit.take_now(6)
    assert limit.take_now(5) is True


def test_a_connection_does_not_count_for_its_parent() -> None:
    parent = Flow()
    child = Flow(parent=parent)
    child.bytes += 5
    assert parent.bytes == 0
