"""A relay whose target is behind a proxy, in gnar's spelling and in socat's."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gnar_lib import net
from gnar_lib.config.model import ProxyServer, Secret
from gnar_lib.errors import ConnError, UsageError
from gnar_lib.relay import RelaySettings, Role, parse_address, run_relay
from gnar_lib.relay.proxy_options import Through
from gnar_lib.relay.serve import is_loop
from gnar_lib.transport.tls import TlsConn
from tests.helpers.harness import free_port, is_open
from tests.helpers.loop import wait_until
from tests.helpers.proxies import microsocks, tinyproxy
from tests.helpers.relays import TIMEOUT_S, Service, dial, relaying, serving
from tests.helpers.tls import certificate, server_context

LOOPBACK = "127.0.0.1"
PASSWORD = "open,sesame"
OK = b"HTTP/1.1 200 OK\r\n\r\n"

needs_programs = pytest.mark.skipif(
    not all(map(shutil.which, ("tinyproxy", "microsocks", "socat"))), reason="needs proxies and socat"
)


def proxy(kind: str, host: str, port: int, user: str = "", password: str = "") -> ProxyServer:
    return ProxyServer(kind, host, port, user, Secret(password))


@pytest.mark.parametrize(
    ("text", "through"),
    [
        ("tcp:db:5432,proxy=http://p:3128", Through(proxy("http", "p", 3128))),
        ("tcp:db:5432,proxy=https://p", Through(proxy("https", "p", 443))),
        ("TCP:db:5432,proxy=socks5h://[::1]", Through(proxy("socks5h", "::1", 1080))),
        ("tls:db:5432,verify=0,proxy=socks5://u:w@p", Through(proxy("socks5", "p", 1080, "u", "w"))),
        (
            "tcp:db:5432,proxy=http://u:a%2Cb%40c%3Ad@p,nodelay",
            Through(proxy("http", "p", 80, "u", "a,b@c:d")),
        ),
        ("tcp:db:5432,proxy='http://u:a,b@p:1',nodelay", Through(proxy("http", "p", 1, "u", "a,b"))),
        ("tcp:db:5432,proxy=http://p,proxyauthfile=/x:y", Through(proxy("http", "p", 80), "/x:y")),
        ("PROXY:p:db:5432", Through(proxy("http", "p", 8080))),
        ("proxy-connect:[::1]:db:5432,proxyport=3128", Through(proxy("http", "::1", 3128))),
        ("PROXY:p:db:5432,proxyport=http,ignorecr", Through(proxy("http", "p", 80))),
        ("PROXY:p:db:5432,proxyauth=u:v:w", Through(proxy("http", "p", 8080, "u", "v:w"))),
        ("PROXY:p:db:5432,proxy-authorization-file=f", Through(proxy("http", "p", 8080), "f")),
        ("PROXY:p:db:5432,resolve", Through(proxy("http", "p", 8080), looks_up_here=True)),
        ("SOCKS5-CONNECT:p:1081:db:5432", Through(proxy("socks5h", "p", 1081))),
        ("SOCKS5:p:db:5432", Through(proxy("socks5h", "p", 1080))),
        ("SOCKS5:p:db:5432,socksport=1081", Through(proxy("socks5h", "p", 1081))),
    ],
)
def test_a_target_names_the_proxy_on_the_way(text: str, through: Through) -> None:
    address = parse_address(text, Role.TARGET)
    assert (address.through, address.host, address.port) == (through, "db", 5432)
    assert str(address) in ("tcp:db:5432", "tls:db:5432")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tcp:db:1,proxy=http://u:secret@p:99999", r"option 'proxy=\*\*\*' is wrong: .*port from 1 to 65535"),
        (
            "tcp:db:1,nodelay=7,proxy=http://u:secret@p",
            r"nodelay=7,proxy=\*\*\*: option 'nodelay=7'",
        ),
        ("tcp:db:1,proxy=ftp://u:secret@p", r"expected off, or the URL of a proxy"),
        ("tcp:db:1,proxy=off", r"leave it out to go without a proxy"),
        ("tcp:db:1,http://u:secret@p", r"option 'http://\*\*\*@p' is not supported here"),
        ("tcp:db:1,proxi=http://u:secret@p", r"did you mean proxy\?"),
        ("PROXY:p:db:1,proxyauth=secret", r"option 'proxyauth=\*\*\*' is not of the form user:password"),
        ("PROXY:p:db:1,proxyauth=u:secret\udcff", r"option 'proxyauth=\*\*\*' is wrong: .* in UTF-8"),
        ("PROXY:p:db:1,proxyauth=u:secret,proxy=http://q", r"option 'proxy' is not supported here"),
        ("PROXY:p:db:1,proxyport=nosuchport", r"'nosuchport' is not a port"),
        ("PROXY:p:1", r"behind the keyword comes PROXY:HOST:PORT"),
        ("PROXY:p:3128:db:1", r"behind the keyword comes PROXY:HOST:PORT"),
        ("SOCKS5:p:1:2:db:1", r"behind the keyword comes PROXY\[:PORT\]:HOST:PORT"),
        ("SOCKS5:p:db:0", r"port 0 is out of range"),
        ("tcp:db:1,proxyauthfile=x", r"option 'proxyauthfile' needs option 'proxy'"),
        ("udp:db:1,proxy=http://u:secret@p", r"option 'proxy' is not supported here \(it belongs to other"),
        ("unix:/x,proxy=http://u:secret@p", r"option 'proxy' is not supported here"),
    ],
)
def test_a_wrong_proxy_is_refused_and_no_password_is_shown(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_address(text, Role.TARGET)
    assert "secret" not in str(caught.value)


def test_no_password_is_shown_when_the_addresses_do_not_go_together() -> None:
    target = "tcp:db:1,proxy=http://u:secret@p"
    with pytest.raises(UsageError, match=r"udp:0 and tcp:db:1,proxy=\*\*\*: one is for connections"):
        run_relay("udp:0", target, RelaySettings(grace_s=0))
    with pytest.raises(UsageError, match="does not listen"):
        parse_address("PROXY:p:db:1", Role.LISTEN)


def test_a_target_behind_a_proxy_is_not_the_relay_itself() -> None:
    listen = parse_address("tcp:9000", Role.LISTEN)
    assert is_loop(listen, parse_address("tcp:localhost:9000", Role.TARGET))
    assert not is_loop(listen, parse_address("tcp:localhost:9000,proxy=http://p", Role.TARGET))


# ---- running -----------------------------------------------------------------------------------------------


def echo(conn: net.Conn) -> None:
    try:
        while data := conn.recv(1000):
            conn.sendall(data)
    finally:
        conn.close()


def port_of(service: Service) -> int:
    return int(service.address.rsplit(":", 1)[1])


@contextmanager
def asked(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Run a proxy that gives those answers, and then sends back what comes.

    Yields its port, and what it is asked.
    """
    questions: list[bytes] = []

    def run(conn: net.SocketConn) -> None:
        for answer in answers:
            questions.append(conn.recv(1000))
            conn.sendall(answer)
        echo(conn)

    with serving(run) as service:
        yield port_of(service), questions


def says(user: net.Conn, data: bytes = b"hello") -> bool:
    """Tell whether the same bytes come back."""
    user.sendall(data)
    return net.recv_exactly(user, len(data)) == data


@pytest.mark.parametrize(
    ("target", "answers", "questions"),
    [
        ("tcp:db:1,proxy=http://localhost:{}", [OK], [b"CONNECT db:1 HTTP/1.1\r\nHost: db:1\r\n\r\n"]),
        (
            "PROXY:localhost:localhost:1,proxyport={},resolve,pf=ip4",
            [OK],
            [b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n"],
        ),
        (
            "SOCKS5:localhost:{}:db:1",
            [b"\5\0", b"\5\0\0\1\0\0\0\0\0\0"],
            [b"\5\1\0", b"\5\1\0\3\2db\0\1"],
        ),
    ],
)
def test_users_are_carried_through_a_proxy(target: str, answers: list[bytes], questions: list[bytes]) -> None:
    with asked(*answers) as (port, seen), relaying("tcp:127.0.0.1:0", target.format(port)) as running:
        with closing(dial(running)) as user:
            assert says(user)
        assert seen == questions


def test_the_login_comes_from_a_file_that_is_read_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "login"
    file.write_text("user:open sesame\nmore\n")
    with asked(OK) as (port, seen):
        target = f"tcp:db:1,proxy=http://localhost:{port},proxyauthfile={file}"
        with relaying("tcp:127.0.0.1:0", target) as running:
            file.unlink()
            with closing(dial(running)) as user:
                assert says(user)
        assert b"\r\nProxy-Authorization: Basic dXNlcjpvcGVuIHNlc2FtZQ==\r\n" in seen[0]


@pytest.mark.parametrize("content", [None, b"", b"nobody", b":password", b"\xff:\xff"])
def test_a_file_without_a_login_is_one_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "login"
    if content is not None:
        file.write_bytes(content)
    with (
        pytest.raises(UsageError, match=r"login: (cannot read it|its first line is not)"),
        relaying("tcp:127.0.0.1:0", f"tcp:db:1,proxy=http://localhost:1,proxyauthfile={file}"),
    ):
        pass


def test_variables_name_no_proxy_for_a_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://localhost:1")
    with (
        serving(echo) as service,
        relaying("tcp:127.0.0.1:0", service.address) as running,
        closing(dial(running)) as user,
    ):
        assert says(user)


def test_a_user_is_reset_and_the_log_says_why_when_the_proxy_refuses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\n\r\n"
    with asked(refusal) as (port, _):
        target = f"tcp:db:1,proxy=http://user:{PASSWORD.replace(',', '%2C')}@localhost:{port}"
        with (
            relaying("tcp:127.0.0.1:0", target) as running,
            closing(dial(running)) as user,
            pytest.raises(ConnError),
        ):
            net.recv_exactly(user, 1)
    assert (
        f"the proxy http://localhost:{port} does not allow a connection to db:1 (403 Forbidden)"
        in caplog.text
    )
    assert "users are turned away" in caplog.text
    assert "sesame" not in caplog.text


@needs_programs
@pytest.mark.parametrize("program", ["socat", "gnar"])
def test_socats_address_of_a_proxy_means_the_same_to_both(tmp_path: Path, program: str) -> None:
    with (
        serving(echo) as service,
        tinyproxy(tmp_path, [port_of(service)], "user pass") as at,
    ):
        target = f"PROXY:{LOOPBACK}:{LOOPBACK}:{port_of(service)},proxyport={at},proxyauth=user:pass"
        if program == "gnar":
            with relaying("tcp:127.0.0.1:0", target) as running, closing(dial(running)) as user:
                assert says(user)
            return
        port = free_port()
        process = subprocess.Popen(["socat", f"TCP-LISTEN:{port},bind={LOOPBACK},fork,reuseaddr", target])
        try:
            wait_until(lambda: is_open(port), "socat listens")
            with closing(net.dial(socket.AF_INET, (LOOPBACK, port))) as user:
                assert says(user)
        finally:
            process.kill()
            process.wait(TIMEOUT_S)


@needs_programs
def test_tls_with_the_target_goes_through_a_real_socks_proxy() -> None:
    def run(conn: net.SocketConn) -> None:
        echo(TlsConn.accept(conn, server_context()))

    with serving(run) as service, microsocks("user opensesame") as at:
        port = port_of(service)
        target = f"tls:localhost:{port},cafile={certificate()},pf=ip4,proxy=socks5://user:opensesame@localhost:{at}"
        with relaying("tcp:127.0.0.1:0", target) as running, closing(dial(running)) as user:
            assert says(user, b"x" * 10_000)
