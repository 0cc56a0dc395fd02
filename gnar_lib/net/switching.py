"""Who may switch to whom, and when: the one page on which all waiting in gnar rests.

                 starts a watcher for itself, then gives way with `hub.switch()`
       greenlet ----------------------------------------------------------------> hub
       of a user,                                                                 the loop, and all
       of a login ... <---------------------------------------------------------- callbacks
                 the watcher wakes the greenlet: `greenlet.switch(token)`

Who switches. A greenlet switches to nobody but the hub. Only what runs in the hub (a watcher, a timer, a
callback such as `Stream.wake`) switches to a greenlet, or throws an error into it. So a callback of the hub
has nobody to whom it could give way, and must not wait (I1).

Tokens. A greenlet that gives way knows the one token with which it will be woken:

    what it waits for                             token             who switches
    bytes or room in a socket, `WaitingSocket`    the watcher       the watcher; `_wake_waiters` once closed
    some seconds, `give_way`                      the timer         the timer
    anything else, `wait_for`                     the caller's own  a callback that the caller has arranged
    a next job, `_run_jobs`                       the `Job`         `start_job`

Any other token is the read watcher of a socket on which the greenlet has waited before (I2), and which has
stayed started. The greenlet stops that watcher, in `put_off`, and gives way again. No event is lost: bytes
stay in the socket, and the next wait for them starts the watcher anew.

Watchers that stay started. To start and to stop a watcher are two calls into the loop for each read. With
`keep_reading`, the read watcher of a socket stays started between two waits. That is safe for three reasons:
A started watcher belongs to the greenlet that waits to read this socket, and to no other (I3). Meanwhile this
greenlet waits in the four ways above alone, which all know what to do with a token of somebody else's;
gevent's own waits (`gevent.sleep`, `Event.wait`) do not. And the greenlet calls `stop_reading` when it is
done: the end of a stream can be read for ever, and a started watcher would keep the loop busy with it.

One greenlet at a time waits to read a socket, and one to write to it (I4).

Recycled greenlets. A new greenlet takes a stack of 16 KiB from the system, and gives it back at its end. So
a greenlet that is done with its job becomes a spare one, and waits for the next job. `start_job` takes a
spare greenlet or makes a new one; the job runs at once, up to its first wait. A spare greenlet is alive and
has no job (I5). A watcher that the last job has left started wakes the spare greenlet once, and is put off.

No greenlet at all. Most connections are idle, and a greenlet costs memory. Whoever joins two conns can have
the hub call back as soon as there is something to read (`call_once_readable`), and start a job only then, or
pass bytes on from the hub itself for as long as nothing has to wait (`call_when_readable`). The other way
round, a callback of the hub can throw an error into a greenlet that has been waiting to read for long
(`interrupt`): the error ends the job, and the greenlet becomes a spare one. With these methods `proxy.stream`
parks one direction of a pair that is idle, and `was_read` tells it which pairs are.

The invariants, and where they are asserted:

    I1  a callback of the hub does not wait; jobs are started    `wait_for`, `_start_reader`, `wait_writable`,
        and greenlets are interrupted in the hub alone           `start_job`, `interrupt`
    I2  a token of somebody else's is a read watcher             `put_off`
    I3  a read watcher that is started already was started       `_start_reader`
        for the greenlet that waits now
    I4  nobody else waits for the same                           `_start_reader`, `wait_writable`
    I5  a spare greenlet is alive                                `start_job`
"""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Callable
from typing import Any

from gevent.hub import Hub, get_hub
from greenlet import getcurrent, greenlet

from gnar_lib.errors import ConnClosed, NetworkError, WriteError
from gnar_lib.net.contract import Counter
from gnar_lib.net.descriptors import descriptors

READ, WRITE = 1, 2  # the event bits of gevent's `loop.io`
CLOSED = frozenset({errno.EBADF, errno.ENOTSOCK})  # what a closed socket answers; ENOTSOCK on Windows
# What the network answers, or says by its silence, and no peer.
NETWORK_FAILED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN})
SPARE_GREENLETS = 256  # that wait for a next job at most

# Large enough that a bulk transfer shows itself by a full read, and that a short send leaves little to keep.
LENT_BYTES = 64 * 1024
LENT = memoryview(bytearray(LENT_BYTES))  # lent to one reader after the other, until anything waits

_spare: list[greenlet] = []


# ---- waiting -----------------------------------------------------------------------------------------------


def wait_for(token: object) -> None:
    """Wait until a callback of the hub switches to this greenlet with `token`."""
    hub = get_hub()
    assert getcurrent() is not hub, "I1: a callback of the hub waits"
    switch = hub.switch
    while (woken := switch()) is not token:
        put_off(woken)


def put_off(woken: Any) -> None:
    """Stop the read watcher that has woken this greenlet in the wait for something else."""
    assert getattr(woken, "events", None) == READ, f"I2: {woken!r} has woken a greenlet that does not know it"
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


# ---- recycled greenlets ------------------------------------------------------------------------------------


class Job:
    """Something that a recycled greenlet does, once."""

    __slots__ = ()

    def run(self) -> None:
        """Do it; must not raise anything."""
        raise NotImplementedError


def start_job(job: Job) -> None:
    """Run a job in a greenlet, at once and up to its first wait. Only the hub may call this."""
    hub = get_hub()
    assert getcurrent() is hub, "I1: a job is started outside the hub"
    if _spare:
        spare = _spare.pop()
        assert spare, "I5: a spare greenlet has ended"  # a greenlet is true while it is alive
        spare.switch(job)
    else:
        greenlet(_run_jobs, hub).switch(job)


def _run_jobs(job: Job) -> None:
    """Run one job after the other: the life of a greenlet."""
    hub, me = get_hub(), getcurrent()
    next_job = job
    while True:
        next_job.run()
        if len(_spare) >= SPARE_GREENLETS:
            return
        _spare.append(me)
        while not isinstance(next_job := hub.switch(), Job):
            put_off(next_job)


def busy_greenlets() -> int:
    """Return how many greenlets this thread has, without the spare ones; takes milliseconds."""
    root = _root_of(getcurrent())
    # The type, since `isinstance` fails for proxies of objects that are gone (`weakref.proxy`).
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), greenlet) and not thing.dead]
    return sum(_root_of(each) is root for each in alive) - len(_spare)


def _root_of(each: greenlet) -> greenlet:
    """Return the greenlet of the thread to which a greenlet belongs."""
    while each.parent is not None:
        each = each.parent
    return each


# ---- sockets -----------------------------------------------------------------------------------------------


def read_watcher(loop: Any, sock: socket.socket) -> Any:
    """Return a watcher that tells when `sock` can be read, and count the socket in `descriptors`.

    Whoever closes the socket counts it out again.
    If the loop can watch no more sockets (on Windows, 1,024), closes the socket and raises `OSError` with
    the number that means that the process has too many descriptors.
    """
    try:
        watcher = loop.io(sock.fileno(), READ)
    except OSError as exc:
        sock.close()
        raise OSError(errno.EMFILE, str(exc)) from exc
    descriptors.taken += 1
    return watcher


class WaitingSocket:
    """A non-blocking stream socket and all ways to wait for it; `SocketConn` reads and writes."""

    __slots__ = (
        "_drained",
        "_hub",
        "_on_close",
        "_read_waiter",
        "_reader",
        "_switch",
        "_write_waiter",
        "_writer",
        "keep_reading",
        "sock",
        "was_read",
    )

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout() != 0.0:  # else the socket was made so, which saves a system call
            sock.setblocking(False)
        self.sock = sock
        self.keep_reading = False  # the read watcher stays started between two waits
        self.was_read = False  # a wait to read has ended; whoever looks for idle conns sets it back to False
        self._drained = False  # the last read emptied the socket: the next one would only fail, so wait first
        self._hub: Hub = get_hub()
        self._switch = self._hub.switch
        self._reader: Any = read_watcher(self._hub.loop, sock)
        self._writer: Any = None  # made when a write first has to wait: most conns never do
        self._read_waiter: greenlet | None = None
        self._write_waiter: greenlet | None = None
        self._on_close: Callable[[], None] | None = None  # of `call_when_readable_or_closed`

    # ---- in a greenlet -------------------------------------------------------------------------------------

    def wait_readable(self) -> None:
        """Wait until a read would not block, the end of the stream included."""
        watcher = self._reader
        self._start_reader()
        try:
            while (woken := self._switch()) is not watcher:
                put_off(woken)
        except BaseException:
            watcher.stop()
            raise
        finally:
            self._read_waiter = None
        self.was_read = True
        if not self.keep_reading:
            watcher.stop()

    def wait_writable(self) -> None:
        """Wait until a write would not block."""
        me = getcurrent()
        watcher = self._write_watcher()
        assert me is not self._hub, "I1: a callback of the hub waits"
        assert self._write_waiter is None, "I4: two greenlets wait to write to one socket"
        watcher.start(me.switch, watcher)
        self._write_waiter = me
        try:
            while (woken := self._switch()) is not watcher:
                put_off(woken)
        finally:
            self._write_waiter = None
            watcher.stop()

    def stop_reading(self) -> None:
        """End the time of `keep_reading`: whatever is in the socket wakes nobody any more."""
        self.keep_reading = False
        self._reader.stop()

    def _start_reader(self) -> None:
        """Have the read watcher wake the current greenlet, which becomes the one that waits to read."""
        watcher, me = self._reader, getcurrent()
        if watcher.active:
            assert self._read_waiter is None, "I4: two greenlets wait to read one socket"
            assert watcher.callback.__self__ is me, "I3: the read watcher was started for another greenlet"
        else:
            self._refuse_closed()
            assert me is not self._hub, "I1: a callback of the hub waits"
            assert self._read_waiter is None, "I4: two greenlets wait to read one socket"
            watcher.start(me.switch, watcher)
        self._read_waiter = me

    def _pass_on(self, lent: memoryview, dst: WaitingSocket, counter: Counter) -> tuple[memoryview, int]:
        """Send `lent`, then copy from this socket to `dst`, for as long as nothing but reading has to wait.

        Returns what was read last, and how many bytes of it were sent: when nothing was read (the end of the
        stream), when a read was full, or when `dst` does not take all. `LENT` is where each read goes, and
        `keep_reading` is set. Raises `ConnClosed`.
        """
        # Most of what a busy process does is this loop: `wait_readable`, `recv_into` and `send` in turn, with
        # everything at hand.
        recv_into, send, switch, watcher = self.sock.recv_into, dst.sock.send, self._switch, self._reader
        if 0 < len(lent) < LENT_BYTES:  # else the first turn of the loop returns
            self._start_reader()
        conn = self
        try:
            while True:
                conn, count = dst, len(lent)
                sent = send(lent) if count else 0
                if sent < count or not 0 < count < LENT_BYTES:
                    return lent, sent
                conn = self
                while (woken := switch()) is not watcher:
                    put_off(woken)
                self.was_read = True
                count = recv_into(LENT)
                counter.bytes += count
                lent = LENT[:count]
        except BlockingIOError:
            return lent, (0 if conn is dst else len(lent))
        except OSError as exc:
            raise conn._failed(exc, WriteError if conn is dst else ConnClosed) from exc
        except BaseException:
            watcher.stop()
            raise
        finally:
            self._read_waiter = None
            self._drained = len(lent) < LENT_BYTES

    # ---- in the hub, in place of a greenlet that waits -----------------------------------------------------

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if there is one. Only the hub may call this."""
        assert getcurrent() is self._hub, "I1: a greenlet is interrupted from outside the hub"
        if self._read_waiter is not None and not self.closed:  # else `close` is about to wake it
            self._read_waiter.throw(error)

    def call_when_readable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` in the hub whenever bytes or the end can be read, until `close`; None ends that."""
        watcher, self._on_close = self._reader, None
        watcher.stop()
        if callback is not None and self.sock.fileno() >= 0:
            watcher.start(callback)

    def call_when_readable_or_closed(self, callback: Callable[[], None]) -> None:
        """Do the same, and call `callback` once more behind `close`: then a read raises `ConnClosed`."""
        self.call_when_readable(callback)
        self._on_close = callback

    def call_when_writable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` in the hub whenever a write would not wait, until `close`; None ends that."""
        if self.closed:
            return
        watcher = self._write_watcher()
        watcher.stop()
        if callback is not None:
            watcher.start(callback)

    def _call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once in the hub when the socket can be read; never, if it is closed before."""
        self._refuse_closed()
        self._reader.start(self._on_readable_once, callback)

    def _on_readable_once(self, callback: Callable[[], None]) -> None:
        self._reader.stop()
        self._drained = False
        callback()

    # ---- ending --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close, in any state and more than once; a greenlet that waits on this conn gets `ConnClosed`."""
        if self.sock.fileno() < 0:
            return
        self._reader.stop()
        if self._writer is not None:
            self._writer.stop()
        if self._read_waiter is not None or self._write_waiter is not None:
            self._hub.loop.run_callback(self._wake_waiters)
        if self._on_close is not None:
            self._hub.loop.run_callback(self._on_close)
            self._on_close = None
        self.sock.close()
        descriptors.taken -= 1

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.sock.fileno() < 0

    def _wake_waiters(self) -> None:
        """Wake those who waited when the socket was closed; their next call finds the socket gone."""
        if self._read_waiter is not None:
            self._read_waiter.switch(self._reader)
        if self._write_waiter is not None:
            self._write_waiter.switch(self._writer)

    def _write_watcher(self) -> Any:
        """Return the watcher that tells when the socket can be written; raises `ConnClosed`."""
        self._refuse_closed()
        if self._writer is None:
            self._writer = self._hub.loop.io(self.sock.fileno(), WRITE)
        return self._writer

    def _refuse_closed(self) -> None:
        """Raise `ConnClosed` if the socket is closed: a watcher of it would never call anybody."""
        if self.sock.fileno() < 0:
            raise ConnClosed(f"{self}: closed")

    def _failed(self, exc: OSError, kind: type[ConnClosed] = ConnClosed) -> ConnClosed:
        """Return the error of ours for an error of the socket."""
        if exc.errno in NETWORK_FAILED and kind is ConnClosed:
            kind = NetworkError
        reason = "closed" if exc.errno in CLOSED else (exc.strerror or str(exc))
        return kind(f"{self}: {reason}")
