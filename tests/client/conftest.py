"""What the tests of links have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gnar_lib import events
from gnar_lib.auth import session
from gnar_lib.client import connection as connection_module
from gnar_lib.events import ConnectFailed, ProxyClosed, ProxyOpened
from gnar_lib.net import deadline
from tests.helpers.events import hear
from tests.peers.link_server import TIMEOUT_S, Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(connection_module, "TICK_S", 0.01)
    monkeypatch.setattr(session, "HEARTBEAT_S", 0.01)
    made = Server()
    with deadline(TIMEOUT_S, "the test"):
        yield made
        made.close()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    return hear(monkeypatch, ProxyOpened, ProxyClosed, ConnectFailed)
