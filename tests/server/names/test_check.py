"""Which names clients can have: what a request means, what is refused in which words, and what the URL is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib.config import ServerConfig
from gnar_lib.config.hosts import ascii_host
from gnar_lib.errors import ConfigError, NameTakenError, ProxyRefusedError
from gnar_lib.proto import ProxyReq
from gnar_lib.server.names import readable
from gnar_lib.server.names.check import Name, host_of, name_of, serves_at_control_port, url_of

CONFIG = ServerConfig(domain="example.com", allow_hosts=("*.customer.org", "www.x.org"), https_port=443)


@pytest.mark.parametrize(
    ("subdomain", "host"),
    [
        ("blog", "blog.example.com"),
        ("Blog", "blog.example.com"),
        ("blog.", "blog.example.com"),
        ("a.b", "a.b.example.com"),
        ("7", "7.example.com"),
        ("blog.example.com", "blog.example.com"),
        ("BLOG.Example.com.", "blog.example.com"),
        ("*.dev", "*.dev.example.com"),
        ("*.dev.example.com", "*.dev.example.com"),
        ("a-1.b-2", "a-1.b-2.example.com"),
        ("bücher", "xn--bcher-kva.example.com"),
        ("xn--bcher-kva", "xn--bcher-kva.example.com"),
        ("xn--strae-oqa", "xn--strae-oqa.example.com"),  # of IDNA 2008
        ("www.x.org", "www.x.org"),
        ("shop.customer.org", "shop.customer.org"),
        ("*.customer.org", "*.customer.org"),
        ("a.shop.customer.org", "a.shop.customer.org.example.com"),  # no pattern fits
        ("x" * 63, "x" * 63 + ".example.com"),
    ],
)
def test_subdomain_means_one_host(subdomain: str, host: str) -> None:
    assert host_of(subdomain, CONFIG) == host


@pytest.mark.parametrize(
    ("subdomain", "said"),
    [
        ("", "an empty label"),
        ("a..b", "an empty label"),
        (".a", "an empty label"),
        ("-a", "neither begins nor ends with a hyphen"),
        ("a-", "neither begins nor ends with a hyphen"),
        ("a_b", "letters, digits and hyphens"),
        ("a b", "letters, digits and hyphens"),
        ("a/b", "letters, digits and hyphens"),
        ("a:80", "letters, digits and hyphens"),
        ("*", r"\* can be the first label alone"),
        ("a.*", r"\* can be the first label alone"),
        ("**.dev", r"\* can be the first label alone"),
        ("*a.dev", r"\* can be the first label alone"),
        ("*.*.dev", r"\* can be the first label alone"),
        ("*.example.com", "would be all names"),
        ("x" * 64, "more than 63 characters"),
        (".".join(["x" * 60] * 4), "more than 253 characters"),
        (".".join(["x" * 60] * 5), "more than 253 characters"),
        ("192.0.2.1", "looks like an IP address"),
        ("xn--a", "has this form"),
        ("xn--bcher-kv", "has this form"),
        ("ab--c", "has this form"),
        ("straße", "browsers disagree"),
        ("\u2603\u0301" * 40, "cannot be encoded"),
        ("a\ud800", "cannot be encoded"),
        ("example.com", "is the domain itself"),
        ("admin", "'admin' is reserved"),
        ("WPAD", "'wpad' is reserved"),
        ("a.mail", "'mail' is reserved"),
        ("mta-sts.example.com", "'mta-sts' is reserved"),
    ],
)
def test_what_nobody_can_have_is_refused_in_words(subdomain: str, said: str) -> None:
    with pytest.raises(ProxyRefusedError, match=said) as caught:
        host_of(subdomain, CONFIG)
    assert "\n" not in str(caught.value)


def test_whole_names_need_a_pattern_where_there_is_no_domain() -> None:
    config = ServerConfig(allow_hosts=("*.customer.org",))
    assert host_of("shop.customer.org", config) == "shop.customer.org"
    for other in ("blog", "customer.org", "a.b.customer.org"):
        with pytest.raises(ProxyRefusedError, match=r"is not allowed here \(allow-hosts\)"):
            host_of(other, config)


def test_domain_itself_and_reserved_names_are_given_away_by_a_pattern() -> None:
    config = ServerConfig(domain="example.com", allow_hosts=("example.com", "mail.example.com"))
    assert host_of("example.com", config) == "example.com"
    assert host_of("mail.example.com", config) == "mail.example.com"


@given(st.text(max_size=70))
def test_any_text_is_a_name_that_means_itself_or_is_refused(text: str) -> None:
    try:
        host = ascii_host(text, wildcard=True)
    except ConfigError:
        return
    assert re.fullmatch(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*", host)
    assert ascii_host(host, wildcard=True) == host


def ask(kind: str, subdomain: str = "", path: str = "") -> ProxyReq:
    return ProxyReq(0, "blog", subdomain, kind, path=path)


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (ask("tcp"), None),
        (ask("udp"), None),
        (ask("http"), None),  # the server chooses
        (ask("https"), None),
        (ask("http", "blog"), Name("http", "blog.example.com")),
        (ask("tcp", "blog"), Name("http", "blog.example.com")),
        (ask("https", "blog"), Name("https", "blog.example.com")),
        (ask("http", "blog", "/api"), Name("http", "blog.example.com", "/api")),
        (ask("http", "blog", "/api/"), Name("http", "blog.example.com", "/api")),
        (ask("http", "blog", "/"), Name("http", "blog.example.com")),
    ],
    ids=repr,
)
def test_request_asks_for_a_name(request_: ProxyReq, name: Name | None) -> None:
    assert name_of(request_, CONFIG) == name


@pytest.mark.parametrize(
    ("request_", "config", "said"),
    [
        (ask("http"), ServerConfig(), "this server has no domain: leave the name out, or ask for a port"),
        (ask("tcp", "a"), ServerConfig(), "this server has no domain: leave the name out, or ask for a port"),
        (ask("udp", "a"), CONFIG, "a proxy of UDP has no name"),
        (
            ask("https", "a"),
            replace(CONFIG, https_port=0, http_port=8080, http_bind="127.0.0.1"),
            "no https-port",
        ),
        (ask("https", "a"), replace(CONFIG, https_port=0, caddy_api="http://x"), "no https-port"),
        (ask("http"), ServerConfig(allow_hosts=("*.a.org",)), "no domain to choose a name under"),
        (ask("https", "a", "/b"), CONFIG, "a path goes with proxy type http"),
        (ask("http", "a", "b"), CONFIG, "the path has to be one such as /api"),
        (ask("http", "a", "/b?c"), CONFIG, "the path has to be one such as /api"),
        (ask("http", "a", "/b c"), CONFIG, "the path has to be one such as /api"),
        (ask("http", "a", "/" + "b" * 255), CONFIG, "the path has to be one such as /api"),
    ],
    ids=repr,
)
def test_request_for_what_this_server_does_not_do_is_refused(
    request_: ProxyReq, config: ServerConfig, said: str
) -> None:
    with pytest.raises(ProxyRefusedError, match=said):
        name_of(request_, config)


@pytest.mark.parametrize(
    ("settings", "web", "tls"),
    [
        ({"http_port": 80}, "http://a.example.com/b", "https://a.example.com:8910"),
        ({"http_port": 8080}, "http://a.example.com:8080/b", "https://a.example.com:8910"),
        ({}, "http://a.example.com:8910/b", "https://a.example.com:8910"),
        ({"port": 443}, "http://a.example.com:443/b", "https://a.example.com"),
        ({"port": 80}, "http://a.example.com/b", "https://a.example.com:80"),
        ({"port": 443, "tls_cert": ("x",)}, "https://a.example.com/b", "https://a.example.com"),
        (
            {"port": 443, "http_port": 80, "tls_cert": ("x",)},
            "https://a.example.com/b",
            "https://a.example.com",
        ),
        ({"tls_cert": ("x",)}, "https://a.example.com:8910/b", "https://a.example.com:8910"),
        ({"http_bind": "127.0.0.1"}, "http://a.example.com:8910/b", "https://a.example.com:8910"),
        ({"http_port": 80, "https_port": 443}, "http://a.example.com/b", "https://a.example.com"),
        ({"https_port": 443, "tls_cert": ("x",)}, "https://a.example.com/b", "https://a.example.com"),
        (
            {"https_port": 8443, "tls_cert": ("x",)},
            "https://a.example.com:8443/b",
            "https://a.example.com:8443",
        ),
        ({"http_port": 8080, "http_bind": "127.0.0.1"}, "https://a.example.com/b", None),
        (
            {"http_port": 8080, "http_bind": "127.0.0.1", "bind": "127.0.0.1"},
            "http://a.example.com:8080/b",
            "https://a.example.com:8910",
        ),
        ({"http_port": 8080, "caddy_api": "http://x"}, "https://a.example.com/b", None),
        (
            {"http_port": 8080, "caddy_api": "http://x", "https_port": 8443},
            "https://a.example.com/b",
            "https://a.example.com:8443",
        ),
    ],
)
def test_url_is_where_users_come(settings: dict[str, object], web: str, tls: str | None) -> None:
    config = ServerConfig(domain="example.com", **settings)  # type: ignore[arg-type]
    assert url_of(Name("http", "a.example.com", "/b"), config) == web
    if tls is None:
        with pytest.raises(ProxyRefusedError):
            name_of(ask("https", "a"), config)
    else:
        assert name_of(ask("https", "a"), config) == Name("https", "a.example.com")
        assert url_of(Name("https", "a.example.com"), config) == tls


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"domain": "a.b"}, True),
        ({"allow_hosts": ("a.b",), "http_port": 80}, True),
        ({}, False),
        ({"domain": "a.b", "caddy_api": "http://x", "http_port": 8080}, False),
        ({"domain": "a.b", "http_port": 8080, "http_bind": "::1"}, False),
        ({"domain": "a.b", "http_port": 8080, "http_bind": "::1", "bind": "::1"}, True),
        ({"domain": "a.b", "http_port": 8080, "http_bind": "::1", "tls_cert": ("x",)}, True),
        ({"domain": "a.b", "http_port": 8080, "caddy_api": "http://x", "tls_cert": ("x",)}, True),
    ],
    ids=repr,
)
def test_users_may_come_to_the_control_port_unless_another_program_is_in_front(
    settings: dict[str, Any], expected: bool
) -> None:
    assert serves_at_control_port(ServerConfig(**settings)) is expected


def test_url_has_the_port_that_a_service_manager_has_opened() -> None:
    config = ServerConfig(domain="example.com")
    assert url_of(Name("http", "a.example.com"), config, 9000) == "http://a.example.com:9000"
    assert url_of(Name("https", "a.example.com"), config, 443) == "https://a.example.com"


def test_readable_names_have_twenty_bits_and_are_names() -> None:
    first, second = readable._FIRST, readable._SECOND
    assert len({*first}) * len({*second}) * len(readable._NUMBERS) >= 1 << 20
    assert (len({*first}), len({*second})) == (len(first), len(second))
    made = {readable.readable_label(lambda _: True) for _ in range(50)}
    assert len(made) == 50
    for label in made:
        assert re.fullmatch(r"[a-z]+-[a-z]+-\d\d", label)
        assert ascii_host(label) == label


def test_readable_name_that_is_taken_is_not_given() -> None:
    asked: list[str] = []

    def is_third(label: str) -> bool:
        asked.append(label)
        return len(asked) == 3

    assert readable.readable_label(is_third) == asked[2]
    with pytest.raises(NameTakenError, match="no name was found"):
        readable.readable_label(lambda _: False)
