"""The log while something else is on the terminal: it is held, followed, and written afterwards."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from gnar_lib import logger
from gnar_lib.logger import Entry
from gnar_lib.writer import close_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOG = logger.get("test")


@contextmanager
def written() -> Iterator[Callable[[], str]]:
    """Log to a pipe that is standard output as well; yield what reads everything that was written."""
    reader, end = os.pipe()
    os.set_blocking(reader, False)
    root = logging.getLogger("gnar")
    handlers = root.handlers

    def read() -> str:
        close_all()
        with suppress(BlockingIOError):
            return os.read(reader, 1 << 20).decode()
        return ""

    # Not in a fixture: pytest sets both streams anew before the test.
    with os.fdopen(end, "w", encoding="utf-8") as both, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", both)
        patch.setattr(sys, "stderr", both)
        logger.setup()
        try:
            yield read
        finally:
            logger.release()
            logger.follow(None)
            root.handlers = handlers
            close_all()
    os.close(reader)


def test_what_is_held_is_written_in_order_afterwards() -> None:
    with written() as read:
        LOG.info("before")
        logger.hold()
        LOG.info("one")
        logger.announce("two\n")
        logger.complain("three")
        assert [line[20:] for line in read().splitlines()] == ["INFO  test before"]
        logger.release()
        LOG.info("after")
        lines = [line.split("test ")[-1] for line in read().splitlines()]
        assert lines == ["one", "two", "gnar: three", "after"]


def test_of_too_much_the_latest_is_kept_and_the_rest_counted() -> None:
    with written() as read:
        logger.hold()
        for number in range(logger.MAX_HELD + 7):
            logger.announce(f"{number}\n")
        logger.release()
        lines = read().splitlines()
        assert lines[0] == "gnar: 7 lines before these are left out"
        assert lines[1:] == [str(number) for number in range(7, logger.MAX_HELD + 7)]
        logger.hold()
        logger.release()
        assert read() == ""


def test_who_follows_is_told_each_line_whether_it_is_held_or_not() -> None:
    entries: list[Entry] = []
    with written() as read:
        logger.follow(entries.append)
        LOG.info("one")
        logger.hold()
        LOG.warning("two\n%s", "\033[2J")
        LOG.debug("below the level")
        logger.release()
        logger.follow(None)
        LOG.info("three")
        assert read().count("\n") == 3
    assert [(entry.level, entry.text) for entry in entries] == [
        (logging.INFO, "test one"),
        (logging.WARNING, r"test two\n\x1b[2J"),
    ]
