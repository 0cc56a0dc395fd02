"""`--check`: what is right and what is wrong with client, server and all between them, in a line each."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gnar_lib import auth, cmd
from gnar_lib.checklist import Checklist, try_admin
from gnar_lib.client import check as client_check
from gnar_lib.config import (
    Address,
    AdminConfig,
    ClientConfig,
    ProxyConfig,
    Secret,
    ServerConfig,
)
from gnar_lib.config.model import ProxyServer
from gnar_lib.errors import AuthError
from gnar_lib.proto import Login, ProxyReq, ProxyResp, to_frame
from gnar_lib.server import check as server_check
from gnar_lib.server.check_tls import TlsCheck
from gnar_lib.transport.identity import load_or_make
from tests.helpers.harness import (
    LOOPBACK,
    TOKEN,
    WAIT_S,
    Forwarder,
    Gnar,
    Service,
    ask,
    echo,
    free_port,
    free_ports,
    is_open,
    read_until,
    wait_until,
)
from tests.peers.go_server import GoServer
from tests.peers.plain import recv_message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLOCK_OFF_S = 300
HOOK = f'[[hooks]]\nevents = ["stopping"]\nurl = "http://{LOOPBACK}:1/"\n'


class Checks:
    """Starts checks, which run side by side, and servers; ends them all."""

    def __init__(self, pyz: Path, folder: Path) -> None:
        self._pyz = pyz
        self._folder = folder
        self.started: list[Gnar] = []

    def run(self, *words: object, token: str = TOKEN) -> Gnar:
        env = {"GNAR_TOKEN": token} if token else {}
        process = Gnar(self._pyz, self._folder, *map(str, words), env=env)
        self.started.append(process)
        return process

    def client(self, server: int, *words: object, token: str = TOKEN) -> Gnar:
        """Start to check a client."""
        return self.run("client", f"{LOOPBACK}:{server}", *words, "--check", token=token)

    def server(self, *words: object, bind: str = LOOPBACK) -> tuple[Gnar, int]:
        """Start a real server, and return it with its control port."""
        port = free_port()
        server = self.run("server", port, "--bind", bind, *words)
        server.wait_log("listening on port")
        return server, port


@pytest.fixture
def checks(gnar_pyz: Path, tmp_path: Path) -> Iterator[Checks]:
    made = Checks(gnar_pyz, tmp_path / "processes")
    yield made
    for process in made.started:
        process.end()


def found(check: Gnar, status: int) -> dict[str, list[str]]:
    """Wait for the end of a check, and return what it has said of each thing: verdict and text."""
    assert check.wait_exit() == status, check.out
    assert check.log == ""
    said: dict[str, list[str]] = {}
    for line in check.out.splitlines():
        parts = re.fullmatch(r"(ok|warn|wrong|skip) +(\S.*?) {2,}(.*)", line)
        assert parts, line
        said.setdefault(parts[2], []).append(f"{parts[1]} {parts[3]}")
    return said


def fits(pattern: str, texts: list[str]) -> bool:
    return any(re.fullmatch(pattern, text) for text in texts)


# ---- a client ----------------------------------------------------------------------------------------------

NUMBER = r"[\d.]+"


def test_where_all_is_right_each_line_says_so_and_nothing_is_left(checks: Checks) -> None:
    server, server_port = checks.server()
    port, mux_port, udp_port = free_port(), free_port(), free_port()
    with Service(echo) as service:
        plain = checks.client(server_port, f"{service.port}:{port}")
        multiplexed = checks.client(server_port, f"{service.port}:{mux_port}", "-m")
        udp = checks.client(server_port, f"{service.port}:{udp_port}", "-y", "udp")
        for check, number in ((plain, port), (multiplexed, mux_port)):
            said = found(check, 0)
            assert fits(rf"ok tcp-\d+: {LOOPBACK}:{service.port} answers in {NUMBER} m?s", said["service"])
            assert fits(rf"ok connected to {LOOPBACK}:{server_port} in {NUMBER} m?s", said["reach"])
            reached = rf"users reach it \({NUMBER} m?s and back\)"
            assert fits(rf"ok tcp-\d+: tcp port {number} is allowed and free, and {reached}", said["port"])
            rates = f"gets {NUMBER} MiB/s and sends {NUMBER} MiB/s"
            assert fits(f"ok a user here {rates}, through the server and back", said["throughput"])
            assert said["token"] == ["ok the server takes it, and has proven that it knows it, too"]
            assert fits(
                r"ok TLS 1\.3 with certificate [0-9a-f]{16}\.\.\., which the token proves", said["tls"]
            )
            assert said["clock"] == ["ok as the server's"]
            assert ("multiplex" in said) == (check is multiplexed)
        said = found(udp, 0)
    assert fits(r"skip udp-\d+: \S+ is UDP, so nobody can tell whether it answers", said["service"])
    assert fits(rf"ok udp-\d+: udp port {udp_port} is allowed and free, and users reach .*", said["port"])
    server.wait_idle(clients=0, proxies=0, waiting=0)
    assert not is_open(port)


def test_each_thing_that_is_wrong_is_said_and_a_client_that_runs_is_not_disturbed(checks: Checks) -> None:
    first, forbidden = free_ports(4), free_port()
    server, server_port = checks.server("--allow-ports", f"{first}-{first + 3}")
    with socket.create_server((LOOPBACK, first + 1)), Service(echo) as service:
        mine = checks.run("client", f"{LOOPBACK}:{server_port}", f"{service.port}:{first}")
        mine.wait_log("open at")
        mappings = [f"{service.port}:{port}" for port in (first, first + 1, first + 2, forbidden)]
        said = found(checks.client(server_port, *mappings, "1:0"), 1)
        own = "a client from this address with the same token has it: yours, if it is running"
        assert {text.partition(": ")[2] for text in said["port"] if not text.startswith("ok")} == {
            f"tcp port {first}: {own}",
            f"port {first + 1} is taken; choose another, or free it",
            f"port {forbidden} is not allowed (allowed: {first}-{first + 3})",
        }
        assert [text.partition(" ")[0] for text in sorted(said["port"])] == [
            "ok",
            "ok",
            "skip",
            "wrong",
            "wrong",
        ]
        assert ask(first) == b"ping"
    assert sum(text.startswith("ok") for text in said["service"]) == 4
    assert fits(r"wrong tcp-1: cannot connect to .*: Connection refused; is it running\? .*", said["service"])
    assert said["throughput"][0].startswith("ok ")
    server.wait_idle(clients=1, proxies=1)
    assert mine.stop() == 0


def test_users_who_cannot_get_to_a_port_are_what_is_wrong(checks: Checks) -> None:
    _, server_port = checks.server(bind="127.0.0.2")
    port = free_port()
    with Service(echo) as service:
        way = Forwarder(server_port, "127.0.0.2")
        said = found(checks.client(way.port, f"{service.port}:{port}"), 1)
    assert fits(
        rf"wrong \S+: tcp port {port} is allowed and free, but users cannot reach it from here: "
        rf"cannot connect to {LOOPBACK}:{port}: Connection refused; does a firewall .*",
        said["port"],
    )
    assert fits(
        r"skip not measured: users cannot reach tcp port \d+, which the server .*", said["throughput"]
    )


def test_a_server_that_is_not_there_or_not_gnar_or_not_ours_is_told_apart(
    checks: Checks, tmp_path: Path
) -> None:
    file = tmp_path / "client.toml"
    file.write_text(HOOK)
    _, server_port = checks.server()

    def page(conn: socket.socket) -> None:
        conn.recv(4096)
        conn.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    with Service(page) as web:
        wrong_token = checks.client(server_port, "1:0", token="wrong")
        no_token = checks.client(server_port, "1:0", token="")
        nobody = checks.client(free_port(), "1:0")
        no_name = checks.run("client", "a..b", "1:0", "--check", "-c", file)
        no_gnar = checks.client(web.port, "1:0")
        advice = "is GNAR_TOKEN that of the server, and is it yours?"
        assert found(wrong_token, 1)["token"] == [
            f"wrong the server refused the login: wrong token; {advice}"
        ]
        said = found(no_token, 1)
        assert said["gnar"] == ["ok a gnar server answers"]
        assert said["token"] == [
            "wrong the server refused the login: a token is needed (this client has no token: set GNAR_TOKEN)"
        ]
        assert said["service"][0].startswith("wrong tcp-1: ")
        assert fits(
            "wrong cannot connect to .*: Connection refused; is the server .*", found(nobody, 1)["reach"]
        )
        said = found(no_name, 1)
        assert fits("wrong cannot resolve 'a..b': .*", said["name"])
        assert said["hook"] == [f"ok {LOOPBACK}:1 has an address; nothing is posted"]
        assert said["service"]
        assert fits(
            "wrong no gnar server at .*: this is HTTP; are address and port .*", found(no_gnar, 1)["gnar"]
        )


@pytest.mark.parametrize(
    ("host", "encryption", "proof", "line"),
    [
        (
            "a.test",
            "TLS 1.2",
            "the token",
            r"ok TLS 1\.2 with certificate a{16}\.\.\., which the token proves",
        ),
        (
            "a.test",
            "TLS 1.3",
            "",
            f"warn TLS 1.3, but nobody knows whether it is .* --fingerprint {'a' * 64}",
        ),
        ("a.test", "", "", "warn off: whoever is on the way can read and change everything"),
        (LOOPBACK, "", "", "ok off, and all stays on this machine"),
    ],
)
def test_what_encrypts_the_connection_and_who_proves_that_is_told(
    host: str, encryption: str, proof: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ClientConfig(server=Address(host, 1), proxies=(ProxyConfig("web", 1),))
    control: Any = SimpleNamespace(encryption=encryption, proof=proof, certificate="a" * 64)
    client_check.ClientCheck(config, "", Checklist())._tell_encryption(control)
    assert re.fullmatch(line, re.sub(" +", " ", capsys.readouterr().out.rstrip()).replace(" tls ", " ", 1))


def test_what_is_without_tls_through_a_proxy_does_not_stay_on_this_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # localhost is the proxy's own machine then.
    way = ProxyServer("socks5h", LOOPBACK, 1080)
    config = ClientConfig(Address("localhost", 1), (ProxyConfig("web", 1),), tls="off", proxy=way)
    control: Any = SimpleNamespace(encryption="", proof="", certificate="")
    client_check.ClientCheck(config, "", Checklist())._tell_encryption(control)
    assert capsys.readouterr().out.startswith("warn   tls          off: whoever is on the way can read")


def test_a_client_whose_md5_login_proves_no_server_is_not_told_to_get_a_token(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = ClientConfig(Address("a.test", 1), (ProxyConfig("web", 1),), Secret("x"), auth="md5", tls="on")
    control: Any = SimpleNamespace(encryption="TLS 1.3", proof="", certificate="a" * 64)
    client_check.ClientCheck(config, "", Checklist())._tell_encryption(control)
    said = f"leave --auth md5 out, or give this one --fingerprint {'a' * 64}\n"
    assert capsys.readouterr().out.endswith(said)


@pytest.mark.parametrize(
    ("auth_kind", "tls", "asks_for_token"),
    [("hmac", "", True), ("hmac", "off", False), ("md5", "", False), ("md5", "on", False)],
)
def test_a_refusal_of_a_login_that_may_be_for_its_kind_is_not_blamed_on_the_token(
    auth_kind: str, tls: str, asks_for_token: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ClientConfig(Address("a.test", 1), (ProxyConfig("web", 1),), Secret("x"), auth_kind, tls)
    client_check.ClientCheck(config, "", Checklist())._tell_refused(AuthError("this server says no"), None)
    assert ("is GNAR_TOKEN that of the server" in capsys.readouterr().out) == asks_for_token


def test_who_answers_in_place_of_a_gnar_server_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def patient_page(conn: socket.socket) -> None:
        read_until(conn, b"\r\n\r\n")
        conn.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

    def health(conn: socket.socket) -> None:
        read_until(conn, b"\r\n\r\n")
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")

    monkeypatch.setattr(client_check, "PROBE_S", 0.2)
    with Service(health) as gnar:
        config = ClientConfig(server=Address(LOOPBACK, gnar.port), proxies=(ProxyConfig("web", 1),))
        assert "a gnar server answers" in client_check.ClientCheck(config, "", Checklist())._who_answers()
    with Service(patient_page) as web:
        server = Address(LOOPBACK, web.port)
        config = ClientConfig(server=server, proxies=(ProxyConfig("web", 1),))
        check = client_check.ClientCheck(config, "", Checklist())
        monkeypatch.setattr("gnar_lib.health.check", lambda *_: time.sleep(0))
        assert "a gnar server answers" in check._who_answers()
        monkeypatch.undo()
        monkeypatch.setattr(client_check, "PROBE_S", 0.2)
        assert check._who_answers() == "this is a web server, not a gnar server"


def test_a_check_that_is_interrupted_says_so_in_one_line(checks: Checks) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        check = checks.client(silent.getsockname()[1], "1:0")
        wait_until(lambda: "round trip" in check.out, "the login is under way")
        check.signal(signal.SIGINT)
        assert check.wait_exit() == 1
        assert check.log == "gnar: interrupted: not everything was checked\n"


@pytest.mark.parametrize(
    ("told", "clock"),
    [
        (0, r"warn the server's is (299|30\d) s behind this one: .*"),
        (999_999_999_999_999_999, "warn the time that the server tells makes no sense"),
    ],
)
def test_what_an_older_server_with_another_clock_lacks_is_said(checks: Checks, told: int, clock: str) -> None:
    def serve(conn: socket.socket) -> None:
        if not conn.recv(1, socket.MSG_PEEK):
            return  # somebody who only looks whether the port is open
        login = recv_message(conn)
        assert isinstance(login, Login)
        ours = auth.ServerLogin(Secret(TOKEN), "any", login, clock=lambda: time.time() - CLOCK_OFF_S)
        conn.sendall(to_frame(ours.challenge()))
        recv_message(conn)
        _, welcome = ours.welcome()
        conn.sendall(to_frame(replace(welcome, features=("wait",), time=told or welcome.time)))
        while conn.recv(1, socket.MSG_PEEK):
            if isinstance(message := recv_message(conn), ProxyReq):
                answer = ProxyResp("", "failed", "no\x1b[31m", proxy_name=message.proxy_name)
                conn.sendall(to_frame(answer))

    with Service(serve) as server:
        said = found(checks.client(server.port, "1:0", "-m", "--tls", "off"), 1)
    assert fits("wrong the server does not multiplex: .*", said["multiplex"])
    assert fits(clock, said["clock"])
    assert said["port"] == ["wrong tcp-1: no\\x1b[31m"]
    assert said["throughput"] == ["skip not measured: no\\x1b[31m"]


def test_a_go_server_is_tried_with_a_connection_for_each_port(checks: Checks) -> None:
    port, taken = free_port(), free_port()
    server = GoServer(refused=(taken,))
    with Service(echo) as service:
        check = checks.client(
            server.port, "--auth", "md5", f"{service.port}:{taken}", f"{service.port}:{port}"
        )
        said = found(check, 1)
    server.close()
    assert said["gnar"] == ["ok a Go server answers"]
    assert said["tls"] == ["ok off, and all stays on this machine"]
    assert said["token"] == ["ok the server takes it, by md5"]
    assert said["clock"][0].startswith(
        "skip the server does not tell its time; it takes md5 logins within 15"
    )
    assert fits(rf"wrong \S+: the server refused tcp port {taken} \(a Go server does not .*", said["port"])
    assert fits(rf"ok \S+: tcp port {port} is allowed and free, and users reach it .*", said["port"])
    assert said["throughput"][0].startswith("ok ")
    wait_until(lambda: server.cancelled == [port], "the port is given back")


# ---- a server ----------------------------------------------------------------------------------------------


def test_a_server_says_what_a_start_would_meet(checks: Checks, tmp_path: Path) -> None:
    first, free = free_ports(3), free_port()
    _, running_at = checks.server()
    file = tmp_path / "server.toml"
    file.write_text(
        f'bind = "{LOOPBACK}"\nport = {free}\nstate-dir = "state"\nadmin-port = {free_port()}\n{HOOK}'
    )
    with Service(lambda _: None, port=first):  # hangs up at once
        good = checks.run("server", "--check", "-c", file, "--allow-ports", f"{first}-{first + 2}")
        taken = checks.run("server", "--check", "-p", first, "--bind", LOOPBACK, "--allow-ports", first)
        other = checks.run("server", "--check", "-p", free_port(), "--bind", "192.0.2.1")
        second = checks.run("server", "--check", "-p", running_at, "--bind", LOOPBACK, "--log-format", "json")
        said = found(good, 0)
        assert said["settings"] == [f"ok read from {file}, variables and flags"]
        assert said["token"] == ["ok set; logins by hmac, and md5 of Go clients"]
        assert said["bind"] == [f"ok {LOOPBACK} is an address of this machine"]
        assert said["port"] == [f"ok {free} is free for clients to come to"]
        assert said["ports"] == [f"ok {first}-{first + 2}: 2 of 3 are free for clients; taken: {first}"]
        assert fits(rf"ok datagrams at {LOOPBACK}, with buffers of \d+ KiB.*", said["udp"])
        assert fits(rf"ok {LOOPBACK}:\d+ is free, for whoever is on this machine", said["admin"])
        assert said["state-dir"] == [f"ok {tmp_path / 'state'} can be written to"]
        assert said["hook"] == [f"ok {LOOPBACK}:1 has an address; nothing is posted"]
        assert {"descriptors", "memory", "clock", "program"} <= said.keys()
        said = found(taken, 1)
        assert said["port"] == [
            f"wrong {first} is taken by another program; stop that, or choose another port"
        ]
        assert said["ports"] == [f"wrong {first}: 0 of 1 are free for clients; taken: {first}; allow others"]
        said = found(other, 1)
        assert fits("wrong cannot listen on 192.0.2.1.*; is 192.0.2.1 of this machine.*", said["bind"])
        assert "port" not in said
    assert second.wait_exit() == 0
    lines = [json.loads(line) for line in second.out.splitlines()]
    (line,) = [line for line in lines if line["check"] == "port"]
    assert line["verdict"] == "warn"
    assert line["text"].startswith(f"a gnar server answers at {running_at} already")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            ServerConfig(),
            "warn   token        none: whoever reaches the server may open ports here; set GNAR_TOKEN",
        ),
        (ServerConfig(bind=LOOPBACK), "ok     token        none, and only this machine reaches the server"),
        (ServerConfig(token=Secret("x"), auth="hmac"), "ok     token        set; logins by hmac alone"),
    ],
)
def test_a_server_without_a_token_is_told_of_where_others_reach_it(
    config: ServerConfig, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server_check.ServerCheck(config, "", Checklist())._tell_token()
    assert capsys.readouterr().out == f"{expected}\n"


def test_names_are_asked_for_and_given_back_and_older_servers_are_told_of(checks: Checks) -> None:
    with Service(echo) as service:
        web_port = free_port()
        server, port = checks.server("-D", "localhost", "--http-port", web_port)
        _, nameless = checks.server()
        good = checks.client(port, f"blog={service.port}", f"{service.port}:{free_port()}")
        bad = checks.client(port, f"admin={service.port}")
        without = checks.client(nameless, f"blog={service.port}")
        assert good.wait_exit() == 0
        assert f"http://blog.localhost:{web_port} is allowed and free, and users reach it" in good.out
        assert bad.wait_exit() == without.wait_exit() == 1
        assert "the name 'admin' is reserved" in bad.out
        assert "this server has no domain" in without.out
        server.wait_idle(proxies=0, clients=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "File name too long; choose another"),
        ("loop", "Too many levels"),
        ("file/x", "is no folder"),
    ],
)
def test_a_state_dir_that_cannot_be_looked_at_is_one_line(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    config = ServerConfig(state_dir=str(tmp_path / name))
    server_check.ServerCheck(config, "", Checklist())._tell_state_dir()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("wrong  state-dir")
    assert said in line


def test_the_certificate_that_is_kept_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(**settings: Any) -> str:
        TlsCheck(ServerConfig(**{"state_dir": str(tmp_path), **settings}), Checklist()).run()
        return capsys.readouterr().out.partition("certificate  ")[2].rstrip("\n")

    tmp_path.chmod(0o700)
    assert said() == f"made at the first start, and kept in {tmp_path}"
    assert list(tmp_path.iterdir()) == []
    made = load_or_make(str(tmp_path))
    assert said() == f"self-made, kept in {tmp_path}: SHA-256 {made.fingerprint}"
    assert said(state_dir="") == "made at each start; state-dir keeps one, which clients could pin"
    (tmp_path / "tls.pem").write_text("")
    assert said().startswith(f"{tmp_path}/tls.pem: damaged: ")
    assert "\n" not in said()


@pytest.mark.parametrize(
    ("settings", "has_tls", "line"),
    [
        (
            {},
            True,
            "ok tls clients use it, unless they are told otherwise, or are the Go program's",
        ),
        (
            {"tls": "require"},
            True,
            "ok tls clients need it, so those of the Go program cannot come",
        ),
        (
            {},
            False,
            "warn tls this Python has no TLS: clients need --tls off, and all can be read",
        ),
        ({"tls": "require"}, False, "wrong tls this Python has no TLS; use another one, or .*"),
        ({"tls_cert": ("x",)}, False, "wrong tls this Python has no TLS; use another one, or .*"),
    ],
)
def test_who_comes_by_tls_is_told(
    settings: dict[str, Any],
    has_tls: bool,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_tls:
        monkeypatch.setitem(sys.modules, "gnar_lib.transport.certificates", None)
    TlsCheck(ServerConfig(**settings), Checklist()).run()
    assert re.fullmatch(line, re.sub(" +", " ", capsys.readouterr().out.splitlines()[0]))


def test_a_program_whose_folder_was_removed_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gnar_lib.__file__", str(tmp_path / "gone" / "gnar_lib" / "__init__.py"))
    server_check.ServerCheck(ServerConfig(), "", Checklist())._tell_files()
    assert capsys.readouterr().out.startswith(
        "skip   program      nobody can tell from where it runs: No such"
    )


def test_a_program_that_others_could_change_is_told_of(tmp_path: Path) -> None:
    assert not server_check._others_may_write(tmp_path)
    tmp_path.chmod(0o777)
    assert server_check._others_may_write(tmp_path)
    tmp_path.chmod(0o1777)
    assert not server_check._others_may_write(tmp_path)


def test_a_wrong_command_line_is_not_checked(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["client", "--check", "nonsense:"], "server-addr: 'nonsense:': expected an address"),
        (["client", "--check"], "nothing to forward"),
        (["server", "--check", "--replace"], "--check and --replace do not go together"),
    ):
        assert cmd.main(words) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.startswith(f"gnar: {said}")
        assert found.err.count("\n") == 1


def test_who_has_the_admin_port_is_told(checks: Checks, capsys: pytest.CaptureFixture[str]) -> None:
    admin_port = free_port()
    checks.server("-a", admin_port)
    wait_until(lambda: is_open(admin_port), "the admin port is open")
    with socket.create_server((LOOPBACK, 0)) as other:
        for port, verdict, said in (
            (admin_port, "warn ", "a gnar answers at"),
            (other.getsockname()[1], "wrong", "is taken by another program"),
            (0, "", ""),
        ):
            try_admin(Checklist(), AdminConfig(port=port), 0.5 if verdict == "wrong" else WAIT_S)
            shown = capsys.readouterr().out
            assert shown.startswith(verdict)
            assert said in shown


def test_a_check_is_for_command_lines_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gnar.toml"
    file.write_text("check = true\n")
    assert cmd.main(["server", "-c", str(file)]) == 2
    assert "check: unknown key" in capsys.readouterr().err
