"""Sides with everything that a side can tell, for tests of their metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as _read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gnar_lib.events import Side
from gnar_lib.metrics import Metrics, OpenProxy, State
from gnar_lib.metrics.exposition import OPENMETRICS
from gnar_lib.pio.meter import Meter

# What Prometheus 2 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
USER = ("192.0.2.1", 4000)
SIDES = [*Side]


class Told:
    """What one side tells: it has the proxies that a test opens."""

    def __init__(self, side: Side) -> None:
        self.meter = Meter()
        self.proxies: list[OpenProxy] = []
        self.state = State(self.meter, self.proxies)
        if side is Side.SERVER:
            self.state = replace(self.state, clients=2, logins=1, users_waiting=3, data_conns_waiting=8)
            self.state = replace(self.state, answers=[0, 0, 5, 0, 4, 1])
        if side is Side.CLIENT:
            self.state = replace(self.state, is_connected=True, round_trip_s=0.015, data_conns_waiting=8)

    def open(self, name: str, kind: str = "tcp") -> Meter:
        """Open a proxy, and return its meter."""
        meter = Meter(self.meter)
        self.proxies.append(OpenProxy(name, kind, meter))
        return meter


@contextmanager
def running(side: Side, told: Told | None = None) -> Iterator[Metrics]:
    """Yield metrics that count."""
    told = told or Told(side)
    metrics = Metrics(side, lambda: told.state)
    metrics.start()
    yield metrics
    metrics.close()


def families(metrics: Metrics) -> dict[str, Metric]:
    """Return what the text says, read by prometheus-client's own parser, by the name of each family."""
    _, text = metrics.render()
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def series(families: Iterable[Metric]) -> set[str]:
    """Return the names of all series."""
    return {sample.name for family in families for sample in family.samples}


def in_openmetrics(metrics: Metrics) -> list[Metric]:
    """Return what Prometheus is told, read by prometheus-client's own strict parser."""
    content_type, text = metrics.render(PROMETHEUS)
    assert content_type == OPENMETRICS
    return [*_read_openmetrics(text.decode())]  # type: ignore[no-untyped-call]


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the value of one series."""
    (found,) = (
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
    return found
