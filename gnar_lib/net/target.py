"""A host and port that is dialled again and again, without a look-up each time."""

from __future__ import annotations

from gnar_lib.errors import DialError
from gnar_lib.net.address import Sockaddr, resolve
from gnar_lib.net.conn import SocketConn
from gnar_lib.net.endpoint import dial


class Target:
    """Keeps the address that answered last; looks the name up again only when that one fails."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._known: tuple[int, Sockaddr] | None = None

    def dial(self) -> SocketConn:
        """Return a conn to the first address that answers; raises the last `DialError`."""
        if self._known is not None:
            try:
                return dial(*self._known)
            except DialError:
                self._known = None
        error: DialError | None = None
        for family, address in resolve(self.host, self.port):
            try:
                conn = dial(family, address)
            except DialError as exc:
                error = exc
            else:
                self._known = (family, address)
                return conn
        raise error or DialError(f"{self.host} has no address")
