"""Which ports a client gets: taken, not allowed, chosen by the server, in a range, from a file."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from tests.helpers.harness import (
    LOOPBACK,
    SOON_S,
    TOKEN,
    Service,
    Tunnel,
    Tunnels,
    ask,
    echo,
    free_port,
    free_ports,
    wait_until,
)
from tests.helpers.services import answer_with

THOUSAND = 1000


def test_port_taken_is_asked_for_again_until_it_is_free(plain_tunnels: Tunnels) -> None:
    with Service(echo) as service, socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        port = holder.getsockname()[1]
        _, server_port = plain_tunnels.server()
        client, _ = plain_tunnels.client(server_port, "-l", str(service.port), "-r", str(port), wait=False)
        client.wait_log("is taken; trying again in")
        holder.close()
        client.wait_log("open at")
        assert ask(port) == b"ping"


def test_port_not_allowed_gives_that_proxy_up_and_keeps_the_others(plain_tunnels: Tunnels) -> None:
    with Service(echo) as service:
        allowed, refused = free_port(), free_port()
        _, server_port = plain_tunnels.server("--allow-ports", str(allowed))
        mappings = [f"{service.port}:{refused}", f"{service.port}:{allowed}"]
        client, port = plain_tunnels.client(server_port, *mappings)
        client.wait_log("not allowed")
        assert port == allowed
        assert ask(port) == b"ping"
        alone, _ = plain_tunnels.client(server_port, "-l", str(service.port), "-r", str(refused), wait=False)
        assert alone.wait_exit() == 1
        assert "no proxy is left" in alone.log


def test_port_0_is_chosen_from_the_allowed_ones(plain_tunnels: Tunnels) -> None:
    with Service(echo) as service:
        wanted = free_port()
        _, server_port = plain_tunnels.server("--allow-ports", f"{wanted}")
        client, port = plain_tunnels.client(server_port, str(service.port))
        assert port == wanted
        wait_until(lambda: str(wanted) in client.out, "the port is shown")
        assert ask(port) == b"ping"


def test_range_forwards_each_port_to_its_own(plain_tunnels: Tunnels) -> None:
    first, remote = free_ports(3), free_ports(3)
    services = [Service(answer_with(b"%d" % n), first + n) for n in range(3)]
    _, server_port = plain_tunnels.server()
    client, _ = plain_tunnels.client(server_port, f"{first}-{first + 2}:{remote}-{remote + 2}", wait=False)
    client.wait_log("open at", count=3)
    assert [ask(remote + n) for n in range(3)] == [b"0", b"1", b"2"]
    for n in range(3):
        shown = f"{LOOPBACK}:{remote + n}  ->  {LOOPBACK}:{first + n}\n"
        wait_until(lambda shown=shown: shown in client.out, shown)  # type: ignore[misc]
    for service in services:
        service.stop()


def test_a_thousand_ports_are_back_soon_after_a_restart_of_the_server(plain_tunnels: Tunnels) -> None:
    server, server_port = plain_tunnels.server()
    mappings = [f"{port}:{port}" for port in (free_port() for _ in range(THOUSAND))]
    plain_tunnels.client(server_port, *mappings, wait=False)
    wait_until(lambda: server.status()["proxies"] == THOUSAND, "all are open")
    server.kill()
    again, _ = plain_tunnels.server(port=server_port)
    wait_until(lambda: again.status()["proxies"] == THOUSAND, "all are back", SOON_S)  # 1.3 s when idle


def test_more_ports_than_a_server_takes_are_one_error(plain_tunnels: Tunnels) -> None:
    _, server_port = plain_tunnels.server("--max-proxies", "10")
    client, _ = plain_tunnels.client(server_port, "16384-32767:16384-32767", wait=False)
    assert client.wait_exit() == 1
    assert "16384 ports to forward: this server takes 10 of one client" in client.log
    assert "trying again" not in client.log


def test_file_with_several_proxies_shows_them_in_one_block(plain_tunnels: Tunnels, tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    with Service(answer_with(b"web")) as web, Service(answer_with(b"db")) as database:
        _, server_port = plain_tunnels.server()
        path.write_text(
            f'server-addr = "{LOOPBACK}:{server_port}"\n'
            f'[[proxys]]\nproxy-name = "web"\nlocal-port = {web.port}\n'
            f'[[proxys]]\nproxy-name = "database"\nlocal-port = {database.port}\n'
        )
        client = plain_tunnels.run("client", "-c", str(path), env={"GNAR_TOKEN": TOKEN})
        client.wait_log("open at", count=2)
        wait_until(lambda: client.out.count("->") == 2, "the block is shown")
        shown = dict(
            re.findall(rf"^  (\w+) +{LOOPBACK}:(\d+)  ->  {LOOPBACK}:\d+$", client.out, re.MULTILINE)
        )
        assert ask(int(shown["web"])) == b"web"
        assert ask(int(shown["database"])) == b"db"


def test_port_that_one_client_holds_is_taken_for_another_until_it_goes(
    echo_tunnel: Tunnel, plain_tunnels: Tunnels
) -> None:
    address = ("-l", str(echo_tunnel.service.port), "-r", str(echo_tunnel.port))
    other, _ = plain_tunnels.client(echo_tunnel.server_port, *address, wait=False)
    other.wait_log(f"port {echo_tunnel.port} is taken; trying again in")
    assert ask(echo_tunnel.port) == b"ping"
    assert echo_tunnel.client.stop() == 0
    other.wait_log("open at")
    assert ask(echo_tunnel.port) == b"ping"
