"""Memory of closed conns of TLS goes back to the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gevent
import pytest

from gnar_lib.transport import freed as freed_module

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from gevent import monkey

monkey.patch_all(ssl=False)

import gc, sys
from pathlib import Path
import gevent
from gnar_lib.transport import freed
from tests.helpers.tls import tls_pair

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

freed.PAUSE_S = 0.05
for near, far in [tls_pair()]:  # loads what is needed once
    near.close()
    far.close()
freed.trim()
before = resident()
pairs = [tls_pair() for _ in range(150)]
for near, far in pairs:  # memory for bulk, too, which OpenSSL keeps as long as a conn is open
    near.send_now(bytes(64 * 1024))
    while far.recv_now(64 * 1024) is not None:
        pass
most = resident() - before
for near, far in pairs:
    near.close()
    far.close()
del near, far
pairs.clear()
gc.collect()
for _ in range(500):
    if resident() - before < most // 2:
        sys.exit(0)
    gevent.sleep(0.01)
sys.exit(f"{before} pages before, {most} more at most, {resident() - before} more left")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell in other ways")
def test_memory_of_many_conns_goes_back_when_they_are_closed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_python_without_ctypes_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    monkeypatch.setattr(freed_module, "_trim", None)
    freed_module.trim()


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
