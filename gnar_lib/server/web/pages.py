"""What a user sees when gnar itself answers: a small page, or JSON for programs (RFC 9457); knows no conn."""

from __future__ import annotations

import html
import json

from gnar_lib.http.heads import Pairs
from gnar_lib.http.message import HTTPError, phrase

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{status} {title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }}
body {{ max-width: 34rem; margin: 20vh auto; padding: 0 1rem }}
h1 {{ font-size: 1.4rem }}
</style></head>
<body><h1>{status} {title}</h1><p>{detail}</p></body></html>
"""


def page(error: HTTPError, pairs: Pairs, own: str = "") -> tuple[bytes, bytes]:
    """Return the content type and the body of an answer for an error, as the user's Accept asks for it.

    `pairs` are the fields of the request. `own` is somebody's own page, in which {status}, {title} and
    {detail} are replaced.
    """
    title = phrase(error.status)
    if _wants_json(pairs):
        shown = {"title": title, "status": error.status, "detail": error.detail}
        return b"application/problem+json", json.dumps(shown).encode()
    values = {"status": str(error.status), "title": title, "detail": error.detail}
    if own:
        text = own
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", html.escape(value))
    else:
        text = _PAGE.format(**{name: html.escape(value) for name, value in values.items()})
    return b"text/html; charset=utf-8", text.encode()


def _wants_json(pairs: Pairs) -> bool:
    """Tell whether a program asks that takes JSON, and no page."""
    accept = b",".join(value for name, value in pairs if name.lower() == b"accept").lower()
    return b"json" in accept and b"text/html" not in accept
