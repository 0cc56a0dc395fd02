"""The last exchanges, within a bound of memory; knows neither how they come about nor who looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gnar_lib.inspect.exchange import MAX_MESSAGES, MESSAGE_BYTES, Exchange, Message

MAX_EXCHANGES = 500
MAX_BYTES = 64 << 20  # of all exchanges together
EXCHANGE_BYTES = 2000  # what Python needs for one besides heads and bodies


class Store:
    """The last exchanges, the oldest first. `on_change` and `on_end` are called as things happen.

    Neither of the two may wait.
    """

    def __init__(self, max_exchanges: int = MAX_EXCHANGES, max_bytes: int = MAX_BYTES) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.on_end: Callable[[Exchange], None] = lambda _exchange: None
        self.change = 0  # number of the last change of anything
        self.clearings = 0  # how often everything was thrown away
        self.cost_bytes = 0
        self.total = 0  # exchanges so far
        self._max_exchanges = max_exchanges
        self._max_bytes = max_bytes
        self._exchanges: dict[int, Exchange] = {}

    def __len__(self) -> int:
        return len(self._exchanges)

    def __iter__(self) -> Iterator[Exchange]:
        return iter([*self._exchanges.values()])

    def next_id(self) -> int:
        """Return the id for a new exchange."""
        self.total += 1
        return self.total

    def get(self, number: int) -> Exchange | None:
        """Return the exchange with this id, None if there is none, or no longer."""
        return self._exchanges.get(number)

    def add(self, exchange: Exchange, head_bytes: int) -> None:
        """Take in an exchange that has just begun."""
        self._exchanges[exchange.id] = exchange
        self.grown(exchange, EXCHANGE_BYTES + head_bytes)

    def add_message(self, exchange: Exchange, message: Message) -> None:
        """Take in a message of a WebSocket."""
        exchange.messages_total = message.number
        if not exchange.is_kept:
            return
        dropped = exchange.messages[0] if len(exchange.messages) == MAX_MESSAGES else None
        exchange.messages.append(message)
        less = MESSAGE_BYTES + len(dropped.data) if dropped is not None else 0
        self.grown(exchange, MESSAGE_BYTES + len(message.data) - less)

    def grown(self, exchange: Exchange, more_bytes: int = 0) -> None:
        """Note that an exchange has changed, and that so much more of it is kept."""
        if not exchange.is_kept:
            return
        self.change += 1
        exchange.change = self.change
        if more_bytes:
            exchange.cost_bytes += more_bytes
            self.cost_bytes += more_bytes
            while self._exchanges and (
                len(self._exchanges) > self._max_exchanges or self.cost_bytes > self._max_bytes
            ):
                self._drop(next(iter(self._exchanges.values())))
        self.on_change()

    def ended(self, exchange: Exchange) -> None:
        """Note that nothing more comes of an exchange."""
        self.grown(exchange)
        self.on_end(exchange)

    def clear(self) -> None:
        """Forget all exchanges."""
        for exchange in [*self._exchanges.values()]:
            self._drop(exchange)
        self.change += 1
        self.clearings += 1
        self.on_change()

    def _drop(self, exchange: Exchange) -> None:
        del self._exchanges[exchange.id]
        self.cost_bytes -= exchange.cost_bytes
        exchange.let_go()
