"""Basic authentication: who is let in, what that costs, and how others fare meanwhile."""

from __future__ import annotations

import base64
import shutil
import threading
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from gnar_lib.auth import passwords
from gnar_lib.auth.attempts import MAX_WRONG, PERIOD_S
from gnar_lib.auth.passwords import hash_password
from gnar_lib.errors import AuthError, ProxyRefusedError
from gnar_lib.http import HTTPError, Request
from gnar_lib.net import network_of
from gnar_lib.server.web import basic
from gnar_lib.server.web.basic import (
    CHALLENGE,
    MAX_AT_ONCE,
    MAX_HEADER_BYTES,
    MAX_IN_LINE,
    MAX_IN_LINE_OF_NETWORK,
    MAX_REMEMBERED,
    MAX_USERS,
    REMEMBERED_S,
    BasicAuth,
    Checks,
)
from tests.helpers.clock import Clock
from tests.helpers.loop import turn, wait_until
from tests.helpers.web import curl, serving
from tests.peers.mux import clean

NETWORK = "192.0.2.7"
SESAME = "$2b$04$5dSeL6InYVzkh8Lcqn7iJuJHviixOmWPybMRcNdGfSnRkO1zVT/Xa"  # of "sesame"; a millisecond to check
OTHER = "$2b$04$04bQJsXWC7zmLgTS5HfZ3eP32aGNhpq8xTtGM/TnNoL9IWE6Wp7PO"  # of "a"
HASHES = 20  # in the test of the loop
MOST_TURNS_IF_HELD = 3 * HASHES


def header(text: str | bytes, scheme: str = "Basic") -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return f"{scheme} {base64.b64encode(data).decode()}".encode()


def status_of(auth: BasicAuth, authorization: bytes, network: str = NETWORK) -> int:
    """Return the status with which a request is answered, 200 if it is let in."""
    try:
        return 200 if auth.check(authorization, network) else 401
    except HTTPError as exc:
        return exc.status


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def checks(clock: Clock) -> Iterator[Checks]:
    with clean(60):
        made = Checks(clock)
        made._threads.size = MAX_AT_ONCE  # all of them now: `clean` counts what a test leaves behind
        yield made
        made._threads.kill()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the hashes against which passwords are checked."""
    found: list[str] = []
    verify = passwords.verify

    def note(password: bytes, hashed: str) -> bool:
        found.append(hashed)
        return verify(password, hashed)

    monkeypatch.setattr(passwords, "verify", note)
    return found


class Gate:
    """Stands in for `verify`: each check waits in its thread until the gate opens, and is then right."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.entered = 0
        self.within = 0
        self.most_within = 0
        self._lock = threading.Lock()

    def __call__(self, _password: bytes, _hashed: str) -> bool:
        with self._lock:
            self.entered += 1
            self.within += 1
            self.most_within = max(self.most_within, self.within)
        self.is_open.wait(60)
        with self._lock:
            self.within -= 1
        return True


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(passwords, "verify", made)
    yield made
    made.is_open.set()


# ---- who is let in -----------------------------------------------------------------------------------------


def test_each_user_is_let_in_by_the_right_password_alone(checks: Checks) -> None:
    auth = BasicAuth([f"ann:{SESAME}", f"bob:{hash_password('b:o:b')}"], checks)
    assert auth
    given = ("ann:sesame", "bob:b:o:b", "ann:a", "bob:sesame", "eve:sesame", "ann:", "Ann:sesame", ":sesame")
    assert [status_of(auth, header(each)) for each in given] == [200, 200, *[401] * 6]


@pytest.mark.parametrize("form", ["grün:pää", "gru\u0308n:pa\u0308a\u0308"])
@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
def test_letters_beyond_ascii_may_come_in_each_coding(checks: Checks, form: str, coding: str) -> None:
    name, _, password = form.partition(":")
    auth = BasicAuth([f"{name}:{hash_password(password)}"], checks)
    assert auth.check(header("grün:pää".encode(coding)), NETWORK)
    assert not auth.check(header("grun:paa"), NETWORK)


@pytest.mark.parametrize(
    "authorization",
    [
        *(
            b"",
            b" ",
            b"Basic",
            b"Basic ",
            b"Basic\tYTpi",
            b"Basic !!!!",
            b"Basic YW5uOnNlc2FtZ",
            b"Basic ====",
        ),
        *(b"\xff\xfe \xff", header("ann"), header(b"\xff"), header("ann:sesame")[6:]),
        *(header("ann:sesame", "Bearer"), b"Basic " + header("ann:sesame"), header("ann:sesame") + b"=="),
        *(header("ann:" + "x" * MAX_HEADER_BYTES), b"Basic " + b"A" * 10_000_000),
    ],
    ids=lambda value: str(value[:30]),
)
def test_what_is_no_user_with_a_password_is_refused_and_costs_nothing(
    checks: Checks, checked: list[str], authorization: bytes
) -> None:
    assert not BasicAuth([f"ann:{SESAME}"], checks).check(authorization, NETWORK)
    assert checked == []


@pytest.mark.parametrize("form", [b"basic %s", b"BASIC %s", b"Basic   %s", b"Basic %s  ", b"Basic %s\t"])
def test_the_field_may_be_written_in_several_ways(checks: Checks, form: bytes) -> None:
    auth = BasicAuth([f"ann:{SESAME}"], checks)
    assert auth.check(form % base64.b64encode(b"ann:sesame"), NETWORK)


def test_without_users_nobody_is_let_in(checks: Checks) -> None:
    auth = BasicAuth([], checks)
    assert not auth
    assert not auth.check(header("ann:sesame"), NETWORK)


@pytest.mark.parametrize(
    ("users", "text"),
    [
        (["ann"], 'a user is given as "user:password" or "user:hash"'),
        ([f":{SESAME}"], 'a user is given as "user:password" or "user:hash"'),
        (["ann:secret"], "the hash of the user 'ann' cannot be used: it is neither a bcrypt hash"),
        ([f"ann:{SESAME}", f"ann:{OTHER}"], "the user 'ann' is given twice"),
        ([f"grün:{SESAME}", f"gru\u0308n:{OTHER}"], "is given twice"),
        ([f"a\nb:{SESAME}"], r"no user can be called 'a\nb'"),
        ([f"a\0b:{SESAME}"], r"no user can be called 'a\x00b'"),
        ([f"\udcff:{SESAME}"], r"no user can be called '\udcff'"),
        ([f"{'a' * 256}:{SESAME}"], "no user can be called"),
        ([f"ann:{SESAME.replace('$04$', '$30$')}"], "its cost is 30"),
        ([f"{number}:{SESAME}" for number in range(MAX_USERS + 1)], "101 users are more than the 100"),
    ],
)
def test_users_that_cannot_be_are_refused_in_one_line_without_their_hash(users: list[str], text: str) -> None:
    with pytest.raises(ProxyRefusedError) as refused:
        BasicAuth(users)
    said = str(refused.value)
    assert said.startswith("basic-auth: ")
    assert text in said
    assert "\n" not in said
    assert "secret" not in said
    assert SESAME[7:] not in said


# ---- what a check costs ------------------------------------------------------------------------------------


def test_an_unknown_user_costs_as_many_hashes_of_the_same_kind_as_one_who_exists(
    checks: Checks, checked: list[str]
) -> None:
    auth = BasicAuth([f"ann:{SESAME}"], checks)
    for given in ("ann:wrong", "eve:wrong", "eve:sesame"):  # the last is right for the hash of another user
        checked.clear()
        assert not auth.check(header(given), NETWORK)
        assert checked == [SESAME]


def test_an_unknown_user_costs_the_same_each_time_where_hashes_differ(
    checks: Checks, checked: list[str]
) -> None:
    hashes = [SESAME, OTHER, SESAME.replace("$2b$", "$2y$")]
    auth = BasicAuth([f"user{number}:{hashed}" for number, hashed in enumerate(hashes)], checks)
    of_user = {}
    for number in range(40):
        checked.clear()
        for network in ("192.0.2.1", "192.0.2.2"):
            assert not auth.check(header(f"eve{number}:x"), f"{network}{number}")
        assert len(checked) == 2
        assert checked[0] == checked[1]
        of_user[number] = checked[0]
    assert set(of_user.values()) == set(hashes)


def test_the_right_password_is_checked_once_and_again_when_it_has_not_been_used_for_long(
    checks: Checks, checked: list[str], clock: Clock
) -> None:
    auth = BasicAuth([f"ann:{SESAME}"], checks)
    for _ in range(5):
        assert auth.check(header("ann:sesame"), NETWORK)
        clock.now_s += REMEMBERED_S
    assert len(checked) == 1
    clock.now_s += 1
    assert auth.check(header("ann:sesame"), NETWORK)
    assert len(checked) == 2


def test_what_is_remembered_is_for_one_user_with_one_hash_also_after_a_reconnect(
    checks: Checks, checked: list[str]
) -> None:
    assert BasicAuth([f"ann:{SESAME}", f"bob:{SESAME}"], checks).check(header("ann:sesame"), NETWORK)
    again = BasicAuth([f"ann:{SESAME}", f"bob:{SESAME}"], checks)
    assert again.check(header("ann:sesame"), NETWORK)
    assert len(checked) == 1
    assert not again.check(header("ann:Sesame"), NETWORK)
    assert again.check(header("bob:sesame"), NETWORK)
    assert len(checked) == 3
    assert not BasicAuth([f"ann:{OTHER}"], checks).check(header("ann:sesame"), NETWORK)
    assert not BasicAuth([f"bob:{OTHER}"], checks).check(header("ann:sesame"), NETWORK)


def test_what_is_remembered_is_limited_and_holds_no_password(checks: Checks) -> None:
    auth = BasicAuth([f"ann:{SESAME}"], checks)
    assert auth.check(header("ann:sesame"), NETWORK)
    assert [len(each) for each in checks._right] == [32]
    for number in range(MAX_REMEMBERED + 5):
        checks.remember(checks.digest(str(number).encode()))
    assert len(checks._right) == MAX_REMEMBERED


def test_a_check_that_is_remembered_takes_microseconds(checks: Checks) -> None:
    auth = BasicAuth([f"ann:{hash_password('sesame')}"], checks)
    value = header("ann:sesame")
    assert auth.check(value, NETWORK)
    began = time.thread_time()
    for _ in range(1000):
        assert auth.check(value, NETWORK)
    assert time.thread_time() - began < 0.2  # one hash takes a quarter of that


def test_requests_of_one_browser_at_the_same_time_cost_one_hash(checks: Checks, checked: list[str]) -> None:
    auth = BasicAuth([f"ann:{SESAME}"], checks)
    tabs = [gevent.spawn(status_of, auth, header("ann:sesame")) for _ in range(6)]
    assert [tab.get(timeout=20) for tab in tabs] == [200] * 6
    assert len(checked) == 1


# ---- who guesses -------------------------------------------------------------------------------------------


def test_after_many_wrong_passwords_a_network_waits_and_nobody_else(checks: Checks, clock: Clock) -> None:
    auth = BasicAuth([f"ann:{SESAME}", f"bob:{SESAME}"], checks)
    assert status_of(auth, header("bob:sesame")) == 200
    for number in range(MAX_WRONG):
        assert status_of(auth, header(f"ann:{number}")) == 401
    with pytest.raises(HTTPError) as refused:
        auth.check(header("ann:sesame"), NETWORK)
    assert refused.value.status == 429
    assert refused.value.headers == (("Retry-After", "60"),)
    assert status_of(auth, header("bob:sesame")) == 200  # is remembered
    assert status_of(auth, b"") == 401
    assert status_of(auth, header("ann:x"), "192.0.2.8") == 401
    assert status_of(BasicAuth([f"ann:{OTHER}"], checks), header("ann:a")) == 200  # another proxy
    clock.now_s += PERIOD_S
    assert status_of(auth, header("ann:sesame")) == 200


def test_guesses_at_the_same_time_get_no_more_tries(checks: Checks, checked: list[str]) -> None:
    auth = BasicAuth([f"ann:{SESAME}"], checks)
    for number in range(MAX_WRONG - 2):
        assert status_of(auth, header(f"ann:{number}")) == 401
    guesses = [gevent.spawn(status_of, auth, header(f"ann:x{number}")) for number in range(30)]
    answers = [guess.get(timeout=20) for guess in guesses]
    assert answers.count(401) == 2
    assert len(checked) == MAX_WRONG
    assert set(answers) == {401, 429, 503}


# ---- others meanwhile --------------------------------------------------------------------------------------


def test_so_many_are_checked_at_once_one_of_each_proxy_and_the_rest_waits_in_line(
    checks: Checks, gate: Gate
) -> None:
    proxies = [BasicAuth([f"ann{number}:{SESAME}"], checks) for number in range(MAX_AT_ONCE + 2)]
    users = [
        gevent.spawn(status_of, auth, header(f"ann{number}:{each}"))
        for number, auth in enumerate(proxies)
        for each in range(3)
    ]
    wait_until(lambda: gate.entered == MAX_AT_ONCE, "threads check passwords")
    turn()
    assert gate.entered == MAX_AT_ONCE
    gate.is_open.set()
    assert [user.get(timeout=20) for user in users] == [200] * len(users)
    assert gate.most_within == MAX_AT_ONCE
    assert gate.entered == len(users)


def test_line_is_limited_for_a_proxy_and_for_a_network(checks: Checks, gate: Gate) -> None:
    auth = BasicAuth([f"ann:{SESAME}"], checks)

    def ask(count: int, network: Callable[[int], str]) -> list[gevent.Greenlet[..., int]]:
        made = [gevent.spawn(status_of, auth, header(f"ann:{n}"), network(n)) for n in range(count)]
        turn()
        return made

    users = ask(1, lambda _: NETWORK)
    wait_until(lambda: gate.entered == 1, "a password is checked")
    users += ask(MAX_IN_LINE_OF_NETWORK, lambda _: NETWORK)
    with pytest.raises(HTTPError) as refused:
        auth.check(header("ann:too many"), NETWORK)
    assert refused.value.status == 503
    assert refused.value.headers == (("Retry-After", "5"),)
    users += ask(MAX_IN_LINE - MAX_IN_LINE_OF_NETWORK, lambda number: f"198.51.100.{number}")
    assert status_of(auth, header("ann:more"), "203.0.113.1") == 503
    assert status_of(BasicAuth([f"bob:{SESAME}"], checks), b"") == 401
    gate.is_open.set()
    assert {user.get(timeout=20) for user in users} == {200}
    assert not auth._in_line


def test_a_wait_in_line_ends_in_words_and_whoever_goes_leaves_the_line(
    checks: Checks, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = BasicAuth([f"ann:{SESAME}"], checks)
    first, second = (gevent.spawn(status_of, auth, header(f"ann:{number}")) for number in range(2))
    wait_until(lambda: gate.entered == 1, "a password is checked")
    monkeypatch.setattr(basic, "LINE_S", 0.01)
    assert status_of(auth, header("ann:late")) == 503
    second.kill()
    first.kill()  # its check goes on in the thread
    # Of these, one has a thread, and another is the one that gevent takes before it makes others wait.
    others = [BasicAuth([f"bob{number}:{SESAME}"], checks) for number in range(MAX_AT_ONCE)]
    more = [gevent.spawn(status_of, each, header(f"bob{n}:x")) for n, each in enumerate(others)]
    wait_until(lambda: gate.entered == MAX_AT_ONCE, "all threads are busy")
    assert status_of(auth, header("ann:later")) == 503
    gate.is_open.set()
    assert [each.get(timeout=20) for each in more] == [200] * len(more)
    monkeypatch.undo()
    wait_until(lambda: not gate.within, "the threads are free")
    assert status_of(auth, header("ann:sesame")) == 200
    assert not auth._in_line


def test_where_no_password_can_be_checked_the_answer_is_503(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_password: bytes, _hashed: str) -> bool:
        raise AuthError("scrypt does not work on this machine")

    monkeypatch.setattr(passwords, "verify", fail)
    auth = BasicAuth([f"ann:{SESAME}"], checks)
    assert [status_of(auth, header("ann:sesame")) for _ in range(MAX_WRONG + 1)] == [503] * (MAX_WRONG + 1)


def test_the_loop_goes_on_while_passwords_are_checked(checks: Checks) -> None:
    proxies = [BasicAuth([f"ann:{hash_password(f'sesame{number}')}"], checks) for number in range(4)]
    users = [
        gevent.spawn(status_of, proxies[number % 4], header(f"ann:guess {number}"), f"192.0.2.{number}")
        for number in range(HASHES)
    ]
    turns, worst_s, last = 0, 0.0, time.monotonic()
    while not all(user.ready() for user in users):
        gevent.sleep(0.001)
        now = time.monotonic()
        turns, worst_s, last = turns + 1, max(worst_s, now - last), now
    print(f"{turns} turns of the loop during {HASHES} checks, the longest of {worst_s * 1000:.0f} ms")
    assert [user.get() for user in users] == [401] * HASHES
    assert turns > MOST_TURNS_IF_HELD


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_curl_is_let_in_with_its_password(checks: Checks) -> None:
    auth = BasicAuth([f"ann:{SESAME}", f"grün:{hash_password('p:☃')}"], checks)

    def guard(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if not auth.check(given, network_of(request.peer)):
            raise HTTPError(401, "a user and a password are needed", [CHALLENGE])

    told = ["-w", " %{http_code}", "@/"]
    with serving(guard=guard) as served:
        assert curl(served, "-u", "ann:sesame", *told) == "home 200"
        assert curl(served, "--anyauth", "-u", "grün:p:☃", "@/") == "home"
        assert curl(served, "-u", "ann:wrong", *told).endswith(" 401")
        assert 'WWW-Authenticate: Basic realm="gnar", charset="UTF-8"' in curl(served, "-i", "@/")
