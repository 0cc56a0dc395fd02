"""The documents of the project, and what they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}


def blocks(language: str) -> Iterator[str]:
    """Yield the text of every fenced block of a language."""
    for path in DOCS.values():
        for found in re.finditer(
            rf"^ *```{language}\n(.*?)^ *```$", path.read_text(), re.MULTILINE | re.DOTALL
        ):
            yield found[1]
