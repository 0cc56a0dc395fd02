"""Plays thousands of clients in one process, by gnar's own code; a program of its own that prints JSON lines.

    python -m bench.players COUNT ARGUMENT...

does COUNT times what `gnar client ARGUMENT...` does, prints how many seconds it took until every client had
its proxy, and stays until standard input closes; then it prints how many clients have lost their control
connection, also if they have come back.

A server takes so many logins a second from one address. So each connection comes from the next address of
loopback. Everything else is as with clients in processes of their own.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from unittest import mock

from gnar_lib import patch

if TYPE_CHECKING:
    from gnar_lib.client.proxies import ClientProxy
    from gnar_lib.config import ClientConfig
    from gnar_lib.net import Sockaddr, SocketConn

SOURCES = [f"127.0.1.{number}" for number in range(1, 65)]
AT_ONCE = 64  # logins under way: a server ends the oldest of too many
OPEN_WAIT_S = 60.0  # for the proxy of one client
STDIN = 0


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status; an error is one line on standard error."""
    with patch.prepared_process(["client"]):
        from gnar_lib import cmd
        from gnar_lib.client import serve

        with mock.patch.object(serve, "run_client", functools.partial(_play, int(argv[0]))):
            return cmd.main(["client", *argv[1:]])


class _Player:
    """A client with one link, which connects to the server from an address of its own."""

    def __init__(self, config: ClientConfig, source: str) -> None:
        from gevent.event import Event

        from gnar_lib.client.link import Callbacks, Link
        from gnar_lib.client.proxies import ClientProxy
        from gnar_lib.client.shared import Shared
        from gnar_lib.net.dialling import DialSettings
        from gnar_lib.net.target import Target

        self.opened = 0  # how often the server has opened the proxy: once for each login
        target = functools.partial(Target, how=DialSettings(source=source))
        with mock.patch("gnar_lib.client.way.Target", target):
            self._shared = Shared(config)
        proxies = [ClientProxy(each, self._shared.meter) for each in config.proxies]
        self._link = Link(self._shared, proxies, Callbacks(self._on_opened, self._on_lost, self._on_lost))
        self._answered = Event()

    def log_in(self) -> None:
        """Start the link, and wait until the server has answered for the proxy."""
        self._shared.crew.spawn(self._link.run)
        self._answered.wait(OPEN_WAIT_S)

    @property
    def has_lost(self) -> bool:
        """Whether the control connection has ended since the login."""
        return self.opened != 1 or self._link.connection is None or self._link.connection.has_ended

    def _on_opened(self, _proxy: ClientProxy) -> None:
        self.opened += 1
        self._answered.set()

    def _on_lost(self, _proxy: ClientProxy) -> None:
        self._answered.set()


def _play(count: int, load: Callable[[], ClientConfig], *, has_file: bool) -> int:
    """Play so many clients with these settings; return the exit status."""
    from gevent.os import tp_read
    from gevent.pool import Pool

    from gnar_lib.net import dial as as_usual

    del has_file
    config, sources = load(), itertools.cycle(SOURCES)

    def dial(family: int, address: Sockaddr) -> SocketConn:
        """Open a data connection."""
        return as_usual(family, address, source=next(sources))

    with mock.patch("gnar_lib.client.way.dial", dial):
        start_s, logins = time.perf_counter(), Pool(AT_ONCE)
        players = [_Player(config, source) for source in itertools.islice(sources, count)]
        for player in players:
            logins.spawn(player.log_in)
        logins.join()
        if missing := sum(not player.opened for player in players):
            sys.stderr.write(f"{missing} of {count} clients got no proxy\n")
            return 1
        _say({"seconds": time.perf_counter() - start_s})
        tp_read(STDIN, 1)  # in a thread
        _say({"lost": sum(player.has_lost for player in players)})
    return 0


def _say(what: object) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
