"""The metrics as text: in both formats, of each side, with whatever names, and without holding others up."""

from __future__ import annotations

import subprocess
import sys
import time
from shutil import which

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from gnar_lib import __version__, events
from gnar_lib.errors import UnsupportedError
from gnar_lib.events import Refusal, Side, emit
from gnar_lib.metrics import Metrics, lag
from gnar_lib.metrics.exposition import OPENMETRICS, TEXT, takes_openmetrics
from gnar_lib.metrics.families import Process
from gnar_lib.metrics.lag import LoopLag
from gnar_lib.metrics.rows import OTHER, label_of
from tests.helpers.loop import wait_until
from tests.metrics.sides import (
    PROMETHEUS,
    SIDES,
    USER,
    Told,
    families,
    in_openmetrics,
    running,
    series,
    value,
)


@pytest.fixture(autouse=True)
def _nobody_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_listeners", {})


# ---- formats -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("side", SIDES)
def test_promtool_has_nothing_to_say(side: Side) -> None:
    told = Told(side)
    told.open('a "name" with \\ and ü').down.bytes += 1 << 40
    told.open("dns", "udp").begin_session()
    with running(side, told) as metrics:
        _, text = metrics.render()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("side", SIDES)
def test_openmetrics_says_the_same_as_text(side: Side) -> None:
    told = Told(side)
    told.open("blog").up.bytes += 5
    with running(side, told) as metrics:
        assert series(in_openmetrics(metrics)) == series(families(metrics).values())


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", TEXT),
        ("application/openmetrics-text;version=1.0.0;q=0", TEXT),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.3", TEXT),
        ("text/plain,application/openmetrics-text;version=1.0.0", OPENMETRICS),
        ("application/openmetrics-text;q=..", TEXT),
        ("application/openmetrics-text;q=¹", TEXT),
        (PROMETHEUS, OPENMETRICS),
    ],
)
def test_format_is_the_one_that_is_asked_for(accept: str, expected: str) -> None:
    with running(Side.RELAY) as metrics:
        assert metrics.render(accept)[0] == expected


@given(st.text() | st.text("aq=.;, 10/*") | st.from_regex(r"application/openmetrics-text;[a-z]=.*"))
def test_no_header_is_too_much(accept: str) -> None:
    assert takes_openmetrics(accept) in {True, False}


@given(st.lists(st.text(), max_size=5))
def test_any_names_are_read_back_by_a_parser(names: list[str]) -> None:
    told = Told(Side.SERVER)
    for name in names:
        told.open(name).up.bytes += 1
    with running(Side.SERVER, told) as metrics:
        samples = families(metrics)["gnar_proxy_bytes"].samples
        assert in_openmetrics(metrics)
    ups = {each.labels["proxy"]: each.value for each in samples if each.labels["direction"] == "up"}
    assert {*ups} == {OTHER, *map(label_of, names)}
    assert sum(ups.values()) == len(names)


# ---- what is counted ---------------------------------------------------------------------------------------


def test_bytes_move_while_they_flow() -> None:
    told = Told(Side.SERVER)
    with running(Side.SERVER, told) as metrics, told.open("blog").connection(USER, lambda: None) as live:
        for expected in (10, 20):
            live.down.bytes += 10
            assert value(metrics, "gnar_bytes_total", direction="down") == expected
            assert value(metrics, "gnar_proxy_bytes_total", proxy="blog", direction="down") == expected
        assert value(metrics, "gnar_connections_open") == 1
        assert value(metrics, "gnar_proxy_connections_open", proxy="blog") == 1


def test_users_of_udp_are_no_connections() -> None:
    told = Told(Side.SERVER)
    meter = told.open("dns", "udp")
    for _ in range(3):
        meter.begin_session()
    meter.end_session()
    meter.dropped += 7
    with running(Side.SERVER, told) as metrics:
        assert value(metrics, "gnar_connections_total") == 0
        assert value(metrics, "gnar_connections_open") == 0
        assert value(metrics, "gnar_udp_sessions_total") == 3
        assert value(metrics, "gnar_udp_sessions_open") == 2
        assert value(metrics, "gnar_udp_dropped_total") == 7
        assert value(metrics, "gnar_proxy_udp_sessions_open", proxy="dns") == 2
        assert value(metrics, "gnar_proxy_udp_dropped_total", proxy="dns") == 7
        assert value(metrics, "gnar_proxies", kind="udp") == 1


def test_events_are_counted_until_the_end() -> None:
    with running(Side.SERVER) as metrics:
        metrics.start()  # once more does no harm
        for _ in range(2):
            emit(events.LoginRefused, USER, "wrong token", Refusal.TOKEN)
            emit(events.UserRefused, "blog", "tcp", USER, "full")
            emit(events.ClientCame, USER, "gnar", multiplexed=False)
            emit(events.DescriptorsShort, "users wait", "too few")
        assert value(metrics, "gnar_logins_refused_total", reason="token") == 2
        assert value(metrics, "gnar_logins_refused_total", reason="clock") == 0
        assert value(metrics, "gnar_users_refused_total", kind="tcp") == 2
        assert value(metrics, "gnar_http_answers_total", **{"class": "4xx"}) == 4
        assert value(metrics, "gnar_logins_total") == 2
        assert value(metrics, "gnar_descriptors_short_total") == 2
    emit(events.ClientCame, USER, "gnar", multiplexed=False)
    assert value(metrics, "gnar_logins_total") == 2
    assert not any(events._listeners.values())


def test_a_client_counts_what_happens_to_it() -> None:
    with running(Side.CLIENT) as metrics:
        emit(events.Connected, USER, is_go=False)
        emit(events.ConnectFailed, "reset", was_connected=True, retry_s=1.0)
        emit(events.ServiceUnreachable, "blog", "tcp", "refused", again=False)
        for name in (
            "gnar_client_connects_total",
            "gnar_client_connect_failures_total",
            "gnar_service_failures_total",
        ):
            assert value(metrics, name) == 1
        assert value(metrics, "gnar_client_connected") == 1
        assert value(metrics, "gnar_client_round_trip_seconds") == 0.015


def test_an_exchange_is_in_all_buckets_that_hold_it() -> None:
    with running(Side.SERVER) as metrics:
        for after_s in (0.25, 0.26, 99.0):
            emit(events.UserAnswered, Side.SERVER, "blog", USER, after_s)
        emit(events.UserAnswered, Side.CLIENT, "blog", USER, 0.1)  # not this side's
        buckets = [
            value(metrics, "gnar_exchange_seconds_bucket", le=le)
            for le in ("0.1", "0.25", "0.5", "10.0", "+Inf")
        ]
        assert buckets == [0, 1, 2, 2, 3]
        assert value(metrics, "gnar_exchange_seconds_count") == 3
        assert value(metrics, "gnar_exchange_seconds_sum") == pytest.approx(99.51)


def test_sides_of_one_process_have_nothing_to_do_with_each_other() -> None:
    told = {side: Told(side) for side in SIDES}
    told[Side.SERVER].open("blog").up.bytes += 9
    with running(Side.SERVER, told[Side.SERVER]) as server, running(Side.CLIENT, told[Side.CLIENT]) as client:
        assert value(server, "gnar_bytes_total", direction="up") == 9
        assert value(client, "gnar_bytes_total", direction="up") == 0
        python = sys.version.split()[0]
        for metrics, side in ((server, "server"), (client, "client")):
            assert value(metrics, "gnar_build_info", version=__version__, python=python, side=side) == 1
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("gnar")]


def test_a_value_that_is_not_known_is_left_out() -> None:
    with running(Side.SERVER) as server, running(Side.RELAY) as relay:
        assert "gnar_clients" in families(server)
        assert not {"gnar_clients", "gnar_logins", "gnar_data_connections_waiting"} & {*families(relay)}


# ---- the process and the loop ------------------------------------------------------------------------------


def test_a_loop_that_is_held_up_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "EVERY_S", 0.01)
    measured = LoopLag()
    measured.start()
    measured.start()
    try:
        gevent.sleep(0)
        time.sleep(0.3)  # nothing of the loop runs
        wait_until(lambda: measured.longest_s > 0.2, "the lag is measured")
        wait_until(lambda: measured.last_s < 0.2, "the loop is in time again")
        assert measured.longest_s > 0.2
    finally:
        measured.close()
        measured.close()


def test_the_lag_is_measured_once_in_a_while_and_not_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "EVERY_S", 0.05)
    measured = LoopLag()
    measured.start()
    try:
        began_s = time.monotonic()
        wait_until(lambda: len(measured._recent) >= 4, "four measurements")
        assert time.monotonic() - began_s > 0.15
    finally:
        measured.close()


def test_many_proxies_hold_nobody_up() -> None:
    told, turns = Told(Side.SERVER), []
    for number in range(500):
        told.open(str(number))

    def go_on() -> None:
        while True:
            turns.append(time.monotonic())
            gevent.sleep(0)

    with running(Side.SERVER, told) as metrics:
        for accept in ("", PROMETHEUS):
            turns.clear()
            other = gevent.spawn(go_on)
            assert metrics.render(accept)[1].count(b"gnar_proxy_bytes_total{") == 1002
            other.kill()
            assert len(turns) > 10


@pytest.mark.skipif(sys.platform != "linux", reason="the process is measured through /proc")
def test_the_process_is_measured() -> None:
    with running(Side.RELAY) as metrics:
        assert value(metrics, "process_resident_memory_bytes") > 1 << 20
        assert value(metrics, "process_open_fds") > 2


@pytest.mark.parametrize("error", [ValueError, OSError, UnboundLocalError])
def test_a_system_that_says_less_of_processes_costs_only_these(error: type[Exception]) -> None:
    class Broken:
        def collect(self) -> None:
            raise error

    process = Process()
    process._inner = Broken()  # type: ignore[assignment]
    assert [*process.collect()] == []


def test_a_python_without_what_prometheus_client_needs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gnar_lib.metrics.families")
    monkeypatch.delattr("gnar_lib.metrics.families")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with (
        running(Side.SERVER) as metrics,
        pytest.raises(UnsupportedError, match="prometheus-client does not start"),
    ):
        metrics.render()


def test_prometheus_client_is_loaded_by_whoever_is_asked_for_metrics_alone() -> None:
    program = """
import sys
from gnar_lib.metrics import Metrics, State
from gnar_lib.events import Side
assert "prometheus_client" not in sys.modules
Metrics(Side.SERVER, None)
assert "prometheus_client" in sys.modules
"""
    assert Metrics.__module__.startswith("gnar_lib.metrics")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
