"""A live view in a process that serves, when something goes wrong in it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import termios
import time
from typing import TYPE_CHECKING

import gevent
import gevent.event

from gnar_lib.net import deadline
from gnar_lib.terminal import live, modes
from gnar_lib.terminal.live import LiveView
from gnar_lib.terminal.screen import Screen
from gnar_lib.terminal.view import Fact, View
from gnar_lib.writer import close_all
from tests.helpers.harness import WAIT_S
from tests.helpers.terminals import ENTERS, LEAVES

if TYPE_CHECKING:
    import pytest


def test_defect_in_a_view_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = 0

    def view(_first: int, _count: int) -> View:
        nonlocal shown
        shown += 1
        if shown > 2:
            raise ZeroDivisionError
        return View("title", "hint", (Fact("", f"picture {shown}"),), ())

    master, slave = pty.openpty()
    os.set_blocking(master, False)
    ready = gevent.event.Event()
    ready.set()
    with open(os.dup(slave), encoding="utf-8") as keyboard, open(slave, "w", encoding="utf-8") as output:
        monkeypatch.setattr(modes, "is_in_foreground", lambda _: True)
        monkeypatch.setattr(live, "Screen", lambda: Screen(keyboard, output))
        monkeypatch.setattr(live, "PERIOD_S", 0.01)
        monkeypatch.setattr(live, "LEAST_PERIOD_S", 0.001)
        before = modes.keys_at_once(slave)
        modes.set_modes(slave, before)
        live_view = LiveView(view)
        live_view.start(ready)
        raw = b""
        with deadline(WAIT_S, "the end of the view"):
            while LEAVES not in raw:
                gevent.sleep(0.01)
                with contextlib.suppress(BlockingIOError):
                    raw += os.read(master, 65536)
        assert b"picture 1" in raw
        assert b"picture 2" in raw
        assert raw.count(ENTERS) == 1
        assert modes.keys_at_once(slave) == before
        live_view.close()
        close_all()
    os.close(master)


def test_key_that_is_flushed_before_it_is_read_is_no_end_of_the_terminal() -> None:
    master, slave = pty.openpty()
    with open(slave, encoding="utf-8") as keyboard, open(os.devnull, "w", encoding="utf-8") as output:
        screen = Screen(keyboard, output)
        modes.keys_at_once(slave)
        os.write(master, b"q")
        assert select.select([slave], [], [], WAIT_S)[0]
        termios.tcflush(slave, termios.TCIFLUSH)
        assert screen.read() == b""
        os.write(master, b"q")
        assert select.select([slave], [], [], WAIT_S)[0]
        assert screen.read() == b"q"
        os.close(master)
        assert screen.read() is None


def test_nobody_waits_for_a_terminal_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with open(os.dup(slave), encoding="utf-8") as keyboard, open(slave, "w", encoding="utf-8") as output:
        monkeypatch.setattr(modes, "is_in_foreground", lambda _: False)
        screen = Screen(keyboard, output)
        screen.enter()
        picture = ["x" * 1000] * 50
        began_s = time.monotonic()
        painted = [screen.paint([f"{number}{line}" for line in picture]) for number in range(100)]
        assert time.monotonic() - began_s < WAIT_S
        assert painted[0]
        assert not painted[-1]
        screen.leave()
        os.close(master)  # ends the write that is stuck
        close_all()
