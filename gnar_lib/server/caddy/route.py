"""Gnar's route in a server of Caddy, and its place among the routes of others; knows nothing of TLS."""

from __future__ import annotations

from typing import Any

from gnar_lib.server.caddy.shape import hosts_of, in_words, rows, table, within
from gnar_lib.server.caddy.wish import Wish, covers, is_covered

ROUTE_ID = "gnar"
# Handlers that answer a request themselves. Others, also those of plugins, may do something for all requests,
# such as refusing some, so gnar's route has to come behind them.
_ANSWERING = frozenset({"acme_server", "error", "file_server", "metrics", "reverse_proxy", "static_response"})


def placed(routes: list[Any], wish: Wish) -> tuple[list[Any], str]:
    """Return the routes with gnar's in its place, and what is wrong, empty if nothing is.

    Returns the same routes if gnar's is right where it is. Requests that a route of somebody else leads to
    gnar need no route of gnar's.
    """
    others = [route for route in routes if table(route).get("@id") != ROUTE_ID]
    before = next((at for at, route in enumerate(others) if _takes_ours(route, wish)), len(others))
    first = [(route, _whole_hosts(route)) for route in others[:before] if _answers(route)]
    by_hand = [host for route, hosts in first if _leads_to_gnar(route, wish) for host in hosts]
    hosts = [host for host in wish.hosts if not is_covered(host, by_hand)]
    if not hosts:
        return others, ""
    taken = [host for host in hosts if any(host in theirs for _, theirs in first)]
    trouble = f"a route of somebody else already takes {in_words(taken)}" if taken else ""
    ours = _route(hosts, wish)
    if _is_right(routes, others, ours, before, wish):
        return routes, trouble
    return [*others[:before], ours, *others[before:]], trouble


def _is_right(routes: list[Any], others: list[Any], ours: Any, before: int, wish: Wish) -> bool:
    """Tell whether gnar's route is there once, as it should be, where nobody's requests are lost."""
    places = [at for at, route in enumerate(routes) if table(route).get("@id") == ROUTE_ID]
    if len(places) != 1 or routes[places[0]] != ours:
        return False
    at = places[0]
    return at <= before and not any(_is_below(route, wish) for route in others[at:before])


def _route(hosts: list[str], wish: Wish) -> dict[str, Any]:
    """Return gnar's route.

    Caddy looks for hosts in `host` matchers of routes, and manages certificates for them. Since version 2.10
    it then gets none for a host below a wildcard, such as that of another site. What is in `not` is left
    alone, and twice `not` changes no meaning.
    """
    to_gnar = {"handler": "reverse_proxy", "upstreams": [{"dial": wish.dial}], "flush_interval": -1}
    match = [{"not": [{"not": [{"host": hosts}]}]}]
    return {"@id": ROUTE_ID, "match": match, "handle": [to_gnar], "terminal": True}


def _takes_ours(route: Any, wish: Wish) -> bool:
    """Tell whether a route takes gnar's hosts among others: all requests, or those to a wider pattern."""
    for matchers in rows(route, "match") or [{}]:
        if table(matchers).keys() - {"host"}:
            continue  # it takes some requests only
        hosts = hosts_of({"match": [matchers]})
        wider = any(covers(host, ours) and host != ours for host in hosts for ours in wish.hosts)
        if (wider or not matchers) and _answers(route):
            return True
    return False


def _whole_hosts(route: Any) -> list[str]:
    """Return the hosts of which a route takes all requests."""
    sets = [table(matchers) for matchers in rows(route, "match")]
    return hosts_of({"match": [matchers for matchers in sets if not matchers.keys() - {"host"}]})


def _answers(route: Any) -> bool:
    """Tell whether no request that a route takes goes on to the next one."""
    if table(route).get("terminal"):
        return True
    return any(
        handler.get("handler") in _ANSWERING
        or (
            handler.get("handler") == "subroute"
            and any(not rows(inner, "match") and _answers(inner) for inner in rows(handler, "routes"))
        )
        for handler in map(table, rows(route, "handle"))
    )


def _is_below(route: Any, wish: Wish) -> bool:
    """Tell whether a route is for hosts that gnar's route would take from it."""
    return any(is_covered(host, wish.hosts) for host in hosts_of(route))


def _leads_to_gnar(route: Any, wish: Wish) -> bool:
    return any(
        each.get("handler") == "reverse_proxy"
        and any(table(upstream).get("dial") in wish.same for upstream in rows(each, "upstreams"))
        for each in within(rows(route, "handle"))
    )
