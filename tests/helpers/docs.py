"""Reads the documents of the project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}


def blocks(language: str) -> Iterator[str]:
    """Yield the text of every fenced block that is marked with a language, from all documents."""
    for path in DOCS.values():
        for found in re.finditer(
            rf"^ *```{language}\n(.*?)^ *```$", path.read_text(), re.MULTILINE | re.DOTALL
        ):
            yield found[1]
