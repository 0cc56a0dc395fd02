"""A server that is replaced by another: both are servers of this process, with real sockets between them."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import gevent
import pytest

from gnar_lib.errors import ConnError, ListenError, ProtocolError
from gnar_lib.net import SocketConn, dial
from gnar_lib.net.passing import send_with_sockets
from gnar_lib.proto import Exchange, Heartbeat, ProxyReq, expect, recv, send
from gnar_lib.proto.numbers import FEATURE_LEAVE, FEATURES
from gnar_lib.server import handover, meeting, serve
from gnar_lib.server.handover import Offer, Predecessor
from gnar_lib.server.ingress import kept as kept_module
from gnar_lib.server.serve import Server
from tests.helpers.logins import go_login
from tests.helpers.loop import turn, wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, exchange_of, is_closed_by_peer, serving

Sockets = list[socket.socket] | None


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of the Unix socket; its path has to be short."""
    with tempfile.TemporaryDirectory(prefix="gnar") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        monkeypatch.setattr(meeting, "folders", lambda: [f"{base}/gnar"])
        yield Path(base, "gnar")


@dataclass
class Replaceable:
    """A running server that offers its sockets."""

    running: Running
    offer: Offer
    replaced: list[bool]

    @property
    def server(self) -> Server:
        return self.running.server

    def find(self) -> Predecessor:
        return Predecessor.find(self.server.shared.config)

    def asked_with(self, request: object) -> dict[str, object]:
        """Return the answer to a request of a process that is not gnar's."""
        (path,) = Path(meeting.folders()[0]).iterdir()
        conn = dial(socket.AF_UNIX, str(path))
        try:
            send_with_sockets(conn, json.dumps(request).encode())
            return handover._recv(conn)[0]
        finally:
            conn.close()


@contextmanager
def replaceable() -> Iterator[Replaceable]:
    """Run a server that can be replaced for the block."""
    with serving() as running:
        shared = running.server.shared
        shared.config = replace(shared.config, port=running.port)
        replaced: list[bool] = []
        offer = Offer(
            running.server.control_ingress, running.server.web, shared, lambda: replaced.append(True)
        )
        offer.open()
        try:
            yield Replaceable(running, offer, replaced)
        finally:
            offer.close()


@contextmanager
def replacing(old: Replaceable) -> Iterator[Running]:
    """Run a server that takes over for the block."""
    server = Server(old.server.shared.config)
    predecessor = old.find()
    try:
        port = server.start(predecessor)
        yield Running(server, port)
    finally:
        predecessor.close()
        server.stop_listening()
        server.close()
        assert server.shared.users.wait_empty(10)
        assert server.shared.crew.wait_empty(10)
        assert len(server.shared.ports) == 0


def user_of(port: int) -> SocketConn:
    return dial(socket.AF_INET, (LOOPBACK, port))


def is_sent_away(control: SocketConn) -> bool:
    """Tell whether the next message but heartbeats says that another process takes the server's place."""
    while isinstance(message := recv(control), Heartbeat):
        if message.leaving:
            return True
    return False


@pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])
def test_old_users_stay_new_ones_wait_and_the_client_is_sent_to_the_new_process(multiplex: bool) -> None:
    with replaceable() as old:
        before, port = old.running.log_in("blog", multiplex=multiplex)
        user = user_of(port)
        data = before.mux.accept() if before.mux is not None else before.open_data(exchange_of(before.conn))
        if multiplex:
            expect(data, Exchange)
        with replacing(old) as new:
            assert new.port == old.running.port
            assert is_sent_away(before.conn)  # type: ignore[arg-type]
            assert old.replaced
            late = user_of(port)
            late.sendall(b"hello")
            after, same_port = new.log_in("blog", port, multiplex=multiplex)
            assert same_port == port
            fresh = after.mux.accept() if after.mux is not None else after.open_data(exchange_of(after.conn))
            if multiplex:
                expect(fresh, Exchange)
            assert fresh.recv(5) == b"hello"
            before.retire()
            wait_until(lambda: not old.server.control_ingress.clients, "the client has gone")
            user.sendall(b"still")
            assert data.recv(5) == b"still"
            data.sendall(b"there")
            assert user.recv(5) == b"there"
            for conn in (user, data, late, fresh, after):
                conn.close()


def test_user_without_a_data_connection_gets_it_from_the_old_process_before_it_lets_go() -> None:
    with replaceable() as old:
        before, port = old.running.log_in("blog")
        user = user_of(port)
        announced = exchange_of(before.conn)
        server = Server(old.server.shared.config)
        predecessor = old.find()
        starting = gevent.spawn(server.start, predecessor)
        wait_until(lambda: old.offer._is_busy, "the other process has asked")
        data = before.open_data(announced)
        starting.get()
        user.sendall(b"hello")
        assert data.recv(5) == b"hello"
        for closing in (user, data, before, predecessor, server):
            closing.close()


@pytest.mark.parametrize("client", ["a Go client", "an earlier gnar"])
def test_client_that_cannot_be_told_is_hung_up_on_at_once(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replaceable() as old:
        conn = old.running.dial()
        if client == "a Go client":
            monkeypatch.setattr("gnar_lib.auth.login.time.time", lambda: go_login().timestamp)
            monkeypatch.setattr("gnar_lib.auth.login.MD5_WINDOW_S", float("inf"))
            send(conn, go_login())
            send(conn, ProxyReq(remote_port=0, proxy_name="blog", subdomain="", proxy_type="tcp"))
            answer_of(conn)
            control: SocketConn = conn
        else:
            conn.close()
            others = tuple(each for each in FEATURES if each != FEATURE_LEAVE)
            monkeypatch.setattr("gnar_lib.auth.login.FEATURES", others)
            control = old.running.log_in("blog")[0].conn  # type: ignore[assignment]
        with replacing(old):
            with pytest.raises(ConnError):
                is_sent_away(control)
            control.close()


def test_more_sockets_than_go_with_one_message_and_those_without_a_client_are_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "MAX_SOCKETS", 2)
    with replaceable() as old:
        before, port = old.running.log_in("blog")
        for kind in ("tcp", "udp", "udp"):
            send(before.conn, ProxyReq(0, f"more {kind}", "", kind))
        wait_until(lambda: len(old.server.shared.ports) == 4, "they are open")
        gone, kept_port = old.running.log_in("shop")
        send(gone.conn, Heartbeat(leaving=True))
        wait_until(lambda: len(old.server.control_ingress.kept), "a port waits for its client")
        with replacing(old) as new:
            kept = {each.ingress.port: each for each in new.server.control_ingress.kept.all}
            assert len(kept) == 5
            assert (kept[port].client_id, kept[kept_port].client_id) == ("blog", "")
            again, same = new.log_in("blog", port)
            back, same_too = new.log_in("shop", kept_port)
            assert (same, same_too) == (port, kept_port)
            for conn in (before, gone, again, back):
                conn.close()


def test_port_whose_client_does_not_come_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "HANDED_OVER_S", 0.0)
    monkeypatch.setattr(serve, "EXPIRE_EVERY_S", 0.01)
    with replaceable() as old:
        before, port = old.running.log_in("blog")
        with replacing(old) as new:
            user = user_of(port)
            wait_until(lambda: len(new.server.shared.ports) == 0, "the port is closed")
            assert is_closed_by_peer(user)
        before.close()


def test_datagrams_wait_for_the_new_process_which_can_be_replaced_in_its_turn() -> None:
    with replaceable() as old, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
        before, _ = old.running.log_in("blog")
        send(before.conn, ProxyReq(0, "dns", "", "udp", udp_timeout=7))
        wait_until(lambda: len(old.server.shared.ports) == 2, "it is open")
        (control,) = old.server.control_ingress.clients
        (port,) = (each.port for each in control.ingresses if each.proxy.kind == "udp")
        with replacing(old) as new:
            user.sendto(b"a question", (LOOPBACK, port))
            offer = Offer(new.server.control_ingress, new.server.web, new.server.shared, lambda: None)
            offer.open()
            with replacing(Replaceable(new, offer, [])) as newest:
                waiting = newest.server.control_ingress.kept.all
                (dns,) = (each for each in waiting if each.ingress.port == port)
                assert dns.ingress.session_s == 7  # type: ignore[union-attr]
                after, _ = newest.log_in("blog")
                send(after.conn, ProxyReq(port, "dns", "", "udp"))
                assert answer_of(after.conn).remote_port == port
                data = after.open_data(exchange_of(after.conn))
                assert data.recv(100).endswith(b"a question")
                for conn in (data, before, after):
                    conn.close()


@pytest.mark.parametrize("fails", ["before it is ready", "at the last moment"])
def test_server_goes_on_if_the_new_process_fails(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with replaceable() as old:
        before, port = old.running.log_in("blog")
        predecessor = old.find()
        for _, sock in predecessor.sockets():
            assert sock is not None
            sock.close()
        if fails == "before it is ready":
            predecessor.close()
        else:
            settle = old.offer._settle

            def settle_too_late() -> None:
                settle()
                predecessor.close()
                turn()

            monkeypatch.setattr(old.offer, "_settle", settle_too_late)
            with pytest.raises(ConnError):
                predecessor.let_go()
        wait_until(lambda: not old.offer._is_busy, "the running server goes on")
        user = user_of(port)
        exchange_of(before.conn)
        monkeypatch.undo()
        assert old.replaced == []
        other, _ = old.running.log_in("other")
        for conn in (user, before, other):
            conn.close()


def test_another_process_may_ask_after_one_that_failed() -> None:
    with replaceable() as old:
        old.find().close()
        with replacing(old):
            assert old.replaced


# ---- what is refused, in one line --------------------------------------------------------------------------


def test_request_of_another_version_or_at_the_same_time_is_refused() -> None:
    with replaceable() as old:
        assert "hands nothing over to that version" in str(
            old.asked_with({"wants": "sockets", "protocol": 2})["error"]
        )
        first = old.find()
        for _, sock in first.sockets():
            assert sock is not None
            sock.close()
        second = old.find()
        with pytest.raises(ListenError, match="being stopped or replaced already"):
            second.sockets()
        first.close()
        second.close()


@pytest.mark.parametrize("request_", ["no object", [1], None])
def test_request_that_is_no_object_changes_nothing(request_: object) -> None:
    with replaceable() as old:
        with pytest.raises(ConnError):
            old.asked_with(request_)
        assert not old.server.shared.stopping


def test_process_of_another_user_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with replaceable() as old:
        predecessor = old.find()
        monkeypatch.setattr(handover, "is_of_this_user", lambda _: False)
        with pytest.raises(ListenError, match="of another user"):
            predecessor.sockets()
        with pytest.raises(ListenError, match="cannot be replaced"):
            old.find()
        predecessor.close()


def test_nobody_to_replace_and_a_port_of_somebody_else_are_told_apart() -> None:
    with serving() as running:
        config = replace(running.server.shared.config, port=running.port)
        with pytest.raises(
            ListenError, match=f"what has port {running.port} cannot be replaced: .*stop it first"
        ):
            Predecessor.find(config)
    with pytest.raises(ListenError, match=f"no server to replace on port {running.port}; start without"):
        Predecessor.find(config)


@pytest.mark.parametrize("described", [[{"kind": 1}], ["tcp"], [], 1])
def test_running_server_that_describes_its_sockets_wrongly_is_not_taken_over(
    described: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replaceable() as old:
        send_as_usual = handover._send

        def send_wrongly(conn: SocketConn, values: dict[str, object], sockets: Sockets = None) -> None:
            if "sockets" in values:
                values = {"sockets": described}
            send_as_usual(conn, values, sockets)

        monkeypatch.setattr(handover, "_send", send_wrongly)
        with pytest.raises(ProtocolError), replacing(old):
            pass
        assert old.replaced == []


# ---- where -------------------------------------------------------------------------------------------------


def test_only_this_user_may_enter_the_folder(folder: Path) -> None:
    with replaceable():
        (path,) = folder.iterdir()
        assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_folder_that_others_could_enter_is_not_used(kind: str, folder: Path, tmp_path: Path) -> None:
    if kind == "a link":
        folder.symlink_to(tmp_path)
    elif kind == "a file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o755)
    with replaceable() as old, pytest.raises(ListenError):
        old.find()


def test_folders_are_of_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert meeting.folders() == ["/run/user/1000/gnar", "/tmp/gnar-1000"]  # noqa: S108
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert meeting.folders() == ["/run/gnar", "/tmp/gnar-0"]  # noqa: S108
