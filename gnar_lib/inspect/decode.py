"""Undoes what stands between a body as it came and what a person reads: compression and character sets."""

from __future__ import annotations

import codecs
import re
import zlib
from dataclasses import dataclass

from gnar_lib.inspect.exchange import Body, Field, text_of, value_of

MAX_DECODED_BYTES = 256 * 1024  # of one body
MAX_CODINGS = 3  # one in another
# Codecs of Python that no browser takes for a character set: the time of the first two grows with the square
# of the size, the others make half characters.
_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape", "utf-7"})
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]{1,40})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a body means, as far as it is kept."""

    data: bytes
    text: str | None  # None if the body is no text
    media_type: str  # such as "text/html", in lower case; empty if nothing is said
    undone: tuple[str, ...] = ()  # codings that were undone
    left: str = ""  # the coding that gnar cannot undo, if there is one
    is_cut: bool = False  # there is more than `data`


def decoded(body: Body, fields: list[Field]) -> Decoded:
    """Return what a body means whose header fields are given."""
    data, is_cut = bytes(body.data), body.is_truncated
    codings = text_of(value_of(fields, b"content-encoding")).lower()
    names = [each.strip() for each in codings.split(",") if each.strip() not in ("", "identity")]
    undone: list[str] = []
    for name in reversed(names):
        found = _undo(name, data) if len(undone) < MAX_CODINGS and data else None
        if found is None:
            break
        data, is_longer = found
        is_cut = is_cut or is_longer
        undone.append(name)
    left = names[len(names) - len(undone) - 1] if len(undone) < len(names) and data else ""
    content_type = text_of(value_of(fields, b"content-type"))
    charset = _CHARSET.search(content_type)
    text = None if left else _text(data, charset[1] if charset else "", is_cut=is_cut)
    media_type = content_type.partition(";")[0].strip().lower()
    return Decoded(data, text, media_type, tuple(undone), left, is_cut)


def _undo(coding: str, data: bytes) -> tuple[bytes, bool] | None:
    """Return what a coding hides, and whether there is more of it; None if that cannot be told."""
    if coding in ("gzip", "x-gzip"):
        windows: tuple[int, ...] = (zlib.MAX_WBITS | 16,)
    elif coding == "deflate":
        windows = (zlib.MAX_WBITS, -zlib.MAX_WBITS)  # the second is what some send instead
    else:
        return None
    for window in windows:
        decoder = zlib.decompressobj(window)
        try:
            found = decoder.decompress(data, MAX_DECODED_BYTES)
        except zlib.error:
            continue
        return found, bool(decoder.unconsumed_tail)
    return None


def _text(data: bytes, charset: str, *, is_cut: bool) -> str | None:
    """Return data as text, None if it is none."""
    if b"\0" in data and not charset.lower().startswith("utf-16"):
        return None
    for name in filter(None, (_codec_of(charset), "utf-8")):
        for less in range(4 if is_cut else 1):  # bytes of a character that is cut
            try:
                return data[: len(data) - less].decode(name)
            except (LookupError, ValueError):
                continue
    return None


def _codec_of(charset: str) -> str:
    """Return the name of the codec for a character set; empty if there is none."""
    try:
        name = codecs.lookup(charset).name.replace("_", "-")
    except (LookupError, ValueError):
        return ""
    return "" if name in _NO_CHARSETS else name
