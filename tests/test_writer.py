"""The thread that writes: in order, whole lines, and never at the cost of whoever has something to write."""

from __future__ import annotations

import _thread
import io
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, TextIO

import pytest

from gnar_lib import logger, writer
from gnar_lib.writer import Writer, close_all, writer_to
from tests.helpers.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _no_writers() -> Iterator[None]:
    yield
    close_all(0.0)


@pytest.fixture
def pipe() -> Iterator[tuple[TextIO, int]]:
    """Return a stream into a pipe, and the end to read."""
    reader, end = os.pipe()
    with os.fdopen(end, "w", encoding="ascii") as stream:
        yield stream, reader
    os.close(reader)


class Clogged(io.RawIOBase):
    """A file that takes nothing until `go_on` is called."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.is_asked = False  # whether somebody has written, or waits to
        self._gate = _thread.allocate_lock()
        self._gate.acquire()

    def write(self, data: object) -> int:
        self.is_asked = True
        with self._gate:
            self.taken.append(bytes(data))  # type: ignore[call-overload]
            return len(self.taken[-1])

    def go_on(self) -> None:
        self._gate.release()

    def writable(self) -> bool:
        return True


def text_over(raw: io.RawIOBase) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")


def read_lines(reader: int, count: int) -> list[str]:
    """Read so many lines."""
    data = b""
    while data.count(b"\n") < count:
        data += os.read(reader, 65536)
    return data.decode().splitlines()


def test_everything_is_written_in_order_before_the_end(pipe: tuple[TextIO, int]) -> None:
    stream, reader = pipe
    lines = [f"line {number}" for number in range(1000)]
    for line in lines:
        writer_to(stream).put(line + "\n")
    close_all(WAIT_S)
    assert read_lines(reader, 1000) == lines


def test_there_is_a_thread_from_the_first_line_until_the_end() -> None:
    # In a process of its own: the threads that other tests have started may end meanwhile.
    program = """
import _thread, sys, time
from gnar_lib import writer

def settled(count):
    until = time.monotonic() + 20
    while _thread._count() != count and time.monotonic() < until:
        time.sleep(0.01)
    return _thread._count() == count

to_stdout = writer.writer_to(sys.stdout)
assert not _thread._count()
to_stdout.put("one\\n")
assert settled(1)
writer.close_all(20)
assert settled(0)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("one\n", "", 0)


def test_lines_that_nobody_reads_are_lost_whole_and_told_of_where_they_are_missing() -> None:
    clogged = Clogged()
    log = Writer(text_over(clogged))
    line = "x" * 99 + "\n"
    log.put(line)
    wait_until(lambda: clogged.is_asked, "the thread is stuck")
    fitting = writer.MAX_WAITING_BYTES // len(line)
    began = time.monotonic()
    for _ in range(fitting + 1000):
        log.put(line)
    assert time.monotonic() - began < WAIT_S
    clogged.go_on()
    lost = "lines lost: they were not read in time"
    wait_until(lambda: bool(clogged.taken) and lost.encode() in clogged.taken[-1], "the loss is told")
    log.put("after\n")
    log.close(WAIT_S)
    said = b"".join(clogged.taken).decode().splitlines()
    assert said[-1] == "after"
    assert said[-2].endswith(lost)
    told, kept = int(said[-2].split()[0]), said[:-2]
    assert kept == [line[:-1]] * len(kept)
    assert (told, len(kept)) == (1000, 1 + fitting)
    assert max(map(len, clogged.taken)) <= writer.BATCH_BYTES + 200


def test_the_line_about_lost_lines_has_the_format_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    clogged = Clogged()
    stream = text_over(clogged)
    monkeypatch.setattr("sys.stderr", stream)
    before = logger._root.handlers
    try:
        logger.setup(log_format="json")
        log = logger.get("x", limited=False)
        log.warning("stuck")
        wait_until(lambda: clogged.is_asked, "the thread is stuck")
        for _ in range(writer.MAX_WAITING_BYTES // 1000):
            log.warning("%s", "y" * 1000)
        clogged.go_on()
        logger.close()
    finally:
        logger._root.handlers = before
    lines = [json.loads(line) for line in b"".join(clogged.taken).splitlines()]
    assert lines[-1]["message"].endswith("lines lost: nobody read the log")
    assert (lines[-1]["level"], lines[-1]["prefix"]) == ("warn", "log")


def test_the_end_waits_for_a_reader_who_is_slow_but_not_for_one_who_has_stopped() -> None:
    clogged = Clogged()
    writer_to(text_over(clogged)).put("one\n")
    began = time.monotonic()
    close_all(0.05)
    assert 0.05 <= time.monotonic() - began < WAIT_S
    clogged.go_on()
    wait_until(lambda: clogged.taken == [b"one\n"], "it is written all the same")


def test_a_stream_that_another_program_has_made_non_blocking_loses_nothing(pipe: tuple[TextIO, int]) -> None:
    stream, reader = pipe
    os.set_blocking(stream.fileno(), False)
    lines = ["y" * 200] * 1000  # more than a pipe holds
    for line in lines:
        writer_to(stream).put(line + "\n")
    assert read_lines(reader, 1000) == lines


def test_flush_waits_until_everything_is_written_but_not_for_ever(pipe: tuple[TextIO, int]) -> None:
    stream, reader = pipe
    to_pipe = Writer(stream)
    assert to_pipe.flush(0.0)  # nothing was put
    to_pipe.put("a line\n")
    assert to_pipe.flush(WAIT_S)
    assert os.read(reader, 100) == b"a line\n"
    to_pipe.close(WAIT_S)
    clogged = Clogged()
    stuck = Writer(io.TextIOWrapper(io.BufferedWriter(clogged)))
    stuck.put("first\n")
    wait_until(lambda: clogged.is_asked, "the first write")
    waiting = [stuck.waiting_bytes]  # what is being written does not wait for its turn
    stuck.put("second\n")
    assert [*waiting, stuck.waiting_bytes] == [0, len("second\n")]
    assert not stuck.flush(0.01)
    clogged.go_on()
    assert stuck.flush(WAIT_S)
    assert b"".join(clogged.taken) == b"first\nsecond\n"
    stuck.close(WAIT_S)


def test_a_reader_who_has_gone_is_no_error() -> None:
    reader, end = os.pipe()
    os.close(reader)
    with os.fdopen(end, "w", encoding="ascii") as stream:
        for _ in range(3):
            writer_to(stream).put("one\n")
        close_all(WAIT_S)


def test_streams_to_the_same_file_share_a_writer_and_others_do_not(pipe: tuple[TextIO, int]) -> None:
    stream, reader = pipe
    with os.fdopen(os.dup(stream.fileno()), "w", encoding="ascii") as again:
        assert writer_to(again) is writer_to(stream)
        assert writer_to(text_over(Clogged())) is not writer_to(stream)
        writer_to(stream).put("one\n")
        writer_to(again).put("two\n")
        assert read_lines(reader, 2) == ["one", "two"]


def test_without_a_further_thread_lines_are_written_at_once(
    pipe: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    writer_to(pipe[0]).put("one\n")
    assert read_lines(pipe[1], 1) == ["one"]


def test_what_the_stream_cannot_show_is_escaped(pipe: tuple[TextIO, int]) -> None:
    writer_to(pipe[0]).put("☃\n")
    assert read_lines(pipe[1], 1) == ["\\u2603"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_of_fork_writes_with_a_thread_of_its_own(pipe: tuple[TextIO, int]) -> None:
    stream, reader = pipe
    writer_to(stream).put("parent\n")
    assert read_lines(reader, 1) == ["parent"]
    child = os.fork()
    if not child:
        writer_to(stream).put("child\n")
        close_all(WAIT_S)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert read_lines(reader, 1) == ["child"]
