"""Which tokens let a client in, and that no token shows in a log."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    Service,
    Tunnel,
    Tunnels,
    ask,
    echo,
    free_port,
)


def test_wrong_token_is_told_in_one_line_and_exits_1(plain_tunnels: Tunnels) -> None:
    server, port = plain_tunnels.server()
    client, _ = plain_tunnels.client(port, "-l", "1", token="wrong", wait=False)
    assert client.wait_exit() == 1
    assert "wrong token" in client.log
    assert len(client.log.splitlines()) == 1
    refusal = server.wait_log(r"refused .*wrong token")[0]
    assert LOOPBACK in refusal
    assert TOKEN not in server.log
    assert "wrong\n" not in server.log.replace("wrong token", "")


def test_wrong_token_by_md5_exits_1(plain_tunnels: Tunnels) -> None:
    _, port = plain_tunnels.server()
    client, _ = plain_tunnels.client(port, "-l", "1", "--auth", "md5", token="wrong", wait=False)
    assert client.wait_exit() == 1


def test_md5_login_is_taken_unless_the_server_wants_hmac(plain_tunnels: Tunnels) -> None:
    with Service(echo) as service:
        _, any_port = plain_tunnels.server()
        _, port = plain_tunnels.client(any_port, "-l", str(service.port), "--auth", "md5")
        assert ask(port) == b"ping"
        _, strict_port = plain_tunnels.server("--auth", "hmac")
        client, _ = plain_tunnels.client(strict_port, "-l", str(service.port), "--auth", "md5", wait=False)
        assert client.wait_exit() == 1


def test_client_with_token_does_not_trust_a_server_without(plain_tunnels: Tunnels) -> None:
    _, port = plain_tunnels.server(token="")
    client, _ = plain_tunnels.client(port, "-l", "1", wait=False)
    assert client.wait_exit() == 1
    assert "no token" in client.log


def test_neither_end_has_a_token(plain_tunnels: Tunnels) -> None:
    with Service(echo) as service:
        server, server_port = plain_tunnels.server(token="")
        _, port = plain_tunnels.client(server_port, "-l", str(service.port), token="")
        assert ask(port) == b"ping"
        assert "no token" not in server.log  # on loopback alone that is nobody's danger


def test_server_without_token_warns_unless_on_loopback(plain_tunnels: Tunnels) -> None:
    server = plain_tunnels.run("server", str(free_port()))
    server.wait_log("no token")


def test_tokens_are_in_no_log_and_no_process_title(shared_tunnel: Tunnel) -> None:
    for process in (shared_tunnel.server, shared_tunnel.client):
        assert TOKEN not in process.log + process.out
        assert TOKEN.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
