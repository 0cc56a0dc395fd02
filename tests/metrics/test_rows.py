"""Which proxies have series of their own: names, limits, and counts that never go backwards."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from gnar_lib.metrics import OpenProxy
from gnar_lib.metrics.rows import MAX_NAME, OTHER, UNNAMED, ZERO, Counts, Figures, Rows, label_of
from gnar_lib.pio.meter import Meter
from tests.helpers.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Sequence

USER = ("192.0.2.1", 4000)


def opened(total: Meter, name: str, up: int = 0) -> OpenProxy:
    """Return a proxy that has carried some bytes."""
    proxy = OpenProxy(name, "tcp", Meter(total))
    proxy.meter.up.bytes += up
    return proxy


def ups(figures: list[Figures]) -> dict[str, int]:
    """Return the bytes up of each row."""
    found = {each.label: each.counts.up for each in figures}
    assert len(found) == len(figures)  # no label comes twice
    return found


def test_proxies_of_one_name_count_together() -> None:
    total, rows = Meter(), Rows()
    proxies = [opened(total, "blog", 1), opened(total, "blog", 2), opened(total, "shop", 4)]
    assert ups(rows.look(total, proxies)) == {"blog": 3, "shop": 4, OTHER: 0}


def test_a_proxy_that_closes_and_opens_again_counts_on() -> None:
    total, rows = Meter(), Rows()
    first = opened(total, "blog", 10)
    rows.look(total, [first])
    first.meter.up.bytes += 1
    first.meter.end()
    assert ups(rows.look(total, [])) == {"blog": 11, OTHER: 0}
    assert ups(rows.look(total, [opened(total, "blog", 5)])) == {"blog": 16, OTHER: 0}


def test_users_who_outlive_their_proxy_count_in_its_row() -> None:
    total, rows = Meter(), Rows()
    proxy = opened(total, "blog")
    with proxy.meter.connection(USER, lambda: None) as live:
        rows.look(total, [proxy])
        proxy.meter.end()
        live.up.bytes += 7
        row, rest = rows.look(total, [])
        assert (row.label, row.counts.up, row.connections) == ("blog", 7, 1)
        assert rest == Figures(OTHER, True, True, ZERO, 0, 0)
        live.up.bytes += 1
    row, _ = rows.look(total, [])
    assert (row.counts.up, row.connections) == (8, 0)


def test_a_proxy_that_nobody_saw_counts_among_the_others() -> None:
    total, rows = Meter(), Rows()
    opened(total, "brief", 9).meter.end()
    assert ups(rows.look(total, [])) == {OTHER: 9}


def test_past_the_limit_proxies_count_among_the_others() -> None:
    total, rows = Meter(), Rows(limit=2)
    proxies = [opened(total, str(number), 1) for number in range(5)]
    assert ups(rows.look(total, proxies)) == {"0": 1, "1": 1, OTHER: 3}


def test_a_proxy_that_gets_a_row_later_begins_there_at_zero() -> None:
    clock, total = Clock(), Meter()
    rows = Rows(limit=1, keep_s=10.0, clock=clock)
    first, second = opened(total, "first", 3), opened(total, "second", 5)
    assert ups(rows.look(total, [first, second])) == {"first": 3, OTHER: 5}
    first.meter.end()
    second.meter.up.bytes += 1
    assert ups(rows.look(total, [second])) == {"first": 3, OTHER: 6}
    clock.now_s += 11
    second.meter.up.bytes += 1
    assert ups(rows.look(total, [second])) == {"second": 0, OTHER: 7}
    second.meter.up.bytes += 1
    assert ups(rows.look(total, [second])) == {"second": 1, OTHER: 7}


def test_a_name_keeps_its_row_for_a_while_and_no_longer() -> None:
    clock, total = Clock(), Meter()
    rows = Rows(keep_s=10.0, clock=clock)
    proxy = opened(total, "blog", 3)
    rows.look(total, [proxy])
    proxy.meter.end()
    for later, there in ((0, True), (9, True), (2, False)):
        clock.now_s += later
        assert ("blog" in ups(rows.look(total, []))) is there
    assert ups(rows.look(total, [])) == {OTHER: 0}  # what the row had counted comes up nowhere else


def test_a_client_that_changes_names_makes_no_more_rows_and_takes_no_memory() -> None:
    total, rows = Meter(), Rows(limit=100)

    def flap(numbers: range) -> None:
        for number in numbers:
            proxy = opened(total, f"name {number}", 1)
            figures = rows.look(total, [proxy]) if number % 20 == 0 else []
            proxy.meter.end()
            assert len(figures) <= 101

    flap(range(5_000))
    assert len(rows) == 100
    tracemalloc.start()
    try:
        flap(range(5_000, 10_000))
        gc.collect()
        # What other threads of this process allocate meanwhile is not of these rooms.
        ours = [tracemalloc.Filter(True, f"*/{room}/*.py") for room in ("metrics", "pio")]
        taken = sum(
            each.size for each in tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
        )
    finally:
        tracemalloc.stop()
    assert taken < 100_000  # 20 bytes for each name: less than the smallest object
    assert sum(ups(rows.look(total, [])).values()) == 10_000


def test_a_proxy_cannot_pass_for_the_others() -> None:
    total, rows = Meter(), Rows()
    assert ups(rows.look(total, [opened(total, OTHER, 2)])) == {OTHER: 2}


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl"])))
def test_any_name_becomes_a_short_printable_label(name: str) -> None:
    label = label_of(name)
    assert 0 < len(label) <= MAX_NAME
    assert label.isprintable()
    assert label.encode()
    if name.isprintable() and 0 < len(name) <= MAX_NAME:
        assert label == name
    if not name:
        assert label == UNNAMED


# A step: which of five proxies open or close, and what each of the open ones carries then.
Steps = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 100), st.integers(0, 6)), max_size=40)


@given(Steps, st.integers(0, 4))
@settings(deadline=None)
def test_no_count_goes_backwards_and_none_is_lost(steps: Sequence[tuple[int, int, int]], limit: int) -> None:
    clock, total = Clock(), Meter()
    rows, there = Rows(limit=limit, keep_s=10.0, clock=clock), dict[str, OpenProxy]()
    before, seen = dict[str, int](), 0
    for number, carried, later in steps:
        name = f"proxy {number}"
        if name in there:
            there.pop(name).meter.end()
        else:
            there[name] = opened(total, name)
        for proxy in there.values():
            proxy.meter.up.bytes += carried
        seen += carried * len(there)
        clock.now_s += later
        now = ups(rows.look(total, [*there.values()]))
        assert len(now) <= limit + 1
        assert all(count >= before.get(label, 0) for label, count in now.items())
        assert sum(now.values()) + rows._gone.up == total.totals().up == seen
        before = now


def test_sums_of_nothing_are_zero() -> None:
    assert Counts.sum([]) == ZERO
