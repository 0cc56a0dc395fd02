"""Clients that reach their server through a real proxy, and what `--check` says of the way."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.conns import MIB
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    Gnar,
    Service,
    Tunnels,
    connections_to,
    dial,
    echo,
    exchange_both_ways,
)
from tests.helpers.proxies import microsocks, tinyproxy

needs_tinyproxy = pytest.mark.skipif(not shutil.which("tinyproxy"), reason="needs tinyproxy")
needs_microsocks = pytest.mark.skipif(not shutil.which("microsocks"), reason="needs microsocks")

PASSWORD = "opensesame"


@needs_tinyproxy
def test_everything_goes_through_an_http_proxy_by_one_connection_which_ends_no_user_too_early(
    default_tunnels: Tunnels, tmp_path: Path
) -> None:
    _, port = default_tunnels.server()
    with tinyproxy(tmp_path, [port], f"user {PASSWORD}") as at, Service(echo) as service:
        proxy = f"http://user:{PASSWORD}@{LOOPBACK}:{at}"
        client, public = default_tunnels.client(port, "--proxy", proxy, "-l", str(service.port), "-r", "0")
        data = os.urandom(MIB) * 4
        assert exchange_both_ways(public, data) == hashlib.sha256(data).hexdigest()
        assert f"CONNECT {LOOPBACK}:{port} HTTP/1.1" in (tmp_path / "tinyproxy.log").read_text()
        assert connections_to(client.pid, at) == 1
        assert PASSWORD not in client.log


@needs_microsocks
def test_data_connections_go_through_a_socks_proxy_as_well(plain_tunnels: Tunnels) -> None:
    _, port = plain_tunnels.server()
    with microsocks() as at, Service(echo) as service:
        args = ("--proxy", f"socks5h://{LOOPBACK}:{at}", "-l", str(service.port), "-r", "0")
        client, public = plain_tunnels.client(port, *args)
        with dial(public) as user:
            user.sendall(b"hello")
            assert user.recv(5) == b"hello"
        assert connections_to(client.pid, at) > 1
        assert connections_to(client.pid, port) == 0


@needs_tinyproxy
def test_check_says_how_the_proxy_stands_and_a_client_without_a_login_ends(
    default_tunnels: Tunnels, tmp_path: Path
) -> None:
    _, port = default_tunnels.server()
    with tinyproxy(tmp_path, [port], f"user {PASSWORD}") as at, Service(echo) as service:
        url = f"{LOOPBACK}:{at}"

        def check(login: str) -> Gnar:
            args = (f"{LOOPBACK}:{port}", f"{service.port}:0", "--check", "--proxy", f"http://{login}@{url}")
            return default_tunnels.run("client", *args, env={"GNAR_TOKEN": TOKEN})

        good, bad = check(f"user:{PASSWORD}"), check("user:wrong")
        args = ("-s", f"{LOOPBACK}:{port}", "-l", str(service.port), "--proxy", f"http://{url}")
        refused = default_tunnels.run("client", *args)
        assert good.wait_exit() == 0
        assert re.search(rf"ok +reach +connected to {LOOPBACK}:{port} through http://{url} in ", good.out)
        assert "is left to the proxy" in good.out
        assert re.search(r"ok +round trip +\S+ m?s to open a tunnel", good.out)
        assert re.search(r"ok +token", good.out)
        assert bad.wait_exit() == 1
        assert re.search(
            rf"wrong +reach +the proxy http://{url} does not take this user or password", bad.out
        )
        assert "--proxy off" in bad.out
        assert refused.wait_exit() == 1
        assert f"the proxy http://{url} wants a user and a password" in refused.log
        assert PASSWORD not in good.out + good.log + bad.out + bad.log
