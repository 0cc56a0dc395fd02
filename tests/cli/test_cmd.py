"""The command line: which calls are understood and what they start; a wrong call is answered in one line."""

from __future__ import annotations

import resource
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gnar_lib import __version__, cmd, usage
from gnar_lib.config import Address, ClientConfig, PortRanges, Rate, ServerConfig
from gnar_lib.errors import ConnError
from gnar_lib.relay import RelaySettings, Role, SocatOptions, UdpSettings
from gnar_lib.relay.socat import OF_GNAR_WITH_VALUE

A_MAPPING = "a mapping such as 3000:9000, host:3000:9000, 3000-3010:9000-9010 or blog=3000"
SHOWS_NO_BYTES = "gnar does not show the bytes that it carries"
COMMANDS = ["server", "client", "http", "relay", "demo", "health", "top", "completion", "man"]


class Called:
    """The functions that the command line called, and their arguments."""

    def __init__(self) -> None:
        self.configs: list[Any] = []
        self.have_files: list[bool] = []
        self.replace: list[bool] = []
        self.relays: list[tuple[str, str, float]] = []
        self.udp: list[UdpSettings] = []
        self.socat: list[SocatOptions] = []
        self.demos: list[int] = []
        self.checks: list[tuple[str, float]] = []

    def run(self, load: Callable[[], object], *, has_file: bool, replaces: bool = False) -> int:
        self.configs.append(load())
        self.have_files.append(has_file)
        self.replace.append(replaces)
        return 0

    def relay(self, listen: str, target: str, settings: RelaySettings, socat: SocatOptions) -> int:
        self.relays.append((listen, target, settings.grace_s))
        self.udp.append(settings.udp)
        self.socat.append(socat)
        return 0

    def demo(self, port: int) -> int:
        self.demos.append(port)
        return 0

    def check(self, address: Address, timeout_s: float) -> None:
        self.checks.append((str(address), timeout_s))


@pytest.fixture(autouse=True)
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """Replace the functions that commands run, and return the record of their calls."""
    made = Called()
    monkeypatch.setattr("gnar_lib.server.serve.run_server", made.run)
    monkeypatch.setattr("gnar_lib.client.serve.run_client", made.run)
    monkeypatch.setattr("gnar_lib.relay.run_relay", made.relay)
    monkeypatch.setattr("gnar_lib.demo.run_demo", made.demo)
    monkeypatch.setattr("gnar_lib.health.check", made.check)
    return made


def server(called: Called, line: str) -> ServerConfig:
    assert cmd.main(["server", *shlex.split(line)]) == 0
    config = called.configs.pop()
    assert isinstance(config, ServerConfig)
    return config


def client(called: Called, line: str) -> ClientConfig:
    assert cmd.main(["client", *shlex.split(line)]) == 0
    config = called.configs.pop()
    assert isinstance(config, ClientConfig)
    return config


# ---- help and version --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("behind", ["", "--no-such-option", "a b c d"])
def test_help_of_a_command_whatever_else_is_said(
    capsys: pytest.CaptureFixture[str], name: str, flag: str, behind: str
) -> None:
    assert cmd.main([name, *shlex.split(behind), flag]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"gnar {name}: ")
    assert "Usage: " in said.out
    assert "Example" in said.out
    assert said.err == ""


@pytest.mark.parametrize("words", ["-h", "--help", "help"])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert cmd.main([words]) == 0
    said = capsys.readouterr().out
    assert all(f"gnar {name}" in said for name in COMMANDS)


def test_no_command_shows_the_help_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cmd.main([]) == 2
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--version", "version"])
def test_version(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert cmd.main([words]) == 0
    assert capsys.readouterr().out == f"gnar {__version__}\n"


@pytest.mark.parametrize("text", [usage.USAGE, *(text for text, _ in cmd._COMMANDS.values())])
def test_help_fits_a_terminal(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 100


# ---- server ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("", "port", 8910),
        ("7000", "port", 7000),
        ("-p 7000", "port", 7000),
        ("--port 7000", "port", 7000),
        ("--port=7000", "port", 7000),
        ("-p7000", "port", 7000),
        ("-t abc", "token", "abc"),
        ("--token=", "token", ""),
        ("--auth hmac", "auth", "hmac"),
        ("--bind ::1", "bind", "::1"),
        ("--udp-bind 127.0.0.1", "udp_bind", "127.0.0.1"),
        (
            "--allow-ports 9000-9100,9200",
            "allow_ports",
            PortRanges("9000-9100,9200", ((9000, 9100), (9200, 9200))),
        ),
        ("--max-speed 1mb", "max_speed", Rate(1 << 20, 1 << 20)),
        ("--grace 0.5", "grace_s", 0.5),
        ("--grace 0 -mp 7000", "port", 7000),
    ],
)
def test_server_line(called: Called, line: str, field: str, expected: object) -> None:
    value = getattr(server(called, line), field)
    assert (value.reveal() if field == "token" else value) == expected


@pytest.mark.parametrize(("line", "replaces"), [("", False), ("7000 --replace --bind ::1", True)])
def test_server_may_take_over_from_the_one_that_runs(called: Called, line: str, replaces: bool) -> None:
    server(called, line)
    assert called.replace == [replaces]


@pytest.mark.parametrize(
    "line", ["-m", "--multiplex", "-d", "--domain-tunnel", "-s srv0", "-a 0", "--admin-port 0", "-D ''"]
)
def test_server_flag_of_the_go_program_without_effect_is_no_error(called: Called, line: str) -> None:
    assert server(called, f"{line} -p 7000") == server(called, "-p 7000")


@pytest.mark.parametrize("words", [["--help"], ["server", "--help"], ["man"], ["completion", "zsh"]])
def test_server_flags_without_effect_are_not_advertised(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cmd.main(words) == 0
    shown = capsys.readouterr().out.replace("\\-", "-").lower().replace("_", "-")
    assert [option for option in ("domain-tunnel",) if option in shown] == []


def test_server_flag_without_effect_is_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert cmd.main(["server", "--multiplx"]) == 2
    assert capsys.readouterr().err == "gnar: unknown option --multiplx; see gnar server --help\n"


def test_an_empty_flag_wins_over_the_variable(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNAR_TOKEN", "abc")
    assert server(called, "").token
    assert not server(called, "-t ''").token


def test_server_reads_its_file_and_the_environment(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text('port = 1\nbind = "::1"\n')
    monkeypatch.setenv("GNAR_PORT", "2")
    assert server(called, f"-c {path}").port == 2
    assert server(called, f"--config {path} -p 3").port == 3
    assert server(called, f"-c {path}").bind == "::1"


# ---- client ------------------------------------------------------------------------------------------------

LOCAL = Address("localhost", 8910)


@pytest.mark.parametrize(
    ("line", "address", "ports"),
    [
        ("3000", LOCAL, [(3000, 0)]),
        ("3000:9000", LOCAL, [(3000, 9000)]),
        ("example.com 3000:9000", Address("example.com", 8910), [(3000, 9000)]),
        ("example.com:7000 3000:9000 3001", Address("example.com", 7000), [(3000, 9000), (3001, 0)]),
        ("localhost:7000 3000-3001:9000-9001", Address("localhost", 7000), [(3000, 9000), (3001, 9001)]),
        ("[::1]:7000 3000", Address("::1", 7000), [(3000, 0)]),
        ("::1 3000", Address("::1", 8910), [(3000, 0)]),
        ("2001:db8::10:20 3000", Address("2001:db8::10:20", 8910), [(3000, 0)]),
        ("[::1]:3000:9000", LOCAL, [(3000, 9000)]),
        ("[::1]:3000-3001:9000-9001", LOCAL, [(3000, 9000), (3001, 9001)]),
        ("db:5432:9001", LOCAL, [(5432, 9001)]),
        ("10.0.0.1:7000 3000", Address("10.0.0.1", 7000), [(3000, 0)]),
        ("-s example.com 3000 3001:9001", Address("example.com", 8910), [(3000, 0), (3001, 9001)]),
        ("-l 3000 -r 9000", LOCAL, [(3000, 9000)]),
        ("-s host:7000 -l 3000 -r 0", Address("host", 7000), [(3000, 0)]),
        ("--server-addr=host --local-port=3000 --remote-port=9000", Address("host", 8910), [(3000, 9000)]),
        ("host db:5432:9001", Address("host", 8910), [(5432, 9001)]),
        ("host 1:2 -l 3 -r 4", Address("host", 8910), [(1, 2), (3, 4)]),
    ],
)
def test_client_line(called: Called, line: str, address: Address, ports: list[tuple[int, int]]) -> None:
    config = client(called, line)
    assert config.server == address
    assert [(proxy.local_port, proxy.remote_port) for proxy in config.proxies] == ports


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("-n web", "proxy_name", "web"),
        ("--proxy-name 'my web'", "proxy_name", "my web"),
        ("-y udp", "proxy_type", "udp"),
        ("--proxy-type tcp", "proxy_type", "tcp"),
        ("-d www", "subdomain", "www"),
        ("--local-host db.local", "local_host", "db.local"),
        ("--local-host ::1", "local_host", "::1"),
        ("--speed-limit 100kb", "speed_limit", Rate(102400, 102400)),
        ("--udp-timeout 5", "udp_timeout_s", 5.0),
        ("--udp-any-source", "udp_any_source", True),
        ("--max-users 50", "max_users", 50),
        ("--max-users-per-address 5", "max_users_per_address", 5),
        ("--idle-timeout 600", "idle_timeout_s", 600.0),
    ],
)
def test_client_flag_of_a_proxy(called: Called, line: str, field: str, expected: object) -> None:
    (proxy,) = client(called, f"-l 3000 {line}").proxies
    assert getattr(proxy, field) == expected


def test_server_and_client_know_whether_they_have_a_file_to_reload_from(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gnar.toml"
    file.write_text("")
    for words in (["server"], ["client", "3000"]):
        assert cmd.main(words) == 0
        assert cmd.main([*words, "-c", str(file)]) == 0
    monkeypatch.setenv("GNAR_CONFIG", str(file))
    assert cmd.main(["server"]) == 0
    assert called.have_files == [False, True, False, True, True]


def test_client_flags_of_the_whole(called: Called) -> None:
    config = client(called, "3000 -t abc --auth md5 --grace 1")
    assert (config.token.reveal(), config.auth, config.grace_s) == ("abc", "md5", 1.0)


# ---- health ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "checked"),
    [
        ("", ("127.0.0.1:8910", 3.0)),
        ("-p 7000", ("127.0.0.1:7000", 3.0)),
        ("--bind 192.0.2.1 --port 7000", ("192.0.2.1:7000", 3.0)),
        ("--bind [::1]", ("[::1]:8910", 3.0)),
        ("--bind 0.0.0.0", ("127.0.0.1:8910", 3.0)),
        ("--bind ::", ("127.0.0.1:8910", 3.0)),
        ("example.com", ("example.com:8910", 3.0)),
        ("[::1]:7000 --timeout 0.5", ("[::1]:7000", 0.5)),
    ],
)
def test_health_line(called: Called, line: str, checked: tuple[str, float]) -> None:
    assert cmd.main(["health", *line.split()]) == 0
    assert called.checks == [checked]


def test_health_finds_the_server_by_the_settings_that_the_server_reads(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text('port = 7000\nbind = "192.0.2.1"\ntoken = "abc"\nmax-speed = "1mb"\n')
    monkeypatch.setenv("GNAR_CONFIG", str(path))
    assert cmd.main(["health"]) == 0
    monkeypatch.setenv("GNAR_PORT", "7001")
    assert cmd.main(["health"]) == 0
    assert cmd.main(["health", "example.com"]) == 0
    assert [where for where, _ in called.checks] == ["192.0.2.1:7000", "192.0.2.1:7001", "example.com:8910"]


def test_a_health_check_that_was_interrupted_has_found_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gnar_lib.health.check", interrupt)
    assert cmd.main(["health"]) == 1


# ---- relay and demo ----------------------------------------------------------------------------------------


def test_relay_line(called: Called) -> None:
    assert cmd.main(["relay", "tcp:1", "unix:/x"]) == 0
    assert cmd.main(["relay", "TCP-LISTEN:1,fork", "TCP:h:2", "--grace", "3"]) == 0
    assert called.relays == [("tcp:1", "unix:/x", 8.0), ("TCP-LISTEN:1,fork", "TCP:h:2", 3.0)]
    assert cmd.main(["relay", "udp:1", "udp:h:2", "--udp-timeout", "300", "--udp-any-source"]) == 0
    assert called.udp == [UdpSettings(), UdpSettings(), UdpSettings(300.0, any_source=True)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tcp:1 tcp:2", SocatOptions()),
        ("-d -d -dd -ddd -d0 -D -ls -lu -lh -lp x -lpx -b 8192 -b65536 tcp:1 tcp:2", SocatOptions()),
        ("-T60 tcp:1 tcp:2", SocatOptions(idle_timeout_s=60.0)),
        ("-T 0.5 -t 100000000 tcp:1 tcp:2", SocatOptions(0.5, 86400.0)),
        ("-t10 tcp:1 tcp:2 --half-close-timeout 5", SocatOptions(half_close_timeout_s=10.0)),
        ("-u tcp:1 tcp:2", SocatOptions(silent=Role.LISTEN)),
        ("-U -4 tcp:1 tcp:2", SocatOptions(silent=Role.TARGET, family=socket.AF_INET)),
        ("-6 tcp:1 --grace 1 tcp:2", SocatOptions(family=socket.AF_INET6)),
        ("-a 0 -4 tcp:1 tcp:2", SocatOptions(family=socket.AF_INET)),
        ("tcp:1 tcp:2 -a0", SocatOptions()),
        ("-lmlocal2 -lf x -lf/y tcp:1 tcp:2", SocatOptions(ignored=("-lmlocal2", "-lf x", "-lf /y"))),
    ],
)  # fmt: skip
def test_options_of_socat_in_front_of_the_addresses(called: Called, line: str, said: SocatOptions) -> None:
    assert cmd.main(["relay", *line.split()]) == 0
    assert called.socat == [said]
    assert [words[:2] for words in called.relays] == [("tcp:1", "tcp:2")]


def test_words_that_may_be_values_of_our_own_options_are_all_known() -> None:
    (relay,) = [command for command in cmd._program().commands if command.name == "relay"]
    with_value = {name for option in relay.options if option.value for name in option.names}
    assert with_value == set(OF_GNAR_WITH_VALUE)


def test_wait_of_socat_for_the_other_half_is_ours_unless_our_own_flag_says_more(
    called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[float] = []
    monkeypatch.setattr("gnar_lib.net.options.set_half_close_timeout", set_to.append)
    assert cmd.main(["relay", "-t", "3", "tcp:1", "tcp:2"]) == 0
    assert cmd.main(["relay", "-t", "3", "tcp:1", "tcp:2", "--half-close-timeout", "5"]) == 0
    assert set_to == [3.0, 5.0]
    assert len(called.relays) == 2


def test_demo_line(called: Called) -> None:
    assert cmd.main(["demo"]) == 0
    assert cmd.main(["demo", "9000"]) == 0
    assert called.demos == [0, 9000]


# ---- wrong calls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("serve", "unknown command 'serve' (did you mean server?); see gnar --help"),
        ("frobnicate", "unknown command 'frobnicate'; see gnar --help"),
        ("-x", "unknown command '-x'; see gnar --help"),
        ("server --prot 1", "unknown option --prot (did you mean --port?); see gnar server --help"),
        (
            "server --max-user 3",
            "--max-user could be --max-users or --max-users-per-address; see gnar server --help",
        ),
        (
            "server --proxy-protocol v2",
            "unknown option --proxy-protocol: it is one of gnar client; see gnar server --help",
        ),
        (
            "client --state-dir x 1",
            "unknown option --state-dir: it is one of gnar server; see gnar client --help",
        ),
        ("server --zzz", "unknown option --zzz; see gnar server --help"),
        ("server -b ::1", "unknown option -b; see gnar server --help"),
        ("server -l3000", "unknown option -l: it is one of gnar client; see gnar server --help"),
        ("server --port=x", "--port: 'x': expected a port from 1 to 65535"),
        ("server x", "port: 'x': expected a port from 1 to 65535"),
        ("server 1 -p 2", "the port is given twice, as <port> and as --port"),
        ("server -p ''", "--port: '': expected a port from 1 to 65535"),
        ("server --grace never", "--grace: 'never': expected seconds from 0 to 86400"),
        ("server -c /no/such", "/no/such: cannot read it: No such file or directory"),
        ("client", "nothing to forward: give a mapping such as 3000:9000, -l, or [[proxys]] in a file"),
        ("client host", "nothing to forward: give a mapping such as 3000:9000, -l, or [[proxys]] in a file"),
        ("client -l x", "--local-port: 'x': expected a port from 1 to 65535"),
        ("client -l 1 -y sctp", "--proxy-type: 'sctp': expected tcp or udp or http or https"),
        ("client host 1:b", f"mapping: '1:b': expected {A_MAPPING}"),
        ("client host 1:99999", "mapping: '1:99999': expected ports from 1 to 65535"),
        ("client host 9-8:9-8", "mapping: '9-8:9-8': expected the lower port of a range first"),
        ("client host:99999 1", "server-addr: 'host:99999': expected a port from 1 to 65535"),
        ("client host:x 1", "server-addr: 'host:x': expected an address such as example.com:8910"),
        ("client -s host:x 1", "--server-addr: 'host:x': expected an address such as example.com:8910"),
        (
            "client ::1:3000:9000",
            "server-addr: '::1:3000:9000': expected an IPv6 address in brackets, such as [2001:db8::1]:8910",
        ),
        (
            "client \u2014token x host 1",
            "a word begins with an odd character (\u2014 is U+2014; write - instead)",
        ),
        (
            "client 1:2 -mt \u201cs3cret\u201d",
            'a word begins with an odd character (\u201c is U+201C; write " instead)',
        ),
        ("client 1:2 -r 3", "--remote-port: goes with --local-port; a mapping names both ports"),
        ("client --tokn a", "unknown option --tokn (did you mean --token?); see gnar client --help"),
        ("relay tcp:1 tcp:2 --grace x", "--grace: 'x': expected seconds from 0 to 86400"),
        ("relay --grace -5 tcp:1 tcp:2", "--grace: '-5': expected seconds from 0 to 86400"),
        ("relay udp:1 udp:2 --udp-timeout 0", "--udp-timeout: '0': expected seconds from 0.1 to 86400"),
        ("relay -v tcp:1 tcp:2", f"option -v of socat is not supported: {SHOWS_NO_BYTES}"),
        ("relay -r /x tcp:1 tcp:2", f"option -r of socat is not supported: {SHOWS_NO_BYTES}"),
        ("relay -L /x tcp:1 tcp:2", "option -L of socat is not supported: use flock(1)"),
        ("relay -g tcp:1 tcp:2", "option -g of socat is not supported"),
        ("relay -u4 tcp:1 tcp:2", "option -u4 of socat is not supported"),
        ("relay -T soon tcp:1 tcp:2", "-T soon is not a number of seconds from 0 on"),
        ("relay tcp:1 tcp:2 -t", "the value of -t is missing"),
        ("demo x", "port: 'x': expected a port from 0 to 65535"),
        ("health 'a b'", "server-addr: 'a b': expected an address such as example.com:8910"),
        ("health host -p 1", "<server-addr> and --port do not go together"),
        ("health --timeout 0", "--timeout: '0': expected seconds from 0.1 to 86400"),
        ("health --bnd ::1", "unknown option --bnd (did you mean --bind?); see gnar health --help"),
    ],
)  # fmt: skip
def test_wrong_call_is_one_line_and_exits_2(capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    assert cmd.main(shlex.split(line)) == 2
    assert capsys.readouterr() == ("", f"gnar: {said}\n")


@pytest.mark.parametrize(
    "line",
    [
        "server 1 2",
        "server -p",
        "server -q",
        "relay",
        "relay a",
        "relay a b c",
        "demo 1 2",
        "health a b",
        "completion",
        "completion ksh",
        "completion bash zsh",
        "man 1",
        "client -z",
        "server --m=1",
    ],
)
def test_arguments_that_do_not_fit_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], called: Called, line: str
) -> None:
    name = line.split(maxsplit=1)[0]
    assert cmd.main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("gnar: ")
    assert said.endswith(f"; see gnar {name} --help\n")
    assert said.count("\n") == 1
    assert not called.configs + called.relays + called.demos


def test_a_token_is_in_no_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "server -t s3cret --prot 1",
        "server --token s3cret 1 2",
        "client -t s3cret",
        "server --tokn=s3cret",
        "server --token \u201cs3cret\u201d 1 2",
    ):
        assert cmd.main(line.split()) == 2
    assert "s3cret" not in capsys.readouterr().err


def test_control_characters_of_the_line_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cmd.main(["server", "-c", "/no\x1b[31m\nsuch"]) == 2
    assert capsys.readouterr().err == "gnar: /no\\x1b[31m\\nsuch: cannot read it: No such file or directory\n"


def test_failure_exits_1_and_interrupt_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_load: object, **_: bool) -> int:
        raise ConnError("no way")

    def interrupt(_load: object, **_: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("gnar_lib.server.serve.run_server", fail)
    assert cmd.main(["server"]) == 1
    assert capsys.readouterr().err == "gnar: no way\n"
    monkeypatch.setattr("gnar_lib.server.serve.run_server", interrupt)
    assert cmd.main(["server"]) == 0


def test_limit_of_open_files_is_raised_as_far_as_it_goes(called: Called) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        server(called, "")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
