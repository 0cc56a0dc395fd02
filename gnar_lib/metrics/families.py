"""The metrics by name, made of what there is at the moment; the one module that imports prometheus-client.

That takes 20 ms and 2 MiB, so only a process that is asked for metrics imports this module.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily as Histogram
from prometheus_client.core import InfoMetricFamily as Info
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest as to_text
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from gnar_lib import __version__
from gnar_lib.events import Side
from gnar_lib.metrics.lag import LoopLag
from gnar_lib.metrics.rows import Figures
from gnar_lib.metrics.state import State
from gnar_lib.metrics.tally import Distribution, Tally
from gnar_lib.net import descriptors, give_way

__all__ = ["CollectorRegistry", "GCCollector", "Process", "families", "to_openmetrics", "to_text"]

SAMPLES_AT_ONCE = 100  # that are formatted before others have their turn: about a millisecond

to_openmetrics: Callable[[Collector, str], bytes] = openmetrics.generate_latest

Family = TypeVar("Family", Counter, Gauge)


class Process(Collector):
    """What prometheus-client knows of the process, as far as the system tells."""

    def __init__(self) -> None:
        self._inner = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of the process; none where /proc is not what it is on Linux."""
        try:
            return self._inner.collect()
        except (OSError, ValueError, LookupError, NameError):  # the system says less, or in another way
            return []


def families(side: Side, state: State, rows: list[Figures], tally: Tally, lag: LoopLag) -> Iterator[Metric]:
    """Yield every metric of one side."""
    build = {"version": __version__, "python": platform.python_version(), "side": side.value}
    yield Info("gnar_build", "Which gnar this is.", build)
    yield from _of_all(state)
    yield from _of_proxies(rows)
    text = "Time from a user's arrival to the first byte from the service."
    yield _histogram("gnar_exchange_seconds", text, tally.exchanges)
    if side is Side.SERVER:
        yield from _of_server(state, tally)
    if side is Side.CLIENT:
        yield from _of_client(state, tally)
    yield from _of_process(tally, lag)


def _of_all(state: State) -> Iterator[Metric]:
    totals, kinds = state.meter.totals(), [proxy.kind for proxy in state.proxies]
    by_kind = {kind: kinds.count(kind) for kind in ("tcp", "udp")}
    yield _by(Gauge("gnar_proxies", "Proxies that are there.", labels=["kind"]), by_kind)
    text = "Bytes carried: up from users to services, down from services to users."
    by_direction = {"up": totals.up, "down": totals.down}
    yield _by(Counter("gnar_bytes_total", text, labels=["direction"]), by_direction)
    connected = totals.users_total - totals.sessions_total
    yield Counter("gnar_connections_total", "Users of TCP that were connected.", connected)
    connected = totals.users - totals.sessions
    yield Gauge("gnar_connections_open", "Users of TCP that are connected.", connected)
    yield Counter("gnar_udp_sessions_total", "Users of UDP that came.", totals.sessions_total)
    yield Gauge("gnar_udp_sessions_open", "Users of UDP that are there.", totals.sessions)
    yield Counter("gnar_udp_dropped_total", "Datagrams that were not passed on.", totals.dropped)
    text = "Data connections that have no user yet."
    yield from _known("gnar_data_connections_waiting", text, state.data_conns_waiting)


def _of_proxies(rows: list[Figures]) -> Iterator[Metric]:
    count = Counter("gnar_proxy_bytes_total", "Bytes carried for a proxy.", labels=["proxy", "direction"])
    for row in rows:
        count.add_metric((row.label, "up"), row.counts.up)
        count.add_metric((row.label, "down"), row.counts.down)
    yield _slow(count)
    tcp, udp, labels = [row for row in rows if row.has_tcp], [row for row in rows if row.has_udp], ["proxy"]
    count = Counter("gnar_proxy_connections_total", "Users of TCP that a proxy has connected.", labels=labels)
    yield _slow(_by(count, {row.label: row.counts.connections for row in tcp}))
    gauge = Gauge("gnar_proxy_connections_open", "Users of TCP that are connected by a proxy.", labels=labels)
    yield _slow(_by(gauge, {row.label: row.connections for row in tcp}))
    gauge = Gauge("gnar_proxy_udp_sessions_open", "Users of UDP that a proxy has.", labels=labels)
    yield _slow(_by(gauge, {row.label: row.sessions for row in udp}))
    count = Counter("gnar_proxy_udp_dropped_total", "Datagrams that a proxy dropped.", labels=labels)
    yield _slow(_by(count, {row.label: row.counts.dropped for row in udp}))


def _of_server(state: State, tally: Tally) -> Iterator[Metric]:
    yield from _known("gnar_clients", "Clients that are logged in.", state.clients)
    yield from _known("gnar_logins_in_progress", "Connections that are logging in.", state.logins)
    yield from _known("gnar_users_waiting", "Users for whom a data connection is made.", state.users_waiting)
    yield Counter("gnar_logins_total", "Logins of clients.", tally.logins)
    count = Counter("gnar_logins_refused_total", "Connections that did not log in.", labels=["reason"])
    yield _by(count, tally.logins_refused)
    text = "Users turned away, for their number or for their address."
    yield _by(Counter("gnar_users_refused_total", text, labels=["kind"]), tally.users_refused)
    if state.answers is not None:
        classes = {f"{hundreds}xx": count for hundreds, count in enumerate(state.answers) if hundreds > 1}
        text = "Answers to requests by name, of services and of the server itself."
        yield _by(Counter("gnar_http_answers_total", text, labels=["class"]), classes)


def _of_client(state: State, tally: Tally) -> Iterator[Metric]:
    yield from _known("gnar_client_connected", "Whether the client is logged in: 1 or 0.", state.is_connected)
    text = "Time for a message to the server and back."
    yield from _known("gnar_client_round_trip_seconds", text, state.round_trip_s)
    yield Counter("gnar_client_connects_total", "Logins to the server.", tally.connects)
    text = "Times that the server could not be reached, or was lost."
    yield Counter("gnar_client_connect_failures_total", text, tally.connects_failed)
    text = "Users whose local service did not answer."
    yield Counter("gnar_service_failures_total", text, tally.service_failures)


def _of_process(tally: Tally, lag: LoopLag) -> Iterator[Metric]:
    text = "Times that users had to wait for a descriptor."
    yield Counter("gnar_descriptors_short_total", text, tally.descriptors_short)
    yield Gauge("gnar_descriptors_open", "Sockets and pipes that are open.", descriptors.taken)
    yield Gauge("gnar_descriptors_limit", "Descriptors that the process may have.", descriptors.limit)
    yield Gauge("gnar_loop_lag_seconds", "By how much the loop was late just now.", lag.last_s)
    yield Gauge("gnar_loop_lag_max_seconds", "The longest lag of the loop in the last minute.", lag.longest_s)


# ---- shapes ------------------------------------------------------------------------------------------------


def _known(name: str, text: str, value: float | None) -> Iterator[Metric]:
    """Yield a gauge, unless its value is not known."""
    if value is not None:
        yield Gauge(name, text, value)


def _by(family: Family, values: dict[str, int]) -> Family:
    """Add a value for each value of the only label."""
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def _histogram(name: str, text: str, values: Distribution) -> Metric:
    buckets, count = [], 0
    for bound, more in zip([*map(str, values.bounds), "+Inf"], values.counts, strict=True):
        count += more
        buckets.append((bound, count))
    return Histogram(name, text, buckets, values.sum)


class _Samples(list[Sample]):
    """Samples that let others have their turn while somebody goes through them."""

    def __iter__(self) -> Iterator[Sample]:
        for number, sample in enumerate(super().__iter__(), 1):
            yield sample
            if number % SAMPLES_AT_ONCE == 0:
                give_way()


def _slow(family: Metric) -> Metric:
    family.samples = _Samples(family.samples)
    return family
