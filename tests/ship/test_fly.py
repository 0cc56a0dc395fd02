"""fly.toml has only keys that fly.io and the server know, and opens the ports that the server allows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomli

from gnar_lib.config import load_server
from gnar_lib.config.keys import SERVER, SERVER_WITHOUT_EFFECT, variable_of
from gnar_lib.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "fly.toml").read_text()
GUIDE = (ROOT / "docs" / "fly.md").read_text()

# Keys by their place in the file, from the reference of fly.toml and the sources of flyctl, both of 2026-11.
KNOWN_KEYS = {
    "": {
        *("app", "primary_region", "kill_signal", "kill_timeout", "swap_size_mb", "console_command"),
        *("experimental", "build", "deploy", "env", "processes", "mounts", "http_service", "services"),
        *("checks", "files", "restart", "vm", "statics", "metrics"),
    },
    "build": {
        *("builder", "buildpacks", "args", "image", "dockerfile", "ignorefile", "build-target"),
    },
    "deploy": {
        *("strategy", "max_unavailable", "wait_timeout", "release_command", "release_command_timeout"),
        *("release_command_vm", "seed_command"),
    },
    "restart": {"policy", "retries", "processes"},
    "services": {
        *("protocol", "internal_port", "auto_stop_machines", "auto_start_machines", "min_machines_running"),
        *("ports", "concurrency", "tcp_checks", "http_checks", "machine_checks", "processes"),
    },
    "services.ports": {
        *("port", "start_port", "end_port", "handlers", "force_https", "tls_options", "http_options"),
        "proxy_proto_options",
    },
    "services.ports.proxy_proto_options": {"version"},
    "services.tcp_checks": {"interval", "timeout", "grace_period"},
    "vm": {
        *("size", "memory", "cpus", "cpu_kind", "kernel_args", "host_dedication_id", "persist_rootfs"),
        "processes",
    },
}
HANDLERS = {"http", "tls", "pg_tls", "proxy_proto"}


def with_options(text: str) -> str:
    """Return the text with every option on: a line that begins with # and no space after it is an option."""
    return re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE)


FILE = tomli.loads(TEXT)
FILE_WITH_OPTIONS = tomli.loads(with_options(TEXT))
either_way = pytest.mark.parametrize("file", [FILE, FILE_WITH_OPTIONS], ids=["as it is", "with its options"])


def assert_keys_known(table: dict[str, Any], place: str = "") -> None:
    if place == "env":
        return
    assert set(table) <= KNOWN_KEYS[place], place
    for key, value in table.items():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                assert_keys_known(inner, f"{place}.{key}".lstrip("."))


def seconds(duration: str) -> int:
    found = re.fullmatch(r"(\d+)s", duration)
    assert found, duration
    return int(found[1])


def internal_ports(file: dict[str, Any], *protocols: str) -> list[int]:
    return [service["internal_port"] for service in file["services"] if service["protocol"] in protocols]


@either_way
def test_keys_are_those_of_the_reference(file: dict[str, Any]) -> None:
    assert_keys_known(file)


@either_way
def test_variables_are_settings_of_the_server(file: dict[str, Any]) -> None:
    assert set(file["env"]) <= {variable_of(key) for key in (*SERVER, *SERVER_WITHOUT_EFFECT)}
    assert all(isinstance(value, str) for value in file["env"].values())


def test_the_server_takes_the_variables() -> None:
    config = load_server({}, FILE["env"])
    assert config.udp_bind == "fly-global-services"
    assert config.bind == ""


def test_the_admin_panel_is_an_option_that_needs_a_password() -> None:
    env = FILE_WITH_OPTIONS["env"]
    with pytest.raises(ConfigError, match="so a password is needed: set GNAR_ADMIN_PASSWORD"):
        load_server({}, env)
    assert load_server({}, env | {"GNAR_ADMIN_PASSWORD": "s3cret"}).admin.port == 8911
    assert 8911 not in internal_ports(FILE, "tcp")
    assert str(internal_ports(FILE_WITH_OPTIONS, "tcp")[1]) == env["GNAR_ADMIN_PORT"]


def test_what_the_guide_adds_for_names_is_known_and_the_server_takes_it() -> None:
    (text,) = re.findall(r"```text\n(GNAR_DOMAIN.*?)```", GUIDE, re.DOTALL)
    variables, _, services = text.partition("\n\n")
    (service,) = tomli.loads(services)["services"]
    assert_keys_known({"services": [service]})
    config = load_server({}, FILE["env"] | tomli.loads(variables))
    assert service["internal_port"] == config.http_port
    assert service["internal_port"] not in internal_ports(FILE_WITH_OPTIONS, "tcp")
    assert "127.0.0.0/8" not in config.trust_forwarded
    assert {port["port"]: port["handlers"] for port in service["ports"]} == {
        80: ["http"],
        443: ["tls", "http"],
    }


def test_ports_that_are_open_are_those_that_clients_may_open() -> None:
    config = load_server({}, FILE["env"])
    control, *forwarded = internal_ports(FILE, "tcp", "udp")
    assert control == config.port
    assert sorted(forwarded) == [*config.allow_ports]


@either_way
def test_each_service_has_one_port_and_proxies_have_the_same_outside(file: dict[str, Any]) -> None:
    opened = [(service["protocol"], service["internal_port"]) for service in file["services"]]
    assert len(set(opened)) == len(opened)
    for service in file["services"]:
        ports = [port["port"] for port in service["ports"]]
        assert ports == [service["internal_port"]] or service["internal_port"] == 8911, service


def test_fly_waits_longer_than_users_have_to_finish() -> None:
    assert FILE["kill_signal"] == "SIGTERM"
    assert load_server({}, FILE["env"]).grace_s < seconds(FILE["kill_timeout"]) <= 300


@either_way
def test_one_machine_runs_and_is_never_stopped(file: dict[str, Any]) -> None:
    assert "http_service" not in file
    assert {service["auto_stop_machines"] for service in file["services"]} == {"off"}
    assert file["services"][0]["min_machines_running"] == 1
    assert file["restart"] == [{"policy": "always"}]
    assert file["deploy"]["strategy"] == "rolling"
    assert "--ha=false" in GUIDE


def test_the_control_port_is_checked_and_ports_of_proxies_are_not() -> None:
    control, *others = FILE["services"]
    (check,) = control["tcp_checks"]
    assert seconds(check["timeout"]) < seconds(check["interval"]) <= 60
    assert not any(key.endswith("checks") for service in others for key in service)
    assert control["ports"] == [{"port": 8910}]


@either_way
def test_udp_has_no_handlers_and_handlers_are_known(file: dict[str, Any]) -> None:
    for service in file["services"]:
        for port in service["ports"]:
            handlers = set(port.get("handlers", []))
            assert handlers <= HANDLERS
            assert not handlers or service["protocol"] == "tcp"
            assert ("proxy_proto_options" in port) <= ("proxy_proto" in handlers)


def test_the_build_names_its_dockerfile() -> None:
    # Without this key `fly launch` reads the Dockerfile, and adds an HTTP service for the port in EXPOSE.
    assert (ROOT / FILE["build"]["dockerfile"]).is_file()


def test_the_guide_shows_the_option_for_the_proxy_protocol_as_it_is_in_the_file() -> None:
    (shown,) = re.findall(r"^```text\n(\[\[services\.ports\]\]\n.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    (port,) = tomli.loads(shown)["services"]["ports"]
    assert port in [port for service in FILE_WITH_OPTIONS["services"] for port in service["ports"]]
    assert port not in [port for service in FILE["services"] for port in service["ports"]]


def test_the_guides_loop_adds_a_range_of_ports(tmp_path: Path) -> None:
    (loop,) = re.findall(r"^```sh\n(for port in .*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    shutil.copy(ROOT / "fly.toml", tmp_path)
    subprocess.run(["sh", "-eu", "-c", loop], cwd=tmp_path, check=True)
    longer = tomli.loads((tmp_path / "fly.toml").read_text())
    assert_keys_known(longer)
    added = longer["services"][len(FILE["services"]) :]
    assert [service["internal_port"] for service in added] == [*range(9003, 9011)]
    assert all(service["auto_stop_machines"] == "off" for service in added)
    (allowed,) = re.findall(r'GNAR_ALLOW_PORTS = "(.*)"', GUIDE)
    config = load_server({}, longer["env"] | {"GNAR_ALLOW_PORTS": allowed})
    assert sorted(internal_ports(longer, "tcp", "udp")[1:]) == [*config.allow_ports]
    longer["services"][len(FILE["services"]) :] = []
    assert longer == FILE
