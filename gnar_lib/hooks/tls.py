"""TLS of the standard library over a conn, for a client; knows not what it carries."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeVar

from gnar_lib.net import Conn

READ_BYTES = 16384

_T = TypeVar("_T")


def client_context() -> ssl.SSLContext:
    """Return settings that take a peer whose certificate the system trusts, for the name that is dialled."""
    return ssl.create_default_context()


class TlsConn:
    """A client's end of TLS over a conn, which the caller closes.

    Its methods raise what those of the conn raise, and `ssl.SSLError`, which is an `OSError`.
    """

    def __init__(self, conn: Conn, context: ssl.SSLContext, host: str) -> None:
        self._conn = conn
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=host)
        self._do(self._tls.do_handshake)

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self._do(lambda: self._tls.write(data))  # takes all, since memory is never full

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, waiting for the first; `b""` at the end of the stream."""
        try:
            return self._do(lambda: self._tls.read(size))
        except ssl.SSLZeroReturnError:
            return b""

    def _do(self, step: Callable[[], _T]) -> _T:
        """Return what `step` returns, having sent and received what TLS needs for that."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._conn.recv(READ_BYTES)
                if data:
                    self._received.write(data)
                else:
                    self._received.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if data := self._to_send.read():
            self._conn.sendall(data)
