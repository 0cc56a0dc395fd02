"""Keys: what terminals send for them, in whatever pieces it comes."""

from __future__ import annotations

import pytest

from gnar_lib.terminal.keys import Keys

CASES: list[tuple[bytes, list[str]]] = [
    (b"q", ["q"]),
    (b"sS", ["s", "S"]),
    (b"\r\n", ["enter", "enter"]),
    (b"\x1b[A\x1b[B", ["up", "down"]),
    (b"\x1bOA\x1bOB", ["up", "down"]),
    (b"\x1b[5~\x1b[6~", ["page up", "page down"]),
    (b"\x1b[1~\x1b[H\x1b[F", ["home", "home", "end"]),
    (b"\x1b[1;5A", []),  # with Ctrl: nothing here
    (b"\x1b[200~q", ["q"]),
    (b"\x1b\x1b[A", ["escape", "up"]),
    (b"\x1bq", ["escape", "q"]),
    (b"\xc3\xa4\x7f", []),
    (b"\x1b[" + b"1" * 100 + b"A", []),
]


@pytest.mark.parametrize(("data", "keys"), CASES)
def test_keys_are_known(data: bytes, keys: list[str]) -> None:
    reader = Keys()
    assert reader.take(data) == keys
    assert not reader.is_waiting


@pytest.mark.parametrize(("data", "keys"), CASES[:-1])
def test_keys_may_come_byte_by_byte(data: bytes, keys: list[str]) -> None:
    reader = Keys()
    assert [key for byte in data for key in reader.take(bytes([byte]))] == keys


def test_escape_is_a_key_when_nothing_follows() -> None:
    reader = Keys()
    assert reader.take(b"\x1b") == []
    assert reader.is_waiting
    assert reader.settle() == ["escape"]
    assert reader.settle() == []


def test_what_never_ends_is_not_kept() -> None:
    reader = Keys()
    for _ in range(1000):
        reader.take(b"\x1b[1111")
    assert len(reader._rest) <= 16
