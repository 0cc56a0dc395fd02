"""Gives the metrics of one side, in the format that is asked for; knows no name of a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from gnar_lib.errors import UnsupportedError
from gnar_lib.events import Side
from gnar_lib.metrics.lag import LoopLag
from gnar_lib.metrics.rows import Rows
from gnar_lib.metrics.state import State
from gnar_lib.metrics.tally import Tally

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
MAX_ACCEPT = 1024  # characters of a request's header that are looked at
NO_ESCAPES = "allow-utf-8"  # all names are plain ones, and to look for others takes half of the time


class Metrics:
    """Counts from `start` to `close`, and renders what there is; `read` tells that at the moment.

    Has a registry of its own, since one process may have several sides.
    """

    def __init__(self, side: Side, read: Callable[[], State]) -> None:
        self.lag = LoopLag()
        self._side = side
        self._read = read
        self._tally = Tally(side)
        self._rows = Rows()
        self._why_not = ""  # why nothing can be rendered
        self._registry: CollectorRegistry | None = None
        try:
            from gnar_lib.metrics import families
        except ImportError as exc:  # prometheus-client needs modules that some Pythons lack, such as ssl
            self._why_not = f"prometheus-client does not start: {exc}"
            return
        self._registry = families.CollectorRegistry()
        for collector in (self, families.Process()):
            self._registry.register(collector)
        families.GCCollector(self._registry)

    def start(self) -> None:
        """Count events from now on, and measure how late the loop is."""
        self._tally.start()
        self.lag.start()

    def close(self) -> None:
        """End what `start` began."""
        self._tally.close()
        self.lag.close()

    def collect(self) -> Iterable[Metric]:
        """Yield every metric of this side. To be called by the registry."""
        from gnar_lib.metrics.families import families

        state = self._read()
        rows = self._rows.look(state.meter, state.proxies)
        yield from families(self._side, state, rows, self._tally, self.lag)

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """Return the type of the content, and the content, for a request with this `Accept`.

        Lets others have their turn meanwhile. Raises `UnsupportedError` where prometheus-client does not run.
        """
        if self._registry is None:
            raise UnsupportedError(self._why_not)
        from gnar_lib.metrics.families import to_openmetrics, to_text

        if takes_openmetrics(accept):
            return OPENMETRICS, to_openmetrics(self._registry, NO_ESCAPES)
        return TEXT, to_text(self._registry, NO_ESCAPES)


def takes_openmetrics(accept: str) -> bool:
    """Tell whether whoever sends this header (RFC 9110, 12.5.1) likes OpenMetrics as much as plain text."""
    text, openmetrics = 0.0, 0.0
    for media_type, version, quality in _ranges(accept[:MAX_ACCEPT]):
        if media_type == "application/openmetrics-text" and version in ("", "1.0.0"):
            openmetrics = max(openmetrics, quality)
        elif media_type == "text/plain":
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def _ranges(accept: str) -> Iterator[tuple[str, str, float]]:
    """Yield each media type of the header, with its version and how well it is liked, from 0 to 1."""
    for each in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in each.split(";"))
        named = dict(parameter.partition("=")[::2] for parameter in parameters)
        quality = named.get("q", "1")
        is_number = quality.isascii() and quality.replace(".", "", 1).isdigit()
        yield media_type, named.get("version", ""), min(float(quality), 1.0) if is_number else 0.0
