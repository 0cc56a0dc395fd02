"""The body of a request on its way to the service, while the answer may already be on its way to the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnClosed, ConnError, ProtocolError, WriteError
from gnar_lib.net import Conn, Crew, wait_for

STUCK_S = 10.0  # behind the answer: a body of which the service has taken nothing for so long is given up

_crew = Crew("upload")


class Upload:
    """Copies a body in a greenlet of its own: `copy` copies it, from `user`.

    A service that takes no more of the body may still answer, so that this is no error. If the user's part
    fails, `give_up` is called, which ends the way to the service, and so wakes whoever waits for the answer.
    """

    def __init__(
        self, user: Conn, copy: Callable[[], None], moved: Callable[[], int], give_up: Callable[[str], None]
    ) -> None:
        self.has_ended = False
        self.is_whole = False
        self.error: Exception | None = None  # of the user: gone, or a body that is malformed
        self._user = user
        self._copy = copy
        self._moved = moved  # how many bytes have been copied
        self._give_up = give_up
        self._waiter: greenlet | None = None  # who waits for the end
        _crew.spawn(self._run)

    def _run(self) -> None:
        try:
            self._copy()
            self.is_whole = True
        except WriteError:
            pass
        except (ConnError, ProtocolError) as exc:
            self.error = exc
            self._give_up(str(exc))
        finally:
            self.has_ended = True
            if self._waiter is not None:
                get_hub().loop.run_callback(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.switch(self)

    def wait_end(self) -> None:
        """Wait for the end, for as long as the service takes something."""
        moved = -1
        timer: Any = get_hub().loop.timer(STUCK_S)
        while not self.has_ended and moved != self._moved():
            moved = self._moved()
            self._waiter = getcurrent()
            timer.start(self._wake)
            try:
                wait_for(self)
            finally:
                self._waiter = None
                timer.stop()

    def stop(self) -> None:
        """Copy no more, and wait until the greenlet has let go of the user; the lane has been closed."""
        while not self.has_ended:
            get_hub().loop.run_callback(self._user.interrupt, ConnClosed("the answer has ended"))
            self._waiter = getcurrent()
            try:
                wait_for(self)
            finally:
                self._waiter = None
