"""Parses the texts of `--help` into commands, options and examples; knows no shell and no manual page.

A text is a series of blocks with an empty line between them: first the title, then usage, options, commands,
examples (each indented under its heading) and paragraphs. A line of another form raises `ValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_TITLE = re.compile(r"gnar(?: [a-z]+)?: (\S.*)")
_HEADING = re.compile(r"(Usage|Commands|Options|Examples?):(?: (\S.*))?")
_OPTION = re.compile(r" {2,6}(?:(-\w), )?(--[a-z][a-z0-9-]*)(?: ([A-Z][A-Z:_-]*))?  +(\S.*)")
_COMMAND = re.compile(r"  ([a-z]+)  +(\S.*)")
_CONTINUATION = re.compile(r" {8,}(\S.*)")
_CHOICES = re.compile(r"[a-z0-9]+(?:\|[a-z0-9]+)+\b")
_OPERAND = re.compile(r" (?:\[?<([a-z-]+)>(\.\.\.)?\]?|\(([a-z]+(?: \| [a-z]+)*)\)|\[options\])")
_FLAGS = re.compile(r"(--[a-z-]+)((?: \[--[a-z-]+\])*)")


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a command."""

    names: tuple[str, ...]  # such as "-p", "--port"
    value: str  # the word for the option's value, such as PORT; empty if the option has none
    text: str  # what the option does

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed as a value; empty if any value may be."""
        found = _CHOICES.match(self.text)
        return tuple(found[0].split("|")) if found else ()

    @property
    def takes_file(self) -> bool:
        """Whether the value is the path of a file."""
        return self.value == "FILE"


@dataclass(frozen=True, slots=True)
class Operand:
    """A word behind a command that is no option."""

    name: str
    choices: tuple[str, ...] = ()  # the words that are allowed; empty if any word may be
    repeats: bool = False  # whether several such words may follow each other


@dataclass(frozen=True, slots=True)
class Command:
    """A command, as its text describes it."""

    name: str
    title: str  # the first line of the command's own text
    summary: str  # the line about the command in the text of `gnar --help`
    usage: str
    operands: tuple[Operand, ...]
    paragraphs: tuple[str, ...]
    options: tuple[Option, ...]
    examples: tuple[str, ...]  # command lines


@dataclass(frozen=True, slots=True)
class Program:
    """All command lines of gnar."""

    title: str
    usage: tuple[str, ...]  # one line for each command
    flags: dict[str, tuple[str, ...]]  # what may stand in place of a command, and the flags that may follow
    commands: tuple[Command, ...]


def read(overview: str, texts: Mapping[str, str]) -> Program:
    """Parse the text of `gnar --help`, and the texts of the commands by name; raises `ValueError`."""
    title, parts, _ = _split(overview)
    summaries = {found[1]: found[2] for found in _match_all(_COMMAND, parts["Commands"])}
    flags = {}
    for line in parts["Usage"]:
        if line.startswith("gnar -"):
            for found in _match_all(_FLAGS, line.removeprefix("gnar ").split(" | ")):
                flags[found[1]] = tuple(re.findall(r"--[a-z-]+", found[2]))
    commands = tuple(_read_command(name, text, summaries[name]) for name, text in texts.items())
    return Program(title, tuple(parts["Usage"]), flags, commands)


def _read_command(name: str, text: str, summary: str) -> Command:
    """Parse the text of one command."""
    title, parts, paragraphs = _split(text)
    (usage,) = parts["Usage"]
    return Command(
        name=name,
        title=title,
        summary=summary,
        usage=usage,
        operands=tuple(_read_operands(usage, name)),
        paragraphs=tuple(paragraphs),
        options=tuple(_read_options(parts["Options"])),
        examples=tuple(line[2:] for line in parts["Examples"]),
    )


def _split(text: str) -> tuple[str, dict[str, list[str]], list[str]]:
    """Return the title of a text, the lines under each heading, and the paragraphs."""
    first, *blocks = text.strip("\n").split("\n\n")
    (title,) = _match_all(_TITLE, [first])
    parts: dict[str, list[str]] = {"Usage": [], "Commands": [], "Options": [], "Examples": []}
    paragraphs = []
    for block in blocks:
        head, *lines = block.splitlines()
        heading = _HEADING.fullmatch(head)
        if heading is None:
            if re.search("^ ", block, re.MULTILINE):
                raise ValueError(f"neither a known heading nor a paragraph: {block!r}")
            paragraphs.append(" ".join([head, *lines]))
            continue
        if not all(line.startswith("  ") for line in lines):
            raise ValueError(f"not indented, but under a heading: {block!r}")
        if heading[1] == "Usage":
            lines = [heading[2] or "", *map(str.strip, lines)]
        elif heading[2]:
            raise ValueError(f"text beside a heading: {head!r}")
        parts["Examples" if heading[1] == "Example" else heading[1]] += filter(None, lines)
    return title[1], parts, paragraphs


def _read_options(lines: list[str]) -> Iterator[Option]:
    """Yield the options that the lines describe; a description may continue on further lines."""
    entries: list[str] = []
    for line in lines:
        continuation = _CONTINUATION.fullmatch(line)
        if continuation and not continuation[1].startswith("-") and entries:
            entries[-1] += f" {continuation[1]}"
        else:
            entries.append(line)
    for found in _match_all(_OPTION, entries):
        yield Option(tuple(filter(None, found.group(1, 2))), found[3] or "", found[4])


def _read_operands(usage: str, name: str) -> Iterator[Operand]:
    """Yield the operands in the usage of a command."""
    rest = usage.removeprefix(f"gnar {name}")
    while rest:
        found = _OPERAND.match(rest)
        if found is None:
            raise ValueError(f"not understood from {rest!r} on: {usage!r}")
        if found[1]:
            yield Operand(found[1], repeats=bool(found[2]))
        elif found[3]:
            yield Operand("one of", choices=tuple(found[3].split(" | ")))
        rest = rest[found.end() :]


def _match_all(pattern: re.Pattern[str], lines: list[str]) -> list[re.Match[str]]:
    """Return the match of each line; raises `ValueError` for a line that does not match."""
    matches = []
    for line in lines:
        found = pattern.fullmatch(line)
        if found is None:
            raise ValueError(f"not understood: {line!r}")
        matches.append(found)
    return matches
