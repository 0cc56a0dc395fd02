"""TLS over a conn, for either end; knows not what it carries."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from gevent.hub import get_hub

from gnar_lib.errors import ConnClosed, ConnError, ProtocolError, WriteError
from gnar_lib.net import LENT_BYTES, EventedConn, Sockaddr, give_way
from gnar_lib.net.switching import LENT
from gnar_lib.transport.engine import CIPHERS_OF_1_2, Engine, reason_of
from gnar_lib.transport.hello import MAX_HELLO_BYTES, server_name
from gnar_lib.transport.outgoing import Outgoing
from gnar_lib.transport.refusal import refuse, see_off

RECORD_BYTES: Final = 16 * 1024  # the most that a record carries (RFC 8446, section 5.1)
READ_BYTES: Final = 32 * 1024  # that are received at once, and for which OpenSSL keeps memory from then on
RECEIVES_IN_A_TURN: Final = 16  # of the loop; then other greenlets have their turn

# Where all conns receive and decrypt, since nothing waits between a receive and the copy to where it belongs.
_SHARED = memoryview(bytearray(LENT_BYTES))
_RECEIVED = _SHARED[:READ_BYTES]


def client_context() -> ssl.SSLContext:
    """Return settings that take a peer whose certificate the system trusts, for the name that is dialled."""
    return ssl.create_default_context()


def unverified_context() -> ssl.SSLContext:
    """Return settings that take any peer: whoever uses them proves the peer in another way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_OF_1_2)
    return context


class TlsConn:
    """A conn whose bytes travel encrypted on another conn. Fulfils `EventedConn`, which describes it.

    `close` and `abort` close the conn below, too. The end of the conn below without the end of TLS
    (`close_notify`) is an error, since anybody on the way could have cut off the rest.
    """

    __slots__ = (
        "_again",
        "_ahead",
        "_conn",
        "_engine",
        "_has_said_goodbye",
        "_loop",
        "_on_readable",
        "_outgoing",
        "_receives",
        "_turn_s",
        "_unread",
        "_why_cut_off",
        "closed",
        "server_name",
        "was_read",
    )

    def __init__(self, conn: EventedConn, engine: Engine, server_name: str) -> None:
        self.server_name = server_name  # the host that the client wants; empty if it names none
        self.closed = False  # this end has called `close` or `abort`
        self.was_read = False  # a wait to read has ended; whoever looks for idle conns sets it back to False
        self._conn = conn
        self._engine = engine
        self._outgoing = Outgoing(conn, engine.made)
        self._loop = get_hub().loop
        self._unread = b""  # bytes that `unread` has put back
        self._ahead = b""  # bytes that are decrypted already, and that nobody has read
        self._why_cut_off = ""  # why nothing comes from the conn below any more
        self._has_said_goodbye = False  # this end has said that it sends no more
        self._turn_s, self._receives = (
            0.0,
            0,
        )  # the loop's present turn, and how often this conn has received in it
        self._on_readable: Callable[[], None] | None = None  # of `call_when_readable`
        self._again: Any = None  # the timer for bytes of which no event of the conn below tells

    def __repr__(self) -> str:
        return f"<TlsConn {self}{' closed' if self.closed else ''}>"

    def __str__(self) -> str:
        return str(self._conn)

    # ---- handshake -----------------------------------------------------------------------------------------

    @classmethod
    def accept(cls, conn: EventedConn, context: ssl.SSLContext) -> TlsConn:
        """Shake hands with a client, and return the conn to it.

        Raises `ConnError`, behind a word to the client: the caller has a deadline around this, and closes
        `conn` then.
        """
        hello = b""
        try:
            while (name := server_name(hello)) is None:
                if not (more := conn.recv(MAX_HELLO_BYTES - len(hello))):
                    raise ConnClosed(f"{conn}: the other end has gone before the handshake of TLS")
                hello += more
        except ProtocolError as exc:
            refuse(conn, hello)
            raise ConnError(f"{conn}: {exc}") from exc
        engine = Engine(context, is_server=True)
        engine.received.write(hello)
        tls = cls(conn, engine, name)
        tls._shake_hands()
        return tls

    @classmethod
    def connect(
        cls, conn: EventedConn, context: ssl.SSLContext, host: str, session: ssl.SSLSession | None = None
    ) -> TlsConn:
        """Shake hands with a server, whose certificate has to be for `host`, and return the conn to it.

        `session` is that of an earlier conn of the same `context` to the same server, which the server may
        resume, so that nobody has to sign. Raises `ConnError`. The caller has a deadline around this, and
        closes `conn` then.
        """
        try:
            engine = Engine(context, is_server=False, host=host, session=session)
        except ValueError as exc:
            raise ConnError(f"{conn}: TLS: {host!r}: {exc}") from exc
        tls = cls(conn, engine, host)
        tls._shake_hands()
        return tls

    def _shake_hands(self) -> None:
        try:
            while not self._engine.shake_hands():
                self._outgoing.flush()
                self._receive()
                if self._why_cut_off:
                    raise ConnClosed(f"{self}: the other end has gone in the handshake of TLS")
        except ConnClosed:
            raise
        except ConnError as exc:
            self._flush_if_possible()  # tells the peer why
            see_off(self._conn)
            raise ConnError(f"{self}: {exc}") from exc
        self._outgoing.flush()

    # ---- reading -------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        return bytes(_SHARED[: self.recv_into(_SHARED[:size])])

    def recv_into(self, buffer: memoryview) -> int:
        """Read into `buffer`, waiting for the first byte; return the count, 0 at the end of the stream."""
        count = self._read(buffer)
        if count is None:
            while count is None:
                self._receive()
                count = self._read(buffer)
            self.was_read = True
        return count

    def borrow(self) -> memoryview:
        """Wait for up to 64 KiB and return them; the memory is reused as soon as any greenlet waits."""
        return LENT[: self.recv_into(LENT)]

    def recv_now(self, size: int) -> bytes | None:
        """Return at most `size` bytes without waiting: None if there are none, `b""` at the end."""
        count = self.recv_into_now(_SHARED[:size])
        return None if count is None else bytes(_SHARED[:count])

    def recv_into_now(self, buffer: memoryview) -> int | None:
        """Read into `buffer` without waiting: None if there is nothing, 0 at the end of the stream."""
        count = self._read(buffer)
        if count is None and self._receive_now():
            count = self._read(buffer)
        return count

    def unread(self, data: bytes) -> None:
        """Put bytes back: the next read returns them first."""
        self._unread = data + self._unread

    @property
    def has_unread(self) -> bool:
        """Whether `unread` has put bytes back that no read has returned yet: no event tells of those."""
        return bool(self._unread)

    def _read(self, buffer: memoryview) -> int | None:
        """Read into `buffer` what has been received; None if that is nothing, 0 at the end of the stream."""
        self._refuse_closed()
        if self._unread:
            count = _fill(buffer, self._unread)
            self._unread = self._unread[count:]
        elif self._ahead:
            count = _fill(buffer, self._ahead)
            self._ahead = self._ahead[count:]
        elif not (count := self._decrypt(buffer)) and not self._engine.peer_ended:
            if why := self._why_broken:
                raise ConnClosed(f"{self}: {why}")
            return None
        return count

    @property
    def _why_broken(self) -> str:
        return self._engine.why_broken or self._why_cut_off

    def _decrypt(self, buffer: memoryview) -> int:
        count = self._engine.decrypt(buffer)
        if self._engine.made.pending:  # an answer of TLS itself, such as what is wrong
            self._flush_if_possible()
        return count

    def _receive(self) -> None:
        """Wait until more has come from the conn below."""
        if self._turn_s != self._loop.now():  # something has waited, and others had their turn
            self._turn_s, self._receives = self._loop.now(), 0
        self._receives += 1
        if self._receives % RECEIVES_IN_A_TURN == 0:
            give_way()
            self._refuse_closed()
        self._take(self._conn.recv_into(_RECEIVED))

    def _receive_now(self) -> bool:
        """Receive more, if that is there already; tell whether it was."""
        try:
            count = self._conn.recv_into_now(_RECEIVED)
        except ConnError as exc:
            self._why_cut_off = str(exc)
            return True
        if count is not None:
            self._take(count)
        return count is not None

    def _take(self, count: int) -> None:
        """Let the engine have what was received."""
        if count:
            self._engine.received.write(_RECEIVED[:count])
        else:
            self._why_cut_off = "the other end has gone without the end of TLS: bytes may be missing"

    def _is_readable(self) -> bool:
        """Tell whether a read would not wait. To know, this decrypts what has come."""
        self._decrypt_ahead()
        return bool(self._unread or self._ahead or self._engine.peer_ended or self._why_broken)

    def _decrypt_ahead(self) -> None:
        while count := self._decrypt(_SHARED):
            self._ahead += bytes(_SHARED[:count])

    # ---- callbacks -----------------------------------------------------------------------------------------

    def call_once_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once in the hub when a read would not wait; never, if this end closes before."""
        self._refuse_closed()
        if self._is_readable():
            self._loop.run_callback(self._call_unless_closed, callback)
        else:
            self._conn.call_once_readable(partial(self._on_received_once, callback))

    def _call_unless_closed(self, callback: Callable[[], None]) -> None:
        if not self.closed:
            callback()

    def _on_received_once(self, callback: Callable[[], None]) -> None:
        if not self.closed:
            self._receive_now()
            if self._is_readable():
                callback()
            else:  # a part of a record, or a record for TLS itself
                self._conn.call_once_readable(partial(self._on_received_once, callback))

    def call_when_readable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` whenever bytes or the end can be read, until `close`; None ends that."""
        if not self.closed:
            self._on_readable = callback
            self._conn.call_when_readable(None if callback is None else self._on_received)
            self._tell_again()

    def _on_received(self) -> None:
        if self._is_readable() or (self._receive_now() and self._is_readable()):
            self._tell_readable()

    def _tell_readable(self) -> None:
        if self._on_readable is not None:
            self._on_readable()
            self._tell_again()

    def _tell_again(self) -> None:
        """Tell in the next turn of the loop of what the conn below has no more, so that it makes no event."""
        if self._on_readable is None:
            self._stop_telling()
        elif self._again is None and self._is_readable():
            self._again = self._loop.timer(0.0)
            self._again.start(self._on_again)

    def _on_again(self) -> None:
        self._again = None
        if self._is_readable():  # else it was read when an event of the conn below came
            self._tell_readable()

    def _stop_telling(self) -> None:
        self._on_readable = None
        if self._again is not None:
            self._again.stop()
            self._again = None

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the greenlet that waits to read, if there is one. Only the hub may call this."""
        if not self.closed:
            self._conn.interrupt(error)

    # ---- writing -------------------------------------------------------------------------------------------

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Send as many bytes as fit without waiting, and return how many that were.

        A record of which a part fits counts as sent. Its rest is sent as soon as there is room.
        """
        self._check_sending()
        sent, total, outgoing = 0, len(data), self._outgoing
        while sent < total and not outgoing.is_full:
            piece = data if total <= RECORD_BYTES else memoryview(data)[sent : sent + RECORD_BYTES]
            try:
                sent += self._engine.encrypt(piece)
            except ssl.SSLError as exc:
                raise WriteError(f"{self}: TLS: {reason_of(exc)}") from exc
            outgoing.flush()
        return sent

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all bytes, waiting for room as often as necessary."""
        sent = self.send_now(data)
        while sent < len(data) or self._outgoing.is_full:
            self._outgoing.wait_sent()
            sent += self.send_now(memoryview(data)[sent:])

    def sendmsg_now(self, buffers: list[bytes | bytearray | memoryview]) -> int:
        """Send as many bytes of all `buffers`, in order, as fit without waiting; return how many."""
        record, sent = bytearray(), self.send_now(b"")
        for buffer in buffers:
            if len(record) + len(buffer) > RECORD_BYTES:
                sent += self.send_now(record)
                record = bytearray()
            if self._outgoing.is_full:
                return sent
            if len(buffer) <= RECORD_BYTES:
                record += buffer
            else:
                sent += self.send_now(buffer)
        return sent + self.send_now(record)

    def call_when_writable(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` whenever a write would not wait, until `close`; None ends that."""
        if not self.closed:
            self._outgoing.call_when_room(callback)

    def _flush_if_possible(self) -> None:
        with suppress(WriteError):
            self._outgoing.flush()

    def _check_sending(self) -> None:
        if self.closed:
            raise WriteError(f"{self}: closed")
        if self._has_said_goodbye:
            raise WriteError(f"{self}: shut down for writing")
        if why := self._outgoing.why_failed or self._engine.why_broken:
            raise WriteError(f"{self}: {why}")

    # ---- ending --------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End one direction (half-close): after `SHUT_WR` the peer reads the end. `SHUT_RD` does nothing."""
        if how != socket.SHUT_RD and not self.closed and not self._has_said_goodbye:
            self._say_goodbye()
            self._outgoing.then(self._half_close_below)

    def _half_close_below(self) -> None:
        with suppress(ConnError):
            self._conn.shutdown(socket.SHUT_WR)

    def _say_goodbye(self) -> None:
        self._has_said_goodbye = True
        self._decrypt_ahead()
        self._engine.say_goodbye()
        self._flush_if_possible()

    def abort(self) -> None:
        """Close with a reset, so that the peer does not take what it received for the whole."""
        if not self.closed:
            self._close(self._conn.abort)

    def close(self) -> None:
        """Close, in any state and more than once; a greenlet that waits on this conn gets `ConnClosed`."""
        if self.closed:
            return
        self._receive_now()  # a ticket to resume the session: unread, it would make the kernel reset the conn
        if not self._has_said_goodbye and not self._outgoing.has_writer:
            self._say_goodbye()  # else the peer must not take the end for an orderly one
        self._close(self._conn.close)

    def _close(self, close_below: Callable[[], None]) -> None:
        self.closed = True
        self._stop_telling()
        if self._outgoing.is_full and not self._outgoing.has_writer:
            self._conn.call_when_readable(None)
            self._loop.run_callback(self._conn.interrupt, ConnClosed(f"{self}: closed"))
            self._outgoing.linger(close_below)
        else:
            self._loop.run_callback(self._outgoing.wake)
            close_below()

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ConnClosed(f"{self}: closed")

    @property
    def session(self) -> ssl.SSLSession | None:
        """What the server can resume on another conn; None before its ticket has come, and has been read."""
        return self._engine.session

    @property
    def certificate(self) -> str:
        """The SHA-256 of the certificate that the server has shown, in hex, as `Engine` knows it."""
        return self._engine.certificate

    @property
    def peer_certificate(self) -> bytes:
        """The peer's certificate (DER); empty if the peer has shown none."""
        return self._engine.peer_certificate

    # ---- the conn below ------------------------------------------------------------------------------------

    def getpeername(self) -> Sockaddr:
        """Return the address of the other end. The address is kept for when the other end has gone."""
        return self._conn.getpeername()

    @property
    def has_hung_up(self) -> bool:
        """Whether the other end sends no more, or has gone, also while bytes of it are unread."""
        return self._engine.peer_ended or self._conn.has_hung_up

    def why_gone(self, now_s: float) -> str:
        """Return why nothing can come any more, if the other end has gone without a word; else empty."""
        return self._conn.why_gone(now_s)

    def limit_unsent(self, limit_bytes: int) -> None:
        """Let at most about `limit_bytes` wait unsent below this conn, where the platform can do that."""
        self._conn.limit_unsent(limit_bytes)

    def reset_if_killed(self, *, wanted: bool) -> None:
        """Have the peer get a reset, and no end, if this process is killed."""
        self._conn.reset_if_killed(wanted=wanted)

    def set_user_timeout(self, seconds: float) -> None:
        """Give the conn up when sent bytes stay unacknowledged for so long, where that can be told."""
        self._conn.set_user_timeout(seconds)

    def unacknowledged(self) -> int:
        """Return how many sent bytes the peer has not acknowledged; 0 where nobody can tell."""
        self._refuse_closed()
        return self._conn.unacknowledged() + self._outgoing.count


def _fill(buffer: memoryview, data: bytes) -> int:
    """Put the beginning of `data` into `buffer`, and return how many bytes fit."""
    count = min(len(buffer), len(data))
    buffer[:count] = data[:count]
    return count
