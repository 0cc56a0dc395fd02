"""Reads the live stream of a server in a thread, and comes back when the server does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from gnar_lib.errors import AuthError, ConnError, GnarError, ProtocolError
from gnar_lib.top.api import Api, BusyError, Stream
from gnar_lib.top.state import State

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0


class Feed:
    """Keeps a `State` up to date from `start` on, and calls `notify` in the thread whenever it has changed.

    The state is read under `lock`. `failure` is an error after which there is nothing to wait for: the server
    was never reached, or takes the password no longer. One that is busy is waited for.
    """

    def __init__(self, api: Api, notify: Callable[[], None]) -> None:
        self.state = State(api.url)
        self.lock = threading.Lock()
        self.failure: GnarError | None = None
        self._api = api
        self._notify = notify
        self._query: dict[str, Any] = {}  # what the stream is to tell of besides
        self._stream: Stream | None = None
        self._is_changed = threading.Event()  # `watch` was called: go on at once
        self._was_heard = False  # the server has sent something, once
        self._pause_s = FIRST_PAUSE_S  # before the next try

    def start(self) -> None:
        """Start the thread, which ends with the process."""
        threading.Thread(target=self._run, name="feed", daemon=True).start()

    def watch(self, **query: object) -> None:
        """Have the stream tell of something else besides, such as the connections of a proxy."""
        with self.lock:
            if query == self._query:
                return
            self._query = query
            self._is_changed.set()
            if self._stream is not None:
                self._stream.cut()

    def _run(self) -> None:
        while self.failure is None:
            self._is_changed.clear()
            try:
                self._follow()
            except (AuthError, ConnError, ProtocolError) as exc:
                if self._is_changed.is_set():
                    continue
                self._note(exc)
            self._notify()
            if self.failure is None:
                self._is_changed.wait(self._pause_s)
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    def _note(self, error: GnarError) -> None:
        with self.lock:
            self.state.error = str(error)
            if isinstance(error, AuthError) or not (self._was_heard or isinstance(error, BusyError)):
                self.failure = error

    def _follow(self) -> None:
        """Read a stream to its end, which is an error."""
        with self.lock:
            query = self._query
        stream = self._api.stream("/live", **query)
        try:
            with self.lock:
                self._stream = stream
                if query != self._query:
                    return
            is_first = True
            for name, data in stream:
                with self.lock:
                    if is_first and name == "state":
                        self.state.begin()
                        is_first = False
                    self.state.take(name, data)
                    self.state.error = ""
                self._was_heard, self._pause_s = True, FIRST_PAUSE_S
                self._notify()
        finally:
            with self.lock:
                self._stream = None
            stream.close()
