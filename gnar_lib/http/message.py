"""What is asked and what is answered over HTTP, as values; knows neither bytes on a wire nor who serves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

from gnar_lib.errors import GnarError
from gnar_lib.net import Sockaddr

Fields = Iterable[tuple[str, str]]
"""Header fields: names and values."""


class HTTPError(GnarError):
    """A request is answered with an error: its status, a sentence for a person, and further header fields."""

    def __init__(self, status: int, detail: str, headers: Fields = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = tuple(headers)


@dataclass(frozen=True, slots=True)
class Request:
    """A request, once it is known to be well-formed."""

    method: str
    path: str  # percent-decoded
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case; the values of a field that came twice are joined
    peer: Sockaddr
    version: str = "1.1"
    body: bytes = b""  # empty while the guard looks at the request
    segments: tuple[str, ...] = ()  # of the path, each percent-decoded by itself: "%2F" does not split
    context: dict[str, Any] = field(default_factory=dict)  # what the guard wants handlers to know

    def json(self) -> Any:
        """Return the body as a JSON value.

        Raises `HTTPError` 415 if the body is not said to be JSON, which no form of a foreign page can say,
        and 400 if it is not JSON.
        """
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPError(415, "the body has to be of the type application/json")
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise HTTPError(400, "the body is not JSON") from None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body is known as a whole. Its `headers` replace those that the service always adds."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Fields = ()

    @classmethod
    def json(cls, value: object, status: int = 200, headers: Fields = ()) -> Response:
        """Return an answer that is a JSON value."""
        return cls(status, _json(value), "application/json", headers)

    @classmethod
    def problem(cls, error: HTTPError) -> Response:
        """Return the answer for an error (RFC 9457)."""
        shown = {"title": phrase(error.status), "status": error.status, "detail": error.detail}
        return cls(error.status, _json(shown), "application/problem+json", error.headers)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def phrase(status: int) -> str:
    """Return the usual words for a status, empty for one without."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


class Send(Protocol):
    """Sends an event of an event stream, and waits until the reader has taken most of it."""

    def __call__(self, event_name: str, data_text: str, event_id: str = "") -> None:
        """Raise `ConnError` when the reader has gone, or takes nothing for too long."""


@dataclass(frozen=True, slots=True)
class EventStream:
    """An answer that goes on: `run(send)` is called in the connection's greenlet, and ends it by returning.

    When the reader goes while `run` waits, for whatever, `ConnError` is raised there. `send` is for `run`
    alone, not for other greenlets.
    """

    run: Callable[[Send], None]
    headers: Fields = ()


Answer = Response | EventStream
Handler = Callable[..., Answer]
"""Called with the request, and with the parameters of its path by name."""
