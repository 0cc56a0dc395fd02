"""A system that refuses to splice costs no byte: copying goes on in another way, then and from then on."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import gevent
import pytest

from gnar_lib.errors import ConnClosed
from gnar_lib.pio.flow import Flow
from gnar_lib.pio.limit import Bucket
from gnar_lib.proxy import splice
from tests.proxy.test_stream import MIB, joined, recv_random, send_random

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REFUSALS = [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP]


@pytest.fixture(autouse=True)
def _bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(splice.Pipe, "can_splice", True)  # and back to what it was before
    with gevent.Timeout(20):
        yield


def refuse_from(
    is_refused: Callable[[bool, int], bool], error: int, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Have `splice` fail when a function of the direction (into the pipe?) and of earlier calls says so.

    Returns a list that gets an item for each refusal.
    """
    original: Any = os.splice
    calls = {True: 0, False: 0}
    refused: list[int] = []

    def spliced(src: int, dst: int, count: int, *, flags: int) -> int:
        into_pipe = stat.S_ISFIFO(os.fstat(dst).st_mode)
        if is_refused(into_pipe, calls[into_pipe]):
            refused.append(error)
            raise OSError(error, os.strerror(error))
        calls[into_pipe] += 1
        return int(original(src, dst, min(count, 100_000), flags=flags))

    monkeypatch.setattr(os, "splice", spliced)
    return refused


WHERE: dict[str, Callable[[bool, int], bool]] = {
    "at the first move into the pipe": lambda into_pipe, _: into_pipe,
    "at a later move into the pipe": lambda into_pipe, earlier: into_pipe and earlier == 3,
    "at the first move out of the pipe": lambda into_pipe, _: not into_pipe,
    "with half of the bytes in the pipe": lambda into_pipe, earlier: not into_pipe and earlier == 3,
}


@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
@pytest.mark.parametrize("where", WHERE)
def test_no_byte_is_lost_wherever_splice_is_refused(
    where: str, limited: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gnar")
    refused = refuse_from(WHERE[where], errno.EPERM, monkeypatch)
    flow = Flow(Bucket(64 * MIB)) if limited else None
    for _ in ("refused", "not tried again"):
        with joined("spliced", monkeypatch, flow) as pair:
            sender = gevent.spawn(send_random, pair.user, 2 * MIB, 1)
            assert recv_random(pair.service, 2) == sender.get()
        assert pair.errors == []
    assert refused == [errno.EPERM]
    assert splice.Pipe.take() is None
    assert [each.getMessage() for each in caplog.records] == [
        "the system refuses splice (Operation not permitted): bulk takes more time from now on"
    ]


@pytest.mark.parametrize("error", REFUSALS, ids=errno.errorcode.get)
def test_each_way_of_refusing_is_known(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = refuse_from(lambda *_: True, error, monkeypatch)
    with joined("spliced", monkeypatch) as pair:
        sender = gevent.spawn(send_random, pair.user, MIB, 1)
        assert recv_random(pair.service, 2) == sender.get()
    assert refused == [error]


def test_conn_that_breaks_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_from(lambda *_: True, errno.ECONNRESET, monkeypatch)
    with joined("spliced", monkeypatch) as pair:
        sender = gevent.spawn(send_random, pair.user, 2 * MIB, 1)
        with pytest.raises(ConnClosed):
            recv_random(pair.service, 2)
        sender.kill()
        pair.wait_end()
    assert splice.Pipe.can_splice
    assert len(pair.errors) == 1
