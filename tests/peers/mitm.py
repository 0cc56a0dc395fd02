"""Somebody who stands between clients and a server, in threads: records, forges, swaps, cuts off.

Knows the protocol from the outside alone, and nothing of the inside of a client or a server.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.helpers.harness import WAIT_S, Service, dial
from tests.peers.recording import body_of, frame_like

RECORD_HEADER_BYTES: Final = 5  # type, version, length (RFC 8446, section 5.1)
PIECE_BYTES: Final = 65536
PART_S: Final = 1.0  # for an end to take note that the other one has gone
MAX_PIECES: Final = 64  # that are read meanwhile
FIRST_BYTES: Final = b"\x16\x01"  # of TLS, and of a login; other programs look at all ports of this machine
LOGIN, CHALLENGE, PROOF, WELCOME = 0x01, 0x10, 0x11, 0x12

Change = Callable[[bytes], bytes]
Way = tuple[
    socket.socket, bytearray, Change | None
]  # where bytes go, where they are noted, what changes them


class Cut(Exception):
    """Ends a connection behind the bytes `last`."""

    def __init__(self, last: bytes) -> None:
        super().__init__()
        self.last = last


class Met:
    """A connection that a client has made, and what becomes of it."""

    def __init__(self, number: int, near: socket.socket, server_port: int) -> None:
        self.number = number  # among all that clients have made, from 0
        self.met_s = time.monotonic()
        self.near = near  # to the client
        self.up, self.down = bytearray(), bytearray()  # what has come from the client, and from the server
        self.ways: dict[socket.socket, Way] = {}  # from `carry` on
        self._server_port = server_port
        self._held = [near]

    def dial(self) -> socket.socket:
        """Connect to the server."""
        return self.hold(dial(self._server_port))

    def hold(self, conn: socket.socket) -> socket.socket:
        """Close a socket at the end, too."""
        self._held.append(conn)
        return conn

    def carry(
        self, near: socket.socket, far: socket.socket, up: Change | None = None, down: Change | None = None
    ) -> None:
        """Carry bytes both ways until one of the ends has ended; `up` and `down` may change them."""
        self.ways = {near: (far, self.up, up), far: (near, self.down, down)}
        carry(self.ways)

    def wait_gone(self) -> None:
        """Wait until the client has ended the connection."""
        while self.near.recv(PIECE_BYTES):
            pass

    def end(self) -> None:
        """End everything with a FIN, and without a word of TLS; then with a reset whoever goes on."""
        for conn in self._held:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(conn, socket.SHUT_WR)
        for conn in self._held:
            with contextlib.suppress(OSError):
                conn.settimeout(PART_S)
                for _ in range(MAX_PIECES):  # unread, they would make the FIN a reset
                    if not socket.socket.recv(conn, PIECE_BYTES):
                        break
            conn.close()


def carry(ways: dict[socket.socket, Way]) -> None:
    """Carry bytes from each key to where they go, until all keys have ended, or one has beside TLS.

    One thread does that, since OpenSSL takes one call at a time. `ways` may change meanwhile.
    """
    while ways:
        for src in select.select([*ways], [], [], 3 * WAIT_S)[0]:
            while src in ways and (data := read_now(src)) is not None:
                dst, record, change = ways[src]
                if not data:
                    if isinstance(src, ssl.SSLSocket) or isinstance(dst, ssl.SSLSocket):
                        return  # Python's sockets cannot end one direction of TLS
                    del ways[src]
                    dst.shutdown(socket.SHUT_WR)
                    break
                record += data
                try:
                    dst.sendall(change(data) if change else data)
                except Cut as cut:
                    dst.sendall(cut.last)
                    return


def read_now(conn: socket.socket) -> bytes | None:
    """Return what has come; None if that is nothing, `b""` at the end."""
    conn.setblocking(False)
    try:
        return conn.recv(PIECE_BYTES)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    finally:
        conn.settimeout(WAIT_S)


class Between:
    """Listens where clients take the server to be. `treatment` says what is done to each connection."""

    def __init__(self, server_port: int, treatment: Treatment | None = None) -> None:
        self.treatment = treatment or pass_on  # may change; a connection keeps the one that it came by
        self.met: list[Met] = []
        self._server_port = server_port
        self._lock = threading.Lock()
        self._service = Service(self._meet)
        self.port = self._service.port

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()
        self.cut()

    def _meet(self, near: socket.socket) -> None:
        first = near.recv(1, socket.MSG_PEEK)
        if not first or first not in FIRST_BYTES:
            return
        with self._lock:
            met = Met(len(self.met), near, self._server_port)
            self.met.append(met)
        try:
            with contextlib.suppress(OSError, EOFError):
                self.treatment(met)
        finally:
            met.end()

    def cut(self) -> None:
        """End all connections that there are, between two records of TLS if nothing is on its way."""
        for met in [*self.met]:
            waits_for = [*met.ways, met.near][0]  # the end that has ended before does not wake the thread
            with contextlib.suppress(OSError):
                socket.socket.shutdown(waits_for, socket.SHUT_RD)

    @property
    def recorded(self) -> bytes:
        """All that has been on the path so far."""
        return b"".join(bytes(met.up + met.down) for met in [*self.met])


# ---- what is done to a connection --------------------------------------------------------------------------

Treatment = Callable[[Met], None]


def pass_on(met: Met) -> None:
    """Change nothing."""
    met.carry(met.near, met.dial())


def on_data(treatment: Treatment) -> Treatment:
    """Pass the first connection on, which is the control connection, and treat all others."""
    return lambda met: treatment(met) if met.number else pass_on(met)


def saying(answer: bytes) -> Treatment:
    """Answer whatever the client says first with these bytes, and nothing more."""

    def treat(met: Met) -> None:
        met.up += met.near.recv(PIECE_BYTES)
        met.near.sendall(answer)
        met.wait_gone()

    return treat


def hang_up(met: Met) -> None:
    """End the connection as soon as the client has said something."""
    met.up += met.near.recv(PIECE_BYTES)


def plain(met: Met) -> socket.socket:
    """Go on to the server without TLS."""
    return met.dial()


def encrypted(met: Met) -> socket.socket:
    """Go on to the server by TLS of one's own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return met.hold(context.wrap_socket(met.dial()))


def ending_tls(
    certificate: Path,
    onward: Callable[[Met], socket.socket] = encrypted,
    forges: str = "",
    prepare: Callable[[ssl.SSLContext], object] = lambda _: None,
) -> Treatment:
    """End the client's TLS with a certificate of one's own, and go on to the server `onward`.

    `forges` is which end is told that the other has seen the certificate which it expects: "client",
    "server" or "both". `prepare` may weaken the settings of TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    prepare(context)
    own = fingerprint(ssl.PEM_cert_to_DER_cert(certificate.with_suffix(".crt").read_text()))

    def treat(met: Met) -> None:
        near = met.hold(context.wrap_socket(met.near, server_side=True))
        far = onward(met)
        shown = far.getpeercert(binary_form=True) if isinstance(far, ssl.SSLSocket) else None
        forger = Forger(
            seen_by_client=own if forges in {"client", "both"} else None,
            shown_by_server=(fingerprint(shown) if shown else "") if forges in {"server", "both"} else None,
        )
        met.carry(near, far, *((ByFrame(forger.up), ByFrame(forger.down)) if forges else ()))

    return treat


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate."""
    return hashlib.sha256(der).hexdigest()


# ---- bytes that are changed --------------------------------------------------------------------------------


class ByFrame:
    """Has a function change one frame after the other."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._held = b""

    def __call__(self, data: bytes) -> bytes:
        self._held += data
        changed = b""
        while len(self._held) > 2 and len(self._held) >= (size := 3 + int.from_bytes(self._held[1:3], "big")):
            changed += self._change(self._held[:size])
            self._held = self._held[size:]
        return changed


class Forger:
    """Changes what a login says of certificates; what is None stays as it is.

    The client is told, besides, that the server has let it in, with the client's own proof as the server's.
    """

    def __init__(self, *, seen_by_client: str | None, shown_by_server: str | None) -> None:
        self._seen_by_client = seen_by_client
        self._shown_by_server = shown_by_server
        self._proof = ""  # the client's

    def up(self, frame: bytes) -> bytes:
        if frame[0] == PROOF:
            self._proof = str(body_of(frame)["proof"])
        if frame[0] == LOGIN and self._shown_by_server is not None:
            return frame_like(frame, certificate=self._shown_by_server)
        return frame

    def down(self, frame: bytes) -> bytes:
        if frame[0] == CHALLENGE and self._seen_by_client is not None:
            return frame_like(frame, certificate=self._seen_by_client)
        if frame[0] == WELCOME and self._seen_by_client is not None:
            return frame_like(frame, error="", session="0" * 32, nonce="0" * 64, proof=self._proof)
        return frame


class Cutter:
    """Lets records of TLS through, each as a whole. Once `armed`, cuts off the connection with the next.

    It is cut `within` the record, or behind it.
    """

    def __init__(self, armed: threading.Event, *, within: bool) -> None:
        self._armed = armed
        self._within = within
        self._held = b""

    def __call__(self, data: bytes) -> bytes:
        self._held += data
        whole = b""
        while len(self._held) >= RECORD_HEADER_BYTES:
            size = RECORD_HEADER_BYTES + int.from_bytes(self._held[3:5], "big")
            last = size // 2 if self._within else size
            if self._armed.is_set() and len(self._held) >= last:
                raise Cut(whole + self._held[:last])
            if len(self._held) < size:
                break
            whole += self._held[:size]
            self._held = self._held[size:]
        return whole


def cross(one: Met, other: Met) -> None:
    """Lead what comes on either connection to the other one from now on, both ways."""
    for ours, theirs in zip(one.ways, other.ways, strict=True):
        one.ways[ours], other.ways[theirs] = other.ways[theirs], one.ways[ours]
