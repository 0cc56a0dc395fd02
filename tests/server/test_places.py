"""Places for users: counted here and around, by address where a limit asks for that."""

from __future__ import annotations

from gnar_lib.server.places import Places, UserLimits

ONE, OTHER = ("192.0.2.1", 4000), ("192.0.2.2", 4000)


def test_places_without_limits_know_no_address() -> None:
    places = Places("here", UserLimits(), Places("around", UserLimits()))
    assert not places.are_limited
    assert places.network_of(ONE) == ""
    assert [places.enter("") for _ in range(1000)] == [""] * 1000
    assert places.taken == 1000


def test_one_address_has_no_more_than_its_part_and_gets_it_back() -> None:
    places = Places("here", UserLimits(per_address=2))
    one, other = places.network_of(ONE), places.network_of(OTHER)
    assert [places.enter(each) != "" for each in (one, one, one, other)] == [False, False, True, False]
    places.leave(one)
    assert places.enter(one) == ""
    for each in (one, one, other):
        places.leave(each)
    assert places.taken == 0
    assert not places._of_network  # nothing is kept of who has left


def test_an_ipv6_network_of_64_bits_counts_as_one_address() -> None:
    places = Places("here", UserLimits(per_address=1))
    near, far = ("2001:db8::1", 1, 0, 0), ("2001:db8::ffff:1", 2, 0, 0)
    assert places.network_of(near) == places.network_of(far)
    assert places.network_of(near) != places.network_of(("2001:db8:0:1::1", 1, 0, 0))


def test_who_is_refused_around_takes_no_place_here() -> None:
    around = Places("around", UserLimits(users=1))
    here, there = (Places(name, UserLimits(users=5), around) for name in ("here", "there"))
    assert here.are_limited
    assert here.enter("") == ""
    assert there.enter("") == "around has 1 users already (max-users)"
    assert (here.taken, there.taken, around.taken) == (1, 0, 1)
    here.leave("")
    assert there.enter("") == ""
