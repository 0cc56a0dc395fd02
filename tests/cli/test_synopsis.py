"""The texts of `--help` have the form that completion and manual page are made from, and are true."""

from __future__ import annotations

import pytest

from gnar_lib import cmd, synopsis, usage
from gnar_lib.config import variables
from gnar_lib.config.keys import CLIENT, PROXY, SERVER
from gnar_lib.errors import ConfigError
from gnar_lib.synopsis import Operand, Option

OVERVIEW = """gnar: dig.

Usage:
  gnar dig [<where>] [options]
  gnar --help | --version [--verbose] [--loud]

Commands:
  dig  makes a hole

A paragraph.
"""

DIG = """gnar dig: make a hole.

Usage: gnar dig (up | down) <where> [<how>...] [options]

A hole: of any size,
round or not.

Options:
  -d, --depth METRES  how deep
      --kind KIND     round|square (default round); square is
                      dearer
  -c, --config FILE   a plan

Example:
  gnar dig down here
"""


def test_a_text_is_read() -> None:
    program = synopsis.read(OVERVIEW, {"dig": DIG})
    (dig,) = program.commands
    assert (program.title, dig.title, dig.summary) == ("dig.", "make a hole.", "makes a hole")
    assert program.flags == {"--help": (), "--version": ("--verbose", "--loud")}
    assert dig.usage == "gnar dig (up | down) <where> [<how>...] [options]"
    assert dig.operands == (
        Operand("one of", choices=("up", "down")),
        Operand("where"),
        Operand("how", repeats=True),
    )
    assert dig.paragraphs == ("A hole: of any size, round or not.",)
    assert dig.options == (
        Option(("-d", "--depth"), "METRES", "how deep"),
        Option(("--kind",), "KIND", "round|square (default round); square is dearer"),
        Option(("-c", "--config"), "FILE", "a plan"),
    )
    assert [option.choices for option in dig.options] == [(), ("round", "square"), ()]
    assert [option.takes_file for option in dig.options] == [False, False, True]
    assert dig.examples == ("gnar dig down here",)


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        ("gnar dig: make", "gnar dig - make"),
        ("Usage: gnar dig (up", "Usage: gnar dig {up"),
        ("[<how>...]", "[<how>, ...]"),
        ("[<how>...]", "[--how]"),
        ("round or not", "  round or not"),
        ("Options:", "Choices:"),
        ("Options:", "Options: all"),
        ("  how deep", " how deep"),
        ("-d, --depth", "-d --depth"),
        ("-d, --depth", "--Depth"),
        ("METRES", "metres"),
        ("                      dearer", "    dearer"),
        ("                      dearer", "dearer"),
        ("  gnar dig down here", "gnar dig down here"),
    ],
)
def test_a_line_that_is_not_understood_is_an_error(known: str, unknown: str) -> None:
    assert known in DIG
    with pytest.raises(ValueError, match=r"not understood|heading"):
        synopsis.read(OVERVIEW, {"dig": DIG.replace(known, unknown)})


@pytest.mark.parametrize(
    ("known", "unknown"), [("  dig  makes", "  dig makes"), ("--help | --version", "--help, --version")]
)
def test_a_line_of_the_overview_that_is_not_understood_is_an_error(known: str, unknown: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        synopsis.read(OVERVIEW.replace(known, unknown), {"dig": DIG})


def test_overview_and_texts_of_the_commands_agree() -> None:
    program = cmd._program()
    listed = [line for line in program.usage if not line.startswith("gnar --")]
    assert [line.removesuffix(" [options]") for line in listed] == [
        command.usage.removesuffix(" [options]") for command in program.commands
    ]
    assert usage.USAGE.count("\n  ") == len(program.usage) + len(program.commands)
    assert all(command.examples for command in program.commands)


@pytest.mark.parametrize("command", ["server", "client"])
def test_words_that_a_value_is_one_of_are_those_that_the_setting_takes(command: str) -> None:
    readers = SERVER if command == "server" else {**CLIENT, **PROXY}
    (options,) = [each.options for each in cmd._program().commands if each.name == command]
    for option in options:
        key = option.names[-1].removeprefix("--")
        if option.choices:
            assert [readers[key](word) for word in option.choices] == [*option.choices]
            with pytest.raises(ConfigError, match=f"expected .*{option.choices[-1]}"):
                readers[key]("something else")
        elif option.value and not option.takes_file:
            assert "one_of" not in readers[key].__qualname__, f"{option.names}: its words are not in the text"


def test_options_of_http_are_those_of_the_client_and_the_name() -> None:
    client, http = (
        {option.names[-1]: (option.value, option.choices, option.takes_file) for option in each.options}
        for each in cmd._program().commands
        if each.name in {"client", "http"}
    )
    assert {name: http[name] for name in http if name != "--name"}.items() <= client.items()
    assert {*variables()["http"].values()} <= http.keys()


@pytest.mark.parametrize("command", ["server", "client"])
def test_every_option_of_server_and_client_has_a_variable(command: str) -> None:
    (options,) = [each.options for each in cmd._program().commands if each.name == command]
    names = {option.names[-1] for option in options} - {"--help", "--replace", "--check"}
    names.discard("--no-multiplex")  # GNAR_MULTIPLEX=off says the same
    assert {*variables()[command].values()} == names
