"""What a server has been through within a day, kept in a folder, so that a restart does not lose it.

Looks at the registry and at the events every few seconds, and has a thread write what has changed. A disk
that is slow, full or gone costs history, and nothing else: whatever goes wrong is one line in the log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import gevent.event
from gevent.threadpool import ThreadPool

from gnar_lib import logger
from gnar_lib.admin.feed import Feed, Happened
from gnar_lib.errors import DamagedError, DeadlineError, StorageError
from gnar_lib.http import HTTPError, Request, Response
from gnar_lib.net import deadline
from gnar_lib.net.switching import give_way
from gnar_lib.pio.meter import Meter, Totals
from gnar_lib.server.admin.minutes import Minutes, chart_of, course_of
from gnar_lib.server.admin.registry import MAX_HAD, ClientEntry, Had, ProxyEntry, Registry
from gnar_lib.server.admin.rows import Batch, ClientRow, EventRow, Found, ProxyRow

if TYPE_CHECKING:
    from gnar_lib.server.admin.store import Store

WRITE_EVERY_S = 5.0  # so much is lost when the process is killed
SEEN_EVERY_S = 60.0  # the server is said to live, also if nothing happens
RETRY_S = 5.0  # after the file could not be opened
SLOW_S = 10.0  # for the disk, before that is told
READ_S = 5.0  # for the disk to answer a reader
CLOSE_S = 1.0  # for the last batch
AT_ONCE = 100  # proxies in one turn of the loop
MAX_ROWS = 1000  # clients, and proxies, in one batch; the others are in the next
MAX_EVENT_CHARS = 8192  # longer ones are not kept

_log = logger.get("history")

T = TypeVar("T")
Row = TypeVar("Row", ClientRow, ProxyRow)


class History:
    """Keeps the history of one server in `folder`, from `start` to `close`; without a folder, keeps none."""

    def __init__(
        self, folder: str, registry: Registry, feed: Feed, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._registry = registry
        self._feed = feed
        self._clock = clock
        self._disk: _Disk | None = None  # None: nothing is kept
        self._is_open = False
        self._run = 0  # the number of this process among those that have used the file; 0: not known yet
        self._closing: gevent.event.Event = gevent.event.Event()
        self._closed: gevent.event.Event = gevent.event.Event()  # the file has the last batch, and is closed
        self._last: Batch | None = None  # that batch
        self._minutes = Minutes()
        self._turns = 0
        # What is in the file.
        self._clients: dict[str, ClientRow] = {}
        self._proxies: dict[str, ProxyRow] = {}
        self._number = 0  # of the last event
        self._written_at = 0.0

    # ---- from start to close -------------------------------------------------------------------------------

    def start(self, spawn: Callable[[Callable[[], None]], None]) -> None:
        """Keep history from now on, in a greenlet that `spawn` starts."""
        if not self._folder:
            return
        try:
            from gnar_lib.server.admin.store import Store
        except ImportError as exc:
            _log.error("no history: this Python has no SQLite (%s)", exc)
            return
        self._disk = _Disk(Store(self._folder))
        spawn(self._keep)

    def close(self) -> None:
        """Write what is left and close the file, but wait no longer than `CLOSE_S` for the disk."""
        if self._disk is None or self._last is not None:
            return
        self._last = self._batch(is_last=True)
        self._closing.set()
        if not self._closed.wait(CLOSE_S) and self._is_open:
            _log.warning("the last seconds are lost: the disk does not answer")

    def _keep(self) -> None:
        """Open the file, and write until `close`; from the beginning if the file turns out to be damaged."""
        disk = self._disk
        assert disk is not None  # noqa: S101  (`start` has made it)
        try:
            while self._last is None:
                if not self._is_open:
                    self._open(disk)
                if not self._closing.wait(self._pause_s()) and self._is_open:
                    self._registry.look()
                    batch = self._batch()
                    if not batch.is_empty or abs(batch.now - self._written_at) >= SEEN_EVERY_S:
                        self._write(disk, batch)
            if self._is_open:
                if self._last.run:  # else the file was opened too late
                    self._write(disk, self._last)
                disk.call(disk.store.close)
        finally:
            self._closed.set()

    def _pause_s(self) -> float:
        """Return how long it is to the next batch; the end of a minute is the end of a batch."""
        return WRITE_EVERY_S - self._clock() % WRITE_EVERY_S if self._is_open else RETRY_S

    def _open(self, disk: _Disk) -> None:
        try:
            found = disk.call(disk.store.open, self._clock())
        except StorageError as exc:
            disk.tell(f"no history: {exc}")
            return
        if found.set_aside:
            _log.warning("the file was damaged, and is now %s; a new one is begun", found.set_aside)
        disk.end_trouble()
        self._is_open = True
        if not self._run:
            self._run = found.run
            self._restore(found)
        self._clients = {row.key: row for row in found.clients}
        self._proxies = {row.key: row for row in found.proxies}

    def _write(self, disk: _Disk, batch: Batch) -> None:
        try:
            disk.call(disk.store.write, batch)
        except StorageError as exc:
            disk.tell(f"not written: {exc}")
            self._minutes.put_back(batch.minutes)
            if isinstance(exc, DamagedError):  # `Store.open` sees to that
                self._is_open, self._number = False, 0
            return
        disk.end_trouble()
        self._written_at = batch.now
        self._clients.update({row.key: row for row in batch.clients})
        self._proxies.update({row.key: row for row in batch.proxies})
        for key in batch.gone_clients:
            self._clients.pop(key, None)
        for key in batch.gone_proxies:
            self._proxies.pop(key, None)
        if batch.events:
            self._number = batch.events[-1].number

    # ---- what is written -----------------------------------------------------------------------------------

    def _batch(self, *, is_last: bool = False) -> Batch:
        """Return how things differ from what is in the file.

        Others have their turn meanwhile, unless the batch is the last.
        """
        batch = Batch(self._run, self._clock(), is_last)
        entries = [*self._registry.proxies.values()]
        clients = [self._client_row(entry) for entry in self._registry.clients.values()]
        proxies = []
        for number, entry in enumerate(entries, 1):
            totals = entry.meter.totals()
            proxies.append(self._proxy_row(entry, totals))
            self._minutes.count(entry, totals)
            if number % AT_ONCE == 0 and not is_last:
                give_way()
        most = max(len(clients), len(proxies)) if is_last else MAX_ROWS
        self._turns += 1
        batch.clients, batch.gone_clients = _changed(clients, self._clients, most, self._turns)
        batch.proxies, batch.gone_proxies = _changed(proxies, self._proxies, most, self._turns)
        happened = [each for each in self._feed.since(self._number) if len(each.text) <= MAX_EVENT_CHARS]
        batch.events = [EventRow(each.number, each.at, each.text) for each in happened]
        middle = batch.now - WRITE_EVERY_S / 2  # of the time since the last batch
        batch.minutes = self._minutes.take(middle, [entry.id for entry in entries])
        return batch

    def _key(self, entry_id: str) -> str:
        """Return by what an entry will be called after a restart."""
        return entry_id if "-" in entry_id else f"{entry_id[0]}{self._run}-{entry_id[1:]}"

    def _client_row(self, entry: ClientEntry) -> ClientRow:
        return ClientRow(
            self._key(entry.id),
            entry.client_id,
            entry.version,
            int(entry.is_multiplexed),
            entry.since,
            entry.address,
            json.dumps([(self._key(each.id), each.name) for each in (entry.proxies or entry.had)[:MAX_HAD]]),
            entry.gone_at,
            entry.reason,
        )

    def _proxy_row(self, entry: ProxyEntry, totals: Totals) -> ProxyRow:
        return ProxyRow(
            self._key(entry.id),
            entry.name,
            entry.kind,
            entry.port,
            "" if entry.client is None else self._key(entry.client.id),
            entry.since,
            totals.up,
            totals.down,
            totals.users_total,
            totals.dropped,
            entry.gone_at,
            entry.reason,
            entry.link,
        )

    # ---- what is read --------------------------------------------------------------------------------------

    def _restore(self, found: Found) -> None:
        """Have the registry and the feed list what earlier processes have left."""
        proxies = {row.key: _proxy_entry(row) for row in found.proxies}
        clients = {row.key: _client_entry(row) for row in found.clients}
        for row in found.proxies:
            proxies[row.key].client = clients.get(row.client)
            self._minutes.skip(proxies[row.key])
        self._registry.restore([*clients.values()], [*proxies.values()])
        happened = [each for row in found.events for each in _happened(row)]
        self._feed.restore(happened)
        self._number = happened[-1].number if happened else 0

    def show(self, _request: Request, id: str) -> Response:  # noqa: A002  (the name in the path)
        """Answer with the last day of a proxy: bytes per second and users in each minute."""
        entry = self._registry.proxies.get(id)
        if entry is None:
            raise HTTPError(404, "there is no such proxy")
        if self._disk is None:
            raise HTTPError(404, "no history is kept; start the server with --state-dir")
        now = self._clock()
        try:
            with deadline(READ_S, "reading"):
                rows = self._disk.call(self._disk.store.minutes, course_of(entry), now)
        except (DeadlineError, StorageError):
            raise HTTPError(503, "the history cannot be read now", [("Retry-After", "5")]) from None
        return Response.json(chart_of(rows, now))


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    """The result of a function, or the error that it raised."""

    results: list[T]
    error: Exception | None


class _Disk:
    """A store, and the thread that uses it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._threads = ThreadPool(1)
        self._told = ""  # what has gone wrong

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Return what a method of the store returns, which runs in the thread, or raise what it raises."""
        asked = self._threads.spawn(_outcome_of, function, args)
        asked.wait(SLOW_S)
        if not asked.ready():
            self.tell(f"the disk has not answered in {SLOW_S:g} s")
        outcome = asked.get()
        assert outcome is not None  # noqa: S101  (what `_outcome_of` returns; the types of gevent are wrong)
        if outcome.error is not None:
            raise outcome.error
        result: T = outcome.results[0]
        return result

    def tell(self, trouble: str) -> None:
        """Log what has gone wrong, unless that is known."""
        if trouble != self._told:
            self._told = trouble
            _log.warning("%s", trouble)

    def end_trouble(self) -> None:
        """Log that the disk works again, if it has not."""
        if self._told:
            self._told = ""
            _log.info("works again")


def _outcome_of(function: Callable[..., T], args: tuple[Any, ...]) -> _Outcome[T]:
    """Call a function in the thread; gevent would log its error."""
    try:
        return _Outcome([function(*args)], None)
    except Exception as exc:  # noqa: BLE001  (whoever waits for the result raises the error)
        return _Outcome([], exc)


def _changed(rows: list[Row], written: dict[str, Row], most: int, turn: int) -> tuple[list[Row], list[str]]:
    """Return the rows that differ from those in the file, and the keys of those to be deleted there.

    If more than `most` differ, each has its turn.
    """
    changed = [row for row in rows if written.get(row.key) != row]
    begin = turn * most % len(changed) if len(changed) > most else 0
    in_turn = changed[begin:] + changed[:begin]
    return in_turn[:most], [*(written.keys() - {row.key for row in rows})]


# ---- what earlier processes have left ----------------------------------------------------------------------


def _proxy_entry(row: ProxyRow) -> ProxyEntry:
    meter = Meter()
    meter.up.bytes, meter.down.bytes = row.up, row.down
    meter.users_total, meter.dropped = row.users_total, row.dropped
    meter.end()
    entry = ProxyEntry(row.key, row.name, row.kind, row.port, meter, row.since, None)
    entry.gone_at, entry.reason, entry.link = row.gone_at, row.reason, row.link
    return entry


def _client_entry(row: ClientRow) -> ClientEntry:
    entry = ClientEntry(
        row.key, row.client_id, row.version, bool(row.is_multiplexed), row.since, row.address, None
    )
    entry.gone_at, entry.reason = row.gone_at, row.reason
    entry.had = [Had(key, name) for key, name in _names(row.proxies)[:MAX_HAD]]
    return entry


def _names(text: str) -> list[tuple[str, str]]:
    try:
        return [(str(key), str(name)) for key, name in json.loads(text)]
    except (TypeError, ValueError, RecursionError):
        return []


def _happened(row: EventRow) -> list[Happened]:
    """Return the event of a row, if this version knows such events."""
    try:
        return [Happened.before(row.number, row.at, row.text)]
    except (ValueError, RecursionError):
        return []
