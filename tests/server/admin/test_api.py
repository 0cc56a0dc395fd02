"""What is asked of a server's admin port and what it does, over real sockets in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import gevent
import pytest

from gnar_lib.admin import port as port_module
from gnar_lib.auth.attempts import MAX_WRONG
from gnar_lib.config import AdminConfig, Rate, Secret
from gnar_lib.errors import ConfigError, ListenError
from gnar_lib.net import listen
from gnar_lib.proto import Heartbeat, ProxyReq, ProxyResp, recv, send
from gnar_lib.proto.msg import STATUS_FAILED
from gnar_lib.server.admin.serve import Admin
from tests.helpers.admin import PASSWORD, READ_TOKEN, Watched, watched
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, answer_of, serving

ADMIN, READER = f"Bearer {PASSWORD}", f"Bearer {READ_TOKEN}"


@pytest.fixture
def panel() -> Iterator[Watched]:
    """Return a server whose admin port asks for nothing."""
    with watched() as panel:
        yield panel


@pytest.fixture
def locked() -> Iterator[Watched]:
    """Return a server whose admin port asks for a password or a token."""
    with watched(PASSWORD, READ_TOKEN) as panel:
        yield panel


# ---- ending ------------------------------------------------------------------------------------------------

BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"9000", 400),
    (b"[9000]", 400),
    (b"{}", 400),
    (b'{"port": "9000"}', 400),
    (b'{"port": 9000.0}', 400),
    (b'{"port": true}', 400),
    (b'{"port": null}', 400),
    (b'{"port": ' + b"9" * 4000 + b"}", 404),
    (b'{"port": 1', 400),
    (b"\xff", 400),
    (b"[" * 4000, 400),
    (b'{"port": 1}', 404),
    (b'{"port": 0}', 404),
    (b'{"port": -1}', 404),
    (b'{"port": 70000, "more": 1}', 404),
    (b"x" * 5000, 413),
]


def test_bodies_that_close_no_tunnel(panel: Watched) -> None:
    for body, status in BODIES:
        answer = panel.ask("POST", "/admin/tunnel/close", body)
        assert (answer.status, answer.json["status"]) == (status, status), body[:50]
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_tunnel_is_closed_by_its_port_as_the_go_program_does(panel: Watched) -> None:
    control, port = panel.running.log_in("web")
    send(control.conn, ProxyReq(port, "dns", "", "udp"))
    assert answer_of(control.conn).remote_port == port
    answer = panel.ask("POST", "/admin/tunnel/close", json.dumps({"port": port}).encode())
    assert (answer.status, answer.body) == (200, b"Close tunnel success")
    told: set[str] = set()
    while told != {"web", "dns"}:  # both have this port
        if isinstance(message := recv(control.conn), ProxyResp):
            assert message.status == STATUS_FAILED
            told.add(message.proxy_name)
    assert len(panel.running.server.shared.ports) == 0
    assert panel.post("/admin/tunnel/close", {"port": port}).status == 404
    control.close()


def test_a_port_that_waits_for_its_client_is_ended(panel: Watched) -> None:
    control, _ = panel.running.log_in("web")
    send(control.conn, Heartbeat(leaving=True))
    kept = panel.running.server.control_ingress.kept
    wait_until(lambda: len(kept), "the port waits")
    (proxy,) = panel.get("proxies")["proxies"]
    assert (proxy["state"], proxy["client"]) == ("waiting", "")
    assert panel.ask("DELETE", f"/api/v1/proxies/{proxy['id']}").status == 204
    assert len(kept) == len(panel.running.server.shared.ports) == 0
    (proxy,) = panel.get("proxies")["proxies"]
    assert (proxy["state"], proxy["reason"]) == ("gone", "ended by an administrator")
    assert panel.ask("DELETE", f"/api/v1/proxies/{proxy['id']}").status == 404
    control.close()


@pytest.mark.parametrize("kind", ["connections", "proxies", "clients"])
def test_what_is_not_there_cannot_be_ended(panel: Watched, kind: str) -> None:
    for name in ("c1", "p1", "u1", "c0", "x", "-1", "%00", "..", "%2e%2e", "c1%2Fp1", "9" * 300):
        answer = panel.ask("DELETE", f"/api/v1/{kind}/{name}")
        assert answer.status == (400 if name == "%00" else 404), name
    assert panel.ask("DELETE", f"/api/v1/{kind}/").status == 404
    assert panel.ask("DELETE", f"/api/v1/{kind}").status == 405
    assert panel.ask("GET", f"/api/v1/{kind}/c1").status == 405


def test_a_reader_ends_nothing(locked: Watched) -> None:
    control, port = locked.running.log_in("web")
    (client,) = locked.ask("GET", "/api/v1/clients", Authorization=READER).json["clients"]
    (proxy,) = client["proxies"]
    for path in (f"/api/v1/clients/{client['id']}", f"/api/v1/proxies/{proxy}", "/api/v1/connections/u1"):
        assert locked.ask("DELETE", path, Authorization=READER).status == 403
        assert locked.ask("DELETE", path).status == 401
    assert locked.post("/admin/tunnel/close", {"port": port}, Authorization=READER).status == 403
    assert locked.post("/admin/tunnel/close", {"port": port}).status == 401
    assert len(locked.running.server.shared.ports) == 1
    control.close()


def test_who_has_ended_something_is_in_the_log(
    locked: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gnar"), "propagate", True)
    control, port = locked.running.log_in("web")
    with caplog.at_level(logging.INFO, "gnar"):
        locked.post("/admin/tunnel/close", {"port": port}, Authorization=ADMIN, X_Forwarded_For="192.0.2.9")
    assert f"proxy 'web' on port {port} is ended, as asked for from 192.0.2.9" in caplog.text
    control.close()


# ---- who asks ----------------------------------------------------------------------------------------------


def test_a_browser_logs_in_and_out(locked: Watched) -> None:
    for body, status in (
        (b"", 400),
        (b"[]", 400),
        (b'{"password": 1}', 400),
        (b'{"password": "' + b"x" * port_module.MAX_BODY_BYTES + b'"}', 413),
        (b'{"password": "a guess"}', 401),
        (b'{"password": ""}', 401),
        (b'{"password": "\\ud800"}', 401),
    ):
        answer = locked.ask("POST", "/api/v1/login", body, Content_Type="application/json")
        assert (answer.status, answer.headers["Set-Cookie"]) == (status, None)
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert locked.ask("POST", "/api/v1/login", b"password=" + PASSWORD.encode(), **form).status == 415
    answer = locked.post("/api/v1/login", {"password": PASSWORD}, X_Gnar_Page="a key")
    assert (answer.status, answer.body) == (204, b"")
    cookie = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0], "X_Gnar_Page": "a key"}
    shown = locked.ask("GET", "/api/v1/server", **cookie).json
    assert (shown["may_change"], shown["logged_in"]) == (True, True)
    assert locked.ask("GET", "/api/v1/server", Cookie=cookie["Cookie"]).status == 401
    assert locked.ask("GET", "/api/v1/server?page=a+key", Cookie=cookie["Cookie"]).status == 200
    assert locked.ask("POST", "/api/v1/logout", Origin="http://evil.example", **cookie).status == 403
    assert locked.ask("GET", "/api/v1/server", **cookie).status == 200
    answer = locked.ask("POST", "/api/v1/logout", **cookie)
    assert (answer.status, "Max-Age=0" in answer.headers["Set-Cookie"]) == (204, True)
    assert locked.ask("GET", "/api/v1/server", **cookie).status == 401
    assert locked.ask("POST", "/api/v1/logout").status == 401


def test_many_wrong_passwords_lock_one_address_out_and_no_other(locked: Watched) -> None:
    for number in range(MAX_WRONG):
        guess = {"Authorization": f"Bearer guess {number}"}
        assert locked.ask("GET", "/metrics", X_Forwarded_For="2001:db8::1", **guess).status == 401
    for again in ("2001:db8::1", "2001:db8::ffff:2"):
        answer = locked.ask("GET", "/metrics", X_Forwarded_For=again, Authorization=ADMIN)
        assert (answer.status, answer.headers["Content-Type"]) == (429, "application/problem+json")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert locked.post("/api/v1/login", {"password": PASSWORD}, X_Forwarded_For=again).status == 429
    for other in ("2001:db8:0:1::1", "192.0.2.1"):
        assert locked.ask("GET", "/metrics", X_Forwarded_For=other, Authorization=ADMIN).status == 200
    assert locked.ask("GET", "/metrics", Authorization=ADMIN).status == 200
    assert locked.ask("GET", "/healthz", X_Forwarded_For="2001:db8::1").status == 200


def test_what_needs_no_password_says_nothing(locked: Watched) -> None:
    for path in ("/healthz", "/readyz"):
        answer = locked.ask("GET", path)
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert (locked.ask("HEAD", path).status, locked.ask("HEAD", path).body) == (200, b"")
    for path in ("/metrics", "/api/v1/server", "/api/v1/live", "/api/v1/events", "/x", "/api%2Fv1%2Fserver"):
        answer = locked.ask("GET", path)
        assert answer.status == 401
        assert locked.running.server.shared.config.token.reveal() not in answer.body.decode()
    assert locked.ask("GET", "/static/..%2Fopenapi.json").status == 404
    assert locked.ask("GET", "/api%2Fv1%2Flogin").status == 404


def test_a_foreign_host_gets_nothing_from_a_port_without_a_password(panel: Watched) -> None:
    for path in ("/", "/static/panel.js", "/api/v1/server", "/metrics"):
        assert panel.ask("GET", path, Host=f"evil.example:{panel.port}").status == 403
        assert panel.ask("GET", path, Host=f"localhost:{panel.port}").status == 200


def test_every_answer_tells_browsers_what_not_to_do(locked: Watched) -> None:
    for path, status in (("/", 200), ("/api/v1/server", 401), ("/nothing", 401), ("/static/nothing", 404)):
        answer = locked.ask("GET", path)
        assert answer.status == status
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == ("no-cache" if path == "/" else "no-store")
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_a_secret_is_in_no_answer(locked: Watched) -> None:
    control, _ = locked.running.log_in("web")
    token = locked.running.server.shared.config.token.reveal()
    for path in ("server", "clients", "proxies", "connections"):
        text = locked.ask("GET", f"/api/v1/{path}", Authorization=ADMIN).body.decode()
        assert not [secret for secret in (PASSWORD, READ_TOKEN, token) if secret in text]
    text = locked.ask("GET", "/metrics", Authorization=ADMIN).body.decode()
    assert not [secret for secret in (PASSWORD, READ_TOKEN, token) if secret in text]
    control.close()


# ---- the port itself ---------------------------------------------------------------------------------------


def test_a_server_that_takes_no_clients_is_not_ready(panel: Watched) -> None:
    panel.running.server.shared.stopping = True
    answer = panel.ask("GET", "/readyz")
    assert (answer.status, answer.body) == (503, b"not ready\n")
    assert panel.ask("GET", "/healthz").status == 200
    panel.running.server.shared.stopping = False
    panel.running.server.control_ingress.stop_listening()
    assert panel.ask("GET", "/readyz").status == 503


def test_a_port_that_is_about_to_be_free_is_waited_for() -> None:
    with serving() as running:
        taken = listen(LOOPBACK, 0)
        port = taken.port
        shared = running.server.shared
        shared.config = replace(shared.config, admin=AdminConfig(port))
        admin = Admin(shared, running.server.control_ingress)
        with pytest.raises(ListenError, match="already in use"):
            admin.start()
        gevent.spawn_later(port_module.RETRY_S / 2, taken.close)
        assert admin.start(10.0) == port
        admin.close()


def test_a_reload_cannot_take_the_password_away_while_others_can_reach_the_port() -> None:
    with serving(admin=AdminConfig(8911, "", Secret(PASSWORD))) as running:
        server = running.server
        before = server.shared.config
        for admin in (AdminConfig(), AdminConfig(8911), AdminConfig(8911, "", read_token=Secret(READ_TOKEN))):
            with pytest.raises(ConfigError, match="admin-password"):
                server.reload(replace(before, admin=admin, max_users=1))
            assert server.shared.config is before
        server.reload(replace(before, admin=AdminConfig(1, LOOPBACK, Secret("another"))))
        assert server.shared.config.admin == AdminConfig(8911, "", Secret("another"))  # the port stays


def test_limit_that_is_shown_is_the_one_that_holds() -> None:
    with watched(max_speed=Rate(up=1000, down=1000)) as panel:
        control, _ = panel.running.log_in("first")
        send(control.conn, ProxyReq(0, "slow", "", "tcp", limit_up=10, limit_down=5000))
        answer_of(control.conn)
        (shown,) = [each for each in panel.get("proxies")["proxies"] if each["name"] == "slow"]
        assert (shown["limit_up"], shown["limit_down"]) == (10, 1000)
        control.close()
