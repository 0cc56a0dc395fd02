"""Reads Caddy's configuration, in which everything may be left out; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gnar_lib.server.caddy.wish import is_covered

HTTP_PORT, HTTPS_PORT = 80, 443  # of Caddy, unless its settings say otherwise
_MOST_PORTS = 65535


def table(value: Any, *path: str) -> dict[str, Any]:
    """Return the object at a path of keys; an empty one if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def rows(value: Any, key: str) -> list[Any]:
    """Return the list that an object has under a key; an empty one if there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def texts(value: Any, key: str) -> list[str]:
    """Return the texts in the list that an object has under a key."""
    return [each for each in rows(value, key) if isinstance(each, str)]


def hosts_of(route: Any) -> list[str]:
    """Return the hosts that a route names in any of its sets of matchers."""
    return [host for matchers in rows(route, "match") for host in texts(matchers, "host")]


def managed_hosts(apps: dict[str, Any]) -> set[str]:
    """Return the hosts whose certificates Caddy manages of itself, since a route or `automate` names them."""
    found = set(texts(table(apps, "tls", "certificates"), "automate"))
    for server in table(apps, "http", "servers").values():
        auto = table(server, "automatic_https")
        is_off = auto.get("disable") or auto.get("disable_certificates")
        if is_off or _listens_only_at(server, _http_port(apps)):
            continue
        left_out = {*texts(auto, "skip"), *texts(auto, "skip_certificates")}
        for route in rows(server, "routes"):
            found.update(host for host in hosts_of(route) if host not in left_out)
    return {host for host in found if "{" not in host}


def why_no_https(apps: dict[str, Any], name: str, hosts: Iterable[str]) -> str:
    """Return why a server of Caddy has no HTTPS for hosts, in words that follow its name; empty if it has."""
    server = table(apps, "http", "servers", name)
    policies = rows(server, "tls_connection_policies")
    if policies:
        names = [texts(table(policy, "match"), "sni") for policy in policies]
        if all(each and not any(is_covered(host, each) for host in hosts) for each in names):
            return "has TLS only for the names that its `tls_connection_policies` list"
        return ""
    if table(server, "automatic_https").get("disable"):
        return "has automatic HTTPS off, and no `tls_connection_policies` either"
    if _listens_only_at(server, _http_port(apps)):
        return f"listens only on port {_http_port(apps)}, which is Caddy's port for HTTP"
    named = any(hosts_of(route) for route in rows(server, "routes"))
    if not named and not _listens_only_at(server, _https_port(apps)):
        return f"has no TLS, since it listens on other ports than {_https_port(apps)} and names no host"
    return ""


def _http_port(apps: dict[str, Any]) -> int:
    return table(apps, "http").get("http_port") or HTTP_PORT


def _https_port(apps: dict[str, Any]) -> int:
    return table(apps, "http").get("https_port") or HTTPS_PORT


def _listens_only_at(server: Any, port: int) -> bool:
    listen = texts(server, "listen")
    return bool(listen) and all(_ports(address) == (port, port) for address in listen)


def _ports(address: str) -> tuple[int, int]:
    """Return the first and the last port of an address such as `tcp/127.0.0.1:80-81`; zeros without one."""
    first, _, last = address.rpartition(":")[2].partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        return 0, 0
    return min(int(first), _MOST_PORTS), min(int(last or first), _MOST_PORTS)


def in_words(names: Iterable[str]) -> str:
    """Return names in quotes, for people."""
    return ", ".join(map(repr, names))


def within(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects that a value consists of, the outer ones first."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
