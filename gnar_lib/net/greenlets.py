"""Deadlines around blocks, and greenlets with an owner."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import gevent.event
from gevent.hub import get_hub
from greenlet import GreenletExit, getcurrent, greenlet

from gnar_lib import logger
from gnar_lib.errors import DeadlineError, GnarError

_log = logger.get("greenlets")


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise `DeadlineError` in the block, naming `what` was going on, when it takes longer than `seconds`."""
    timeout = gevent.Timeout(seconds)
    timeout.start()
    try:
        yield
    except gevent.Timeout as exc:
        if exc is not timeout:
            raise
        raise DeadlineError(f"{what} took longer than {seconds:g} s") from None
    finally:
        timeout.close()


def wait_for(token: object) -> None:
    """Wait until somebody switches to this greenlet with `token`.

    The read watcher of a conn may still be started for this greenlet: an event of it is put off, not lost.
    """
    switch = get_hub().switch
    while (woken := switch()) is not token:
        woken.stop()


def give_way(seconds: float = 0.0) -> None:
    """Let everything that is ready have its turn, or wait some seconds, and go on.

    `gevent.sleep(0)` would not do: it lets callbacks run, for milliseconds, before the loop looks at sockets.
    """
    timer = get_hub().loop.timer(seconds)
    timer.start(getcurrent().switch, timer)
    try:
        wait_for(timer)
    finally:
        timer.stop()


# A fresh greenlet costs a stack of 16 KiB from the system, and gives it back at its end. Greenlets that are
# done wait here for the next thing to run.
SPARE_GREENLETS = 256
_spare: list[greenlet] = []


def _work(job: _Job) -> None:
    """The life of a raw greenlet: one job after the other."""
    hub, me = get_hub(), getcurrent()
    next_job = job
    while True:
        next_job.run()
        if len(_spare) >= SPARE_GREENLETS:
            return
        _spare.append(me)
        while not isinstance(next_job := hub.switch(), _Job):
            next_job.stop()  # a late event of a watcher that meant an earlier job


def busy_greenlets() -> int:
    """Return how many greenlets there are in the process, without those that wait for a job; slow."""
    alive = [thing for thing in gc.get_objects() if isinstance(thing, greenlet) and not thing.dead]
    return len(alive) - len(_spare)


class _Job:
    """A function to run in a raw greenlet."""

    __slots__ = ("_args", "_crew", "_function")

    def __init__(self, crew: Crew, function: Callable[..., None], args: tuple[object, ...]) -> None:
        self._crew = crew
        self._function = function
        self._args = args

    def run(self) -> None:
        """Run it; what it raises ends here."""
        crew, me, args = self._crew, getcurrent(), self._args
        self._args = ()  # the greenlet keeps the job until its next one, and must not keep what it was about
        crew.began(me)
        try:
            self._function(*args)
        except GnarError as exc:
            _log.debug("%s: %s", crew.name, exc)
        except GreenletExit:
            pass
        except Exception:  # noqa: BLE001  (the last place that can tell of it)
            _log.exception("%s: a defect in gnar", crew.name)
        finally:
            crew.ended(me)


class Crew:
    """Greenlets with one owner, who can wait for them and end them.

    They are raw greenlets: no queue and no result. An error of ours ends a job with a line at debug level,
    since whoever raised it has told whom it concerns; any other error is a defect and is logged with its
    traceback.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._members: set[greenlet] = set()
        self._starting = 0
        self._emptied: gevent.event.Event = gevent.event.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._members) + self._starting

    def enter(self, function: Callable[..., None], *args: object) -> None:
        """Run `function` at once, up to its first wait.

        Only in a callback of the hub: elsewhere, the first wait would leave the caller behind for ever.
        """
        self._starting += 1
        self._start(_Job(self, function, args))

    def spawn(self, function: Callable[..., None], *args: object) -> None:
        """Run `function` in the next turn of the loop."""
        self._starting += 1
        self._emptied.clear()
        get_hub().loop.run_callback(self._start, _Job(self, function, args))

    def wait_empty(self, timeout_s: float | None = None) -> bool:
        """Wait until all have ended; tells whether they have."""
        return bool(self._emptied.wait(timeout_s))

    def kill(self) -> None:
        """End all of them but the caller, where they wait; their `finally` blocks close what they hold."""
        # Not those of this moment: one that was spawned in this turn of the loop has yet to begin.
        get_hub().loop.run_callback(self._kill_all_but, getcurrent())

    def _kill_all_but(self, caller: greenlet) -> None:
        for member in [*self._members]:
            if member is not caller and member in self._members:  # it may have ended by another's end
                member.throw(GreenletExit)

    def _start(self, job: _Job) -> None:
        (_spare.pop() if _spare else greenlet(_work, get_hub())).switch(job)

    def began(self, member: greenlet) -> None:
        """A job of ours runs in this greenlet."""
        self._starting -= 1
        if not self._members:
            self._emptied.clear()
        self._members.add(member)

    def ended(self, member: greenlet) -> None:
        """The job has ended."""
        self._members.discard(member)
        if not self._members and not self._starting:
            self._emptied.set()
