"""`gnar http`: what its command line means, and what file and variables add to that; `gnar` alone."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from gnar_lib import cmd
from gnar_lib.config import Address, ClientConfig, ProxyConfig
from gnar_lib.config.model import LOOPBACK

FILE = """
server-addr = "example.com:7000"
token = "s3cret"
admin-port = 8911
inspect-bodies = "1kb"

[[proxys]]
local-port = 5000
subdomain = "other"

[[hooks]]
events = ["connected"]
command = ["true"]
"""


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[ClientConfig]:
    """Replace what runs a client, and return the settings that it was called with."""
    configs: list[ClientConfig] = []

    def run(load: Callable[[], ClientConfig], *, has_file: bool) -> int:
        assert isinstance(has_file, bool)
        configs.append(load())
        return 0

    monkeypatch.setattr("gnar_lib.client.serve.run_client", run)
    return configs


def http(loaded: list[ClientConfig], line: str) -> tuple[ClientConfig, ProxyConfig]:
    """Return the settings of a command line, and those of its one proxy."""
    assert cmd.main(["http", *shlex.split(line)]) == 0
    config = loaded.pop()
    (proxy,) = config.proxies
    assert proxy.proxy_type == "http"
    return config, proxy


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("3000", "", 3000),
        ("web.local:8080", "web.local", 8080),
        ("127.0.0.2:80", "127.0.0.2", 80),
        ("[::1]:8080", "::1", 8080),
        ("http://localhost:3000/", "localhost", 3000),
        ("http://web.local", "web.local", 80),
        ("http://3000", "", 3000),
    ],
)
def test_target_is_a_port_or_an_address(
    loaded: list[ClientConfig], target: str, host: str, port: int
) -> None:
    _, proxy = http(loaded, target)
    assert (proxy.local_host, proxy.local_port, proxy.remote_port) == (host, port, 0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("", ""),
        ("--name blog", "blog"),
        ("-n Blog", "blog"),
        ("--name ''", ""),
        ("-n www.x.org", "www.x.org"),
    ],
)
def test_name_is_the_one_that_is_given_or_the_servers_choice(
    loaded: list[ClientConfig], options: str, name: str
) -> None:
    assert http(loaded, f"3000 {options}")[1].subdomain == name


@pytest.mark.parametrize(
    ("options", "address"),
    [("", Address(LOOPBACK, 0)), ("--inspect 5000", Address(LOOPBACK, 5000)), ("--inspect off", None)],
)
def test_requests_are_shown_unless_that_is_turned_off(
    loaded: list[ClientConfig], options: str, address: Address | None
) -> None:
    assert http(loaded, f"3000 {options}")[0].inspect == address


def test_settings_of_the_web_and_of_the_client_are_taken(loaded: list[ClientConfig]) -> None:
    options = "--path /api --host-header local --redirect-https --allow-from 192.0.2.0/24 --max-users 5 -m"
    config, proxy = http(loaded, f"3000 -s example.com -t abc --plain {options}")
    assert (proxy.path, proxy.host_header, proxy.redirect_https) == ("/api", "local", True)
    assert (proxy.allow_from, proxy.max_users) == (("192.0.2.0/24",), 5)
    assert (config.server, config.token.reveal()) == (Address("example.com", 8910), "abc")
    assert (config.multiplex, config.plain) == (True, True)


def test_password_becomes_a_hash_before_it_leaves(loaded: list[ClientConfig]) -> None:
    (user,) = http(loaded, "3000 --basic-auth mary:s3cret")[1].basic_auth
    assert "s3cret" not in repr(user)


def test_file_says_where_the_server_is_and_nothing_of_the_service(
    loaded: list[ClientConfig], tmp_path: Path
) -> None:
    path = tmp_path / "client.toml"
    path.write_text(FILE)
    config, proxy = http(loaded, f"3000 -c {path}")
    assert (config.server, config.token.reveal()) == (Address("example.com", 7000), "s3cret")
    assert (proxy.local_port, proxy.subdomain) == (3000, "")
    assert (config.admin.port, config.hooks) == (0, ())
    assert config.inspect_bodies == 1024


def test_variables_count_but_for_those_that_name_another_service(
    loaded: list[ClientConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SERVER_ADDR": "example.com:7000",
        "TOKEN": "s3cret",
        "SPEED_LIMIT": "1kb",
        "INSPECT": "5000",
        "LOCAL_PORT": "5000",
        "LOCAL_HOST": "other.local",
        "REMOTE_PORT": "9000",
        "SUBDOMAIN": "other",
        "PROXY_TYPE": "udp",
        "PROXY_NAME": "other",
        "PATH": "other",
        "ADMIN_PORT": "8911",
    }.items():
        monkeypatch.setenv(f"GNAR_{name}", value)
    config, proxy = http(loaded, "3000")
    assert (config.server, config.token.reveal()) == (Address("example.com", 7000), "s3cret")
    assert (proxy.local_host, proxy.local_port, proxy.remote_port) == ("", 3000, 0)
    assert (proxy.subdomain, proxy.path, proxy.proxy_name) == ("", "", "http-3000")
    assert proxy.speed_limit.up == 1024
    assert config.admin.port == 0
    assert config.inspect == Address(LOOPBACK, 5000)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("web", "target: 'web': expected a port such as 3000, or an address such as web.local:8080"),
        ("0", "target: '0': expected a port from 1 to 65535"),
        ("''", "target: '': expected a port such as 3000, or an address such as web.local:8080"),
        (
            "https://x",
            "target: 'https://x': expected a service without TLS; `gnar client` publishes one that has TLS",
        ),
        ("http://x/y", "target: 'x/y': expected an address such as example.com:8910"),
        ("", "the arguments do not fit: gnar http <target> [options]; see gnar http --help"),
        ("3000 4000", "the arguments do not fit: gnar http <target> [options]; see gnar http --help"),
        ("3000 --nam x --remote-port 1", "unknown option --remote-port; see gnar http --help"),
    ],
)
def test_wrong_line_is_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], loaded: list[ClientConfig], line: str, said: str
) -> None:
    assert cmd.main(["http", *shlex.split(line)]) == 2
    assert capsys.readouterr() == ("", f"gnar: {said}\n")
    assert loaded == []


def test_wrong_name_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cmd.main(["http", "3000", "--name", "a..b"]) == 2
    assert capsys.readouterr().err.startswith("gnar: --name: 'a..b': expected ")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_gnar_alone_asks_nothing_unless_input_and_output_are_terminals(
    monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    written = _Terminal() if stream == "stdout" else io.StringIO()
    monkeypatch.setattr("sys.stdin", _Terminal() if stream == "stdin" else io.StringIO())
    monkeypatch.setattr("sys.stdout", written)
    assert cmd.main([]) == 2
    assert written.getvalue().startswith("gnar: reach a service")
