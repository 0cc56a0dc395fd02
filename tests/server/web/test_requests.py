"""Requests at the web port, in any pieces: which ones are passed on, and which ones end the connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gnar_lib.http import Limits, Service
from tests.helpers.sites import SiteOfTest, site_before
from tests.helpers.web import Served, echo_routes, responses
from tests.http.test_requests import (
    LAST,
    LIMITS,
    REFUSED,
    TAKEN,
    TAKEN_LAST,
    final,
    in_pieces,
)

# What differs from a service of gnar's own: the statuses of all answers. What the service refuses does not
# end the user's connection; how long a body may be, and what a target means, is for the service.
OTHERS = {
    "a target that is not ASCII": [400, 200],
    "half an escape": [400, 200],
    "an escape that is none": [400, 200],
    "a path that is not UTF-8": [400, 200],
    "a path with a line break": [400, 200],
    "a path with NUL": [400, 200],
    "a query that is not UTF-8": [400, 200],
    "a parameter twice": [400, 200],
    "too many parameters": [400, 200],
    "a target of another host": [404, 200],  # the target counts, and nobody has that name
    "CONNECT": [405],
    "OPTIONS of all": [404, 200],
    "a Host with a port": [404, 200],  # it is no name
}
OF_THE_SERVICE = {
    "a body that is too long",
    "a body that is far too long",
    "chunks that are too long",
    "a chunk that is too long",
    "HTTP/2",  # which a web port passes through
}
LAST_STATUSES = {
    "HTTP/1.0": [404],  # without Host, there is no name
    "HTTP/1.0 that wants to be kept": [404],
    "HTTP/1.0 with a body": [404],
    "HTTP/1.0 with Host": [200],
    "Connection": [200],
    "trailers": [200, 200],
    "trailers with a bare line feed": [400],
}


@pytest.fixture(scope="module")
def site() -> Iterator[SiteOfTest]:
    """Return a web port with low limits for all tests, each of which uses connections of its own."""
    served = Served(Service(echo_routes(), limits=replace(Limits(), linger_s=5)))
    with site_before(served.port, limits=LIMITS) as site:
        yield site
    served.close()


@pytest.mark.parametrize("name", TAKEN)
def test_a_request_is_passed_on_and_so_is_what_follows(name: str, site: SiteOfTest) -> None:
    data, statuses = TAKEN[name]
    expected = OTHERS.get(name, [*statuses, 200])
    for pieces in in_pieces(data + LAST):
        got = final(site.ask(b"", pieces), data)
        assert [each.status for each in got] == expected, pieces
        assert got[-1].headers["Connection"] == "close"


@pytest.mark.parametrize("name", TAKEN_LAST)
def test_a_request_may_be_the_last(name: str, site: SiteOfTest) -> None:
    data = TAKEN_LAST[name]
    for pieces in in_pieces(data + LAST):
        got = final(site.ask(b"", pieces), data)
        assert [each.status for each in got] == LAST_STATUSES[name], pieces
        assert got[-1].headers["Connection"] == "close"


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in OF_THE_SERVICE])
def test_what_is_no_request_is_refused_and_ends_the_connection(name: str, site: SiteOfTest) -> None:
    data, status = REFUSED[name]
    for pieces in in_pieces(data + LAST):
        got = final(site.ask(b"", pieces), data)
        assert [each.status for each in got] == OTHERS.get(name, [status]), pieces
        assert got[-1].headers["Connection"] == "close"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\nHost: a\n\n", b"\x16\x03\x01", b"\n", b"G" * 10_000])
def test_what_cannot_become_a_request_is_refused_before_its_end(data: bytes, site: SiteOfTest) -> None:
    assert responses(site.ask(data))[0].status in {400, 414}  # and not 408
