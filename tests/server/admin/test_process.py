"""The admin port of a real server: what is ended there is ended, and nothing else is."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.helpers.admin import PASSWORD, READ_TOKEN, Asker
from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.client_file import write_proxies
from tests.helpers.crowd import Crowd
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    Gnar,
    Service,
    Tunnels,
    ask,
    dial,
    echo,
    free_port,
    is_open,
    wait_until,
)

ENDED = "ended by an administrator"
DISMISSED_STATUS = 3


def watched_server(tunnels: Tunnels, *args: str, **options: Any) -> tuple[Gnar, int, Asker]:
    """Start a server with an admin port; return it, its control port, and who asks at the admin port."""
    admin = free_port()
    server, port = tunnels.server("-a", str(admin), *args, **options)
    return server, port, Asker(admin)


def config_file(folder: Path, **keys: str | int) -> Path:
    """Write the file of a server; "_" in the names of keys is a hyphen."""
    path = folder / "server.toml"
    lines = [f"{name.replace('_', '-')} = {value!r}".replace("'", '"') for name, value in keys.items()]
    path.write_text("\n".join([*lines, ""]))
    return path


def served(user: socket.socket) -> bool:
    user.sendall(b"hello")
    return user.recv(5) == b"hello"


def address_of(user: socket.socket) -> str:
    return "{}:{}".format(*user.getsockname())


def is_cut_off(user: socket.socket) -> bool:
    with suppress(ConnectionError):
        return user.recv(1) == b""
    return True


def only(things: list[Any], **fields: object) -> Any:
    """Return the one thing that has these fields."""
    (found,) = [each for each in things if all(each[name] == value for name, value in fields.items())]
    return found


# ---- ending ------------------------------------------------------------------------------------------------


def test_what_is_ended_is_ended_for_the_client_as_well_and_the_rest_stays(plain_tunnels: Tunnels) -> None:
    server, port, admin = watched_server(plain_tunnels)
    with Service(echo) as service, ExitStack() as stack:
        to_service = ("-l", str(service.port), "-r", "0")
        client, blog = plain_tunnels.client(port, *to_service, "-n", "blog")
        other, nas = plain_tunnels.client(port, *to_service, "-n", "nas")
        user, neighbour, elsewhere = (stack.enter_context(dial(each)) for each in (blog, blog, nas))
        assert [served(each) for each in (user, neighbour, elsewhere)] == [True] * 3

        # a connection
        ended = only(admin.get("connections")["connections"], user=address_of(user))
        assert admin("DELETE", f"/api/v1/connections/{ended['id']}").status == 204
        assert is_cut_off(user)
        assert served(neighbour)
        wait_until(lambda: admin.get("connections")["total"] == 2, "it is not listed any more")
        assert admin("DELETE", f"/api/v1/connections/{ended['id']}").status == 404
        server.wait_log(rf"the connection of {address_of(user)} is ended, as asked for from {LOOPBACK}")

        # a proxy, the only one of its client
        proxy = only(admin.get("proxies")["proxies"], name="blog")
        assert (proxy["state"], proxy["users"], proxy["users_total"]) == ("open", 1, 2)
        assert admin("DELETE", f"/api/v1/proxies/{proxy['id']}").status == 204
        assert is_cut_off(neighbour)
        wait_until(lambda: not is_open(blog), "the port is closed")
        gone = only(admin.get("proxies")["proxies"], name="blog")
        assert (gone["state"], gone["reason"], gone["users_total"]) == ("gone", ENDED, 2)
        assert gone["bytes_up"] == gone["bytes_down"] == 15
        assert admin("DELETE", f"/api/v1/proxies/{proxy['id']}").status == 404
        client.wait_exit()
        assert ENDED in client.log

        # a client
        assert served(elsewhere)
        wait_until(lambda: admin.get("server")["clients"] == 1, "the other client has left")
        there = only(admin.get("clients")["clients"], state="connected")
        assert there["names"] == ["nas"]
        assert admin("DELETE", f"/api/v1/clients/{there['id']}").status == 204
        assert is_cut_off(elsewhere)
        assert other.wait_exit() == DISMISSED_STATUS
        assert ENDED in other.log
        wait_until(lambda: not is_open(nas), "the port is closed")
        wait_until(lambda: not admin.get("server")["clients"], "the client is gone")
        left = only(admin.get("clients")["clients"], id=there["id"])
        assert (left["state"], left["reason"], left["names"]) == ("gone", ENDED, ["nas"])
        assert admin("DELETE", f"/api/v1/clients/{there['id']}").status == 404


def test_ending_one_of_two_proxies_leaves_the_other_to_the_client(
    multiplexed_tunnels: Tunnels, tmp_path: Path
) -> None:
    _, port, admin = watched_server(multiplexed_tunnels)
    with Service(echo) as service:
        write_proxies(tmp_path / "client.toml", service, {"blog": 0, "nas": 0})
        client, _ = multiplexed_tunnels.client(port, "-c", str(tmp_path / "client.toml"))
        client.wait_log("open at", count=2)
        ports = {each["name"]: each["port"] for each in admin.get("proxies")["proxies"]}
        with dial(ports["nas"]) as user:
            assert served(user)
            answer = admin("POST", "/admin/tunnel/close", {"port": ports["blog"]})
            assert (answer.status, answer.body) == (200, b"Close tunnel success")
            client.wait_log(ENDED)
            wait_until(lambda: not is_open(ports["blog"]), "the port is closed")
            assert served(user)
        assert ask(ports["nas"], b"new ones") == b"new ones"
        assert client.process.poll() is None


# ---- from start to end -------------------------------------------------------------------------------------


def test_a_login_outlives_a_restart_and_ends_with_the_password(
    multiplexed_tunnels: Tunnels, tmp_path: Path
) -> None:
    admin = Asker(free_port())
    settings = {"admin_password": PASSWORD, "admin_read_token": READ_TOKEN}
    config = config_file(tmp_path, admin_port=admin.port, **settings)
    first, port = multiplexed_tunnels.server("-c", str(config))
    assert admin("POST", "/api/v1/login", {"password": "a guess"}).status == 401
    cookie = admin("POST", "/api/v1/login", {"password": PASSWORD}).headers["Set-Cookie"].partition(";")[0]
    assert first.stop() == 0
    second, _ = multiplexed_tunnels.server("-c", str(config), port=port)
    assert admin("GET", "/api/v1/server", Cookie=cookie).json["logged_in"] is True
    config_file(tmp_path, admin_port=admin.port, **{**settings, "admin_password": "another"})
    second.signal(signal.SIGHUP)
    second.wait_log("configuration was read again|reloaded|read again")
    assert admin("GET", "/api/v1/server", Cookie=cookie).status == 401
    assert admin.with_secret(PASSWORD)("GET", "/api/v1/server").status == 401
    assert admin.with_secret("another").get("server")["may_change"] is True
    assert admin.with_secret(READ_TOKEN).get("server")["may_change"] is False
    for process in (first, second):
        assert "a wrong password from 127.0.0.1" in process.log
        for secret in (PASSWORD, READ_TOKEN, "another", "a guess", TOKEN, cookie.rpartition(".")[2]):
            assert secret not in process.log


def test_a_server_that_stops_is_not_ready_and_is_watched_to_its_end(multiplexed_tunnels: Tunnels) -> None:
    server, port, admin = watched_server(multiplexed_tunnels, "--grace", "60")
    ready = admin("GET", "/readyz")
    assert (ready.status, ready.body) == (200, b"ok\n")
    with Service(echo) as service:
        _, blog = multiplexed_tunnels.client(port, "-l", str(service.port), "-r", "0")
        with dial(blog) as user:
            assert served(user)
            server.signal(signal.SIGTERM)
            wait_until(lambda: admin("GET", "/readyz").status == 503, "the server is not ready")
            assert admin("GET", "/healthz").status == 200
            assert admin.get("connections")["total"] == 1
            assert served(user)
    assert server.wait_exit() == 0
    assert not is_open(admin.port)


def test_a_server_starts_beside_one_that_stops_and_has_the_admin_port_once_that_is_free(
    plain_tunnels: Tunnels,
) -> None:
    old, port, admin = watched_server(plain_tunnels, "--grace", "60")
    with Service(echo) as service:
        _, blog = plain_tunnels.client(port, "-l", str(service.port), "-r", "0")
        with dial(blog) as user:
            assert served(user)
            old.signal(signal.SIGTERM)
            old.wait_log("stopping")
            wait_until(lambda: not is_open(port), "the control port is free")
            new, _ = plain_tunnels.server("-a", str(admin.port), port=port)
            new.wait_log("is that of a process which stops: waiting for it")
            assert served(user)
    assert old.wait_exit() == 0
    new.wait_log(f"admin listening on port {admin.port}")
    assert admin("GET", "/readyz").status == 200


def test_a_server_that_is_replaced_leaves_its_admin_port_to_the_next(multiplexed_tunnels: Tunnels) -> None:
    old, port, admin = watched_server(multiplexed_tunnels)
    with Service(echo) as service:
        client, blog = multiplexed_tunnels.client(port, "-l", str(service.port), "-r", str(free_port()))
        with dial(blog) as user, admin.stream("/api/v1/live") as told:
            assert served(user)
            assert next(told).name == "state"
            began = admin.get("server")["started_at"]
            new, _ = multiplexed_tunnels.server("-a", str(admin.port), "--replace", port=port)
            assert [*told][-1].name in ("state", "happened")  # to its end
            wait_until(lambda: is_open(admin.port), "the next one is there")
            client.wait_log("connected to", count=2)
            assert admin.get("server")["started_at"] > began
            wait_until(lambda: admin.get("proxies")["proxies"][0]["state"] == "open", "the proxy is open")
            assert served(user)
            assert old.process.poll() is None
        assert old.wait_exit() == 0
        assert admin("GET", "/readyz").status == 200
        assert new.process.poll() is None


def test_an_admin_port_that_is_taken_is_told_in_a_line(multiplexed_tunnels: Tunnels) -> None:
    with Service(echo) as taken:
        admin = ("-a", str(taken.port))
        server = multiplexed_tunnels.run("server", str(free_port()), "--bind", LOOPBACK, *admin)
        assert server.wait_exit() == 1
        assert server.log == f"gnar: {LOOPBACK}:{taken.port} is already in use\n"


# ---- many --------------------------------------------------------------------------------------------------

CROWD = 5000


def test_users_are_answered_as_before_while_5000_connections_are_watched(
    multiplexed_tunnels: Tunnels,
) -> None:
    server, port, admin = watched_server(multiplexed_tunnels)
    with Service(echo) as service, Crowd() as crowd, ExitStack() as stack:
        _, busy = multiplexed_tunnels.client(port, "-l", str(crowd.port), "-r", "0", "-n", "crowd")
        _, blog = multiplexed_tunnels.client(port, "-l", str(service.port), "-r", "0", "-n", "blog")
        crowd.come(busy, CROWD)
        wait_until(lambda: admin.get("server")["users"] == CROWD, "all are there")
        proxy = only(admin.get("proxies")["proxies"], name="crowd")
        query = f"proxy={proxy['id']}&sort=idle&limit=1000"
        with uninvolved_user(blog, server, bounds=Bounds(worst_s=0.5)):
            streams = [stack.enter_context(admin.stream(f"/api/v1/live?{query}")) for _ in range(3)]
            for _ in range(3):
                for told in streams:
                    while next(told).name != "state":
                        pass
                found = admin.get(f"connections?{query}&offset=4500")
                assert (len(found["connections"]), found["matched"]) == (500, CROWD)
                assert admin.get("connections?filter=nobody")["connections"] == []
            last = admin.get(f"connections?{query}&filter={address_of(crowd.users[-1])}")["connections"]
            assert admin("DELETE", f"/api/v1/connections/{last[0]['id']}").status == 204
            assert is_cut_off(crowd.users[-1])
            stack.close()
