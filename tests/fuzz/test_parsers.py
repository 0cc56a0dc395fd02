"""Every parser takes broken input for a moment, with other inputs each time, and all inputs that are kept."""

from __future__ import annotations

import secrets
from random import Random

import pytest

from tests.fuzz.parsers import CHECKS
from tests.fuzz.run import SEEDS, Crash, fuzz, seeds_of, try_one

SECONDS = 0.4


@pytest.mark.parametrize("parser", CHECKS)
def test_inputs_that_are_kept_break_no_promise(parser: str) -> None:
    for number, data in enumerate(seeds_of(parser)):
        for choice in range(4):
            try_one(parser, data, Random(number + choice))  # noqa: S311  (no secret)


@pytest.mark.parametrize("parser", CHECKS)
def test_broken_inputs_break_no_promise(parser: str) -> None:
    tried, accepted = fuzz(parser, SECONDS, secrets.randbits(32))
    assert 0 < accepted < tried


def test_every_parser_has_seeds_and_all_seeds_have_a_parser() -> None:
    assert {path.stem for path in SEEDS.iterdir()} == set(CHECKS)


def test_an_error_of_a_parser_is_told_with_its_input_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(data: bytes, _random: Random) -> bool:
        return not data[100]

    monkeypatch.setitem(CHECKS, "frames", broken)
    with pytest.raises(Crash, match=r"frames: IndexError.*python -m tests.fuzz --seed 7 frames; input: b'"):
        fuzz("frames", SECONDS, 7)
