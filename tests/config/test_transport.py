"""What settings say of the way between client and server: URLs, proxies of the environment, fingerprints."""

from __future__ import annotations

import time

import pytest

from gnar_lib.config import load_client
from gnar_lib.config.model import Address, ProxyServer, WebAddress
from gnar_lib.config.transport import fingerprints, proxy, proxy_of_environment, server_address, shown
from gnar_lib.errors import ConfigError

SERVER = Address("gnar.example.com", 8910)
PROXY = ProxyServer("http", "proxy", 3128)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wss://example.com", "wss://example.com:443/gnar"),
        ("WSS://example.com/", "wss://example.com:443/gnar"),
        ("ws://example.com:8080/a/b", "ws://example.com:8080/a/b"),
        ("wss://[::1]/x", "wss://[::1]:443/x"),
        ("example.com", "example.com:8910"),
    ],
)
def test_a_server_is_an_address_or_a_url_of_a_websocket(text: str, said: str) -> None:
    found = server_address(text)
    assert str(found) == said
    assert isinstance(found, WebAddress) == ("://" in text)


@pytest.mark.parametrize("text", ["wss://", "wss:///gnar", "wss://a/?b", "wss://a/b#c", "wss://a/b c"])
def test_other_urls_of_websockets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a URL such as wss://example\.com/gnar"):
        server_address(text)


def test_a_server_is_no_page_and_no_password_of_a_url_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"expected a URL without a user, such as wss://example") as caught:
        server_address("wss://ann:s3cret@example.com")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"or a URL such as wss://example\.com/gnar") as caught:
        server_address("https://ann:s3cret@example.com")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, PROXY),
        ({"HTTPS_PROXY": "proxy:3128"}, PROXY),
        ({"https_proxy": "http://proxy:3128", "HTTPS_PROXY": "http://other"}, PROXY),
        ({"ALL_PROXY": "socks5h://proxy"}, ProxyServer("socks5h", "proxy", 1080)),
        ({"HTTPS_PROXY": "", "ALL_PROXY": "http://proxy:3128"}, PROXY),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "a, example.com"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "no_proxy": ".example.com"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "gnar.example.com:8910"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "gnar.example.com:443"}, PROXY),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "ample.com"}, PROXY),
    ],
)
def test_the_usual_variables_name_a_proxy(env: dict[str, str], found: ProxyServer | None) -> None:
    assert proxy_of_environment(SERVER, env) == found


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_no_variable_names_a_proxy_for_this_machine(host: str) -> None:
    assert proxy_of_environment(Address(host, 8910), {"HTTPS_PROXY": "http://proxy:3128"}) is None


@pytest.mark.parametrize("excluded", ["192.0.2.0/24", "192.0.2.7", "192.0.2.7:8910"])
def test_no_proxy_names_networks(excluded: str) -> None:
    env = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": excluded}
    assert proxy_of_environment(Address("192.0.2.7", 8910), env) is None
    assert proxy_of_environment(Address("192.0.3.7", 8910), env) == PROXY


def test_a_setting_wins_over_variables_and_off_means_none() -> None:
    env = {"HTTPS_PROXY": "http://other", "GNAR_PROXY": "off"}
    flags = {"server-addr": "example.com", "mappings": ["3000"]}
    assert load_client(flags, env).proxy is None
    assert load_client({**flags, "proxy": "http://proxy:3128"}, env).proxy == PROXY
    assert load_client(flags, {"HTTPS_PROXY": "http://proxy:3128"}).proxy == PROXY


def test_with_a_proxy_there_is_one_connection_unless_somebody_wants_more() -> None:
    flags = {"server-addr": "example.com", "mappings": ["3000"]}
    through = {**flags, "proxy": "http://proxy:3128"}
    assert load_client(flags, {}).multiplex is None
    assert load_client(flags, {"HTTPS_PROXY": "http://proxy:3128"}).multiplex is True
    assert load_client(through, {}).multiplex is True
    assert load_client(through, {"GNAR_MULTIPLEX": "false"}).multiplex is False


def test_a_wrong_proxy_of_a_variable_is_named_without_its_password() -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY: expected") as caught:
        proxy_of_environment(SERVER, {"HTTPS_PROXY": "ftp://ann:s3cret@proxy"})
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(proxy("http://ann:s3cret@proxy"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://ann:s3cr@t@proxy", "@ is written as %40"),
        ("http://ann:s3cr/t@proxy", "/ as %2F"),
        ("http://ann:s3cr\udcfft@proxy", "a user and a password in UTF-8"),
    ],
)
def test_a_password_that_cannot_be_read_is_told_without_showing_it(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        proxy(text)
    assert "s3cr" not in str(caught.value)


def test_fingerprints_have_colons_or_not() -> None:
    digits = "0f" * 32
    pairs = ":".join(["0F"] * 32)
    assert fingerprints(f"{digits}, SHA256:{pairs}") == (digits, digits)
    for wrong in ("", digits[:-1], f"{digits}0", [], [1]):
        with pytest.raises(ConfigError):
            fingerprints(wrong)


def test_tls_is_on_unless_the_login_is_by_md5() -> None:
    flags = {"server-addr": "example.com", "mappings": ["3000"]}
    assert load_client(flags, {}).uses_tls
    assert not load_client({**flags, "auth": "md5"}, {}).uses_tls
    assert load_client({**flags, "auth": "md5", "tls": "on"}, {}).uses_tls
    assert not load_client({**flags, "tls": "off"}, {}).uses_tls


@pytest.mark.parametrize("text", ["a" * 100_000, "/" * 100_000, "wss://" + "a" * 100_000])
def test_long_nonsense_in_place_of_a_server_is_refused_at_once(text: str) -> None:
    began_s = time.process_time()
    with pytest.raises(ConfigError):
        server_address(text)
    assert time.process_time() - began_s < 1.0


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("0123456789abcdef" * 4, "certificate 0123456789abcdef..."),
        ("\x1b[31m0a\n" * 99, "certificate 310a310a310a310a..."),
        ("", "no certificate"),
        ("\x1b", "no certificate"),
    ],
)
def test_words_for_a_certificate_hold_nothing_of_a_peer_but_digits(told: str, said: str) -> None:
    assert shown(told) == said
