"""Fixtures of the tests of net."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gnar_lib.net import SocketConn, deadline
from tests.helpers.conns import TIMEOUT_S, tcp_pair, unix_pair


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Let no test wait for ever."""
    with deadline(TIMEOUT_S, "the test"):
        yield


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[SocketConn, SocketConn]]:
    """Yield two conns that are joined."""
    near, far = tcp_pair() if request.param == "tcp" else unix_pair()
    yield near, far
    near.close()
    far.close()
