"""What a live view shows of a client; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gnar_lib import __version__
from gnar_lib.client.connection import Connection
from gnar_lib.client.proxies import ClientProxy, ProxyState
from gnar_lib.config import Address
from gnar_lib.events import Connected, ConnectFailed, subscribe, unsubscribe
from gnar_lib.pio.meter import Meter, Totals
from gnar_lib.terminal.rates import Rates
from gnar_lib.terminal.text import GREEN, PLAIN, YELLOW, lasted, milliseconds, rate, size
from gnar_lib.terminal.view import Fact, ProxyRow, View

HINT = "^C stops it"


class Board:
    """Makes views of a client, from `start` to `close`; remembers what rates and waiting times need."""

    def __init__(self, server: Address, meter: Meter, inspector_url: str = "") -> None:
        self._server = server
        self._inspector_url = inspector_url  # of its page; empty if there is none
        self._meter = meter  # of all proxies
        self._rates = Rates()
        self._failure: ConnectFailed | None = None  # since the last time that the server let the client in
        self._retry_at_s = 0.0  # when the client tries again, as time.monotonic() says

    def start(self) -> None:
        """Take note of what happens from now on."""
        subscribe(Connected, self._on_connected)
        subscribe(ConnectFailed, self._on_failed)

    def close(self) -> None:
        """End what `start` began."""
        unsubscribe(Connected, self._on_connected)
        unsubscribe(ConnectFailed, self._on_failed)

    def _on_connected(self, _event: Connected) -> None:
        self._failure = None

    def _on_failed(self, event: ConnectFailed) -> None:
        self._failure, self._retry_at_s = event, time.monotonic() + event.retry_s

    def view(
        self, connections: Sequence[Connection | None], proxies: Sequence[ClientProxy], first: int, count: int
    ) -> View:
        """Return what is to be shown now: `count` of the proxies, from the number `first` on.

        `connections` has the control connection of each link, None for a link that has none.
        """
        rows = tuple(self._row(proxy) for proxy in proxies[first : first + count])
        return View(
            title=f"gnar client {__version__}",
            hint=HINT,
            facts=(
                Fact("Server", str(self._server)),
                *self._standing(connections),
                *self._sums(self._meter.totals()),
                *([Fact("Requests", self._inspector_url)] if self._inspector_url else []),
            ),
            rows=rows,
            first=first,
            count=len(proxies),
        )

    def _standing(self, connections: Sequence[Connection | None]) -> list[Fact]:
        """Return how it stands with the server."""
        present = [each for each in connections if each is not None and not each.has_ended]
        facts = []
        if present:
            oldest = max(present, key=lambda each: each.age_s)
            missing = f" ({len(present)} of {len(connections)})" if len(present) < len(connections) else ""
            if oldest.is_silent:
                facts.append(Fact("", f"silent for {oldest.silent_s:.0f} s{missing}", YELLOW))
            else:
                facts.append(Fact("", f"connected for {lasted(oldest.age_s)}{missing}", GREEN))
            facts.append(Fact("Round trip", milliseconds(oldest.control.round_trip_s)))
            encryption = oldest.control.encryption
            facts.append(Fact("Encryption", encryption or "none", PLAIN if encryption else YELLOW))
        if self._failure is not None:
            wait_s = self._retry_at_s - time.monotonic()
            when = f"trying again in {wait_s:.0f} s" if wait_s > 0 else "trying again"
            facts.append(Fact("", f"{when}: {self._failure.reason}", YELLOW))
        return facts or [Fact("", "connecting", YELLOW)]

    def _sums(self, totals: Totals) -> list[Fact]:
        up, down = self._rates.of("", totals.up, totals.down)
        return [
            Fact("Users", f"{totals.users} now, {totals.users_total} in all"),
            Fact("Up", f"{rate(up)}/s, {size(totals.up)} in all"),
            Fact("Down", f"{rate(down)}/s, {size(totals.down)} in all"),
        ]

    def _row(self, proxy: ClientProxy) -> ProxyRow:
        totals = proxy.meter.totals()
        rate_up, rate_down = self._rates.of(proxy, totals.up, totals.down)
        is_open = proxy.state is ProxyState.OPEN
        return ProxyRow(
            name=proxy.name,
            kind="tcp" if proxy.udp is None else "udp",
            where=proxy.location(self._server) if is_open else "not open yet",
            url=proxy.url(self._server) if is_open else "",
            is_open=is_open,
            partner=str(proxy.config.local_service),
            partner_answers=proxy.answers,
            users=totals.users,
            users_total=totals.users_total,
            up=totals.up,
            down=totals.down,
            rate_up=rate_up,
            rate_down=rate_down,
            dropped=totals.dropped,
        )
