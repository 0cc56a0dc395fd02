"""Fixtures of the tests of the relay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent
import pytest

from tests.helpers.relays import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield
