"""Settings: every file in tests/config, which of several sources wins, and how values are written.

The first line of each file says whether it is a client's or a server's. In a valid file, each line
`#: path = value` names a setting and its expected value. In an invalid file, the first line goes on with the
expected message, in which FILE stands for the path.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib import cmd
from gnar_lib.config import (
    ClientConfig,
    ServerConfig,
    changed_keys,
    hooks,
    keys,
    load_admin,
    load_client,
    load_log,
    load_server,
    model,
    names,
    sources,
    values,
)
from gnar_lib.config.mappings import Service, mapping
from gnar_lib.config.model import MAX_PORT, Address, PortRanges, Rate
from gnar_lib.errors import ConfigError
from gnar_lib.net import options
from gnar_lib.proto import numbers

FILES = Path(__file__).parent
VALID = sorted((FILES / "valid").glob("*.toml"))
INVALID = sorted((FILES / "invalid").glob("*.toml"))
LOADERS: dict[str, Callable[..., ServerConfig | ClientConfig]] = {
    "server": load_server,
    "client": load_client,
}
USERS = ["max-users", "max-users-per-address", "idle-timeout"]
ADMIN = ["admin-port", "admin-bind", "admin-password", "admin-read-token"]
ALL_SERVER = [
    "port",
    "bind",
    "udp-bind",
    "token",
    "auth",
    "tls",
    "ws-path",
    "accept-proxy-protocol",
    "allow-ports",
    "max-speed",
    *USERS,
    "domain",
    "domain-tunnel",
    "http-port",
    "http-bind",
    "https-port",
    "tls-cert",
    "tls-key",
    "hsts",
    "allow-hosts",
    "reserved-names",
    "trust-forwarded",
    "caddy-api",
    "caddy-srv-name",
    "caddy-remove",
    "error-page",
    "multiplex",
    "grace",
    *ADMIN,
    "state-dir",
]
ALL_HOOK = [*hooks._READERS]
ALL_CLIENT = [
    *("server-addr", "token", "auth", "tls", "fingerprint", "proxy", "multiplex", "grace"),
    *ADMIN,
]
ALL_PROXY = [
    "proxy-name",
    "proxy-type",
    "local-host",
    "local-port",
    "remote-port",
    "subdomain",
    "speed-limit",
    "udp-timeout",
    "udp-any-source",
    *USERS,
    "path",
    "allow-from",
    "deny-from",
    "host-header",
    "request-headers",
    "response-headers",
    "basic-auth",
    "redirect-https",
    "http2",
    "error-page",
    "proxy-protocol",
]


def stem(path: Path) -> str:
    return path.stem


def first_line(path: Path) -> str:
    return path.read_text().splitlines()[0].removeprefix("# ")


def lookup(thing: object, path: str) -> object:
    """Return the value at a path such as `proxies.0.local_port`."""
    for name in path.split("."):
        thing = thing[int(name)] if isinstance(thing, tuple) else attrgetter(name)(thing)
    return thing


def load_and_end(load: Callable[[], object], *, has_file: bool, replaces: bool = False) -> int:
    """Load the settings and end: stands in for a server or client that would run."""
    load()
    assert has_file
    assert not replaces
    return 0


@pytest.mark.parametrize("path", VALID, ids=stem)
def test_valid_file_comes_to_what_it_says(path: Path) -> None:
    config = LOADERS[first_line(path)]({"config": str(path)}, {})
    expected = dict(re.findall(r"^#: (\S+) = (.*)$", path.read_text(), re.MULTILINE))
    assert expected
    assert {key: repr(lookup(config, key)) for key in expected} == expected
    assert "s3cret" not in repr(config)


@pytest.mark.parametrize("path", INVALID, ids=stem)
def test_invalid_file_is_refused_in_these_words_and_one_line(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, _, message = first_line(path).partition(": ")
    monkeypatch.setattr(f"gnar_lib.{kind}.serve.run_{kind}", load_and_end)
    assert cmd.main([kind, "-c", str(path)]) == 2
    said = capsys.readouterr()
    assert said.err == f"gnar: {message.replace('FILE', str(path))}\n"
    assert said.out == ""
    assert "s3cret" not in said.err


@pytest.mark.parametrize("name", ["server-unknown-key", "client-unknown-key-of-a-proxy"])
def test_the_one_file_refuses_it_with_one_line_and_status_2(gnar_pyz: Path, name: str) -> None:
    path = FILES / "invalid" / f"{name}.toml"
    kind, _, message = first_line(path).partition(": ")
    done = subprocess.run(
        [gnar_pyz, kind, "-c", path], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gnar: {message.replace('FILE', str(path))}\n"


def test_files_name_every_key() -> None:
    for kind, paths in (("server", ALL_SERVER + ALL_HOOK), ("client", ALL_CLIENT + ALL_PROXY)):
        for files in (VALID, INVALID):
            text = "\n".join(path.read_text() for path in files if path.stem.startswith(kind))
            keys = set(re.findall(r"^([a-z0-9-]+) = ", text, re.MULTILINE))
            missing = set(paths) - keys
            assert missing <= ({"grace", "multiplex"} if (kind, files) == ("client", INVALID) else set())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'token = "\xff"', "FILE: not UTF-8; save it as UTF-8"),
        ("port = 1".encode("utf-16"), "FILE: this is UTF-16, not UTF-8; save it as UTF-8"),
        ("port = 1".encode("utf-16-be"), "FILE: this is UTF-16, not UTF-8; save it as UTF-8"),
        (b"port = 1\n\0", "FILE: not a text, since there is a zero byte; is it another file?"),
        (b"\x7fELF\2\1\1" + bytes(60), "FILE: not a text, since there is a zero byte; is it another file?"),
        (b"#" * ((1 << 20) + 1), "FILE: longer than 1 MiB; is it another file?"),
        (
            "token = \u201cabc\u201d".encode(),
            'FILE: Invalid value (at line 1, column 9) (\u201c is U+201C; write " instead)',
        ),
        (
            'port = 1\ntoken = "abc\u201d\n'.encode(),
            "FILE: Illegal character '\\n' (at line 2, column 14) (\u201d is U+201D; write \" instead)",
        ),
        (
            "port\u00a0= 1".encode(),
            "FILE: Expected '=' after a key in a key/value pair (at line 1, column 5) (\u00a0 is U+00A0",
        ),
        (
            'allow-ports = "9000\u20139100"'.encode(),
            "FILE: allow-ports: '9000\u20139100': expected ports such as 9000-9100,9200 (\u2013 is U+2013",
        ),
        (None, "FILE: cannot read it: No such file or directory"),
        (b"a = " + b"[" * 3000, "FILE: "),
    ],
)
def test_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "gnar.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_server({"config": str(path)}, {})
    assert str(caught.value).startswith(said.replace("FILE", str(path)))
    assert "\n" not in str(caught.value)


def test_file_may_begin_with_the_mark_of_windows_editors(tmp_path: Path) -> None:
    path = tmp_path / "gnar.toml"
    path.write_bytes("port = 1\r\n".encode("utf-8-sig"))
    assert load_server({"config": str(path)}, {}).port == 1


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it: Is a directory"):
        load_server({"config": str(tmp_path)}, {})


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(sources._log, "warning", lambda message, *args: said.append(message % args))
    return said


# ---- layers ------------------------------------------------------------------------------------------------

# Of each key: its text, and what the settings hold then.
LAYERED: dict[str, dict[str, list[tuple[str, object]]]] = {
    "server": {
        "port": [("1", 1), ("2", 2), ("3", 3)],
        "bind": [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "localhost")],
        "udp-bind": [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "localhost")],
        "token": [("a", "a"), ("b", "b"), ("c", "c")],
        "auth": [("hmac", "hmac"), ("any", "any"), ("hmac", "hmac")],
        "allow-ports": [(text, PortRanges(text, ((int(text),) * 2,))) for text in ("1", "2", "3")],
        "max-speed": [("1b", Rate(1, 1)), ("2b", Rate(2, 2)), ("3b", Rate(3, 3))],
        "grace": [("1", 1.0), ("2", 2.0), ("3.5", 3.5)],
        "log-format": [("json", "json"), ("text", "text"), ("json", "json")],
        "log-level": [("debug", "debug"), ("error", "error"), ("warning", "warning")],
    },
    "client": {
        "server-addr": [("a", Address("a", 8910)), ("b:1", Address("b", 1)), ("[::1]:2", Address("::1", 2))],
        "token": [("a", "a"), ("b", "b"), ("c", "c")],
        "auth": [("md5", "md5"), ("hmac", "hmac"), ("md5", "md5")],
        "grace": [("1", 1.0), ("2", 2.0), ("3.5", 3.5)],
        "log-format": [("json", "json"), ("text", "text"), ("json", "json")],
        "log-level": [("debug", "debug"), ("error", "error"), ("warning", "warning")],
    },
}
FIELDS = {"grace": "grace_s", "server-addr": "server"}


def setting(config: object, key: str) -> Any:
    value: Any = getattr(config, FIELDS.get(key, key.replace("-", "_")))
    return value.reveal() if key == "token" else value


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind, keys in LAYERED.items() for key in keys], ids=lambda text: text
)
def test_default_gives_way_to_file_to_variable_to_flag(tmp_path: Path, kind: str, key: str) -> None:
    in_file, in_env, in_flag = LAYERED[kind][key]
    path = tmp_path / "gnar.toml"
    path.write_text(f'{key} = "{in_file[0]}"\n')
    load, common = LOADERS[kind], {"mappings": ["1"]} if kind == "client" else {}
    env = {"GNAR_" + key.upper().replace("-", "_"): in_env[0]}
    file, flag = {"config": str(path)}, {key: in_flag[0]}
    default = setting(load(common, {}), key)
    assert default not in {value for _, value in (in_file,)}
    assert setting(load({**common, **file}, {}), key) == in_file[1]
    assert setting(load({**common, **file}, env), key) == in_env[1]
    assert setting(load({**common, **file, **flag}, env), key) == in_flag[1]
    assert setting(load(common, env), key) == in_env[1]
    assert setting(load({**common, **flag}, {}), key) == in_flag[1]


@pytest.mark.parametrize(
    ("env", "level", "form"),
    [
        ({}, "error", "text"),
        ({"DEBUG": "1", "GNAR_LOG": "JSON"}, "debug", "json"),
        ({"DEBUG": "1", "GNAR_LOG_LEVEL": "", "GNAR_LOG": "json", "GNAR_LOG_FORMAT": " "}, "debug", "json"),
        (
            {"DEBUG": "1", "GNAR_LOG_LEVEL": "info", "GNAR_LOG": "json", "GNAR_LOG_FORMAT": "text"},
            "info",
            "text",
        ),
        *(({"DEBUG": text, "GNAR_LOG": text}, "error", "text") for text in ("", "0", "False", "no", " ")),
    ],
)
def test_older_variables_of_the_log_win_over_the_file_and_give_way_to_the_others(
    tmp_path: Path, env: dict[str, str], level: str, form: str
) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text('log-level = "error"\nlog-format = "text"\n')
    config = load_server({"config": str(path)}, env)
    assert (config.log_level, config.log_format) == (level, form)
    log = load_log({}, env)
    assert (log.log_level, log.log_format) == ("info" if level == "error" else level, form)
    flags = {"log-level": "warning", "log-format": "json"}
    for log in (load_log(flags, env), load_server({"config": str(path), **flags}, env)):
        assert (log.log_level, log.log_format) == ("warning", "json")


def test_path_of_the_file_can_be_a_variable_and_the_flag_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "1.toml", tmp_path / "2.toml"
    one.write_text("port = 1")
    two.write_text("port = 2")
    assert load_server({}, {"GNAR_CONFIG": str(one)}).port == 1
    assert load_server({"config": str(two)}, {"GNAR_CONFIG": str(one)}).port == 2


@pytest.mark.parametrize(
    "key", sorted({*keys.SERVER, *keys.SERVER_WITHOUT_EFFECT, *keys.CLIENT, *keys.PROXY})
)
def test_empty_variable_is_as_if_unset(key: str) -> None:
    for text in ("", " \n"):
        env = {keys.variable_of(key): text}
        assert load_server({}, env) == load_server({}, {})
        assert load_client({"mappings": ["1"]}, env) == load_client({"mappings": ["1"]}, {})


def test_empty_variable_leaves_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text('token = "in the file"\nbind = "127.0.0.1"\n')
    config = load_server({"config": str(path)}, {"GNAR_TOKEN": "", "GNAR_BIND": "", "GNAR_TOKEN_FILE": ""})
    assert (config.token.reveal(), config.bind) == ("in the file", "127.0.0.1")


def test_variable_that_a_flag_overrides_is_not_read(warnings: list[str]) -> None:
    env = {"GNAR_PORT": "tcp://10.0.0.1:8910", "GNAR_GRACE": "x", "GNAR_TOKEN_FILE": "/none"}
    config = load_server({"port": "7000", "grace": "1", "token": "t"}, env)
    assert (config.port, config.grace_s, config.token.reveal()) == (7000, 1.0, "t")
    (proxy,) = load_client({"local-port": "1"}, {"GNAR_LOCAL_PORT": "x"}).proxies
    assert proxy.local_port == 1
    assert warnings == []


def test_variable_that_docker_or_kubernetes_has_set_is_passed_over_with_a_warning(
    warnings: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text("port = 7000")
    env = {"GNAR_PORT": "tcp://10.0.0.1:8910", "GNAR_ADMIN_PORT": "udp://10.0.0.2:1"}
    assert load_server({}, env).port == 8910
    assert load_server({"config": str(path)}, env).port == 7000
    (proxy,) = load_client({"local-port": "1"}, {"GNAR_REMOTE_PORT": "tcp://10.0.0.1:1"}).proxies
    assert proxy.remote_port == 0
    said = "is passed over: Docker and Kubernetes set it for a service"
    assert warnings[0] == f"GNAR_PORT=tcp://10.0.0.1:8910 {said}"
    assert len(warnings) == 5
    with pytest.raises(ConfigError, match=r"^--port: 'tcp://10\.0\.0\.1:8910': expected a port"):
        load_server({"port": "tcp://10.0.0.1:8910"}, {})


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"GNAR_PORT": "x"}, "GNAR_PORT: 'x': expected a port from 1 to 65535"),
        ({"GNAR_MULTIPLEX": "maybe"}, "GNAR_MULTIPLEX: 'maybe': expected true or false"),
        ({"GNAR_ALLOW_PORTS": "0"}, "GNAR_ALLOW_PORTS: '0': expected ports such as 9000-9100,9200"),
        ({"GNAR_TOKEN": "s3cret\udcff"}, "GNAR_TOKEN: expected text in UTF-8"),
    ],
)
def test_wrong_variable_is_named(env: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_server({}, env)
    assert str(caught.value) == said


@pytest.mark.parametrize("text", ["1", "true", "Yes", " on "])
def test_variable_says_yes_in_these_words(text: str) -> None:
    assert load_client({"mappings": ["1"]}, {"GNAR_MULTIPLEX": text}).multiplex


@pytest.mark.parametrize("text", ["0", "false", "No", "off", ""])
def test_variable_says_no_in_these_words(text: str) -> None:
    assert not load_client({"mappings": ["1"]}, {"GNAR_MULTIPLEX": text}).multiplex


def test_one_proxy_can_come_from_variables_alone() -> None:
    env = {"GNAR_LOCAL_PORT": "3000", "GNAR_REMOTE_PORT": "9000", "GNAR_PROXY_NAME": "web"}
    (proxy,) = load_client({}, env).proxies
    assert (proxy.local_port, proxy.remote_port, proxy.proxy_name) == (3000, 9000, "web")
    (proxy,) = load_client({"remote-port": "9001"}, env).proxies
    assert proxy.remote_port == 9001


def test_proxies_of_file_and_command_line_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text("[[proxys]]\nlocal-port = 1\n")
    flags = {"config": str(path), "mappings": ["2:20", "3-4:30-31"], "local-port": "5", "remote-port": "50"}
    config = load_client(flags, {})
    ports = [(proxy.local_port, proxy.remote_port) for proxy in config.proxies]
    assert ports == [(1, 0), (2, 20), (3, 30), (4, 31), (5, 50)]
    assert len({proxy.proxy_name for proxy in config.proxies}) == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"remote-port": "1"}, "--remote-port: goes with --local-port, which is missing"),
        ({"proxy-name": "a"}, "--proxy-name: goes with --local-port, which is missing"),
        (
            {"max-users": "3"},
            "--max-users: goes with a mapping or --local-port; a file says it for each proxy",
        ),
        (
            {"mappings": ["1:2"], "remote-port": "3"},
            "--remote-port: goes with --local-port; a mapping names both ports",
        ),
        ({"mappings": ["1", "2"], "subdomain": "a"}, "--subdomain: goes with --local-port, which is missing"),
        ({"mappings": ["1:9", "2:9"]}, "remote-port 9 is given twice; each proxy needs its own"),
        ({"mappings": ["a=1", "a=2"]}, "subdomain 'a' is given twice; each proxy needs its own"),
        ({"mappings": ["a=1"], "subdomain": "b"}, "--subdomain: the mapping names one already"),
        (
            {"mappings": ["1"], "proxy-type": "udp", "subdomain": "a"},
            "proxy 'udp-1': subdomain: a proxy of UDP has no name",
        ),
        (
            {"mappings": ["1:2"], "proxy-type": "http"},
            "proxy 'http-1': remote-port: goes with proxy-type tcp or udp; http has a name instead",
        ),
        ({"mappings": ["1:2"], "path": "/a"}, "proxy 'tcp-1': path: goes with proxy-type http"),
        (
            {"mappings": ["a=1"], "proxy-type": "https", "redirect-https": True},
            "proxy 'https-1': redirect-https: goes with proxy-type http",
        ),
        (
            {"mappings": ["a=1"], "request-headers": "\n".join(["X: " + "y" * 300] * 60)},
            "proxy 'http-1': error page, headers, users and networks take 18180 bytes; 15000 are possible",
        ),
        (
            {"mappings": ["10000-32767:10000-32767"]},
            (
                "22768 ports to forward: no server takes more than 16384 of one client; forward fewer, "
                "or start several clients"
            ),
        ),
        ({}, "nothing to forward: give a mapping such as 3000:9000, -l, or [[proxys]] in a file"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_client(flags, {})
    assert str(caught.value) == said


def test_variable_that_does_not_go_with_a_mapping_is_named_as_such() -> None:
    with pytest.raises(ConfigError, match=r"^GNAR_REMOTE_PORT: goes with --local-port; a mapping names both"):
        load_client({"mappings": ["1:2"]}, {"GNAR_REMOTE_PORT": "3"})
    with pytest.raises(ConfigError, match=r"^--remote-port: goes with"):
        load_client({"mappings": ["1:2"], "remote-port": "3"}, {"GNAR_REMOTE_PORT": "3"})


def test_flags_for_all_go_with_every_mapping_and_a_name_with_the_only_one() -> None:
    flags = {"mappings": ["1:2", "db:3:4"], "speed-limit": "1kb", "local-host": "web"}
    one, two = load_client(flags, {}).proxies
    assert (one.local_host, two.local_host) == ("web", "db")
    assert one.speed_limit == two.speed_limit == Rate(1024, 1024)
    (alone,) = load_client({"mappings": ["1:2"], "proxy-name": "web", "subdomain": "www"}, {}).proxies
    assert (alone.proxy_name, alone.subdomain) == ("web", "www")


def test_proxy_with_a_name_and_no_port_is_of_http_and_has_the_settings_about_http() -> None:
    flags = {"mappings": ["blog=1", "=2", "3:4", "5"], "host-header": "local", "deny-from": "::1"}
    found = load_client(flags, {}).proxies
    assert [each.proxy_type for each in found] == ["http", "http", "tcp", "tcp"]
    assert [each.subdomain for each in found] == ["blog", "", "", ""]
    assert [each.host_header for each in found] == ["local", "local", "", ""]
    assert {each.deny_from for each in found} == {("::1/128",)}
    (chosen,) = load_client({"mappings": ["1"], "subdomain": ""}, {}).proxies
    assert (chosen.proxy_type, chosen.subdomain, chosen.has_name) == ("http", "", True)
    (both,) = load_client({"mappings": ["1:2"], "subdomain": "a"}, {}).proxies
    assert (both.proxy_type, both.has_name) == ("tcp", True)
    (passed,) = load_client({"mappings": ["a=1"], "proxy-type": "https"}, {}).proxies
    assert (passed.proxy_type, passed.proxy_name) == ("https", "https-1")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (0, "", 0)),
        ({"domain": "a.b", "bind": "::1"}, (80, "::1", 0)),
        ({"domain": "a.b", "http-port": "8080", "http-bind": "::1"}, (8080, "::1", 0)),
        ({"allow-hosts": "www.a.b", "tls-cert": "x"}, (80, "", 443)),
        ({"domain": "a.b", "tls-cert": "x", "http-port": "off"}, (0, "", 443)),
        ({"domain": "a.b", "tls-cert": "x", "https-port": "8443"}, (80, "", 8443)),
        ({"domain": "a.b", "caddy-api": "unix//run/x.sock", "bind": "::1"}, (8080, "127.0.0.1", 0)),
        ({"domain": "a.b", "caddy-api": "http://127.0.0.1:2019", "http-bind": ""}, (8080, "", 0)),
        ({"domain": "a.b", "https-port": "443"}, (80, "", 443)),
        ({"domain": "a.b", "http-port": "off"}, (0, "", 0)),
        ({"domain": "a.b", "tls-cert": "x", "http-port": "off", "https-port": "off"}, (0, "", 0)),
        ({"domain": "a.b", "tls-cert": "x", "port": "443"}, (80, "", 0)),
        ({"domain": "a.b", "tls-cert": "x", "port": "80"}, (0, "", 443)),
        ({"domain": "a.b", "port": "443", "http-port": "443", "https-port": "443"}, (0, "", 0)),
        ({"domain": "a.b", "http-port": "8910", "http-bind": "::1"}, (8910, "::1", 0)),
        ({"tls-cert": "x"}, (0, "", 0)),
    ],
    ids=repr,
)
def test_ports_of_names_follow_from_what_is_given(
    flags: dict[str, str], expected: tuple[int, str, int]
) -> None:
    config = load_server(flags, {})
    assert (config.http_port, config.http_bind, config.https_port) == expected


def test_forwarded_headers_are_believed_from_loopback_unless_that_is_said() -> None:
    assert load_server({}, {}).trust_forwarded == ("127.0.0.0/8", "::1/128")
    assert load_server({"trust-forwarded": "none"}, {}).trust_forwarded == ()
    assert load_server({"reserved-names": "a, b"}, {}).reserved_names == ("a", "b")
    assert "postmaster" in load_server({}, {}).reserved_names


def test_error_page_and_certificates_are_beside_the_file_that_names_them(tmp_path: Path) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text('domain = "a.b"\ntls-cert = ["a.pem", "/b.pem"]\nerror-page = "x.html"\n')
    config = load_server({"config": str(path)}, {})
    assert config.tls_cert == (str(tmp_path / "a.pem"), "/b.pem")
    assert config.error_page == str(tmp_path / "x.html")
    page = tmp_path / "page.html"
    page.write_text("x" * 8193)
    with pytest.raises(ConfigError, match="longer than 8192 characters"):
        load_client({"mappings": ["a=1"], "error-page": str(page)}, {})
    page.write_text("<p>é")
    assert load_client({"mappings": ["a=1"], "error-page": str(page)}, {}).proxies[0].error_page == "<p>é"


# ---- tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["s3cret\n", " s3cret\r\n", "\ts3cret "])
def test_white_space_around_a_token_is_no_part_of_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(text.encode())
    sources: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"token": text}, {}),
        ({}, {"GNAR_TOKEN": text}),
        ({"token-file": str(path)}, {}),
        ({}, {"GNAR_TOKEN_FILE": str(path)}),
    ]
    for flags, env in sources:
        assert load_server(flags, env).token.reveal() == "s3cret"
        assert load_client({"mappings": ["1"], **flags}, env).token.reveal() == "s3cret"


def test_token_file_in_a_file_is_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "token").write_bytes("s3cret\r\n".encode("utf-8-sig"))
    config = tmp_path / "gnar.toml"
    for path in ("token", tmp_path / "token"):
        config.write_text(f'token-file = "{path}"')
        assert load_server({"config": str(config)}, {}).token.reveal() == "s3cret"


def test_later_source_overrides_token_and_file_of_a_token_with_either(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("1")
    (tmp_path / "2").write_text("2")
    one, two = {"GNAR_TOKEN": "0"}, {"GNAR_TOKEN_FILE": str(tmp_path / "1")}
    config = tmp_path / "gnar.toml"
    config.write_text('token-file = "2"')
    flags = {"config": str(config)}
    assert load_server(flags, {}).token.reveal() == "2"
    assert load_server(flags, one).token.reveal() == "0"
    assert load_server(flags, two).token.reveal() == "1"
    assert load_server({**flags, "token": "3"}, two).token.reveal() == "3"
    assert load_server({"token-file": str(tmp_path / "2")}, one).token.reveal() == "2"
    (tmp_path / "2").unlink()
    assert load_server(flags, one).token.reveal() == "0"
    assert not load_server(flags, {}, with_token=False).token


@pytest.mark.parametrize(
    ("flags", "env", "said"),
    [
        (
            {"token": "a", "token-file": "b"},
            {},
            "--token-file: does not go with token; leave one of them out",
        ),
        (
            {},
            {"GNAR_TOKEN": "a", "GNAR_TOKEN_FILE": "b"},
            "GNAR_TOKEN_FILE: does not go with token; leave one of them out",
        ),
        ({"token-file": "/none"}, {}, "/none: cannot read it: No such file or directory"),
        ({"token-file": ""}, {}, "--token-file: '': expected the path of a file"),
    ],
)
def test_wrong_token_file_is_named(flags: dict[str, str], env: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_server(flags, env)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty; expected one line, the token"),
        (b" \n", "empty; expected one line, the token"),
        (b"GNAR_TOKEN=s3cret\nDEBUG=1\n", "several lines; expected one line, the token"),
        ("s3cret".encode("utf-16"), "this is UTF-16, not UTF-8; save it as UTF-8"),
        (b"s3cret" * 200, "expected at most 1024 characters"),
    ],
)
def test_file_that_holds_no_token_is_refused_and_its_text_not_shown(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_server({"token-file": str(path)}, {})
    assert str(caught.value) == f"{path}: {said}"


@pytest.mark.parametrize("text", ['"s3cret"', "'s3cret'", "\u201cs3cret\u201d"])
def test_quotes_around_a_token_are_named_and_kept(text: str, warnings: list[str]) -> None:
    assert load_server({}, {"GNAR_TOKEN": text}).token.reveal() == text
    (line,) = warnings
    assert line.startswith("the quotes around the token are part of it")
    assert "s3cret" not in line


# ---- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3000:9000", [Service(3000, "", 9000)]),
        ("3000", [Service(3000)]),
        ("3000:0", [Service(3000)]),
        ("host:3000:9000", [Service(3000, "host", 9000)]),
        ("10.0.0.1:3000:9000", [Service(3000, "10.0.0.1", 9000)]),
        ("[::1]:3000:9000", [Service(3000, "::1", 9000)]),
        ("3000-3002:9000-9002", [Service(3000, "", 9000), Service(3001, "", 9001), Service(3002, "", 9002)]),
        ("db.local:1-2:65534-65535", [Service(1, "db.local", 65534), Service(2, "db.local", 65535)]),
        ("5-5:6", [Service(5, "", 6)]),
        ("blog=3000", [Service(3000, name="blog")]),
        ("Blog.example.com=3000", [Service(3000, name="blog.example.com")]),
        ("*.dev=web:80", [Service(80, "web", name="*.dev")]),
        ("=[::1]:80", [Service(80, "::1", name="")]),
    ],
)
def test_mapping(text: str, expected: list[Service]) -> None:
    assert mapping(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "0:1", "1:65536", "65536:1", "3000:9000:", ":3000:9000", "a:b", "3000-3001", "::1:3000:9000",
        "3000-3010:9000-9009", "3010-3000:9000-9010", "3000-3010:9010-9000", "3000:9000-9001", "-1:2", "1 :2",
        "3000:9000/udp", "host:3000", "[::1:3000:9000", "٣:٤", "1:2:3:4", "1\n",
        "a=", "a=0", "a=b:3:4", "a=1-2", "a..b=3", "a=b=3", "-a=3", "a =3",
    ],
)  # fmt: skip
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected "):
        mapping(text)


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("example.com", Address("example.com", 8910), "example.com:8910"),
        ("example.com:1", Address("example.com", 1), "example.com:1"),
        ("127.0.0.1:65535", Address("127.0.0.1", 65535), "127.0.0.1:65535"),
        ("[::1]:7000", Address("::1", 7000), "[::1]:7000"),
        ("[::1]", Address("::1", 8910), "[::1]:8910"),
        ("::1", Address("::1", 8910), "[::1]:8910"),
        ("::ffff:127.0.0.1", Address("::ffff:127.0.0.1", 8910), "[::ffff:127.0.0.1]:8910"),
        ("::ffff:10:20", Address("::ffff:10:20", 8910), "[::ffff:10:20]:8910"),
        ("2001:db8::ff:fe12:3456", Address("2001:db8::ff:fe12:3456", 8910), "[2001:db8::ff:fe12:3456]:8910"),
        ("[::1:8910]", Address("::1:8910", 8910), "[::1:8910]:8910"),
        ("[fe80::1%eth0]:1", Address("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
    ],
)
def test_address(text: str, expected: Address, shown: str) -> None:
    assert values.address(8910)(text) == expected
    assert str(expected) == shown


@pytest.mark.parametrize(
    "text",
    ["", ":", ":1", "a:", "a:b", "a:0", "a:65536", "[::1", "::1]", "[]:1", "a b:1", "[::1]:", "a/b", "a:1:2"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected "):
        values.address(8910)(text)


@pytest.mark.parametrize(
    "text",
    ["::1:8910", "::1:3000:9000", "2001:db8::1:8910", "1:2:3:4:5:6:7:8:8910", "fe80::1%eth0:8910"],
)
def test_address_of_ipv6_that_seems_to_have_a_port_needs_brackets(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values.address(8910)(text)
    assert str(caught.value) == f"{text!r}: expected an IPv6 address in brackets, such as [2001:db8::1]:8910"


def test_mapping_whose_ipv6_address_has_no_brackets_is_told_to_have_them() -> None:
    with pytest.raises(ConfigError, match=r"an IPv6 address needs brackets, as in \[::1\]:3000:9000$"):
        mapping("::1:3000:9000")


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "name:80"])
def test_host_with_a_port_is_told_to_have_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a host name or an IP address without a port$"):
        values.host(text)
    with pytest.raises(ConfigError, match=r"expected an address without a port$"):
        values.bind(text)


@pytest.mark.parametrize("text", ["::1:18910", "a:b:c", "[fe80::1%lo]:80", "2001:db8::1::2"])
def test_address_to_listen_on_has_colons_only_if_it_is_ipv6(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected an address without a port$"):
        values.bind(text)


@pytest.mark.parametrize("text", ["::", "::1", "[::1]", "fe80::1%lo", "192.0.2.1", "name", ""])
def test_address_to_listen_on_loses_nothing_but_its_brackets(text: str) -> None:
    assert values.bind(text) == text.strip("[]")


def test_what_net_and_the_protocol_do_without_settings_is_what_the_settings_say() -> None:
    assert (model.DEFAULT_DEAD_AFTER_S, model.DEFAULT_HALF_CLOSE_TIMEOUT_S) == (
        options.DEFAULT_DEAD_AFTER_S,
        options.DEFAULT_HALF_CLOSE_TIMEOUT_S,
    )
    assert model.DEFAULT_HEARTBEAT_S == numbers.DEFAULT_HEARTBEAT_S


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("1b", 1),
        ("100kb", 102400),
        ("1MB", 1 << 20),
        ("1.5mb/s", 3 << 19),
        ("1 Gb/S", 1 << 30),
        (" 2kb ", 2048),
    ],
)
def test_rate(text: str, bytes_per_second: int) -> None:
    assert values.rate(text) == Rate(bytes_per_second, bytes_per_second)


@given(
    st.text(max_size=30) | st.integers() | st.floats() | st.booleans() | st.none() | st.lists(st.booleans())
)
def test_any_value_is_read_or_refused(value: object) -> None:
    readers = [
        values.text, values.name, values.host, values.secret, values.port, values.port_or_0, values.flag,
        values.seconds, names.domain, names.subdomain, names.host_patterns, names.labels, names.networks,
        names.headers, names.basic_auth, names.path_prefix, names.host_header, names.port_or_off, names.paths,
        names.hsts, names.caddy_api, names.networks_or_none, values.rate, values.port_ranges,
        values.address(1),
        values.one_of("a", "b"),
    ]  # fmt: skip
    if isinstance(value, str):
        readers.append(mapping)
    for reader in readers:
        with contextlib.suppress(ConfigError):
            reader(value)


@given(st.lists(st.tuples(st.integers(1, MAX_PORT), st.integers(1, MAX_PORT)), min_size=1, max_size=4))
def test_port_ranges_allow_what_they_say(pairs: list[tuple[int, int]]) -> None:
    ranges = [(min(pair), max(pair)) for pair in pairs]
    allowed = values.port_ranges(",".join(f"{low}-{high}" for low, high in ranges))
    for port in {1, MAX_PORT, *(edge + by for pair in ranges for edge in pair for by in (-1, 0, 1))}:
        assert allowed.allows(port) == any(low <= port <= high for low, high in ranges)
    assert next(iter(allowed)) == min(low for low, _ in ranges)


def test_no_port_ranges_allow_all() -> None:
    assert not values.port_ranges("")
    assert values.port_ranges("").allows(MAX_PORT)
    assert str(values.port_ranges("")) == "1-65535"


# ---- the admin port ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["token", "admin-password", "admin-read-token"])
def test_each_secret_can_be_in_a_file_beside_the_file_that_names_it(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    path = tmp_path / "gnar.toml"
    path.write_text(f'{key}-file = "secret"\n')
    config = load_server({"config": str(path)}, {})
    found = {"token": config.token, "admin-password": config.admin.password}
    assert found.get(key, config.admin.read_token).reveal() == "s3cret"


def test_variable_with_a_password_overrides_the_file_of_a_password(tmp_path: Path) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text('admin-password-file = "nowhere"\n')
    config = load_server({"config": str(path)}, {"GNAR_ADMIN_PASSWORD": "s3cret"})
    assert config.admin.password.reveal() == "s3cret"


def test_state_folder_is_beside_the_file_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "gnar.toml"
    path.write_text('admin-port = 8911\nstate-dir = "state"\n')
    assert load_server({"config": str(path)}, {}).state_dir == str(tmp_path / "state")


def test_relay_takes_secrets_of_the_admin_port_alone_from_variables() -> None:
    env = {"GNAR_ADMIN_PORT": "1", "GNAR_ADMIN_PASSWORD": "s3cret", "GNAR_TOKEN": "s3cret"}
    admin = load_admin({"admin-port": "8911"}, env)
    assert (admin.port, admin.password.reveal(), bool(admin.read_token)) == (8911, "s3cret", False)


def test_keys_of_the_admin_port_that_have_changed_are_named() -> None:
    before, after = load_server({}, {}), load_server({"admin-port": "1", "grace": "1"}, {})
    assert changed_keys(before, after) == ("grace", "admin-port")


# ---- the inspector -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "read"),
    [
        *[(each, Address("127.0.0.1", 0)) for each in ("on", "true", True)],
        *[(each, None) for each in ("off", "no", False)],
        *[(each, Address("127.0.0.1", 4050)) for each in ("4050", 4050, "127.0.0.1:4050")],
        ("localhost:4050", Address("localhost", 4050)),
        ("[::1]:4050", Address("::1", 4050)),
    ],
)
def test_where_the_page_of_the_inspector_is(value: object, read: Address | None) -> None:
    assert values.inspect(value) == read


@pytest.mark.parametrize(
    "value", ["", "maybe", "example.com:4050", "192.0.2.1:4050", ":4050", "65536", 0, 1.5, None]
)
def test_the_page_of_the_inspector_is_nowhere_else(value: object) -> None:
    with pytest.raises(ConfigError):
        values.inspect(value)


@pytest.mark.parametrize(
    ("value", "size"), [("0", 0), (0, 0), ("64kb", 65536), ("1.5MB", 3 << 19), ("10b", 10)]
)
def test_how_much_of_each_body_is_kept(value: object, size: int) -> None:
    assert values.kept_size(value) == size


@pytest.mark.parametrize("value", ["", "64", 64, "17mb", "1gb", "64kb/s", "-1kb", True, None])
def test_sizes_that_bodies_cannot_be_kept_in(value: object) -> None:
    with pytest.raises(ConfigError):
        values.kept_size(value)
