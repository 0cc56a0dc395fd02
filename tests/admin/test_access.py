"""Who may ask at an admin port: secrets in each form, sessions of browsers, tries, pages of others."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gnar_lib.admin import access as access_module
from gnar_lib.admin.access import Access, client_of, pass_of
from gnar_lib.admin.sessions import MAX_REMEMBERED, SESSION_S, Role
from gnar_lib.auth.attempts import MAX_NETWORKS, MAX_WRONG, PERIOD_S, Attempts
from gnar_lib.config import AdminConfig, Secret
from gnar_lib.http import HTTPError, Request
from gnar_lib.net import network_of
from tests.helpers.clock import Clock

PASSWORD, READ_TOKEN = "an open sesame", "only a look"
LOCKED = AdminConfig(8911, "", Secret(PASSWORD), Secret(READ_TOKEN))
OPEN = AdminConfig(8911)
HOST = "gnar.example:8911"
PEER = ("192.0.2.7", 5123)
CALL = Callable[[], object]


def asked(path: str = "/api/v1/server", method: str = "GET", *, peer: Any = PEER, **headers: str) -> Request:
    """Return a request; "_" in the names of its fields is a hyphen."""
    fields = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request(method, path, {}, fields, peer, segments=tuple(path.split("/")[1:]))


def bearer(secret: str) -> str:
    return f"Bearer {secret}"


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def status_of(call: CALL) -> int:
    """Return the status with which a request is refused, 200 if it is not."""
    try:
        call()
    except HTTPError as exc:
        return exc.status
    return 200


class Door:
    """An `Access` whose settings and clock a test changes."""

    def __init__(self, config: AdminConfig = LOCKED) -> None:
        self.config = config
        self.clock = Clock()
        self.access = self.restarted()

    def restarted(self) -> Access:
        """Return the `Access` of another process with the same settings."""
        return Access(lambda: self.config, lambda: Secret("the clients' token"), self.clock)

    def status(self, request: Request) -> int:
        return status_of(lambda: self.access.check(request))

    def role(self, request: Request) -> Role:
        self.access.check(request)
        return pass_of(request).role

    def log_in(self, secret: str = PASSWORD, **headers: str) -> str:
        """Return the Cookie field of a browser that has logged in."""
        _, value = self.access.log_in(asked("/api/v1/login", "POST", **headers), secret)
        return value.partition(";")[0]


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock by which wrong passwords are counted."""
    clock = Clock()
    monkeypatch.setattr(access_module, "Attempts", lambda most=MAX_WRONG: Attempts(most, clock))
    return clock


# ---- secrets -----------------------------------------------------------------------------------------------


def test_without_a_secret_whoever_is_on_this_machine_may_do_everything() -> None:
    door = Door(OPEN)
    for host in ("localhost:8911", "127.0.0.1", "127.0.0.9:1", "[::1]:8911", "LOCALHOST", "a.localhost"):
        assert door.role(asked(host=host)) is Role.ADMIN
        assert door.role(asked(method="DELETE", host=host)) is Role.ADMIN


@pytest.mark.parametrize(
    "authorization",
    [bearer(PASSWORD), f"bEARER   {PASSWORD} ", basic(f"anybody:{PASSWORD}"), basic(f":{PASSWORD}")],
)
def test_the_password_opens_everything(door: Door, authorization: str) -> None:
    assert door.role(asked(authorization=authorization)) is Role.ADMIN
    assert door.role(asked(method="DELETE", authorization=authorization)) is Role.ADMIN


@pytest.mark.parametrize("authorization", [bearer(READ_TOKEN), basic(f"grafana:{READ_TOKEN}")])
def test_the_token_for_reading_changes_nothing(door: Door, authorization: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        assert door.role(asked(method=method, authorization=authorization)) is Role.READER
    for method in ("DELETE", "POST", "PUT", "PATCH", "TRACE", "get"):
        assert door.status(asked(method=method, authorization=authorization)) == 403
    assert door.role(asked("/api/v1/logout", "POST", authorization=authorization)) is Role.READER


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Bearer", "Bearer ", "Basic", "Basic !", basic(""), basic(":"), basic(PASSWORD), PASSWORD),
        *(bearer(PASSWORD + "x"), bearer(PASSWORD[:-1]), bearer(PASSWORD.upper()), f"Digest {PASSWORD}"),
        *(basic(f"{PASSWORD}:"), f"Basic {base64.b64encode(b'x:' + bytes([0xFF])).decode()}"),
    ],
)
def test_nothing_else_opens(door: Door, authorization: str) -> None:
    for request in (asked(authorization=authorization), asked("/metrics", authorization=authorization)):
        with pytest.raises(HTTPError) as refused:
            door.access.check(request)
        assert refused.value.status == 401
        assert ("WWW-Authenticate", 'Bearer realm="gnar"') in refused.value.headers


def test_a_password_of_any_characters_is_understood() -> None:
    password = "pässwörd:with€"
    door = Door(AdminConfig(8911, "", Secret(password)))
    as_bytes = password.encode().decode("latin-1")  # as a header field is read
    assert door.role(asked(authorization=bearer(as_bytes))) is Role.ADMIN
    assert door.role(asked(authorization=basic(f"user:{password}"))) is Role.ADMIN


def test_text_that_no_password_can_be_is_a_wrong_one(door: Door) -> None:
    for text in ("\ud800", "\x00", "x" * 60_000):
        assert status_of(lambda text=text: door.access.log_in(asked(), text)) == 401  # type: ignore[misc]


def test_paths_that_say_nothing_are_open_and_no_others(door: Door) -> None:
    for path in ("/", "/healthz", "/readyz", "/api/v1/login", "/api/openapi.json", "/static/panel.js"):
        assert door.status(asked(path)) == 200
    for path in ("/metrics", "/api/v1/events", "/static2/x", "/healthz/", "//", "/x", "/admin/tunnel/close"):
        assert door.status(asked(path)) == 401


def test_secrets_are_compared_in_constant_time(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []

    def compare(_ours: object, theirs: object) -> bool:
        compared.append(theirs)
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert door.status(asked(authorization=bearer("guess"))) == 401
    assert compared == [b"guess", b"guess"]  # with both, though the first might fit
    assert door.status(asked(cookie="gnar-admin-8911=admin.x.99999999999.abcd")) == 401
    assert "abcd" in compared


@pytest.mark.usefixtures("tried")
def test_no_secret_is_logged_or_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gnar"), "propagate", True)
    door = Door()
    said = []
    with caplog.at_level(logging.DEBUG, "gnar"):
        for _ in range(MAX_WRONG + 1):
            with pytest.raises(HTTPError) as refused:
                door.access.check(asked(authorization=bearer("a guess of mine")))
            said += [refused.value.detail, repr(refused.value), str(refused.value.headers)]
    told = "".join([*said, caplog.text, repr(door.config)])
    assert "a wrong password from 192.0.2.7" in caplog.text
    for secret in ("a guess of mine", PASSWORD, READ_TOKEN):
        assert secret not in told


# ---- browsers ----------------------------------------------------------------------------------------------


def test_a_cookie_opens_what_the_login_would(door: Door) -> None:
    assert door.role(asked(cookie=door.log_in())) is Role.ADMIN
    reader = door.log_in(READ_TOKEN)
    assert door.role(asked(cookie=f"theme=dark; {reader}; x")) is Role.READER
    assert door.status(asked(method="DELETE", cookie=reader)) == 403


def test_a_cookie_is_kept_from_scripts_and_from_requests_of_other_sites(door: Door) -> None:
    name, value = door.access.log_in(asked(), PASSWORD)
    assert name == "Set-Cookie"
    assert value.split("; ")[1:] == ["Path=/", f"Max-Age={SESSION_S}", "HttpOnly", "SameSite=Strict"]
    _, behind_tls = door.access.log_in(asked(x_forwarded_proto="https"), PASSWORD)
    assert behind_tls.endswith("; Secure")
    assert PASSWORD not in value


def test_a_cookie_is_good_after_a_restart_but_not_with_another_password(door: Door) -> None:
    cookie = door.log_in()
    door.access = door.restarted()
    assert door.role(asked(cookie=cookie)) is Role.ADMIN
    door.config = AdminConfig(8911, "", Secret("another"), Secret(READ_TOKEN))  # a reload
    assert door.status(asked(cookie=cookie)) == 401
    door.config = LOCKED
    assert door.role(asked(cookie=cookie)) is Role.ADMIN


def test_a_cookie_ends_after_a_week(door: Door) -> None:
    cookie = door.log_in()
    door.clock.now_s += SESSION_S - 1
    assert door.status(asked(cookie=cookie)) == 200
    door.clock.now_s += 1
    assert door.status(asked(cookie=cookie)) == 401


def test_a_session_that_was_logged_out_is_over_and_others_are_not(door: Door) -> None:
    cookie, other = door.log_in(), door.log_in()
    _, value = door.access.log_out(asked(cookie=cookie))
    assert "Max-Age=0" in value
    assert door.status(asked(cookie=cookie)) == 401
    assert door.status(asked(cookie=other)) == 200
    door.access.log_out(asked())  # nobody
    for _ in range(MAX_REMEMBERED + 1):
        door.access.log_out(asked(cookie=door.log_in()))
    assert len(door.access._sessions._over) == MAX_REMEMBERED


def test_a_cookie_is_good_for_its_page_alone(door: Door) -> None:
    """Browsers send it to every port of the host, also to those of the clients' services."""
    cookie = door.log_in(x_gnar_page="a key")
    assert door.status(asked(cookie=cookie, x_gnar_page="a key")) == 200
    for key in ("", "another key"):
        assert door.status(asked(cookie=cookie, x_gnar_page=key)) == 401
    assert door.status(replace(asked(cookie=cookie), query={"page": "a key"})) == 200  # an event stream
    assert door.status(asked(cookie=door.log_in(), x_gnar_page="a key")) == 401


def test_two_servers_on_one_host_have_a_login_each(door: Door) -> None:
    cookie = door.log_in()
    assert cookie.startswith("gnar-admin-8911=")
    assert door.log_in(host="gnar.example").startswith("gnar-admin=")
    both = f"gnar-admin-8912=admin.of.another.server; {cookie}"
    assert door.status(asked(cookie=both)) == 200
    assert door.status(asked(cookie=both, host="gnar.example:8912")) == 401


def test_a_cookie_that_another_port_has_set_does_not_hide_the_right_one(door: Door) -> None:
    assert door.status(asked(cookie=f"gnar-admin-8911=tossed; {door.log_in()}")) == 200


def test_forged_and_mangled_cookies_open_nothing(door: Door) -> None:
    name, _, good = door.log_in().partition("=")
    role, nonce, ends, signature = good.split(".")
    reader = door.log_in(READ_TOKEN).partition("=")[2]
    forged = [
        *("", ".", "...", "....", "admin...", "admin", "é", "\x00", "x" * 10_000),
        *(f"admin.{nonce}.{ends}.", f"admin.{nonce}.{ends}", f"admin.{nonce}.{ends}.{'0' * 64}"),
        *(f"admin.{nonce}.{int(ends) + 1}.{signature}", f"admin.{nonce}x.{ends}.{signature}"),
        *(f"{role}.{nonce}.{ends}.{signature.upper()}", f"{good}0", good[:-1], f"{good}.{signature}"),
        *(reader.replace("reader", "admin", 1), good.replace("admin", "reader", 1), f"root{good[5:]}"),
        *(f"admin.{nonce}.nan.{signature}", f"admin.{nonce}.-1.{signature}", f".{good}", f"admin.{good}"),
    ]
    for value in forged:
        assert door.status(asked(cookie=f"{name}={value}")) == 401, value
        assert door.status(asked(cookie=f"{value}={good}")) == 401, value
    assert door.status(asked(cookie=f"{name}={good}")) == 200


def test_forged_cookies_cost_next_to_nothing(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    slow = hashlib.pbkdf2_hmac

    def make(*args: Any) -> bytes:
        made.append(args)
        return slow(*args)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", make)
    for number in range(100):
        for role in ("admin", "reader", "root"):
            assert door.status(asked(cookie=f"gnar-admin-8911={role}.{number}.9999999999.00")) == 401
    assert len(made) == 2  # one key for each secret, however many cookies come


def test_what_was_allowed_is_over_with_the_password_or_the_session(door: Door) -> None:
    cookie = door.log_in()
    by_cookie, by_password, by_token = (
        asked(cookie=cookie),
        asked(authorization=bearer(PASSWORD)),
        asked(authorization=bearer(READ_TOKEN)),
    )
    given = []
    for request in (by_cookie, by_password, by_token):
        door.access.check(request)
        given.append(pass_of(request))
    assert [door.access.still_allows(each) for each in given] == [True, True, True]
    door.access.log_out(by_cookie)
    assert [door.access.still_allows(each) for each in given] == [False, True, True]
    door.config = AdminConfig(8911, "", Secret("another"), Secret(READ_TOKEN))
    assert [door.access.still_allows(each) for each in given] == [False, False, True]
    door.config = OPEN
    request = asked(host="localhost")
    door.access.check(request)
    assert door.access.still_allows(pass_of(request))
    door.config = LOCKED
    assert not door.access.still_allows(pass_of(request))


def test_without_a_secret_a_login_needs_nothing() -> None:
    _, value = Door(OPEN).access.log_in(asked(host="localhost"), "whatever")
    assert value.startswith("gnar-admin=;")


# ---- tries -------------------------------------------------------------------------------------------------


def test_ten_wrong_passwords_within_a_minute_close_the_door_for_a_minute(tried: Clock) -> None:
    door = Door()
    wrong, right = asked(authorization=bearer("guess")), asked(authorization=bearer(PASSWORD))
    cookie = door.log_in()
    for _ in range(MAX_WRONG):
        assert door.status(wrong) == 401
        assert door.status(asked()) == 401  # gives none
        tried.now_s += 5
    tried.now_s -= 5
    with pytest.raises(HTTPError) as refused:
        door.access.check(right)
    assert refused.value.status == 429
    assert refused.value.headers == (("Retry-After", "60"),)
    assert status_of(lambda: door.access.log_in(asked(), PASSWORD)) == 429
    assert door.status(asked(cookie=cookie)) == 200  # who is in stays in
    other = asked(authorization=bearer(PASSWORD), peer=("192.0.2.8", 1))
    assert door.status(other) == 200
    tried.now_s += 59.5
    with pytest.raises(HTTPError) as refused:
        door.access.check(right)
    assert refused.value.headers == (("Retry-After", "1"),)
    tried.now_s += 0.5
    assert door.status(right) == 200
    assert door.status(wrong) == 401


def test_ten_wrong_passwords_in_more_than_a_minute_close_nothing(tried: Clock) -> None:
    door = Door()
    for _ in range(3 * MAX_WRONG):
        assert door.status(asked(authorization=bearer("guess"))) == 401
        tried.now_s += (PERIOD_S + 1) / (MAX_WRONG - 1)


@pytest.mark.parametrize(
    ("first", "second", "are_one"),
    [
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
    ],
)
def test_tries_are_counted_by_network(first: str, second: str, are_one: bool) -> None:
    attempts = Attempts(clock=Clock())
    for _ in range(MAX_WRONG):
        attempts.count(network_of((first, 1, 0, 0)))
    assert attempts.wait_s(network_of((first, 2, 0, 0))) == PERIOD_S
    assert (attempts.wait_s(network_of((second, 1, 0, 0))) > 0) is are_one


def test_networks_that_are_remembered_are_limited() -> None:
    attempts = Attempts(clock=Clock())
    for number in range(MAX_NETWORKS + 10):
        attempts.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(attempts._wrong) == MAX_NETWORKS


NEAR, FAR = ("127.0.0.1", 5), ("192.0.2.7", 5)


@pytest.mark.parametrize(
    ("peer", "fields", "client"),
    [
        (NEAR, {}, "127.0.0.1"),
        (NEAR, {"x_forwarded_for": "198.51.100.1"}, "198.51.100.1"),
        (("::1", 5, 0, 0), {"x_forwarded_for": "198.51.100.1"}, "198.51.100.1"),
        (("::ffff:127.0.0.1", 5, 0, 0), {"x_forwarded_for": "198.51.100.1"}, "198.51.100.1"),
        # What is in front of the last one, the user has sent.
        (NEAR, {"x_forwarded_for": "203.0.113.5, 198.51.100.1"}, "198.51.100.1"),
        (NEAR, {"x_forwarded_for": "::ffff:198.51.100.1"}, "198.51.100.1"),
        (NEAR, {"x_forwarded_for": "2001:db8::1"}, "2001:db8::1"),
        (NEAR, {"x_forwarded_for": "nonsense"}, "127.0.0.1"),
        (NEAR, {"x_forwarded_for": "198.51.100.1,"}, "127.0.0.1"),
        (NEAR, {"fly_client_ip": "198.51.100.1"}, "127.0.0.1"),
        (FAR, {"x_forwarded_for": "198.51.100.1", "fly_client_ip": "198.51.100.1"}, "192.0.2.7"),
        ("", {"x_forwarded_for": "198.51.100.1"}, ""),
    ],
)
def test_a_proxy_on_this_machine_tells_who_asks(
    peer: Any, fields: dict[str, str], client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLY_APP_NAME", raising=False)
    found = client_of(asked(peer=peer, **fields))
    assert (found if isinstance(found, str) else found[0].removeprefix("::ffff:")) == client


def test_the_proxy_of_fly_io_tells_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLY_APP_NAME", "gnar")
    told = {"fly_client_ip": "198.51.100.1", "x_forwarded_for": "203.0.113.5"}
    assert client_of(asked(peer=FAR, **told)) == ("198.51.100.1", 0)
    assert client_of(asked(peer=NEAR, x_forwarded_for="203.0.113.5")) == NEAR


# ---- pages of others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8911", "localhost.evil.example", "127.0.0.1.evil.example:8911"),
        *(
            "192.0.2.1:8911",
            "[2001:db8::1]:8911",
            "0.0.0.0",
            "notlocalhost",
            "127.1",
            "2130706433",
        ),
    ],
)
def test_without_a_secret_only_names_of_this_machine_are_answered(host: str) -> None:
    """A page of `evil.example` can have that name resolved to 127.0.0.1 (DNS rebinding)."""
    door = Door(OPEN)
    for path in ("/", "/api/v1/server", "/static/panel.js", "/healthz", "/api/v1/login"):
        assert door.status(asked(path, host=host)) == 403
    assert Door(LOCKED).status(asked(host=host, authorization=bearer(PASSWORD))) == 200


def test_a_program_that_sends_no_host_is_answered() -> None:
    request = Request("GET", "/healthz", {}, {}, ("127.0.0.1", 5), "1.0", segments=("healthz",))
    assert Door(OPEN).status(request) == 200


@pytest.mark.parametrize("config", [OPEN, LOCKED], ids=["open", "locked"])
@pytest.mark.parametrize("method", ["DELETE", "POST", "PUT"])
@pytest.mark.parametrize(
    "fields",
    [
        {"origin": "http://evil.example"},
        {"origin": "https://evil.example", "sec_fetch_site": "same-origin"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://localhost"},  # another port
        {"origin": "http://localhost:8912"},
        {"origin": "http://localhost:8911.evil.example"},
        {"origin": "http://localhost:8911, http://evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "http://localhost:8911", "sec_fetch_site": "cross-site"},
    ],
)
def test_a_page_from_elsewhere_changes_nothing(
    config: AdminConfig, method: str, fields: dict[str, str]
) -> None:
    door = Door(config)
    for path in ("/api/v1/proxies/p1", "/api/v1/login", "/api/v1/logout", "/admin/tunnel/close"):
        request = asked(path, method, host="localhost:8911", authorization=bearer(PASSWORD), **fields)
        assert door.status(request) == 403


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"origin": "http://localhost:8911"},
        {"origin": "https://LocalHost:8911", "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
    ],
)
def test_the_own_page_and_programs_change_what_they_may(fields: dict[str, str]) -> None:
    assert Door(OPEN).status(asked(method="DELETE", host="localhost:8911", **fields)) == 200


def test_an_origin_without_a_host_is_refused() -> None:
    fields = {"origin": "null", "authorization": bearer(PASSWORD)}
    request = Request(
        "POST", "/admin/tunnel/close", {}, fields, PEER, "1.0", segments=("admin", "tunnel", "close")
    )
    assert Door().status(request) == 403


@pytest.mark.parametrize("value", ["\xe9", "=", "a===", "\x00", "YQ", "//79"])
def test_basic_that_is_no_base64_is_a_wrong_password(door: Door, value: str) -> None:
    assert door.status(asked(authorization=f"Basic {value}")) == 401


# ---- what a stranger might make up -------------------------------------------------------------------------

KEY = "a key of a page"


def browser(cookie: str, **fields: str) -> Request:
    return asked(cookie=cookie, x_gnar_page=KEY, **fields)


def test_made_up_cookies_are_wrong_passwords(tried: Clock) -> None:
    door = Door()
    name = door.log_in(x_gnar_page=KEY).partition("=")[0]
    for number in range(MAX_WRONG):
        assert door.status(browser(f"{name}=admin.x.{number}99999999999.0")) == 401
    assert door.status(asked(authorization=bearer(PASSWORD))) == 429
    tried.now_s += PERIOD_S
    assert door.status(asked(authorization=bearer(PASSWORD))) == 200


def test_cookie_that_was_never_seen_opens_nothing_while_passwords_are_refused(tried: Clock) -> None:
    door = Door()
    known = door.log_in(x_gnar_page=KEY)
    fresh = Door()  # the same settings, in another process: the cookie is good, and not known here
    unknown = fresh.log_in(x_gnar_page=KEY)
    for _ in range(MAX_WRONG):
        door.status(asked(authorization=bearer("guess")))
    assert door.status(browser(known)) == 200
    assert door.status(browser(unknown)) == 401
    tried.now_s += PERIOD_S
    assert door.status(browser(unknown)) == 200


def test_cookie_cannot_be_made_up_by_who_knows_the_password_alone() -> None:
    ours = Door()
    other = Access(lambda: LOCKED, lambda: Secret("another token"), ours.clock)
    _, value = other.log_in(asked("/api/v1/login", "POST", x_gnar_page=KEY), PASSWORD)
    assert ours.status(browser(value.partition(";")[0])) == 401


def test_without_a_token_of_clients_logins_end_with_the_process() -> None:
    first, second = Access(lambda: LOCKED), Access(lambda: LOCKED)
    _, value = first.log_in(asked("/api/v1/login", "POST", x_gnar_page=KEY), PASSWORD)
    cookie = asked(cookie=value.partition(";")[0], x_gnar_page=KEY)
    assert status_of(lambda: first.check(cookie)) == 200
    assert status_of(lambda: second.check(cookie)) == 401


def test_program_with_the_read_token_goes_on_beside_somebody_who_guesses(tried: Clock) -> None:
    del tried
    door, scraper = Door(), asked("/metrics", authorization=bearer(READ_TOKEN))
    assert door.status(scraper) == 200
    for _ in range(MAX_WRONG):
        door.status(asked(authorization=bearer("guess")))
    assert door.status(scraper) == 200
    assert door.status(asked("/metrics", authorization=bearer(READ_TOKEN), peer=("192.0.2.8", 1))) == 200
    assert door.status(asked(authorization=bearer(PASSWORD))) == 429


@pytest.mark.parametrize(
    "peers",
    [
        [f"127.0.0.{number}" for number in range(1, 200)],
        [f"2001:db8:1:{number:x}::1" for number in range(200)],
        [f"192.0.2.{number}" for number in range(200)],
    ],
    ids=["this machine", "one owner of many networks", "one provider"],
)
def test_guesses_from_many_addresses_of_one_owner_are_too_many(tried: Clock, peers: list[str]) -> None:
    del tried
    door = Door()
    guess = bearer("guess")
    statuses = [door.status(asked(authorization=guess, peer=(peer, 1))) for peer in peers]
    assert statuses[:100] == [401] * 100
    assert set(statuses[100:]) == {429}


def test_guesses_with_made_up_addresses_are_too_many(tried: Clock) -> None:
    del tried
    door = Door()
    told = [{"x_forwarded_for": f"198.51.{number}.1"} for number in range(200)]
    statuses = [door.status(asked(authorization=bearer("guess"), peer=NEAR, **each)) for each in told]
    assert statuses[:100] == [401] * 100
    assert set(statuses[100:]) == {429}


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(("path", "status"), [("/api/v1/server", 403), ("/healthz", 403), ("/", 200)])
def test_page_from_elsewhere_may_link_to_the_panel_and_ask_for_nothing(
    site: str, path: str, status: int
) -> None:
    door = Door(OPEN)
    assert door.status(asked(path, host="localhost:8911", sec_fetch_site=site)) == status
