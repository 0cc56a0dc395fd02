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


class Stranger:
    """A user who has yet to earn the place."""

    def __init__(self, places: Places, network: str = "") -> None:
        self.network = network
        self.has_left = False
        self._places = places
        self.reason = places.enter(network, self.give_up)

    def give_up(self) -> None:
        assert not self.has_left
        self.has_left = True
        self._places.leave(self.network, self.give_up)


def test_places_that_are_not_earned_are_given_up_to_whoever_comes_the_oldest_first() -> None:
    around = Places("around", UserLimits(users=3))
    udp, tcp = (Places(name, UserLimits(), around) for name in ("udp", "tcp"))
    first, second, third, fourth = (Stranger(udp) for _ in range(4))
    assert [each.has_left for each in (first, second, third, fourth)] == [True, False, False, False]
    udp.settle(third.give_up)
    assert [tcp.enter("") for _ in range(2)] == ["", ""]
    assert [each.has_left for each in (second, third, fourth)] == [True, False, True]
    assert tcp.enter("") == "around has 3 users already (max-users)"
    assert Stranger(udp).reason == "around has 3 users already (max-users)"
    third.give_up()
    assert tcp.enter("") == ""
    for _ in range(3):
        tcp.leave("")
    assert (around.taken, udp.taken, tcp.taken) == (0, 0, 0)
    for each in (around, udp):
        assert (each._unearned, each._unearned_of) == ({}, {})


def test_place_of_an_address_is_given_up_to_another_user_of_that_address_alone() -> None:
    places = Places("here", UserLimits(per_address=1))
    one, other = places.network_of(ONE), places.network_of(OTHER)
    first, apart = Stranger(places, one), Stranger(places, other)
    assert places.enter(one) == ""
    assert (first.has_left, apart.has_left) == (True, False)
    assert places.enter(one) != ""
    assert not apart.has_left


def test_who_is_refused_around_takes_no_place_here() -> None:
    around = Places("around", UserLimits(users=1))
    here, there = (Places(name, UserLimits(users=5), around) for name in ("here", "there"))
    assert here.are_limited
    assert here.enter("") == ""
    assert there.enter("") == "around has 1 users already (max-users)"
    assert (here.taken, there.taken, around.taken) == (1, 0, 1)
    here.leave("")
    assert there.enter("") == ""
