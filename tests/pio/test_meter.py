"""What a meter counts, and what its parent knows of it."""

from __future__ import annotations

from gnar_lib.pio.meter import Count, Meter, Totals
from gnar_lib.proxy.flow import Flow


def test_totals_are_sums_over_the_proxies() -> None:
    server = Meter()
    one, two = Meter(server), Meter(server)
    one.up.bytes += 10
    two.up.bytes += 5
    two.down.bytes += 7
    one.enter()
    two.enter()
    two.leave()
    assert server.totals() == Totals(up=15, down=7, users=1, users_total=2, dropped=0)
    assert two.totals() == Totals(up=5, down=7, users=0, users_total=1, dropped=0)


def test_a_flow_of_the_copy_loop_is_counted_while_it_runs() -> None:
    up, down = Flow(), Count()
    meter = Meter(up=up, down=down)
    up.bytes += 3
    down.bytes += 4
    assert (meter.totals().up, meter.totals().down) == (3, 4)


def test_an_ended_proxy_leaves_its_counts_to_the_parent_once() -> None:
    server = Meter()
    proxy = Meter(server)
    proxy.enter()
    proxy.up.bytes += 10
    proxy.leave()
    proxy.end()
    proxy.end()
    assert server.totals() == Totals(up=10, down=0, users=0, users_total=1, dropped=0)


def test_bytes_of_users_that_outlive_their_proxy_are_not_lost() -> None:
    server = Meter()
    proxy = Meter(server)
    proxy.enter()
    proxy.end()
    proxy.down.bytes += 8
    assert server.totals() == Totals(up=0, down=8, users=1, users_total=1, dropped=0)
    proxy.leave()
    assert server.totals() == Totals(up=0, down=8, users=0, users_total=1, dropped=0)


def test_a_meter_without_a_parent_keeps_its_counts_at_the_end() -> None:
    meter = Meter()
    meter.up.bytes += 1
    meter.end()
    assert meter.totals().up == 1
