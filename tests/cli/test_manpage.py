"""The manual page: it passes checks of its form, and has every option, variable and exit status."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gnar_lib import __version__, cmd, manpage
from gnar_lib.config import variables

ROOT = Path(__file__).resolve().parent.parent.parent
SECTIONS = [
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "COMMANDS",
    "OPTIONS",
    "ENVIRONMENT",
    "FILES",
    "EXIT STATUS",
    "SIGNALS",
    "EXAMPLES",
    "SEE ALSO",
]

# A date would be another one with each build, or one more place to change with each version.
TOLERATED = r'mandoc: \S+: WARNING: missing date, using "": TH'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page in a file."""
    path = tmp_path_factory.mktemp("man") / "gnar.1"
    path.write_text(manpage.page(cmd._program()))
    return path


@pytest.fixture(scope="module")
def rendered(page: Path) -> str:
    """Return the page as text, without bold and underlined, in lines that are not broken."""
    done = subprocess.run(
        ["mandoc", "-T", "ascii", "-O", "width=200", page], capture_output=True, text=True, check=True
    )
    return re.sub(r".\x08", "", done.stdout)


def section(rendered: str, name: str) -> str:
    """Return the text of one section, its white space as single spaces."""
    found = re.search(rf"^{name}\n(.*?)(?=^\S)", rendered, re.MULTILINE | re.DOTALL)
    assert found, name
    return " ".join(found[1].split())


def test_mandoc_finds_nothing_wrong(page: Path) -> None:
    done = subprocess.run(["mandoc", "-T", "lint", page], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if not re.fullmatch(TOLERATED, line)] == []


def test_groff_finds_nothing_wrong(page: Path) -> None:
    done = subprocess.run(["groff", "-man", "-ww", "-z", page], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_sections_are_those_of_a_manual_page(rendered: str) -> None:
    assert re.findall("^([A-Z][A-Z ]+)$", rendered, re.MULTILINE) == SECTIONS
    assert rendered.rstrip().splitlines()[-1].split() == ["gnar", __version__, "GNAR(1)"]


def test_page_says_all_that_the_help_says(rendered: str) -> None:
    program = cmd._program()
    options = section(rendered, "OPTIONS")
    for command in program.commands:
        assert f" gnar {command.name} {command.usage} " in f" {options} "
        assert all(
            line.split() and " ".join(line.split()) in section(rendered, "EXAMPLES")
            for line in command.examples
        )
        for option in command.options:
            names = f"{', '.join(option.names)} {option.value}".strip()
            assert f" {names} {option.text} " in f" {options} "
    assert section(rendered, "SYNOPSIS") == " ".join(program.usage)


def test_page_has_every_variable_that_is_read(rendered: str) -> None:
    shown = section(rendered, "ENVIRONMENT")
    for command, own in variables().items():
        for name, option in own.items():
            assert re.search(rf" {name} {option} of [\w ]*gnar {command}\b", shown), name
    source = "".join(path.read_text() for path in (ROOT / "gnar_lib").rglob("*.py"))
    for name in re.findall(r'environ(?:\.get\(|\[)"(\w+)"', source):
        assert f" {name} " in shown, f"{name} is missing in manpage.py"


def test_hyphens_can_be_copied_as_they_are_typed(page: Path) -> None:
    done = subprocess.run(["groff", "-man", "-Tutf8", page], capture_output=True, text=True, check=True)
    text = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    assert "gnar server 7000 --allow-ports 9000-9100 -c gnar.toml" in re.sub(r"[\N{MINUS SIGN}]", "-", text)
    assert "\N{HYPHEN}" not in text.replace("\N{HYPHEN}\n", "\n")  # except where a line was broken


@pytest.mark.usefixtures("unmeasured")
def test_page_is_printed_without_loading_gevent_and_the_same_each_time(page: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", ROOT / "gnar.py", "man"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == page.read_text()
        assert done.stdout.isascii()
        assert "gnar_lib.manpage" in done.stderr  # the list of imports is there
        assert "gevent" not in done.stderr
