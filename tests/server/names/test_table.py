"""The table of names: which proxy a request is for, who may take a name, and how long it is held."""

from __future__ import annotations

from typing import cast

import pytest

from gnar_lib.auth import HMAC, MD5, Credential, Rights
from gnar_lib.config import PortRanges, Rate, Secret
from gnar_lib.errors import NameTakenError
from gnar_lib.pio.meter import Meter
from gnar_lib.server.names import table as table_module
from gnar_lib.server.names.check import Name
from gnar_lib.server.names.table import AWAY_S, Names
from gnar_lib.server.places import Places, UserLimits
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.upstream import Upstream
from tests.helpers.clock import Clock

OURS = Credential(HMAC, Secret("a")), "192.0.2.1"
THEIRS = Credential(MD5, Secret("a")), "192.0.2.1"


class Client:
    """Who holds names, and notes which of them it loses."""

    def __init__(self) -> None:
        self.is_silent = False
        self.lost: list[Name] = []

    def lose(self, name: Name) -> None:
        self.lost.append(name)


def proxy(name: str = "x") -> Proxy:
    rights = Rights(PortRanges(), 10, Rate())
    return Proxy(name, cast("Upstream", None), rights, Meter(), Places(name, UserLimits()))


def web(host: str, path: str = "") -> Name:
    return Name("http", host, path)


def opened(names: Names, name: Name, holder: Client | None = None) -> Proxy:
    made = proxy(str(name))
    names.take(name, made, OURS, holder or Client())
    names.open(name, made)
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def names(clock: Clock) -> Names:
    return Names(clock)


def test_host_goes_before_the_wildcard_and_the_longest_path_before_others(names: Names) -> None:
    for name in (
        *(web("a.org"), web("a.org", "/api"), web("a.org", "/api/v2")),
        *(web("*.dev.org"), web("b.dev.org", "/x")),
    ):
        opened(names, name)
    for host, path, expected in (
        ("a.org", "/", "a.org"),
        ("A.ORG", "/apis", "a.org"),
        ("a.org.", "/api", "a.org/api"),
        ("a.org", "/api/", "a.org/api"),
        ("a.org", "/api?q=/v2", "a.org/api"),
        ("a.org", "/api/v2/users", "a.org/api/v2"),
        ("a.org", "/API", "a.org"),
        ("a.org", "*", "a.org"),
        ("c.dev.org", "/", "*.dev.org"),
        ("b.dev.org", "/x/y", "b.dev.org/x"),
        ("b.dev.org", "/y", "*.dev.org"),
    ):
        found = names.find(host, path)
        assert found is not None
        assert found.name == expected, (host, path)
    for host in ("org", "x.a.org", "a.b.dev.org", "dev.org", "", ".", "*"):
        assert names.find(host, "/") is None, host
    assert names.find_tls("a.org") is None


def test_names_of_tls_are_found_apart(names: Names) -> None:
    ours = proxy()
    names.take(Name("https", "a.org"), ours, OURS, Client())
    names.open(Name("https", "a.org"), ours)
    other = opened(names, web("a.org"))
    assert names.find_tls("a.org") is ours
    assert names.find("a.org", "/") is other


def test_name_is_known_from_the_beginning_to_the_end_and_found_while_it_is_open(names: Names) -> None:
    name, ours = web("*.dev.org", "/a"), proxy()
    assert not names.knows("x.dev.org")
    names.take(name, ours, OURS, Client())
    assert names.knows("X.dev.org.")
    assert names.find("x.dev.org", "/a") is None
    names.open(name, ours)
    assert names.find("x.dev.org", "/a") is ours
    names.release(name, ours)
    names.release(name, ours)
    assert not names.knows("x.dev.org")
    assert (len(names), names._hosts) == (0, {})


def test_name_is_taken_for_others_and_for_the_same_client(names: Names) -> None:
    holder = Client()
    opened(names, web("a.org"), holder)
    for owner in (OURS, THEIRS):
        with pytest.raises(NameTakenError, match=r"^the name a\.org is taken$") as caught:
            names.take(web("a.org"), proxy(), owner, holder)
        assert caught.value.owner == OURS


ODD = [
    "//admin",
    "/%61dmin",
    "/x/../admin/",
    "/./admin/x",
    "/admin;a=b/x",
    "/x%2f..%2fadmin",
    "/..\\admin",
    "///admin",
]


@pytest.mark.parametrize("path", ODD)
def test_a_path_is_found_as_services_read_it(names: Names, path: str) -> None:
    """A proxy that asks for a password may be in front of one path of a service that others may see."""
    for name in (web("a.org"), web("a.org", "/admin"), web("a.org", "/x")):
        opened(names, name)
    found = names.find("a.org", path)
    assert found is not None
    assert found.name == "a.org/admin"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/admin/../x", ""),
        ("/x%20y/z", "/x%20y"),
        ("/x y", "/x%20y"),
        ("/%2561dmin", ""),
        ("/%", ""),
        ("/..", ""),
    ],
)
def test_an_odd_path_may_be_that_of_a_name(names: Names, path: str, expected: str) -> None:
    for name in (web("a.org"), web("a.org", "/admin"), web("a.org", "/x%20y")):
        opened(names, name)
    found = names.find("a.org", path)
    assert found is not None
    assert found.name == "a.org" + expected


def test_it_is_known_whether_the_path_decides(names: Names) -> None:
    for name in (web("a.org"), web("b.org", "/x"), web("*.dev.org"), web("c.dev.org", "/y")):
        opened(names, name)
    asked = ("a.org", "B.org.", "x.dev.org", "c.dev.org", "nobody.org")
    assert [names.has_paths(host) for host in asked] == [False, True, False, True, False]


def test_paths_of_a_host_are_for_clients_with_the_same_credential(names: Names) -> None:
    opened(names, web("a.org", "/x"))
    opened(names, web("a.org"))
    for name in (web("a.org", "/y"), Name("https", "a.org")):
        with pytest.raises(NameTakenError):
            names.take(name, proxy(), THEIRS, Client())
    opened(names, web("*.dev.org"))
    with pytest.raises(NameTakenError):
        names.take(web("a.dev.org"), proxy(), THEIRS, Client())


def test_silent_holder_loses_a_name_to_the_same_credential_alone(names: Names) -> None:
    holder = Client()
    before = opened(names, web("a.org"), holder)
    holder.is_silent = True
    with pytest.raises(NameTakenError):
        names.take(web("a.org"), proxy(), THEIRS, Client())
    after = opened(names, web("a.org"))
    assert holder.lost == [web("a.org")]
    names.release(web("a.org"), before)  # it is not the former holder's any more
    assert names.find("a.org", "/") is after


def test_name_is_held_for_a_minute_and_the_same_credential_may_have_it_at_once(
    names: Names, clock: Clock
) -> None:
    ours = opened(names, web("a.org"))
    names.leave(web("a.org"), ours)
    names.release(web("a.org"), ours)  # the proxy is closed; the name is held all the same
    clock.now_s += AWAY_S - 1
    names.tend()
    assert names.find("a.org", "/") is ours
    assert ours.is_away
    assert names.knows("a.org")
    assert (len(names), names.without_port) == (0, 0)
    with pytest.raises(NameTakenError):
        names.take(web("a.org"), proxy(), THEIRS, Client())
    again = opened(names, web("a.org"))
    assert not again.is_away
    names.leave(web("a.org"), again, 5.0)
    clock.now_s += 5.0
    names.tend()
    assert names.find("a.org", "/") is None
    opened(names, web("a.org"))


def test_names_that_are_held_have_a_limit_and_so_do_the_paths_of_a_host(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "MAX_AWAY", 2)
    monkeypatch.setattr(table_module, "MAX_PATHS", 3)
    made = [(web("a.org", f"/{number}"), opened(names, web("a.org", f"/{number}"))) for number in range(3)]
    with pytest.raises(NameTakenError, match=r"a\.org has 3 paths already"):
        opened(names, web("a.org", "/3"))
    for name, each in made:
        names.leave(name, each)
    assert [names.find("a.org", f"/{number}") is None for number in range(3)] == [False, False, True]
