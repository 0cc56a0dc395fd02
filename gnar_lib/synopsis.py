"""Reads the texts of `--help` into commands, options and examples; knows no shell and no manual page.

A text is blocks with an empty line between them: the title, the usage, then options, commands, examples (each
under its heading and indented) and paragraphs. What does not fit raises `ValueError` with the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_TITLE = re.compile(r"gnar(?: [a-z]+)?: (\S.*)")
_HEADING = re.compile(r"(Usage|Commands|Options|Examples?):(?: (\S.*))?")
_OPTION = re.compile(r" {2,6}(?:(-\w), )?(--[a-z][a-z-]*)(?: ([A-Z][A-Z:_-]*))?  +(\S.*)")
_COMMAND = re.compile(r"  ([a-z]+)  +(\S.*)")
_CONTINUED = re.compile(r" {8,}(\S.*)")
_CHOICES = re.compile(r"[a-z0-9]+(?:\|[a-z0-9]+)+\b")
_OPERAND = re.compile(r" (?:\[?<([a-z-]+)>(\.\.\.)?\]?|\(([a-z]+(?: \| [a-z]+)*)\)|\[options\])")
_FLAGS = re.compile(r"(--[a-z-]+)((?: \[--[a-z-]+\])*)")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its names, the word for its value (empty for a switch), and what it does."""

    names: tuple[str, ...]
    value: str
    text: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the value is one of; none where it can be any."""
        found = _CHOICES.match(self.text)
        return tuple(found[0].split("|")) if found else ()

    @property
    def takes_file(self) -> bool:
        """Whether the value is the path of a file."""
        return self.value == "FILE"


@dataclass(frozen=True, slots=True)
class Operand:
    """One word behind a command: what it is, and the words that it is one of if it cannot be any."""

    name: str
    choices: tuple[str, ...] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One command, as its own text describes it; `summary` is its line in the list of commands."""

    name: str
    title: str
    summary: str
    usage: str
    operands: tuple[Operand, ...]
    paragraphs: tuple[str, ...]
    options: tuple[Option, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """All that can be said; `flags` are what stands in a command's place, each with what may follow it."""

    title: str
    usage: tuple[str, ...]
    flags: dict[str, tuple[str, ...]]
    commands: tuple[Command, ...]


def read(overview: str, texts: Mapping[str, str]) -> Program:
    """Read the text of `gnar --help` and those of the commands, by name; raises `ValueError`."""
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
    """Return the title, the lines under each heading, and the paragraphs."""
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
    entries: list[str] = []
    for line in lines:
        continued = _CONTINUED.fullmatch(line)
        if continued and not continued[1].startswith("-") and entries:
            entries[-1] += f" {continued[1]}"
        else:
            entries.append(line)
    for found in _match_all(_OPTION, entries):
        yield Option(tuple(filter(None, found.group(1, 2))), found[3] or "", found[4])


def _read_operands(usage: str, name: str) -> Iterator[Operand]:
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
    matches = []
    for line in lines:
        found = pattern.fullmatch(line)
        if found is None:
            raise ValueError(f"not understood: {line!r}")
        matches.append(found)
    return matches
