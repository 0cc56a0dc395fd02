"""Asks ports what they are: one connection to each, at most one request, and little time; shows nothing."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from gnar_lib import __version__
from gnar_lib.discover.known import service_of
from gnar_lib.discover.listening import Listening
from gnar_lib.errors import ConnError, DeadlineError
from gnar_lib.net import Conn, Crew, deadline
from gnar_lib.net.dialling import DialSettings
from gnar_lib.net.target import Target
from gnar_lib.terminal.text import clean

MOST_PORTS = 48  # that are asked, all at the same time
GREETING_S = 0.2  # for services that speak first, such as SSH
ANSWER_S = 2.0  # for the answer to a request, from the greeting on
DIAL_S = 1.0
MAX_ANSWER_BYTES = 65_536
MAX_HEAD_BYTES = 16_384
MAX_NAME = 200  # characters
_READ_BYTES = 16_384
_TLS_ALERT = b"\x15\x03"  # RFC 8446, section 5.1: what a service that expects TLS answers to HTTP


class Kind(Enum):
    """What a service speaks, as far as it has said so."""

    WEB = "HTTP"
    OTHER = "something else"
    SILENT = "nobody knows: the service has said nothing in time"


@dataclass(frozen=True, slots=True)
class Service:
    """A port that has been asked: what listens there, what it speaks, and its name for people."""

    listening: Listening
    kind: Kind
    name: str = ""  # the title of its page, or what its program calls itself; of any width


def ask_all(ports: Sequence[Listening]) -> list[Service]:
    """Ask each of these ports what it is, and return those that answer, web services first."""
    found: dict[int, Service] = {}

    def ask_one(listening: Listening) -> None:
        found[listening.port] = ask(listening)

    crew = Crew("asking")
    try:
        for listening in ports[:MOST_PORTS]:
            crew.spawn(ask_one, listening)
        crew.wait_empty(DIAL_S + GREETING_S + ANSWER_S + 1)
    finally:
        crew.kill()
    return sorted(found.values(), key=lambda each: (each.kind is Kind.OTHER, each.listening.port))


def ask(listening: Listening) -> Service:
    """Ask one port; raises `ConnError` if nobody answers there any more."""
    if name := service_of(listening):
        return Service(listening, Kind.OTHER, name)
    conn = Target(listening.host, listening.port, how=DialSettings(timeout_s=DIAL_S)).dial()
    try:
        kind, name = _converse(conn, f"localhost:{listening.port}")
    finally:
        conn.abort()  # the rest of a long answer is of no interest
    return Service(listening, kind, name)


def _converse(conn: Conn, host: str) -> tuple[Kind, str]:
    """Wait for a greeting, then ask for a page; return what the service speaks, and its name."""
    greeting = _read(conn, GREETING_S, lambda data: b"\n" in data)
    if greeting:
        return Kind.OTHER, _name_in_greeting(greeting)
    request = (
        f"GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: gnar/{__version__}\r\nAccept: text/html, */*\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    try:
        with deadline(ANSWER_S, "asking"):
            conn.sendall(request.encode())
    except ConnError:
        return Kind.SILENT, ""
    answer = _read(conn, ANSWER_S, _is_enough)
    if not answer:
        return Kind.SILENT, ""
    if answer.startswith(b"HTTP/1."):
        return Kind.WEB, name_in_answer(answer)
    return Kind.OTHER, "TLS" if answer.startswith(_TLS_ALERT) else _name_in_greeting(answer)


def _read(conn: Conn, timeout_s: float, is_enough: Callable[[bytes], bool]) -> bytes:
    """Return what comes until that is enough, or until the end, the deadline or an error."""
    data = b""
    try:
        with deadline(timeout_s, "answering"):
            while len(data) < MAX_ANSWER_BYTES and not is_enough(data):
                more = conn.recv(_READ_BYTES)
                if not more:
                    break
                data += more
    except (ConnError, DeadlineError):
        pass  # what has come tells enough
    return data


# ---- names -------------------------------------------------------------------------------------------------


def name_in_answer(answer: bytes) -> str:
    """Return the title of the page in an HTTP response; without one, what the head tells of the service."""
    head, _, body = answer.partition(b"\r\n\r\n")
    head = head[:MAX_HEAD_BYTES]
    fields = dict(re.findall(rb"\r\n([!-9;-~]+):[ \t]*([^\r\n]*)", head)[::-1])  # of repeated ones, the first
    lower = {name.lower(): value for name, value in fields.items()}
    if title := _text(_title(body)):
        return title
    status = re.match(rb"HTTP/1\.\d (\d{3})", head)
    parts = [_text(lower.get(b"server", b"")), f"HTTP {status[1].decode()}" if status else "HTTP"]
    if location := _text(lower.get(b"location", b"")):
        parts[1] = f"leads to {location}"
    return ", ".join(filter(None, parts))[:MAX_NAME]


def _title(body: bytes) -> bytes:
    """Return what stands in the title of an HTML page. Looks at each byte once, whatever the page holds."""
    lower = body.lower()
    tag = lower.find(b"<title")
    begin = lower.find(b">", tag) + 1
    end = lower.find(b"</title", begin)
    return body[begin:end] if 0 <= tag < begin <= end else b""


def _is_enough(data: bytes) -> bool:
    return b"</title" in data[-_READ_BYTES - len(b"</title") :].lower()


def _name_in_greeting(data: bytes) -> str:
    """Return the first line that a service has sent, if it is text."""
    line = data.partition(b"\n")[0].strip()
    if line.startswith(b"SSH-"):
        return f"SSH ({_text(line)})"
    return _text(line) if line.isascii() and line.decode().isprintable() else ""


def _text(data: bytes) -> str:
    """Return bytes of a service as text that can be shown, on one line."""
    text = html.unescape(data[: 4 * MAX_NAME].decode(errors="replace"))
    return clean(" ".join(text.split()))[:MAX_NAME]
