"""Fixtures of the tests of transport."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gnar_lib.transport.outgoing import lingering
from tests.helpers.conns import TIMEOUT_S
from tests.peers.mux import clean


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Let no test wait for ever, leave a greenlet or a conn that lingers, or raise an error in the hub."""
    with clean(TIMEOUT_S):
        yield
    assert len(lingering) == 0
