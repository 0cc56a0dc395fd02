"""What a meter and its parent count while connections last, and after their end."""

from __future__ import annotations

import pytest

from gnar_lib.config import Rate
from gnar_lib.pio.meter import LiveConnection, Meter, Totals

USER = ("192.0.2.1", 40000)


def connection(meter: Meter) -> LiveConnection:
    """Return a live connection that cannot be ended."""
    return meter.connection(USER, lambda: None)


def test_totals_are_sums_over_the_proxies() -> None:
    server = Meter()
    one, two = Meter(server), Meter(server)
    with connection(one) as live:
        live.up.bytes += 10
        with connection(two) as other:
            other.up.bytes += 5
            other.down.bytes += 7
        assert server.totals() == Totals(up=15, down=7, users=1, users_total=2, dropped=0)
    assert two.totals() == Totals(up=5, down=7, users=0, users_total=1, dropped=0)


def test_a_connection_is_counted_while_it_goes_on_and_once_after_its_end() -> None:
    meter = Meter()
    with connection(meter) as live:
        live.up.bytes += 3
        live.down.bytes += 4
        assert meter.totals() == Totals(up=3, down=4, users=1, users_total=1, dropped=0)
    assert meter.totals() == Totals(up=3, down=4, users=0, users_total=1, dropped=0)


def test_connections_of_a_proxy_are_listed_and_each_can_be_ended_alone() -> None:
    meter, ended = Meter(), []
    with (
        meter.connection(USER, lambda: ended.append("first")) as first,
        meter.connection(USER, lambda: ended.append("second")),
    ):
        assert len(meter.connections) == 2
        first.end("an administrator")
    assert ended == ["first"]
    assert first.ended_by == "an administrator"
    assert not meter.connections


def test_a_connection_that_breaks_is_counted_as_one_that_ends() -> None:
    meter = Meter()

    def carry() -> None:
        with connection(meter) as live:
            live.up.bytes += 1
            raise OSError("broke")

    with pytest.raises(OSError, match="broke"):
        carry()
    assert meter.totals() == Totals(up=1, down=0, users=0, users_total=1, dropped=0)


def test_connections_of_a_proxy_share_the_limit_of_each_direction() -> None:
    meter = Meter(limit=Rate(up=1000))
    first, second = connection(meter), connection(meter)
    assert first.up.limit is second.up.limit is meter.up.limit is not None
    assert first.down.limit is None


def test_sessions_of_udp_are_users() -> None:
    meter = Meter()
    meter.begin_session()
    meter.begin_session()
    meter.end_session()
    assert meter.totals() == Totals(
        up=0, down=0, users=1, users_total=2, dropped=0, sessions=1, sessions_total=2
    )


def test_an_ended_proxy_hands_its_counts_to_the_parent_once() -> None:
    server = Meter()
    proxy = Meter(server)
    with connection(proxy) as live:
        live.up.bytes += 10
    proxy.end()
    proxy.end()
    assert server.totals() == Totals(up=10, down=0, users=0, users_total=1, dropped=0)


def test_bytes_of_users_who_outlive_their_proxy_are_not_lost() -> None:
    server = Meter()
    proxy = Meter(server)
    with connection(proxy) as live:
        proxy.end()
        live.down.bytes += 8
        assert server.totals() == Totals(up=0, down=8, users=1, users_total=1, dropped=0)
    assert server.totals() == Totals(up=0, down=8, users=0, users_total=1, dropped=0)


def test_a_meter_without_a_parent_keeps_its_counts_at_the_end() -> None:
    meter = Meter()
    meter.up.bytes += 1
    meter.end()
    assert meter.totals().up == 1
