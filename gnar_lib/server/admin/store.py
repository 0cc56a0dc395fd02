"""The file that holds a server's history, by SQLite; knows neither gevent nor the server.

A `Store` is for one thread at a time, which may wait for the disk for long. The file is locked for as long as
the store has it open. The write-ahead log of SQLite makes a batch be there as a whole or not at all, also
when the process is killed. Some Pythons lack SQLite: importing this module raises `ImportError` there.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import NoneType
from typing import Any, TypeVar

from gnar_lib.errors import DamagedError, StorageError
from gnar_lib.private import check_private_file, make_private_file, make_private_folder
from gnar_lib.server.admin.rows import MINUTE_S, Batch, ClientRow, EventRow, Found, MinuteRow, ProxyRow

FILE_NAME = "history.sqlite3"
SET_ASIDE = ".damaged"  # behind the name of a file that is damaged
KEPT_S = 86_400  # a day
KEPT_EVENTS = 100
APPLICATION_ID = 0x676E6172  # "gnar": by which the file is known
SCHEMA = 2
PAGE_BYTES = 4096
MAX_BYTES = 64 << 20  # of the file; a day of 200 busy proxies takes 15 MB
LOG_BYTES = 1 << 20  # of the write-ahead log, about
FORGET_EVERY_S = 600  # minutes that are too old
STOPPED = "the server stopped"
KILLED = "the server crashed or was killed"

_BUSY = 5  # SQLITE_BUSY
_LOGS = ("-wal", "-journal", "-shm")  # behind the name of the file: what SQLite puts beside it

_TABLES = """
    CREATE TABLE state (run INTEGER NOT NULL, seen_at REAL NOT NULL, stopped INTEGER NOT NULL);
    CREATE TABLE clients (key TEXT PRIMARY KEY, client_id TEXT, version TEXT, is_multiplexed INTEGER,
        since REAL, address TEXT, proxies TEXT, gone_at REAL, reason TEXT);
    CREATE TABLE proxies (key TEXT PRIMARY KEY, name TEXT, kind TEXT, port INTEGER, client TEXT, since REAL,
        up INTEGER, down INTEGER, users_total INTEGER, dropped INTEGER, gone_at REAL, reason TEXT,
        link TEXT DEFAULT '');
    CREATE TABLE events (number INTEGER PRIMARY KEY, at REAL, text TEXT);
    CREATE TABLE minutes (course INTEGER, minute INTEGER, up INTEGER, down INTEGER, users INTEGER,
        PRIMARY KEY (course, minute)) WITHOUT ROWID;
    INSERT INTO state VALUES (0, 0, 1);
"""
_TIME = (float, NoneType)
_TYPES: dict[type, tuple[Any, ...]] = {
    ClientRow: (str, str, str, int, float, str, str, _TIME, str),
    ProxyRow: (str, str, str, int, str, float, int, int, int, int, _TIME, str, str),
    EventRow: (int, float, str),
    MinuteRow: (int, int, int, int, int),
}

Row = TypeVar("Row", ClientRow, ProxyRow, EventRow, MinuteRow)


class Store:
    """The history in a folder. All methods but the constructor may wait for the disk."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, FILE_NAME)
        self._folder = folder
        self._file: sqlite3.Connection | None = None
        self._is_damaged = False  # as `write` has found
        self._forgot_at = 0.0  # when minutes that are too old were last deleted

    def open(self, now: float) -> Found:
        """Open the file, and return what is in it; make it if there is none, or a damaged one.

        What was there when the last process ended is gone since then. Raises `StorageError`.
        """
        self.close()
        with _translated(self.path):
            make_private_folder(self._folder)
            set_aside = self._set_aside() if self._is_damaged else ""
            self._is_damaged = False
            try:
                self._file = self._connect()
            except DamagedError:
                set_aside = self._set_aside()
                self._file = self._connect()
            try:
                return self._load(self._file, now, set_aside)
            except BaseException:
                self.close()
                raise

    def write(self, batch: Batch) -> None:
        """Add a batch to the file, all of it or nothing; raises `DamagedError` or another `StorageError`."""
        if self._file is None:
            raise StorageError(f"{self.path}: not open")
        try:
            self._write(self._file, batch)
        except DamagedError:
            self._is_damaged = True
            raise

    def _write(self, file: sqlite3.Connection, batch: Batch) -> None:
        is_time = abs(batch.now - self._forgot_at) > FORGET_EVERY_S
        with _translated(self.path), _transaction(file):
            _insert(file, "clients", ClientRow, batch.clients)
            _insert(file, "proxies", ProxyRow, batch.proxies)
            file.executemany("DELETE FROM clients WHERE key = ?", [(key,) for key in batch.gone_clients])
            file.executemany("DELETE FROM proxies WHERE key = ?", [(key,) for key in batch.gone_proxies])
            _insert(file, "events", EventRow, batch.events)
            if batch.events:
                last = "SELECT number FROM events ORDER BY number DESC LIMIT ?"
                file.execute(f"DELETE FROM events WHERE number NOT IN ({last})", (KEPT_EVENTS,))  # noqa: S608
            _add_minutes(file, batch.minutes)
            if is_time:
                file.execute("DELETE FROM minutes WHERE minute < ?", (_first_minute(batch.now),))
            file.execute("UPDATE state SET run = ?, seen_at = ?, stopped = ?", _state(batch))
        if is_time:
            self._forgot_at = batch.now

    def minutes(self, course: int, now: float) -> list[MinuteRow]:
        """Return the minutes of a course within the last day that had any traffic. Raises `StorageError`."""
        if self._file is None:
            raise StorageError(f"{self.path}: not open")
        asked = "SELECT * FROM minutes WHERE course = ? AND minute >= ? ORDER BY minute"
        with _translated(self.path):
            return _checked(MinuteRow, self._file.execute(asked, (course, _first_minute(now))).fetchall())

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(sqlite3.Error):
                file.close()

    # ---- opening -------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        """Return the file, checked and locked; raises `DamagedError` or another `StorageError`."""
        for log in _LOGS:
            check_private_file(self.path + log)
        make_private_file(self.path)
        with _translated(self.path):
            file = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                file.text_factory = lambda text: text.decode("utf-8", "replace")
                file.execute("PRAGMA locking_mode = EXCLUSIVE")  # first, so that no shared memory is used
                is_new = self._is_new(file)
                file.execute("PRAGMA journal_mode = WAL")
                file.execute("PRAGMA synchronous = NORMAL")
                file.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // PAGE_BYTES}")
                file.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
                file.execute(f"PRAGMA max_page_count = {MAX_BYTES // PAGE_BYTES}")
                if is_new:
                    with _transaction(file):
                        for statement in _TABLES.split(";"):
                            file.execute(statement)
                        file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                        file.execute(f"PRAGMA user_version = {SCHEMA}")
                elif _number(file, "PRAGMA user_version") < SCHEMA:
                    with _transaction(file):
                        file.execute("ALTER TABLE proxies ADD COLUMN link TEXT DEFAULT ''")
                        file.execute(f"PRAGMA user_version = {SCHEMA}")
            except BaseException:
                file.close()
                raise
        return file

    def _is_new(self, file: sqlite3.Connection) -> bool:
        """Tell whether the file is new; raise `DamagedError`, or `StorageError` for one that is not ours."""
        is_new = not _number(file, "SELECT count(*) FROM sqlite_master")
        if is_new:
            file.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            file.execute("PRAGMA auto_vacuum = FULL")
        elif _number(file, "PRAGMA application_id") != APPLICATION_ID:
            raise StorageError(f"{self.path} is of another program")
        if _number(file, "PRAGMA user_version") > SCHEMA:
            raise StorageError(f"{self.path} is of a later version of gnar")
        if file.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
            raise DamagedError(f"{self.path} is damaged")
        return is_new

    def _set_aside(self) -> str:
        """Move a damaged file away, in the place of one that was moved before, and return the new path."""
        with suppress(FileNotFoundError):
            os.replace(self.path, self.path + SET_ASIDE)
        for log in _LOGS:
            with suppress(FileNotFoundError):
                os.unlink(self.path + log)
        return self.path + SET_ASIDE

    def _load(self, file: sqlite3.Connection, now: float, set_aside: str) -> Found:
        """End what the last process has left, and return all that is in the file."""
        with _transaction(file):
            run, seen_at, stopped = file.execute("SELECT run, seen_at, stopped FROM state").fetchone()
            ended_at, reason = seen_at, STOPPED if stopped else KILLED
            for table in ("clients", "proxies"):
                end = f"UPDATE {table} SET gone_at = ?, reason = ? WHERE gone_at IS NULL"  # noqa: S608
                file.execute(end, (ended_at, reason))
                file.execute(f"DELETE FROM {table} WHERE gone_at < ?", (now - KEPT_S,))  # noqa: S608
            file.execute("DELETE FROM events WHERE at < ?", (now - KEPT_S,))
            file.execute("UPDATE state SET run = ?, seen_at = ?, stopped = 0", (run + 1, now))
        clients = file.execute("SELECT * FROM clients ORDER BY gone_at, rowid").fetchall()
        proxies = file.execute("SELECT * FROM proxies ORDER BY gone_at, rowid").fetchall()
        happened = file.execute("SELECT * FROM events ORDER BY number").fetchall()
        return Found(
            run + 1,
            set_aside,
            _checked(ClientRow, clients),
            _checked(ProxyRow, proxies),
            _checked(EventRow, happened),
        )


def _first_minute(now: float) -> int:
    return int(now - KEPT_S) // MINUTE_S


def _state(batch: Batch) -> tuple[int, float, int]:
    return batch.run, batch.now, int(batch.is_last)


def _number(file: sqlite3.Connection, question: str) -> int:
    return int(file.execute(question).fetchone()[0])


def _checked(kind: type[Row], found: list[tuple[Any, ...]]) -> list[Row]:
    """Return rows whose values have the types that this program writes."""
    types = _TYPES[kind]
    return [
        kind(*values) for values in found if len(values) == len(types) and all(map(isinstance, values, types))
    ]


def _insert(file: sqlite3.Connection, table: str, kind: type[Row], rows: list[Row]) -> None:
    places = ", ".join("?" * len(_TYPES[kind]))
    file.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", map(_clean, rows))  # noqa: S608


def _clean(row: Row) -> tuple[Any, ...]:
    """Return the values of a row; what is no Unicode in names of clients becomes question marks."""
    values: tuple[Any, ...] = row
    return tuple(
        each.encode("utf-8", "replace").decode() if isinstance(each, str) else each for each in values
    )


def _add_minutes(file: sqlite3.Connection, rows: list[MinuteRow]) -> None:
    """Add to what there is of the same minutes, also by an earlier process."""
    empty = [(row.course, row.minute) for row in rows]
    file.executemany("INSERT OR IGNORE INTO minutes VALUES (?, ?, 0, 0, 0)", empty)
    more = "up = up + ?, down = down + ?, users = max(users, ?) WHERE course = ? AND minute = ?"
    values = [(row.up, row.down, row.users, row.course, row.minute) for row in rows]
    file.executemany(f"UPDATE minutes SET {more}", values)  # noqa: S608


@contextmanager
def _transaction(file: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does, or undo it after an error."""
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
        file.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite has undone it itself, or the disk takes nothing
            file.execute("ROLLBACK")
        raise


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Raise errors of SQLite and of the system as `StorageError`."""
    try:
        yield
    except sqlite3.Error as exc:
        if type(exc) is sqlite3.DatabaseError:  # what is no file of SQLite, or not whole; others are below
            raise DamagedError(f"{path}: {exc}") from exc
        is_locked = getattr(exc, "sqlite_errorcode", 0) & 0xFF == _BUSY  # unknown before Python 3.11
        raise StorageError(f"{path}: {'another server has it open' if is_locked else exc}") from exc
    except OSError as exc:
        raise StorageError(f"{exc.filename or path}: {exc.strerror}") from exc
    except ValueError as exc:  # a path that no file can have
        raise StorageError(f"{path!a}: {exc}") from exc
