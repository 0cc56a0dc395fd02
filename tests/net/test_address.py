"""Addresses as people read them."""

from __future__ import annotations

import pytest

from gnar_lib import net


@pytest.mark.parametrize(
    ("address", "shown", "host"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80", "127.0.0.1"),
        (("::1", 80, 0, 0), "[::1]:80", "[::1]"),
        (("::ffff:10.0.0.1", 80, 0, 0), "10.0.0.1:80", "10.0.0.1"),
        ("/tmp/x.sock", "/tmp/x.sock", ""),  # noqa: S108 (only a text)
        ("", "", ""),
    ],
)
def test_address_for_people(address: net.Sockaddr, shown: str, host: str) -> None:
    assert net.format_address(address) == shown
    assert net.host_of(address) == host


def test_address_that_is_not_known_is_a_question() -> None:
    assert net.format_address(None) == "?"


@pytest.mark.parametrize("address", [("127.0.0.1", 80), ("::1", 0), ("fe80::1%lo", 65535)])
def test_address_that_people_were_shown_can_be_read(address: tuple[str, int]) -> None:
    assert net.read_address(net.format_address(address)) == address


@pytest.mark.parametrize("text", ["", "?", "/run/x.sock", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "::1:²"])
def test_text_that_shows_no_address_is_none(text: str) -> None:
    assert net.read_address(text) is None
