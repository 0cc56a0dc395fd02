"""Memory of closed conns of TLS goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import gevent
import pytest

from gnar_lib.transport import freed as freed_module
from tests.helpers.tls import tls_pair

PAIRS = 150
PAGE_KIB = 4


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell in other ways")
def test_memory_of_many_conns_goes_back_when_they_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_module, "PAUSE_S", 0.05)
    for near, far in [tls_pair()]:  # loads what is needed once
        near.close()
        far.close()
    freed_module.trim()
    before = resident_kib()
    pairs = [tls_pair() for _ in range(PAIRS)]
    most = resident_kib() - before
    for near, far in pairs:
        near.close()
        far.close()
    del near, far
    pairs.clear()
    with gevent.Timeout(10):
        while resident_kib() - before > most // 2:
            gevent.sleep(0.01)


def test_few_conns_that_are_closed_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(freed_module, "trim", lambda: calls.append(1))
    monkeypatch.setattr(freed_module, "PAUSE_S", 0.0)
    counted = freed_module.Freed()
    for _ in range(freed_module.MANY - 1):
        counted.note()
    gevent.sleep(0.01)
    assert not calls
    counted.note()
    counted.note()
    gevent.sleep(0.01)
    assert calls == [1]
