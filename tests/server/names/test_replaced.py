"""Names at a server that is replaced by another process: they wait for their clients, with their rules."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gevent
import pytest

from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.proto import Heartbeat, ProxyReq, ProxyResp, recv, send
from gnar_lib.server import meeting
from gnar_lib.server.handover import Handed, Offer, Predecessor, _read, _request_of
from gnar_lib.server.serve import Server
from tests.helpers.logins import TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, serving
from tests.helpers.sites import Service, give_name, read_until, scripted, tell_request


@contextmanager
def replaced(monkeypatch: pytest.MonkeyPatch, running: Running, **settings: Any) -> Iterator[Running]:
    """Have another server, with these settings, take over from one that is running, for the block."""
    with tempfile.TemporaryDirectory(prefix="gnar") as base:
        monkeypatch.setattr(meeting, "folders", lambda: [f"{base}/gnar"])
        shared = running.server.shared
        shared.config = replace(shared.config, port=running.port)
        offer = Offer(running.server.control_ingress, running.server.web, shared, lambda: None)
        offer.open()
        server = Server(replace(shared.config, **settings))
        predecessor = Predecessor.find(shared.config)
        try:
            yield Running(server, server.start(predecessor))
        finally:
            predecessor.close()
            offer.close()
            server.stop_listening()
            server.close()


def log_in(running: Running, request: ProxyReq) -> tuple[ControlConn, ProxyResp]:
    control = ControlConn.dial(
        ClientConfig(Address(LOOPBACK, running.port), (), TOKEN, multiplex=False), "one"
    )
    control.log_in(request)
    return control, answer_of(control.conn)


def test_names_wait_for_their_clients_with_rules_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(domain="example.com") as old:
        settings = {"host_header": "b", "allow_from": ("10.0.0.0/8",), "path": "/api"}
        before, chosen = log_in(old, ProxyReq(0, "web", "", "http", **settings))  # type: ignore[arg-type]
        send(before.conn, ProxyReq(0, "both", "both", "tcp", deny_from=("10.0.0.0/8",)))
        answer_of(before.conn)
        with replaced(monkeypatch, old) as new:
            while not (isinstance(message := recv(before.conn), Heartbeat) and message.leaving):
                pass
            web = new.server.shared.names.find(chosen.domain, "/api")
            both = new.server.shared.names.find("both.example.com", "/")
            assert web is not None
            assert both is not None
            assert (web.name, web.kind, web.is_away, web.web.host_header) == ("web", "http", False, b"b")
            assert [bool(each.rules.refusal(("10.0.0.1", 1))) for each in (web, both)] == [False, True]
            assert web.rules.refusal(("192.0.2.1", 1))
            after, answer = log_in(new, ProxyReq(0, "web", chosen.domain, "http", path="/api"))
            assert (answer.status, answer.domain) == ("success", chosen.domain)
            assert new.server.shared.names.find(chosen.domain, "/api") is web
            assert not web.rules
            send(after.conn, ProxyReq(0, "both", "both", "tcp"))
            assert answer_of(after.conn).domain == "both.example.com"
            assert new.server.shared.names.find("both.example.com", "/") is both
            assert len(new.server.control_ingress.kept) == 0
            after.close()
        before.close()


def test_names_that_the_new_process_does_not_give_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(domain="example.com") as old:
        before, _ = log_in(old, ProxyReq(0, "web", "blog", "http"))
        send(before.conn, ProxyReq(0, "both", "both", "tcp"))
        answer_of(before.conn)
        with replaced(monkeypatch, old, reserved_names=("blog", "both")) as new:
            assert len(new.server.control_ingress.kept) == 0
            assert len(new.server.shared.names) == 0
        before.close()


def test_description_by_an_earlier_version_is_enough_for_a_port() -> None:
    handed = _read({"kind": "tcp", "name": "x", "udp_timeout": 7, "request": "of a later one"})
    assert handed == Handed("tcp", "x", udp_timeout=7)
    assert _request_of(handed) == ProxyReq(0, "x", "", "tcp", udp_timeout=7)


def test_user_who_has_just_come_to_the_control_port_is_served_before_the_old_process_lets_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scripted(tell_request) as service, serving(domain="example.com") as old:
        give_name(old.server.shared.names, "web.example.com", Service(service.port))
        user = old.dial()
        wait_until(lambda: len(old.server.control_ingress.in_progress) == 1, "the user has come")
        gevent.spawn_later(0.1, user.sendall, b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        with replaced(monkeypatch, old) as new:
            answer = read_until(user, b"told: ")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"\r\nConnection: close\r\n" in answer
            user.close()
            late = new.dial()
            late.sendall(b"GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n")
            assert read_until(late, b"\r\n").startswith(b"HTTP/1.1 404 ")  # where nobody has that name
            late.close()
