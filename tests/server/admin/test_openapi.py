"""The description of the API, and whether the answers of a real server are as it says."""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gnar_lib import __version__
from gnar_lib.events import ALL, name_of
from gnar_lib.http import Routes
from gnar_lib.server.admin import api as api_module
from tests.helpers.admin import PASSWORD, READ_TOKEN, Asker, watched
from tests.helpers.client_file import proxy_table
from tests.helpers.harness import LOOPBACK, Service, Tunnels, dial, echo, free_port, wait_until
from tests.helpers.prober import Probe, probe

FILE = Path(api_module.__file__).with_name("openapi.json")
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
STREAMS = ("/api/v1/events", "/api/v1/live")
PAGE = {"/", "/static/{name}"}  # are no part of the API


def complaint(name: str, value: object) -> str:
    """Return what is wrong with a value that should be as a schema says, empty if nothing is."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    errors = jsonschema_rs.Draft202012Validator(schema).iter_errors(value)
    return "\n".join(f"{error.instance_path}: {error.message[:500]}" for error in errors)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


# ---- the document ------------------------------------------------------------------------------------------


def test_every_route_is_described_and_nothing_else() -> None:
    with watched() as panel:
        routes: Routes = panel.admin._port.routes
        served = {
            (method, "/" + "/".join(route.segments))
            for each in routes._routes.values()
            for route in each
            for method in route.handlers
        }
        answer = panel.ask("GET", "/api/openapi.json")
    assert {(method, path) for method, path, _ in operations()} == {
        each for each in served if each[1] not in PAGE
    }
    assert answer.json == {**DOCUMENT, "info": {**DOCUMENT["info"], "version": __version__}}


def test_every_event_is_described_with_its_fields() -> None:
    described = {each["$ref"].rpartition("/")[2] for each in SCHEMAS["Event"]["oneOf"]}
    assert described == {f"Event{each.__name__}" for each in ALL}
    for each in ALL:
        properties = SCHEMAS[f"Event{each.__name__}"]["properties"]
        assert [*properties] == ["event", "at", *(field.name for field in fields(each))]
        assert properties["event"] == {"const": name_of(each)}


def test_objects_are_closed_and_exact_and_everything_is_explained() -> None:
    optional = {"State": {"removed"}, "LiveProxy": {"chart", "point"}}
    asked = {"Login", "Port"}  # of these, more may be sent
    for name, schema in SCHEMAS.items():
        if schema.get("type") != "object":
            continue
        assert schema["additionalProperties"] is (name in asked), name
        assert {*schema["properties"]} - {*schema["required"]} == optional.get(name, set()), name
        for field, of_field in schema["properties"].items():
            assert "description" in of_field or "$ref" in of_field or "const" in of_field, (name, field)
    for method, path, operation in operations():
        assert operation["summary"].endswith("."), (method, path)
        assert all(each["description"] for each in operation.get("parameters", ())), (method, path)


def test_every_schema_and_response_is_used() -> None:
    text = FILE.read_text()
    for kind in ("schemas", "responses"):
        for name in DOCUMENT["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, name


# ---- the answers -------------------------------------------------------------------------------------------


@dataclass
class World:
    """A server with clients, proxies of both kinds, users, and things that have gone."""

    admin: Asker
    users: list[socket.socket]


@pytest.fixture
def world(multiplexed_tunnels: Tunnels, tmp_path: Path) -> Iterator[World]:
    admin = Asker(free_port())
    secrets = (
        "--admin-password",
        PASSWORD,
        "--admin-read-token",
        READ_TOKEN,
        "--max-speed",
        "10mb",
        "--state-dir",
        str(tmp_path),
    )
    names = ("-D", "example.com", "--http-port", str(free_port()))
    _, port = multiplexed_tunnels.server("-a", str(admin.port), *secrets, *names)
    with Service(echo) as service, ExitStack() as stack:
        to_service = ("-l", str(service.port), "-r", "0")
        gone, _ = multiplexed_tunnels.client(port, *to_service, "-n", "gone")
        tables = [
            proxy_table("blog", service.port, 0),
            proxy_table("dns", service.port, 0, "udp"),
            proxy_table("näs <b>", service.port, 0),
            proxy_table("web", service.port, 0, "http") + 'subdomain = "web"\n',
        ]
        (tmp_path / "client.toml").write_text("".join(tables))
        client, _ = multiplexed_tunnels.client(port, "-c", str(tmp_path / "client.toml"))
        client.wait_log("open at", count=4)
        gone.kill()
        asker = admin.with_secret(PASSWORD)
        ports = {each["name"]: each["port"] for each in asker.get("proxies")["proxies"]}
        users = [stack.enter_context(dial(ports["blog"])) for _ in range(3)]
        for user in users:
            user.sendall(b"hello")
            assert user.recv(5) == b"hello"
        wait_until(lambda: asker.get("server")["clients"] == 1, "the other client has gone")
        yield World(admin, users)


def test_answers_and_streams_are_as_described(world: World) -> None:
    admin = world.admin.with_secret(PASSWORD)
    for path in ("server", "clients", "proxies", "connections"):
        assert complaint(path.capitalize(), admin.get(path)) == ""
    assert {each["state"] for each in admin.get("clients")["clients"]} == {"connected", "gone"}
    proxies = {each["name"]: each for each in admin.get("proxies")["proxies"]}
    assert {each["kind"] for each in proxies.values()} == {"tcp", "udp", "http"}
    assert proxies["web"]["port"] == 0
    assert proxies["web"]["link"].startswith("http://web.example.com:")
    assert proxies["blog"]["limit_up"] == proxies["blog"]["limit_down"] > 0
    assert complaint("Day", admin.get(f"proxies/{proxies['blog']['id']}/history")) == ""
    query = f"/api/v1/live?proxy={proxies['blog']['id']}"
    with admin.stream(query) as live, admin.stream(f"{query}&only=connections") as connections:
        state = next(connections)
        assert (state.name, complaint("ConnectionsState", state.data)) == ("state", "")
        seen: dict[str, int] = defaultdict(int)
        with_chart = with_point = False
        for told in live:
            assert complaint({"state": "State", "happened": "Event"}[told.name], told.data) == ""
            seen[told.name] += 1
            if told.name == "state":
                with_chart |= any("chart" in each for each in told.data["proxies"])
                with_point |= any("point" in each for each in told.data["proxies"])
            if seen["state"] > 1 and with_point:
                break
            world.users[0].sendall(b"more")
            world.users[0].recv(4)
        assert with_chart
        assert seen["happened"] >= 5
    every = ",".join(name_of(each) for each in ALL)
    with admin.stream(f"/api/v1/events?only={every}") as events:
        wait_until(lambda: user_is_told(world, events), "an event of a user")
    assert complaint("Problem", admin("GET", "/api/v1/nothing").json) == ""


def user_is_told(world: World, events: Iterator[Any]) -> bool:
    world.users.pop().close()
    told = next(events)
    assert int(told.id) > 0
    assert complaint("Event", told.data) == ""
    return bool(told.name == "user-left")


def test_whatever_is_asked_for_is_answered_as_described(world: World) -> None:
    login, logout = ("POST", "/api/v1/login"), ("POST", "/api/v1/logout")
    asked = [(method, path) for method, path, _ in operations() if path not in STREAMS]
    reading = [each for each in asked if each[0] == "GET"]
    ending = [each for each in asked if each[0] != "GET" and each not in (login, logout)]
    reader, admin = ({"Authorization": f"Bearer {each}"} for each in (READ_TOKEN, PASSWORD))
    guessing = {"Authorization": "Bearer a guess", "X-Forwarded-For": "192.0.2.1"}
    probes = [
        *(Probe(*each, reader) for each in [*reading, logout, *ending]),
        *(Probe(*each, admin) for each in ending),
        Probe("GET", "/api/v1/server", guessing),
        *[Probe(*login, guessing)] * 4,
    ]
    url = f"http://{LOOPBACK}:{world.admin.port}/api/openapi.json"
    found = [*zip(probes, probe(url, probes), strict=True)]
    for each, statuses in found[: len(reading) + 1]:
        assert statuses & ({404} if "{id}" in each.path else {200, 204}), each
    for each, statuses in found[len(reading) + 1 :]:
        if each.fields is reader:
            assert statuses - {400} == {403}, each
        elif each.fields is admin:
            assert 404 in statuses, each
            assert statuses <= {200, 204, 400, 404}, each
    guessed = [statuses for each, statuses in found if each.fields is guessing]
    assert guessed[0] == {401}
    assert set().union(*guessed) == {400, 401, 429}


def test_methods_that_are_not_described_are_not_allowed() -> None:
    with watched() as panel:
        for path, methods in DOCUMENT["paths"].items():
            known = {"OPTIONS", *(each.upper() for each in methods), *({"HEAD"} if "get" in methods else ())}
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - known:
                answer = panel.ask(method, path.format(id="c1"))
                assert (answer.status, complaint("Problem", answer.json)) == (405, "")
                assert {*answer.headers["Allow"].split(", ")} == known
            assert panel.ask("OPTIONS", path.format(id="c1")).headers["Allow"] == ", ".join(sorted(known))
