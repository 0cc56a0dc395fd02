"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.harness import (
    Tunnel,
    Tunnels,
    echo,
)
from tests.helpers.udp import UdpService


@pytest.fixture
def echo_service() -> Iterator[UdpService]:
    with UdpService() as service:
        yield service


@pytest.fixture
def echo_tunnel(tunnels: Tunnels) -> Iterator[Tunnel]:
    tunnel = Tunnel(tunnels, echo)
    yield tunnel
    tunnel.service.stop()
