"""The relay in this process: users, targets that are down, names and addresses."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import gevent
import pytest

from gnar_lib import net
from gnar_lib.errors import ConnError, DialError
from gnar_lib.net import place, target
from gnar_lib.relay import Relay
from tests.helpers.descriptors import descriptors_of_this_process
from tests.helpers.loop import wait_until
from tests.helpers.relays import (
    ask,
    dial,
    read_all,
    relaying,
    service_heard,
    serving,
    speak_first,
)

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize("listen", ["tcp:127.0.0.1:0", "TCP4-LISTEN:0,fork", "unix", "UNIX-LISTEN"])
@pytest.mark.parametrize("to_unix", [False, True])
def test_half_close_of_the_user_keeps_the_answer_coming(listen: str, to_unix: bool, tmp_path: Path) -> None:
    if listen.lower().startswith("unix"):
        listen = f"{listen}:{tmp_path}/relay.sock" + (",fork" if "LISTEN" in listen else "")
    listener = net.listen_unix(f"{tmp_path}/service.sock") if to_unix else None
    with serving(listener=listener) as service, relaying(listen, service.address) as running:
        assert ask(running) == b"answer to question"
        assert ask(running, b"x" * 300_000) == b"answer to " + b"x" * 300_000


def test_half_close_of_the_service_keeps_the_user_heard() -> None:
    with serving(speak_first) as service, relaying("tcp:127.0.0.1:0", service.address) as running:
        user = dial(running)
        assert read_all(user) == b"hello"
        service_heard.clear()
        user.sendall(b"still here")
        user.close()
        wait_until(lambda: service_heard, "the service has heard the user")
        assert service_heard == [b"still here"]


def test_a_user_that_resets_tears_the_service_down() -> None:
    failures: list[ConnError] = []

    def wait_for_end(conn: net.SocketConn) -> None:
        conn.sendall(b"hello")
        try:
            read_all(conn)
        except ConnError as exc:
            failures.append(exc)

    with serving(wait_for_end) as service, relaying("tcp:127.0.0.1:0", service.address) as running:
        user = dial(running)
        assert user.recv(5) == b"hello"
        user.abort()
        wait_until(lambda: failures, "the service was reset")
        wait_until(lambda: not len(running.users), "no user is left")


def test_many_users_at_once_each_get_their_own_answer_and_leave_nothing() -> None:
    with serving() as service, relaying("tcp:127.0.0.1:0", service.address) as running:
        ask(running)
        before = descriptors_of_this_process()

        def check(index: int) -> None:
            assert ask(running, b"%d" % index) == b"answer to %d" % index

        gevent.joinall([gevent.spawn(check, index) for index in range(100)], raise_error=True)
        wait_until(lambda: not len(running.users) and not len(service.crew), "nobody is left")
        # Pipes may be kept for the next bulk transfer; a hundred users would have left two hundred.
        assert len(descriptors_of_this_process() - before) < 50


def test_bind_sets_the_address_that_the_service_sees() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 on loopback")
    with serving() as service:
        target = f"TCP:127.0.0.1:{service.listener.port},bind=127.0.0.2"
        with relaying("TCP-LISTEN:0,bind=127.0.0.1,fork", target) as running:
            ask(running)
            assert net.host_of(service.conns[0].getpeername()) == "127.0.0.2"


def test_without_fork_one_user_is_served_and_no_other() -> None:
    with serving() as service, relaying("TCP4-LISTEN:0", service.address) as running:
        port = running.listener.port
        assert ask(running) == b"answer to question"
        with pytest.raises(DialError):
            net.dial(V4, ("127.0.0.1", port))
        assert len(service.conns) == 1
        assert running.error is None


def test_users_of_a_target_that_is_down_are_reset_at_once_and_served_when_it_is_up() -> None:
    with serving() as service:
        port = service.listener.port
    with relaying("tcp:127.0.0.1:0", f"tcp:127.0.0.1:{port}") as running:
        for _ in range(3):
            with pytest.raises(ConnError):
                ask(running)
        with serving(listener=net.listen("127.0.0.1", port)):
            assert ask(running) == b"answer to question"


def known_to(running: Relay) -> list[tuple[int, net.Sockaddr]]:
    """Return the addresses of a relay's target, in the order in which they are tried."""
    assert isinstance(running._target, target.Target)
    return running._target._place.known


def test_a_name_is_looked_up_again_when_its_addresses_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        dead = ("127.0.0.1", gone.listener.port)
    with serving() as service:
        answers = [[(V4, dead)], [(V4, ("127.0.0.1", service.listener.port))]]
        monkeypatch.setattr(place, "resolve", lambda *_: answers.pop(0))
        monkeypatch.setattr(place, "LOOK_UP_PAUSE_S", 0.0)
        with relaying("tcp:127.0.0.1:0", "tcp:moved.example:80") as running:
            assert ask(running) == b"answer to question"
            assert ask(running) == b"answer to question"
        assert answers == []


def test_a_name_that_stays_down_is_not_looked_up_for_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        dead = ("127.0.0.1", gone.listener.port)
    asked: list[str] = []

    def resolve(host: str, *_: object) -> list[tuple[int, net.Sockaddr]]:
        asked.append(host)
        return [(V4, dead)]

    monkeypatch.setattr(place, "LOOK_UP_PAUSE_S", 1000.0)
    with relaying("tcp:127.0.0.1:0", "tcp:localhost:80") as running:
        monkeypatch.setattr(place, "resolve", resolve)
        known_to(running)[:] = resolve("")
        for _ in range(5):
            with pytest.raises(ConnError):
                ask(running)
    assert asked == [""]


def test_the_address_that_answered_is_tried_first_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        dead = ("127.0.0.1", gone.listener.port)
    with serving() as service:
        alive = ("127.0.0.1", service.listener.port)
        monkeypatch.setattr(place, "resolve", lambda *_: [(V4, dead), (V4, alive)])
        with relaying("tcp:127.0.0.1:0", "tcp:two.example:80") as running:
            ask(running)
            assert known_to(running) == [(V4, alive), (V4, dead)]


def test_an_unknown_name_and_a_missing_family_fail_at_the_start() -> None:
    with pytest.raises(DialError, match="cannot resolve"), relaying("tcp:0", "tcp:no..such..name:80"):
        pass
    with pytest.raises(DialError, match="no IPv6 address"), relaying("tcp:0", "TCP6:127.0.0.1:80"):
        pass


def test_users_wait_while_the_backlog_of_a_unix_target_is_full(tmp_path: Path) -> None:
    sock = net.listen_unix(f"{tmp_path}/busy.sock")
    sock.sock.listen(0)  # one conn may wait
    with relaying("tcp:127.0.0.1:0", f"unix:{tmp_path}/busy.sock") as running:
        asking = [gevent.spawn(ask, running, b"%d" % index) for index in range(20)]
        wait_until(lambda: len(running.users) == len(asking), "all users wait")
        with serving(listener=sock):
            assert [each.get() for each in asking] == [b"answer to %d" % index for index in range(20)]
