"""Fixtures of the tests of the relay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent
import pytest

from tests.helpers.certificates import make_certificate, openssl
from tests.helpers.relays import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(TIMEOUT_S):
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make certificates, and return their folder. No test may change a file there."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificate(folder / "server.pem", "localhost")
    make_certificate(folder / "other.pem", "other.example")
    make_certificate(folder / "user.pem", "some.user")
    openssl("pkey", "-in", folder / "server.pem", "-out", folder / "server.key")
    return folder
