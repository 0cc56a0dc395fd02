"""The file of a server's history: what is in it after any end, and what files are not taken."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gnar_lib.errors import DamagedError, StorageError
from gnar_lib.server.admin import store as store_module
from gnar_lib.server.admin.rows import Batch, ClientRow, EventRow, MinuteRow, ProxyRow
from gnar_lib.server.admin.store import FILE_NAME, KILLED, STOPPED, Store
from tests.helpers.harness import wait_until

NOW = 1_800_000_000.0
HOUR_S = 3600
CLIENT = ClientRow("c1-1", "id", "0.9", 1, NOW - 60, "192.0.2.7:5123", '[["p1-2","web"]]', None, "")
PROXY = ProxyRow("p1-2", "web", "tcp", 9000, "c1-1", NOW - 60, 10, 20, 3, 0, None, "")
ROOT = Path(__file__).resolve().parent.parent.parent

# Writes batches, each of which says in three tables what number it has, until it is killed.
WRITE_FOR_EVER = f"""
import itertools, sys
sys.path.insert(0, {str(ROOT)!r})
from gnar_lib.server.admin.rows import *
from gnar_lib.server.admin.store import Store
store = Store(sys.argv[1])
store.open({NOW})
print("open", flush=True)
for number in itertools.count(int(sys.argv[2])):
    batch = Batch(1, {NOW} + number, False)
    counts = number, 0, 0, 0
    row = "x" * 50, "tcp", 9000, "", {NOW}, *counts, None, ""
    batch.proxies = [ProxyRow(f"p1-{{n}}", *row) for n in range(50)]
    batch.events = [EventRow(number, {NOW}, "x" * 300)]
    batch.minutes = [MinuteRow(7, number % 1000 + int({NOW}) // 60, 1, 0, 0)]
    store.write(batch)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return a store in a folder that does not exist yet."""
    store = Store(str(tmp_path / "state"))
    yield store
    store.close()


def batch(now: float = NOW, *, is_last: bool = False, **changes: object) -> Batch:
    made = Batch(1, now, is_last)
    for name, rows in changes.items():
        setattr(made, name, rows)
    return made


def test_folder_and_files_are_for_this_user_alone(store: Store, tmp_path: Path) -> None:
    store.open(NOW)
    store.write(batch(clients=[CLIENT]))
    folder = tmp_path / "state"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {FILE_NAME: 0o600, f"{FILE_NAME}-wal": 0o600}


@pytest.mark.parametrize("name", [FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-journal", f"{FILE_NAME}-shm"])
@pytest.mark.parametrize("is_there", [True, False], ids=["link", "dangling"])
def test_link_in_the_place_of_a_file_is_not_followed(
    store: Store, tmp_path: Path, name: str, is_there: bool
) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "state"
    folder.mkdir(0o700)
    if is_there:
        victim.touch(0o644)
        victim.chmod(0o644)
    (folder / name).symlink_to(victim)
    with pytest.raises(StorageError, match=f"{name}: not a regular file$"):
        store.open(NOW)
    assert victim.exists() == is_there
    if is_there:
        assert (victim.read_bytes(), stat.S_IMODE(victim.stat().st_mode)) == (b"", 0o644)


def test_link_in_the_place_of_a_damaged_file_is_replaced(store: Store, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "state"
    folder.mkdir(0o700)
    (folder / f"{FILE_NAME}.damaged").symlink_to(victim)
    (folder / FILE_NAME).write_bytes(b"this is no database\n" * 1000)
    assert store.open(NOW).set_aside
    assert not victim.exists()
    assert not (folder / f"{FILE_NAME}.damaged").is_symlink()


def test_device_and_pipe_are_no_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(0o700)
    os.mkfifo(store.path)
    with pytest.raises(StorageError, match="not a regular file"):
        store.open(NOW)


def test_file_in_the_place_of_the_folder_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StorageError, match=r"state: not a folder$"):
        Store(str(tmp_path / "state")).open(1.0)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_folder_that_others_can_write_to_is_refused(store: Store, tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StorageError, match="others can write to the folder; chmod go-w"):
        store.open(NOW)
    assert not [*folder.iterdir()]
    folder.chmod(0o755)
    store.open(NOW)


def test_folder_may_be_a_link_to_one_of_this_user(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = Store(str(tmp_path / "link"))
    store.open(NOW)
    store.close()
    assert (tmp_path / "real" / FILE_NAME).exists()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_another_user_owns_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    store.open(NOW)
    store.close()
    real, mine = os.geteuid(), [os.geteuid()] if what == "file" else []
    monkeypatch.setattr(os, "geteuid", lambda: mine.pop() if mine else real + 1)
    with pytest.raises(
        StorageError, match=f"another user owns the {what}; chown gives it to the user who runs gnar$"
    ):
        store.open(NOW)


@pytest.mark.parametrize(("is_last", "reason"), [(True, STOPPED), (False, KILLED)])
def test_what_was_there_is_gone_when_the_next_process_comes(store: Store, is_last: bool, reason: str) -> None:
    assert store.open(NOW).run == 1
    store.write(batch(NOW + 5, is_last=is_last, clients=[CLIENT], proxies=[PROXY]))
    found = store.open(NOW + 100)
    assert found.run == 2
    assert found.clients == [CLIENT._replace(gone_at=NOW + 5, reason=reason)]
    assert found.proxies == [PROXY._replace(gone_at=NOW + 5, reason=reason)]


def test_what_was_gone_keeps_when_and_why_and_is_forgotten_after_a_day(store: Store) -> None:
    gone = CLIENT._replace(gone_at=NOW, reason="the peer closed the connection")
    store.open(NOW)
    store.write(batch(is_last=True, clients=[gone]))
    assert store.open(NOW + 23 * HOUR_S).clients == [gone]
    assert store.open(NOW + 25 * HOUR_S).clients == []


def test_what_is_forgotten_is_not_in_the_file(store: Store) -> None:
    store.open(NOW)
    store.write(batch(clients=[CLIENT], proxies=[PROXY]))
    store.write(batch(gone_clients=[CLIENT.key], gone_proxies=[PROXY.key]))
    found = store.open(NOW)
    assert found.clients == []
    assert found.proxies == []


def test_the_last_hundred_events_are_kept_for_a_day(store: Store) -> None:
    store.open(NOW)
    rows = [EventRow(number, NOW - 24 * HOUR_S + number, "{}") for number in range(250)]
    store.write(batch(events=rows[:150]))
    store.write(batch(events=rows[150:]))
    assert store.open(NOW).events == rows[150:]
    assert store.open(NOW + 200).events == rows[200:]


def test_traffic_of_one_minute_is_added_up_also_after_a_restart(store: Store) -> None:
    minute = int(NOW) // 60
    store.open(NOW)
    store.write(batch(minutes=[MinuteRow(7, minute, 1, 10, 3), MinuteRow(8, minute, 5, 5, 5)]))
    store.write(batch(minutes=[MinuteRow(7, minute, 2, 20, 1), MinuteRow(7, minute + 1, 4, 40, 1)]))
    store.open(NOW)
    store.write(batch(minutes=[MinuteRow(7, minute, 100, 0, 0)]))
    assert store.minutes(7, NOW) == [MinuteRow(7, minute, 103, 30, 3), MinuteRow(7, minute + 1, 4, 40, 1)]


def test_minutes_are_kept_for_a_day_and_the_file_shrinks_again(store: Store) -> None:
    store.open(NOW)
    for course in range(50):
        store.write(
            batch(minutes=[MinuteRow(course, int(NOW) // 60 + number, 9, 9, 9) for number in range(1000)])
        )
    later = NOW + 40 * HOUR_S
    assert store.minutes(7, later)[0].minute == int(later) // 60 - 1440
    store.close()
    size = Path(store.path).stat().st_size
    store.open(later)
    store.write(batch(later))
    store.close()
    assert Path(store.path).stat().st_size < size / 5
    assert size < 50_000 * 40  # bytes of a row


def test_names_that_are_no_unicode_are_taken(store: Store) -> None:
    store.open(NOW)
    store.write(batch(proxies=[PROXY._replace(name="a\udc80\0ü")]))
    assert [row.name for row in store.open(NOW).proxies] == ["a?\0ü"]


@pytest.mark.parametrize("damage", ["text", "half", "page", "log"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(store: Store, damage: str) -> None:
    path = Path(store.path)
    store.open(NOW)
    store.write(batch(proxies=[PROXY._replace(key=f"p1-{n}", name="x" * 90) for n in range(500)]))
    store.close()
    content = path.read_bytes()
    damaged = {
        "text": b"this is no database\n" * 1000,
        "half": content[: len(content) // 2],
        "page": content[:4096] + b"\xff" * 8192 + content[12288:],
        "log": b"SQLite format 3\0" + b"\0" * 5000,
    }[damage]
    path.write_bytes(damaged)
    path.with_name(f"{FILE_NAME}-wal").write_bytes(b"x" * 5000)
    found = store.open(NOW)
    assert found.set_aside == str(path) + ".damaged"
    assert Path(found.set_aside).read_bytes() == damaged
    assert found.proxies == []
    store.write(batch(proxies=[PROXY]))
    assert len(store.open(NOW).proxies) == 1


def test_a_file_that_is_damaged_while_it_is_open_is_told_as_that(store: Store) -> None:
    store.open(NOW)
    store.write(batch(proxies=[PROXY._replace(key=f"p1-{n}", name="x" * 90) for n in range(500)]))
    assert store._file is not None
    store._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._file.execute("PRAGMA cache_size = 0")
    with Path(store.path).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 10)
    rows = [PROXY._replace(key=f"p1-{n}", up=99) for n in range(500)]
    with pytest.raises(DamagedError):
        store.write(batch(proxies=rows))
    assert store.open(NOW).set_aside
    store.write(batch(proxies=rows))
    assert not store.open(NOW).set_aside


@pytest.mark.parametrize(
    ("make", "text"),
    [
        ("CREATE TABLE notes (text)", "is of another program"),
        ("PRAGMA user_version = 3", "is of a later version of gnar"),
    ],
)
def test_a_file_of_somebody_else_is_left_alone(store: Store, make: str, text: str) -> None:
    path = Path(store.path)
    path.parent.mkdir()
    file = sqlite3.connect(path)
    file.execute(make)
    file.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match=text):
        store.open(NOW)
    assert path.read_bytes() == before


def test_a_file_of_an_earlier_version_is_used_and_keeps_what_it_has(store: Store) -> None:
    store.open(NOW)
    store.write(batch(proxies=[PROXY]))
    store.close()
    file = sqlite3.connect(store.path)
    with closing(file):
        file.executescript("ALTER TABLE proxies DROP COLUMN link; PRAGMA user_version = 1")
    named = PROXY._replace(key="p1-3", kind="http", port=0, link="https://blog.example.com")
    for expected in ([PROXY.key], [PROXY.key, named.key]):
        found = store.open(NOW)
        assert [each.key for each in found.proxies] == expected
        store.write(batch(proxies=[named]))
        store.close()
    assert [each.link for each in store.open(NOW).proxies] == ["", named.link]


def test_two_servers_do_not_share_a_file(store: Store, tmp_path: Path) -> None:
    store.open(NOW)
    other = Store(str(tmp_path / "state"))
    with pytest.raises(StorageError, match=r"another server has it open|locked"):
        other.open(NOW)
    store.write(batch(clients=[CLIENT]))
    store.close()
    assert len(other.open(NOW).clients) == 1
    other.close()


def test_a_batch_that_does_not_fit_is_left_out_as_a_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_BYTES", 16 * 4096)
    store.open(NOW)
    store.write(batch(clients=[CLIENT]))
    rows = [PROXY._replace(key=f"p1-{n}", name="x" * 90) for n in range(2000)]
    with pytest.raises(StorageError, match="full"):
        store.write(batch(gone_clients=[CLIENT.key], proxies=rows))
    store.write(batch(proxies=rows[:10]))
    found = store.open(NOW)
    assert len(found.clients) == 1
    assert len(found.proxies) == 10


@pytest.mark.parametrize("kind", ["folder", "file", "nul"])
def test_a_folder_that_is_none_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / FILE_NAME).mkdir(parents=True)
    path = {"folder": "folder", "file": "file/state", "nul": "a\0b"}[kind]
    store = Store(str(tmp_path / path))
    with pytest.raises(StorageError) as told:
        store.open(NOW)
    assert "\n" not in str(told.value)
    assert "\0" not in str(told.value)
    with pytest.raises(StorageError, match="not open"):
        store.write(batch())
    with pytest.raises(StorageError, match="not open"):
        store.minutes(1, NOW)


def test_a_process_that_is_killed_leaves_whole_batches(store: Store, tmp_path: Path) -> None:
    last = 0
    log = Path(f"{store.path}-wal")
    for _ in range(3):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path / "state"), str(last + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"open\n"
            wait_until(lambda: log.exists() and log.stat().st_size > 500_000, "batches are written")
            writer.send_signal(signal.SIGKILL)
        found = store.open(NOW)
        assert not found.set_aside
        numbers = {row.up for row in found.proxies}
        assert numbers == {found.events[-1].number}
        assert {row.reason for row in found.proxies} == {KILLED}
        assert max(numbers) > last + 5
        (last,) = numbers
        store.close()
