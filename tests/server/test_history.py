"""History: what is listed after a restart of any kind, and that no disk keeps the server from its work."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gnar_lib import events
from gnar_lib.admin.feed import Feed
from gnar_lib.errors import DamagedError, StorageError
from gnar_lib.events import Side, Stopping, emit
from gnar_lib.http import HTTPError
from gnar_lib.net import Crew
from gnar_lib.pio.meter import Meter
from gnar_lib.server.admin import history as history_module
from gnar_lib.server.admin import minutes as minutes_module
from gnar_lib.server.admin.history import History
from gnar_lib.server.admin.minutes import Minutes, course_of
from gnar_lib.server.admin.registry import ProxyEntry, Registry
from gnar_lib.server.admin.rows import Batch, MinuteRow
from gnar_lib.server.admin.store import STOPPED, Store
from tests.helpers.loop import wait_until
from tests.helpers.servers import Running, serving

BEGIN = time.time() // 60 * 60
REQUEST: Any = None  # which `History.show` does not look at


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_listeners", {})
    monkeypatch.setattr(history_module, "WRITE_EVERY_S", 0.02)
    monkeypatch.setattr(history_module, "RETRY_S", 0.02)
    monkeypatch.setattr(history_module, "SEEN_EVERY_S", 0.0)


class Kept:
    """The history of a server in this process, which `at` is the clock of."""

    def __init__(self, running: Running, folder: str | Path, at: float = BEGIN + 30) -> None:
        self.at = at
        self.batches = 0  # that have been written
        self.registry = Registry(running.server.control_ingress, lambda: self.at)
        self.feed = Feed()
        self.history = History(str(folder), self.registry, self.feed, lambda: self.at)
        self.crew = Crew("history")

    def start(self) -> None:
        self.registry.start()
        self.feed.start()
        self.history.start(self.crew.spawn)
        wait_until(lambda: self.history._is_open, "the file is open")

    def wait_written(self) -> None:
        """Wait until all that there is by now is in the file."""
        before = self.history._turns
        wait_until(lambda: self.history._turns > before + 1, "two batches")

    def close(self) -> None:
        self.history.close()
        self.crew.kill()
        self.feed.close()
        self.registry.close()
        assert self.crew.wait_empty(10)

    @property
    def proxies(self) -> list[ProxyEntry]:
        self.registry.look()
        return [*self.registry.proxies.values()]

    def chart(self, proxy_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.history.show(REQUEST, proxy_id).body)
        return shown


@contextlib.contextmanager
def keeping(running: Running, folder: str | Path, at: float = BEGIN + 30) -> Iterator[Kept]:
    """Keep the history of a server during the block."""
    kept = Kept(running, folder, at)
    kept.start()
    try:
        yield kept
    finally:
        kept.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.module == "history"]


# ---- what is listed ----------------------------------------------------------------------------------------


def test_what_was_there_is_gone_after_a_restart_until_it_comes_back(tmp_path: Path) -> None:
    with serving() as running, keeping(running, tmp_path) as kept:
        ours, port = running.log_in("blog")
        other, _ = running.log_in("shop")
        kept.registry.look()
        (blog, _) = kept.proxies
        blog.meter.up.bytes += 1234
        blog.meter.users_total += 5
        kept.history.close()
        ours.conn.close()
        other.conn.close()
    with serving() as running, keeping(running, tmp_path, at=BEGIN + 3600) as kept:
        blog, shop = kept.proxies
        assert (blog.name, blog.port, blog.ingress, blog.reason) == ("blog", port, None, STOPPED)
        assert (blog.gone_at, shop.gone_at) == (BEGIN + 30, BEGIN + 30)
        assert (blog.meter.totals().up, blog.meter.totals().users_total) == (1234, 5)
        client = blog.client
        assert client is not None
        assert [each.id for each in client.had] == [blog.id]
        assert (client.client_id, client.control, client.reason) == ("blog", None, STOPPED)
        ours, _ = running.log_in("blog", port)
        assert [(proxy.name, proxy.gone_at is None) for proxy in kept.proxies] == [
            ("shop", False),
            ("blog", True),
        ]
        assert [each.client_id for each in kept.registry.clients.values()] == ["shop", "blog"]
        ours.conn.close()
    with serving() as running, keeping(running, tmp_path, at=BEGIN + 3600) as kept:
        first, second = kept.proxies
        assert first.id == shop.id  # which stays the same
        assert (first.gone_at, second.gone_at) == (BEGIN + 30, BEGIN + 3600)
    with serving() as running, keeping(running, tmp_path, at=BEGIN + 86_400 + 1800) as kept:
        assert [proxy.id for proxy in kept.proxies] == [second.id]


def test_events_of_before_are_there_for_those_who_come_later(tmp_path: Path) -> None:
    with serving() as running, keeping(running, tmp_path) as kept:
        ours, _ = running.log_in("blog")
        wait_until(lambda: len(kept.feed.since(0)) == 2, "a client came, a proxy was opened")
        told = [each.text for each in kept.feed.since(0)]
        number = kept.feed.number
        ours.conn.close()
        wait_until(lambda: len(kept.feed.since(0)) > 2, "the client is gone")
    with serving() as running, keeping(running, tmp_path) as kept:
        assert [each.text for each in kept.feed.since(0)][:2] == told
        emit(Stopping, Side.SERVER)
        fresh = [each.name for each in kept.feed.since(number)]  # to a reader who was there before
        assert "client-gone" in fresh
        assert fresh[-1] == "stopping"


def test_events_stay_in_order_if_the_clock_was_ahead(tmp_path: Path) -> None:
    with serving() as running, keeping(running, tmp_path) as kept:
        kept.feed._number += 10**9
        emit(Stopping, Side.SERVER)
    with serving() as running, keeping(running, tmp_path) as kept:
        emit(Stopping, Side.CLIENT)
        numbers = [each.number for each in kept.feed.since(0)]
        assert numbers == sorted({*numbers})
        assert len(numbers) == 2


def test_a_batch_has_a_limit_and_the_next_ones_have_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    write = Store.write

    def count(store: Store, batch: Batch) -> None:
        sizes.append(len(batch.proxies))
        write(store, batch)

    monkeypatch.setattr(history_module, "MAX_ROWS", 3)
    monkeypatch.setattr(Store, "write", count)
    with serving() as running, keeping(running, tmp_path) as kept:
        conns = [running.log_in(f"name {number}")[0].conn for number in range(8)]
        kept.wait_written()
        sizes.clear()
        for proxy in kept.proxies:
            proxy.meter.up.bytes += 1
        wait_until(lambda: sum(sizes) == 8, "all are in the file")
        # Which of them is the smallest says when the next look was due.
        assert sorted(size for size in sizes if size) == [2, 3, 3]
        for conn in conns:
            conn.close()
        kept.history.close()
    with serving() as running, keeping(running, tmp_path) as kept:
        assert [proxy.meter.totals().up for proxy in kept.proxies] == [1] * 8


# ---- the day of a proxy ------------------------------------------------------------------------------------


def test_the_day_of_a_proxy_is_told_by_minute_also_after_a_restart(tmp_path: Path) -> None:
    with serving() as running, keeping(running, tmp_path, BEGIN + 30) as kept:
        ours, port = running.log_in("blog")
        (blog,) = kept.proxies
        assert kept.chart(blog.id) == {"step_s": 60, "until": BEGIN, "up": [], "down": [], "users": []}
        blog.meter.up.bytes += 6000
        blog.meter.sessions = 2
        kept.wait_written()
        blog.meter.sessions = 0
        kept.at += 60 * 3
        blog.meter.down.bytes += 600
        kept.wait_written()
        kept.at += 60
        shown = kept.chart(blog.id)
        assert shown["until"] == BEGIN + 4 * 60
        assert (shown["up"], shown["down"]) == ([100, 0, 0, 0], [0, 0, 0, 10])
        assert shown["users"] == [2, 0, 0, 0]
        ours.conn.close()
    with serving() as running, keeping(running, tmp_path, BEGIN + 30 + 23 * 3600) as kept:
        gone = kept.proxies[0]
        assert len(kept.chart(gone.id)["up"]) == 23 * 60
        ours, _ = running.log_in("blog", port)
        blog = kept.proxies[-1]
        assert blog.id != gone.id
        blog.meter.up.bytes += 60
        kept.wait_written()
        kept.at += 3600
        shown = kept.chart(blog.id)
        assert len(shown["up"]) == len(shown["down"]) == len(shown["users"]) == 1440
        assert (shown["up"][0], shown["up"][-60], sum(shown["up"])) == (100, 1, 101)
        ours.conn.close()


def test_what_a_proxy_has_moved_until_another_took_its_place_counts() -> None:
    minutes, meter = Minutes(), Meter()
    entry = ProxyEntry("p1", "blog", "tcp", 9000, meter, BEGIN, None)
    minutes.count(entry, meter.totals())
    meter.up.bytes += 600
    course, minute = course_of(entry), int(BEGIN) // 60
    assert minutes.take(BEGIN, ["p2"]) == [MinuteRow(course, minute, 600, 0, 0)]
    assert minutes.take(BEGIN, ["p2"]) == []


def test_of_too_many_proxies_in_a_minute_those_with_most_bytes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes_module, "MAX_COURSES", 2)
    monkeypatch.setattr(history_module, "WRITE_EVERY_S", 3600.0)
    with serving() as running, keeping(running, tmp_path) as kept:
        conns = [running.log_in(f"name {number}")[0].conn for number in range(4)]
        for number, proxy in enumerate(sorted(kept.proxies, key=lambda proxy: proxy.name)):
            proxy.meter.up.bytes += [60, 6000, 600, 6][number]
        kept.history.close()
        for conn in conns:
            conn.close()
    with serving() as running, keeping(running, tmp_path, BEGIN + 90) as kept:
        shown = {proxy.name: kept.chart(proxy.id)["up"] for proxy in kept.proxies}
    charts = {name: chart for name, chart in shown.items() if chart}
    assert {name: max(chart) for name, chart in charts.items()} == {"name 1": 100, "name 2": 10}


def test_without_a_folder_there_is_no_history_and_a_way_to_get_one() -> None:
    with serving() as running:
        kept = Kept(running, "")
        kept.history.start(kept.crew.spawn)
        ours, _ = running.log_in("blog")
        for proxy_id, text in [("p0", "no such proxy"), (kept.proxies[0].id, "--state-dir")]:
            with pytest.raises(HTTPError, match=text) as told:
                kept.history.show(REQUEST, proxy_id)
            assert told.value.status == 404
        kept.history.close()
        assert kept.crew.wait_empty(10)
        ours.conn.close()


# ---- what goes wrong ---------------------------------------------------------------------------------------


def test_a_python_without_sqlite_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    monkeypatch.delitem(sys.modules, "gnar_lib.server.admin.store")
    with serving() as running:
        kept = Kept(running, tmp_path)
        kept.history.start(kept.crew.spawn)
        kept.history.close()
        assert kept.crew.wait_empty(10)
    (line,) = lines(caplog)
    assert line.startswith("no history: this Python has no SQLite")


def failing(times: Callable[[], bool], error: StorageError) -> Callable[[Store, Batch], None]:
    """Return a `Store.write` that fails while `times` says so."""
    write = Store.write

    def write_or_fail(store: Store, batch: Batch) -> None:
        if times():
            raise error
        write(store, batch)

    return write_or_fail


def test_a_disk_that_fails_is_told_once_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fails = [True]
    error = StorageError("history.sqlite3: database or disk is full")
    monkeypatch.setattr(Store, "write", failing(lambda: fails[0], error))
    with serving() as running, keeping(running, tmp_path) as kept:
        ours, _ = running.log_in("blog")
        (blog,) = kept.proxies
        for _ in range(5):
            blog.meter.up.bytes += 600
            kept.wait_written()
        assert lines(caplog) == [f"not written: {error}"]
        fails[0] = False
        wait_until(lambda: lines(caplog)[1:] == ["works again"], "the disk works again")
        kept.at += 60
        assert kept.chart(blog.id)["up"] == [50]
        ours.conn.close()


def test_a_file_that_turns_out_to_be_damaged_is_made_anew_with_all_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as running, keeping(running, tmp_path) as kept:
        ours, _ = running.log_in("shop")
        kept.registry.look()
        kept.wait_written()  # a busy machine may not write the last batch in time
        ours.conn.close()
    file, aside = tmp_path / "history.sqlite3", tmp_path / "history.sqlite3.damaged"
    fails: list[bool] = []
    write = Store.write

    def write_or_damage(store: Store, batch: Batch) -> None:
        if fails:
            fails.clear()
            store.close()
            file.write_bytes(b"nothing" * 1000)
            raise DamagedError("history.sqlite3: database disk image is malformed")
        write(store, batch)

    monkeypatch.setattr(Store, "write", write_or_damage)
    with serving() as running, keeping(running, tmp_path) as kept:
        ours, _ = running.log_in("blog")
        kept.wait_written()
        fails.append(True)
        wait_until(aside.exists, "it is moved aside")
        kept.wait_written()
        ours.conn.close()
    assert [line.split(":")[0].split(",")[0] for line in lines(caplog)] == [
        "not written",
        "the file was damaged",
    ]
    with serving() as running, keeping(running, tmp_path) as kept:
        assert [proxy.name for proxy in kept.proxies] == ["shop", "blog"]
        assert len({proxy.id for proxy in kept.proxies}) == 2
        assert "client-came" in [each.name for each in kept.feed.since(0)]


def test_a_disk_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("SLOW_S", "READ_S", "CLOSE_S"):
        monkeypatch.setattr(history_module, name, 0.05)
    hangs, is_over = threading.Event(), threading.Event()

    def hang(_store: Store, _batch: Batch) -> None:
        hangs.set()
        assert is_over.wait(20)

    monkeypatch.setattr(Store, "write", hang)
    with serving() as running, keeping(running, tmp_path) as kept:
        try:
            wait_until(hangs.is_set, "the thread waits for the disk")
            ours, _ = running.log_in("blog")  # which the loop has to serve
            with pytest.raises(HTTPError, match="cannot be read now") as told:
                kept.history.show(REQUEST, kept.proxies[0].id)
            assert told.value.status == 503
            wait_until(lambda: lines(caplog) == ["the disk has not answered in 0.05 s"], "that is told")
            kept.history.close()
            assert lines(caplog)[1:] == ["the last seconds are lost: the disk does not answer"]
            ours.conn.close()
        finally:
            is_over.set()


def test_a_file_that_opens_too_late_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "CLOSE_S", 0.05)
    is_over, load = threading.Event(), Store.open

    def hang(store: Store, now: float) -> Any:
        assert is_over.wait(20)
        return load(store, now)

    monkeypatch.setattr(Store, "open", hang)
    with serving() as running:
        kept = Kept(running, tmp_path)
        kept.history.start(kept.crew.spawn)
        ours, _ = running.log_in("blog")
        kept.registry.look()
        kept.history.close()
        is_over.set()
        assert kept.crew.wait_empty(10)
        ours.conn.close()
    monkeypatch.undo()
    store = Store(str(tmp_path))
    found = store.open(BEGIN)
    assert found.run == 2
    assert found.proxies == []
    store.close()
