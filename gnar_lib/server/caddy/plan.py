"""What has to change in Caddy's configuration so that it leads users to gnar; writes nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gnar_lib.server.caddy.policy import automated, without_ours
from gnar_lib.server.caddy.route import ROUTE_ID, placed
from gnar_lib.server.caddy.shape import HTTP_PORT, HTTPS_PORT, in_words, rows, table, why_no_https
from gnar_lib.server.caddy.wish import Wish

SERVER_ID = "gnar-server"


@dataclass(frozen=True, slots=True)
class Made:
    """The server that gnar makes in a Caddy without any."""

    host: str = ""  # to listen at, empty for all addresses
    https_port: int = HTTPS_PORT
    http_port: int = HTTP_PORT

    def http(self, name: str) -> dict[str, Any]:
        """Return Caddy's `http` with this server; its `@id` says that gnar has made it."""
        listen = [f"{self.host}:{self.https_port}"]
        server = {"@id": SERVER_ID, "listen": listen, "tls_connection_policies": [{}], "routes": []}
        ports = {"http_port": self.http_port, "https_port": self.https_port}
        usual = {"http_port": HTTP_PORT, "https_port": HTTPS_PORT}
        return {**({} if ports == usual else ports), "servers": {name: server}}


@dataclass(frozen=True, slots=True)
class Plan:
    """What Caddy's configuration should be."""

    apps: dict[str, Any]  # all of them, those of others as they are
    trouble: str = ""  # what is wrong, and what to do; empty if nothing is
    is_ready: bool = True  # whether names will have HTTPS with that


def plan(config: Any, srv_name: str, wish: Wish, made: Made, *, is_old: bool) -> Plan:
    """Return what a configuration, None for none, should become; `is_old`: Caddy only knows `ask`."""
    apps = table(config, "apps")
    servers = table(apps, "http", "servers")
    if not servers:
        apps = {**apps, "http": {**table(apps, "http"), **made.http(srv_name)}}
    elif srv_name not in servers:
        trouble = (
            f"Caddy has no server {srv_name!r}: give --caddy-srv-name one that it has "
            f"({in_words(servers)}), or add a site to Caddy's configuration"
        )
        return Plan(apps, trouble, is_ready=False)
    routes = rows(table(apps, "http", "servers", srv_name), "routes")
    wanted, taken = placed(routes, wish)
    apps = _with_routes(apps, srv_name, wanted)
    reason = why_no_https(apps, srv_name, wish.hosts)
    no_https = f"Caddy's server {srv_name!r} {reason}: names have no HTTPS there ({_remedy(servers)})"
    no_https = no_https if reason else ""
    tls, asked = automated(apps, wish, is_old=is_old)
    apps = _with_app(apps, "tls", tls)
    trouble = "; ".join(each for each in (no_https, taken, asked) if each)
    return Plan(apps, trouble, is_ready=not no_https and not taken)


def removal(config: Any) -> dict[str, Any]:
    """Return the apps of a configuration without what gnar has put there."""
    apps = table(config, "apps")
    http = table(apps, "http")
    servers = {name: _without_route(server) for name, server in table(http, "servers").items()}
    kept = {name: each for name, each in servers.items() if rows(each, "routes") or not _is_made(each)}
    if servers and not kept and not http.keys() - {"servers", "http_port", "https_port"}:
        apps = _with_app(apps, "http", {})
    elif servers:
        apps = _with_app(apps, "http", {**http, "servers": kept})
    return _with_app(apps, "tls", without_ours(apps))


def _without_route(server: Any) -> Any:
    others = [route for route in rows(server, "routes") if table(route).get("@id") != ROUTE_ID]
    return {**server, "routes": others} if len(others) != len(rows(server, "routes")) else server


def _is_made(server: Any) -> bool:
    return bool(table(server).get("@id") == SERVER_ID)


def _with_routes(apps: dict[str, Any], srv_name: str, routes: list[Any]) -> dict[str, Any]:
    """Return the apps with the routes of a server, and with no route of gnar's in another server."""
    http = table(apps, "http")
    servers = {name: _without_route(server) for name, server in table(http, "servers").items()}
    if rows(servers[srv_name], "routes") != routes:
        servers[srv_name] = {**servers[srv_name], "routes": routes}
    return {**apps, "http": {**http, "servers": servers}}


def _with_app(apps: dict[str, Any], name: str, app: dict[str, Any]) -> dict[str, Any]:
    """Return the apps with one that is replaced; without it if it is empty now, and was not."""
    if app or not table(apps, name):
        return {**apps, name: app} if app else apps
    return {other: each for other, each in apps.items() if other != name}


def _remedy(servers: dict[str, Any]) -> str:
    others = f", or name another server by --caddy-srv-name: {in_words(servers)}" if len(servers) > 1 else ""
    return f"change that in Caddy's configuration{others}"
