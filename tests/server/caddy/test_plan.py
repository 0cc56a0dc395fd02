"""What gnar makes of a Caddy's configuration: its route's place, certificates on demand, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gnar_lib.server.caddy.plan import Made, Plan, plan, removal
from gnar_lib.server.caddy.wish import Wish, covers

WISH = Wish.of("example.com", ("*.customer.org", "www.other.net"), ("127.0.0.1", 8080))
BELOW = ["*.example.com", "*.*.example.com", "*.*.*.example.com"]
ALL = [*BELOW, "*.customer.org", "www.other.net"]
ASK = "http://127.0.0.1:8080/.well-known/gnar/ask"
Json = Any


def site(*hosts: str, **more: Json) -> Json:
    """Return a route as the adapter of Caddyfiles makes it of a site; of no hosts, for everybody."""
    match = {"match": [{"host": [*hosts]}]} if hosts else {}
    inner = {"handler": "subroute", "routes": [{"handle": [{"handler": "file_server"}]}]}
    return {**match, "handle": [inner], "terminal": True, **more}


def caddy(*routes: Json, listen: str = ":443", tls: Json = None, **server: Json) -> Json:
    """Return a configuration whose server srv0 has these routes."""
    servers = {"srv0": {"listen": [listen], "routes": [*routes], **server}}
    return {"apps": {"http": {"servers": servers}, **({"tls": tls} if tls else {})}}


def planned(config: Json, srv_name: str = "srv0", *, wish: Wish = WISH, is_old: bool = False) -> Plan:
    """Plan, and see that nothing of others is touched, and that the plan then stays as it is."""
    before = copy.deepcopy(config)
    found = plan(config, srv_name, wish, Made(), is_old=is_old)
    assert config == before
    after = {**(config or {}), "apps": found.apps}
    assert plan(after, srv_name, wish, Made(), is_old=is_old) == found
    assert removal(after) == (config or {}).get("apps", {})
    return found


def names(found: Plan) -> list[str]:
    """Return the routes of srv0 by their `name`, which no Caddy knows, and gnar's as it is called."""
    routes = found.apps["http"]["servers"]["srv0"]["routes"]
    return [route.get("@id") or route["name"] for route in routes]


def policies(found: Plan) -> list[tuple[str, list[str]]]:
    """Return who made each policy, and its subjects."""
    rows = found.apps.get("tls", {}).get("automation", {}).get("policies", [])
    return [(row.get("@id", "theirs"), row.get("subjects", [])) for row in rows]


HEADERS = {"name": "headers", "handle": [{"handler": "headers"}]}
PATH = {"name": "path", "match": [{"path": ["/health"]}], "handle": [{"handler": "static_response"}]}
WAF = {"name": "waf", "handle": [{"handler": "waf"}]}
BLOG = site("blog.example.com", name="blog")
OTHER = site("www.example.org", name="other")
REST = site(name="rest")
WIDER = site("*.*.org", name="wider")  # than *.customer.org
INNER = {
    "name": "inner",
    "handle": [{"handler": "subroute", "routes": [{"handle": [{"handler": "file_server"}]}]}],
}
INNER_PATH = {**INNER, "handle": [{"handler": "subroute", "routes": [{**PATH}]}]}


@pytest.mark.parametrize(
    ("routes", "order"),
    [
        ([], ["gnar"]),
        ([BLOG, OTHER], ["blog", "other", "gnar"]),
        ([BLOG, REST], ["blog", "gnar", "rest"]),
        ([REST], ["gnar", "rest"]),
        ([INNER], ["gnar", "inner"]),
        ([INNER_PATH], ["inner", "gnar"]),
        ([HEADERS, BLOG, REST], ["headers", "blog", "gnar", "rest"]),
        ([WAF, PATH, REST], ["waf", "path", "gnar", "rest"]),
        ([BLOG, WIDER], ["blog", "gnar", "wider"]),
        ([REST, BLOG], ["gnar", "rest", "blog"]),  # what is behind is never reached anyway
    ],
    ids=lambda value: "-".join(each if isinstance(each, str) else each["name"] for each in value) or "none",
)
def test_route_is_before_what_takes_everything_and_behind_what_is_for_some(
    routes: list[Json], order: list[str]
) -> None:
    assert names(planned(caddy(*routes))) == order


@pytest.mark.parametrize(
    ("ours_at", "routes", "order"),
    [
        (0, [OTHER, REST], ["gnar", "other", "rest"]),  # it takes nothing from anybody there
        (0, [BLOG, REST], ["blog", "gnar", "rest"]),
        (2, [BLOG, REST], ["blog", "gnar", "rest"]),
    ],
)
def test_route_is_moved_only_where_requests_are_lost(
    ours_at: int, routes: list[Json], order: list[str]
) -> None:
    ours = plan(caddy(), "srv0", WISH, Made(), is_old=False).apps["http"]["servers"]["srv0"]["routes"]
    found = planned_over(caddy(*routes[:ours_at], *ours, *routes[ours_at:]))
    assert names(found) == order


def planned_over(config: Json) -> Plan:
    """Plan where gnar's part is there already."""
    found = plan(config, "srv0", WISH, Made(), is_old=False)
    assert plan({"apps": found.apps}, "srv0", WISH, Made(), is_old=False) == found
    return found


def test_an_old_route_and_one_in_another_server_are_replaced() -> None:
    old = {"@id": "gnar", "handle": []}
    config = caddy(old, BLOG, old)
    config["apps"]["http"]["servers"]["srv1"] = {"listen": [":8443"], "routes": [old, OTHER]}
    found = planned_over(config)
    assert names(found) == ["blog", "gnar"]
    assert found.apps["http"]["servers"]["srv1"]["routes"] == [OTHER]


def test_route_streams_to_the_web_port_for_all_hosts_and_hides_them_from_automatic_https() -> None:
    found = planned(caddy())
    route = found.apps["http"]["servers"]["srv0"]["routes"][0]
    assert route == {
        "@id": "gnar",
        "match": [{"not": [{"not": [{"host": ALL}]}]}],
        "handle": [
            {"handler": "reverse_proxy", "upstreams": [{"dial": "127.0.0.1:8080"}], "flush_interval": -1}
        ],
        "terminal": True,
    }
    assert (found.trouble, found.is_ready) == ("", True)


@pytest.mark.parametrize(
    ("bound", "dial"),
    [
        (("0.0.0.0", 80), "127.0.0.1:80"),
        (("", 80), "127.0.0.1:80"),
        (("::", 80), "[::1]:80"),
        (("10.1.2.3", 8080), "10.1.2.3:8080"),
    ],
)
def test_web_port_that_listens_everywhere_is_reached_on_loopback(bound: tuple[str, int], dial: str) -> None:
    assert Wish.of("example.com", (), bound).dial == dial


@pytest.mark.parametrize(
    ("pattern", "host", "is_covered"),
    [
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "A.Example.com", True),
        ("*.example.com", "*.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.*.com", "*.example.com", True),
        ("*.example.com", "*.*.com", False),
        ("a.example.com", "*.example.com", False),
    ],
)
def test_patterns_cover_what_caddy_lets_them_match(pattern: str, host: str, *, is_covered: bool) -> None:
    assert covers(pattern, host) == is_covered


# ---- a Caddy that leads to gnar already, or leads elsewhere ------------------------------------------------


def to(dial: str) -> Json:
    return {"handle": [{"handler": "reverse_proxy", "upstreams": [{"dial": dial}]}]}


@pytest.mark.parametrize("dial", ["127.0.0.1:8080", "localhost:8080", ":8080"])
def test_hosts_that_somebody_else_leads_to_gnar_need_no_route(dial: str) -> None:
    wish = Wish.of("", ("*.example.com",), ("127.0.0.1", 8080))
    inner = {"handler": "subroute", "routes": [to(dial)]}
    config = caddy(site("*.example.com", handle=[inner]))
    found = planned(config, wish=wish)
    assert found == Plan(config["apps"])  # and Caddy manages a certificate for that host


def test_a_route_that_takes_the_same_hosts_elsewhere_is_said() -> None:
    found = planned(caddy(site("*.example.com", name="theirs", **to("127.0.0.1:9000"))))
    assert names(found) == ["theirs", "gnar"]
    assert (found.trouble, found.is_ready) == (
        "a route of somebody else already takes '*.example.com'",
        False,
    )
    part = site("*.example.com", name="part")
    part["match"][0]["path"] = ["/api/*"]
    assert planned(caddy(part)).is_ready


# ---- certificates ------------------------------------------------------------------------------------------


def automation(*rows: Json, **more: Json) -> Json:
    return {"automation": {**({"policies": [*rows]} if rows else {}), **more}}


def test_certificates_are_got_on_demand_and_gnar_is_asked_in_the_form_that_caddy_knows() -> None:
    found = planned(caddy()).apps["tls"]["automation"]
    assert found == {
        "policies": [{"@id": "gnar-tls", "subjects": ALL, "on_demand": True}],
        "on_demand": {"@id": "gnar-ask", "permission": {"module": "http", "endpoint": ASK}},
    }
    found = planned(caddy(), is_old=True).apps["tls"]["automation"]
    assert found["on_demand"] == {"@id": "gnar-ask", "ask": ASK}


def test_the_default_of_others_is_taken_over_and_stays_the_last() -> None:
    default = {"issuers": [{"module": "acme", "email": "me@example.com"}], "key_type": "rsa2048"}
    dns = {"subjects": ["*.example.org"], "issuers": [{"module": "acme", "challenges": {"dns": {}}}]}
    found = planned(caddy(OTHER, tls=automation(dns, default)))
    assert policies(found) == [("theirs", ["*.example.org"]), ("gnar-tls", ALL), ("theirs", [])]
    ours = found.apps["tls"]["automation"]["policies"][1]
    assert ours == {**default, "@id": "gnar-tls", "subjects": ALL, "on_demand": True}


@pytest.mark.parametrize(
    "held",
    [
        caddy(tls=automation({"subjects": ["*.example.com"]})),  # by DNS challenge, as a rule
        caddy(tls=automation({"subjects": ["*.*.com"]})),
        caddy(tls={"certificates": {"automate": ["*.example.com"]}}),
        caddy(site("*.example.com", **to("127.0.0.1:8080"))),
    ],
    ids=["policy", "wider", "automate", "site"],
)
def test_hosts_for_which_somebody_else_cares_get_no_certificate_on_demand(held: Json) -> None:
    assert ("gnar-tls", ALL[1:]) in policies(planned(held))


def test_nothing_is_added_where_everything_is_got_on_demand_already() -> None:
    tls = automation({"on_demand": True}, on_demand={"ask": "http://127.0.0.1:9/ask"})
    assert planned(caddy(tls=tls)).apps["tls"] == tls


def test_sites_of_others_keep_the_certificates_that_caddy_manages_for_them() -> None:
    skipped = site("skipped.example.com", "{env.HOST}")
    config = caddy(BLOG, OTHER, skipped, automatic_https={"skip_certificates": ["skipped.example.com"]})
    mail = {"listen": [":8443"], "routes": [site("mail.example.com")]}
    off = {"listen": [":8444"], "routes": [site("off.example.com")], "automatic_https": {"disable": True}}
    plain = {"listen": ["0.0.0.0:80"], "routes": [site("plain.example.com")]}
    config["apps"]["http"]["servers"] |= {"srv1": mail, "srv2": off, "srv3": plain}
    found = planned(config)
    assert policies(found) == [
        ("gnar-others", ["blog.example.com", "mail.example.com"]),
        ("gnar-tls", ALL),
    ]


def test_names_that_no_authority_certifies_are_certified_by_caddy() -> None:
    wish = Wish.of("gnar.localhost", (), ("127.0.0.1", 8080))
    found = planned(caddy(site("www.gnar.localhost")), wish=wish).apps["tls"]["automation"]["policies"]
    assert [policy["issuers"] for policy in found] == [[{"module": "internal"}]] * 2


@pytest.mark.parametrize(
    ("present", "trouble"),
    [
        ({"ask": "http://127.0.0.1:9/ask"}, "Caddy asks http://127.0.0.1:9/ask and not gnar"),
        ({"permission": {"module": "mine"}}, "Caddy asks mine and not gnar"),
        ({"ask": "http://localhost:8080/.well-known/gnar/ask"}, ""),
    ],
)
def test_whom_caddy_asks_for_others_stays(present: Json, trouble: str) -> None:
    found = planned(caddy(tls=automation(on_demand=present)))
    assert found.apps["tls"]["automation"]["on_demand"] == present
    assert found.trouble.startswith(trouble)
    assert bool(found.trouble) == bool(trouble)


def test_other_settings_of_certificates_on_demand_stay() -> None:
    limit = {"rate_limit": {"interval": 1, "burst": 2}}
    found = planned(caddy(tls=automation(on_demand=limit)), is_old=True)
    assert found.apps["tls"]["automation"]["on_demand"] == {**limit, "@id": "gnar-ask", "ask": ASK}


def test_an_ask_for_another_port_of_gnars_is_replaced_and_either_form_stays() -> None:
    before = {"@id": "gnar-ask", "ask": "http://127.0.0.1:7/.well-known/gnar/ask"}
    found = planned_over(caddy(tls=automation(on_demand=before)))
    assert found.apps["tls"]["automation"]["on_demand"]["permission"]["endpoint"] == ASK
    right = {"@id": "gnar-ask", "ask": ASK}
    found = planned_over(caddy(tls=automation(on_demand=right)))
    assert found.apps["tls"]["automation"]["on_demand"] == right


# ---- servers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [None, {}, {"admin": {"disabled": False}}, {"apps": {"pki": {"a": 1}}}])
def test_a_caddy_without_servers_gets_one_that_says_that_it_is_gnars(config: Json) -> None:
    found = planned(config)
    server = found.apps["http"]["servers"]["srv0"]
    assert (server["@id"], server["listen"]) == ("gnar-server", [":443"])
    assert names(found) == ["gnar"]
    assert found.is_ready


def test_a_server_of_gnars_with_routes_of_others_stays() -> None:
    found = planned(None)
    found.apps["http"]["servers"]["srv0"]["routes"].append(OTHER)
    assert removal({"apps": found.apps})["http"]["servers"]["srv0"]["routes"] == [OTHER]


def test_a_server_that_is_not_there_is_said_with_those_that_are() -> None:
    config = caddy(OTHER)
    found = planned(config, "web")
    assert found.apps == config["apps"]
    assert found.trouble == (
        "Caddy has no server 'web': give --caddy-srv-name one that it has ('srv0'), or add a site to Caddy's "
        "configuration"
    )
    assert not found.is_ready


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (caddy(OTHER), ""),
        (caddy(listen="tcp/127.0.0.1:443"), ""),
        (caddy(OTHER, listen=":8443"), ""),
        (caddy(OTHER, automatic_https={"disable": True}), "has automatic HTTPS off"),
        (caddy(automatic_https={"disable": True}, tls_connection_policies=[{}]), ""),
        (caddy(OTHER, listen=":80"), "listens only on port 80"),
        (caddy(listen=":8443"), "has no TLS, since it listens on other ports than 443"),
        (caddy(listen=":1-443"), "has no TLS, since it listens on other ports than 443"),
        (caddy(tls_connection_policies=[{"match": {"sni": ["a.org"]}}]), "has TLS only for the names"),
        (caddy(tls_connection_policies=[{"match": {"sni": ["*.example.com"]}}]), ""),
    ],
)
def test_a_server_without_https_is_said_and_why(config: Json, reason: str) -> None:
    found = planned(config)
    assert found.is_ready == (not reason)
    assert found.trouble.startswith(f"Caddy's server 'srv0' {reason}" if reason else "")
    assert bool(found.trouble) == bool(reason)


def test_other_servers_are_named_where_one_has_no_https() -> None:
    config = caddy(OTHER, listen=":80")
    config["apps"]["http"]["servers"]["srv1"] = {"listen": [":443"]}
    assert "--caddy-srv-name: 'srv0', 'srv1'" in planned(config).trouble
