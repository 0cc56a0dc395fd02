"""Puts together what looks at the connections of a client: taps, the store, the log; knows no page."""

from __future__ import annotations

from gnar_lib.inspect.conversation import Conversation, Keeping, Origin
from gnar_lib.inspect.exchange import Exchange
from gnar_lib.inspect.log import ExchangeLog
from gnar_lib.inspect.parser import Budget
from gnar_lib.inspect.store import Store
from gnar_lib.inspect.tap import Tapped
from gnar_lib.net import Conn


class Inspector:
    """Records what passes, until `close`. Of each body `body_bytes` are kept; `log` gets what has ended."""

    def __init__(self, body_bytes: int, log: ExchangeLog | None = None) -> None:
        self.store = Store()
        self.store.on_end = self._on_end
        self._keeping = Keeping(self.store, Budget(), body_bytes)
        self._log = log

    def tapped(self, conn: Conn, user: str, proxy: str, *, tells_users: bool = False) -> Conn:
        """Return a data connection whose exchanges are recorded on the way.

        What is read from it are requests, what is written to it are answers. With `tells_users`, the user is
        whom the server names in each request.
        """
        return Tapped(conn, self.conversation(Origin(proxy, user, tells_users)))

    def conversation(self, origin: Origin) -> Conversation:
        """Return what makes exchanges of the bytes of one connection."""
        return Conversation(self._keeping, origin)

    def close(self) -> None:
        """Write what the log still has to write."""
        log, self._log = self._log, None
        if log is not None:
            log.close()

    def _on_end(self, exchange: Exchange) -> None:
        if self._log is not None:
            self._log.write(exchange)
