"""The command that sends a request again by curl, for any POSIX shell; knows neither page nor store."""

from __future__ import annotations

import base64
import itertools
import re
import shlex
from dataclasses import dataclass
from urllib.parse import quote

from gnar_lib.inspect.exchange import Exchange, Field, text_of, value_of
from gnar_lib.inspect.masks import is_secret

# What curl says by itself, what holds for one connection alone, and what the other fields stand for.
_LEFT_TO_CURL = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
    }
)
# What a server of gnar adds when it forwards requests of HTTP.
_OF_SERVER = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
)
_OWN = (b"Accept", b"User-Agent")  # that curl adds unless it is told something else
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)  # not the tab and the line feed, which a text may have
_CONTROL_OR_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DOTS = re.compile(r"/\.{1,2}(?:/|\?|$)")
_UNDONE = re.compile(rb"gzip|deflate|br|zstd", re.IGNORECASE)
_GLOB = re.compile(r"[\[\]{}]")


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and what is not in it."""

    text: str
    notes: tuple[str, ...]


def host_of(exchange: Exchange) -> str:
    """Return the host that the user has asked for, with its port if it has one; empty if nobody tells."""
    host = value_of(exchange.request_fields, b"host")
    if exchange.is_forwarded:  # by a server that may have put another Host there
        host = value_of(exchange.request_fields, b"x-forwarded-host") or host
    return text_of(host.partition(b",")[0].strip())


def url_of(exchange: Exchange) -> str:
    """Return the URL that a request was for, as the user has written it as far as that is known."""
    target = quote(exchange.target, safe="%/:?#[]@!$&'()*+,;=-._~{}|^`\\\"<>")
    if re.match(r"[a-z][a-z0-9+.-]*://", target, re.IGNORECASE):
        return target
    host = quote(host_of(exchange), safe="[]:.-_~") or "localhost"
    told = value_of(exchange.request_fields, b"x-forwarded-proto").partition(b",")[0].strip()
    scheme = "https" if told == b"https" else "http"
    return f"{scheme}://{host}{target if target.startswith('/') else ''}"


def curl_of(exchange: Exchange, *, with_secrets: bool = False) -> Command:
    """Return the command for the request of an exchange, without credentials unless they are asked for."""
    url, notes = url_of(exchange), list[str]()
    words = ["curl"]
    if exchange.method == "HEAD":
        words.append("--head")
    elif exchange.method != ("POST" if exchange.request_body.size else "GET"):
        words += ["--request", shlex.quote(exchange.method)]
    if _DOTS.search(url):
        words.append("--path-as-is")
    if _GLOB.search(url):
        words.append("--globoff")
    words.append(shlex.quote(url))
    fields = exchange.request_fields
    if exchange.is_forwarded:
        fields = [field for field in fields if field[0].lower() not in _OF_SERVER]
    words += _field_words(fields, notes, with_secrets=with_secrets)
    before, body_words = _body_words(exchange, notes)
    return Command(before + _lines([*words, *body_words]), tuple(notes))


def _field_words(fields: list[Field], notes: list[str], *, with_secrets: bool) -> list[str]:
    words, left_out = [], []
    for name, value in fields:
        line = f"{text_of(name)}: {text_of(value)}" if value else f"{text_of(name)};"
        lower = name.lower()
        if lower in _LEFT_TO_CURL:
            continue
        if is_secret(name) and not with_secrets:
            left_out.append(text_of(name))
        elif _CONTROL_OR_LINE.search(line):
            notes.append(
                f"left out, since a shell cannot take it: {_CONTROL_OR_LINE.sub('?', text_of(name))}"
            )
        elif lower == b"accept-encoding" and _UNDONE.search(value):
            words.append("--compressed")  # curl asks for what it can undo, and undoes it
        else:
            words += ["--header", shlex.quote(line)]
    present = {name.lower() for name, _ in fields}
    for name in _OWN:
        if name.lower() not in present:
            words += ["--header", shlex.quote(f"{name.decode()}:")]
    if left_out:
        notes.append(f"left out, since it may hold a secret: {', '.join(dict.fromkeys(left_out))}")
    return words


def _body_words(exchange: Exchange, notes: list[str]) -> tuple[str, list[str]]:
    """Return what stands before the command, and the words of it that give the body."""
    body = exchange.request_body
    if not body.size:
        return "", []
    if body.is_truncated:
        notes.append(f"the body has {body.size} bytes, of which {len(body.data)} were kept")
    has_type = any(name.lower() == b"content-type" for name, _ in exchange.request_fields)
    words = [] if has_type else ["--header", "Content-Type:"]
    try:
        text = bytes(body.data).decode()
    except UnicodeDecodeError:
        text = "\0"
    if not _CONTROL.search(text):
        return "", [*words, "--data-raw", shlex.quote(text)]
    encoded = base64.b64encode(body.data).decode()
    return f"printf %s {shlex.quote(encoded)} | base64 -d | ", [*words, "--data-binary", "@-"]


def _lines(words: list[str]) -> str:
    """Return words as a command, each option with its value on a line of its own."""
    text = words[0]
    for before, word in itertools.pairwise(words):
        takes_value = before in ("--header", "--request", "--data-raw", "--data-binary")
        text += f" {word}" if takes_value or before == "curl" else f" \\\n  {word}"
    return text
