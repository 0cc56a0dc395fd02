"""Deadlines around blocks, and crews: greenlets with an owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import gevent.event
from gevent.hub import get_hub
from greenlet import GreenletExit, getcurrent, greenlet

from gnar_lib import logger
from gnar_lib.errors import DeadlineError, DialError, GnarError
from gnar_lib.events import DescriptorsShort, emit
from gnar_lib.net.descriptors import USER_COSTS, descriptors
from gnar_lib.net.switching import Job, start_job, wait_for

ROOM_TIMEOUT_S = 10.0  # as long as a server lets a user wait for a data connection

_log = logger.get("greenlets")


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise `DeadlineError` in the block if `what` happens there takes longer than `seconds`."""
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


def wait_for_room(count: int = USER_COSTS) -> None:
    """Wait until a user may have so many descriptors more.

    Raises `DialError` if that takes too long, or if too many wait already.
    """
    if descriptors.has_room(count) and not descriptors.is_short:
        return
    if descriptors.is_crowded:
        raise DialError(descriptors.why_short)
    if not descriptors.is_short:
        emit(DescriptorsShort, "users wait", descriptors.why_short)
    me, token = getcurrent(), object()
    try:
        with deadline(ROOM_TIMEOUT_S, "waiting for a descriptor"):
            descriptors.wait(token, lambda: me.switch(token), count)
            wait_for(token)
    except DeadlineError as exc:
        raise DialError(descriptors.why_short) from exc
    finally:
        descriptors.leave(token)


class Crew:
    """Greenlets with one owner, who can wait for them and end them.

    A greenlet of a crew has no result. An error of gnar's own tree ends the greenlet with a line at debug
    level, since whoever raised the error has told whom it concerns. Any other error is a defect: it is
    logged with its traceback, and ends this greenlet alone.
    """

    def __init__(self, name: str) -> None:
        self.name = name  # for log lines
        self._members: set[greenlet] = set()  # those that have begun
        self._starting = 0  # jobs that begin in the next turn of the loop
        self._emptied: gevent.event.Event = gevent.event.Event()  # nothing runs, and nothing is to begin
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._members) + self._starting

    def enter(self, function: Callable[..., None], *args: object) -> None:
        """Run `function` in a greenlet at once, up to its first wait. Only the hub may call this."""
        start_job(_Call(self, function, args))

    def spawn(self, function: Callable[..., None], *args: object) -> None:
        """Run `function` in a greenlet in the next turn of the loop."""
        self._starting += 1
        self._emptied.clear()
        get_hub().loop.run_callback(self._start, _Call(self, function, args))

    def _start(self, call: _Call) -> None:
        self._starting -= 1
        start_job(call)

    def wait_empty(self, timeout_s: float | None = None) -> bool:
        """Wait until all greenlets have ended; return False if that takes longer than `timeout_s`."""
        return bool(self._emptied.wait(timeout_s))

    def kill(self) -> None:
        """End all greenlets but the caller's where they wait; their `finally` blocks close what they hold.

        Does not wait. A greenlet that was spawned in this turn of the loop begins, and is then ended too.
        """
        get_hub().loop.run_callback(self._kill_all_but, getcurrent())

    def _kill_all_but(self, caller: greenlet) -> None:
        for member in [*self._members]:
            if member is not caller and member in self._members:  # the end of another may have ended it
                member.throw(GreenletExit)

    def began(self, member: greenlet) -> None:
        """A job of this crew has begun in the greenlet `member`."""
        if not self._members:
            self._emptied.clear()
        self._members.add(member)

    def ended(self, member: greenlet) -> None:
        """The job in the greenlet `member` has ended."""
        self._members.discard(member)
        if not self._members and not self._starting:
            self._emptied.set()


class _Call(Job):
    """A job of a crew: to call a function."""

    __slots__ = ("_args", "_crew", "_function")

    def __init__(self, crew: Crew, function: Callable[..., None], args: tuple[object, ...]) -> None:
        self._crew = crew
        self._function = function
        self._args = args

    def run(self) -> None:
        """Call the function; whatever it raises ends here."""
        crew, me, function, args = self._crew, getcurrent(), self._function, self._args
        # A spare greenlet refers to its last job. The job must refer to nothing, since a client that has left
        # would stay in memory.
        del self._function, self._args
        crew.began(me)
        try:
            function(*args)
        except GnarError as exc:
            _log.debug("%s: %s", crew.name, exc)
        except GreenletExit:
            pass
        except Exception:  # noqa: BLE001  (the last place that can tell of it)
            _log.exception("%s: a defect in gnar", crew.name)
        finally:
            crew.ended(me)
