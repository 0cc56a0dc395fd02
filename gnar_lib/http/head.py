"""Finds where the head of a message ends, and refuses whatever two programs could read differently.

h11 is lenient: it takes bare line feeds, folded lines and repeated lengths. Somebody in front of gnar may
read those differently, and an attacker could hide a request in between (request smuggling). So a head is
looked at here before h11 gets it. Knows no conn.
"""

from __future__ import annotations

import re

from gnar_lib.http.limits import Limits
from gnar_lib.http.message import HTTPError

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""What a method and the name of a header field are made of (RFC 9110, section 5.6.2)."""
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-5][0-9][0-9](?: [\t\x20-\x7e\x80-\xff]*)?")
# No two parts of it take the same byte: with white space apart, a long run of it would take a second.
_FIELD = re.compile(rb"(" + TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=-]+)(?::[0-9]{0,5})?")
_FIRST = frozenset(b"!#$%&'*+.^_`|~-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_CARRIAGE_RETURN = 0x0D
VERSIONS = (b"1.0", b"1.1")


class HeadBuffer:
    """What a peer has sent and nobody has taken yet. Of a head, each byte is looked at once."""

    def __init__(self, limits: Limits) -> None:
        self.received = bytearray()
        self._limits = limits
        self._checked = 0  # bytes of `received` that hold no end of the head
        self._has_begun = False  # whether an empty line in front would be one too many
        self._has_line = False  # whether a whole line of the head is there

    def take(self) -> bytes | None:
        """Return the head of the next message with its empty line, None if more has to come.

        Raises `HTTPError` if what has come cannot become a head.
        """
        data = self.received
        if not self._has_begun:
            if not data or data == b"\r":
                return None
            if data[:2] == b"\r\n":  # one empty line is allowed in front (RFC 9112, 2.2)
                del data[:2]
            self._has_begun = True
        if data and data[0] not in _FIRST:
            raise HTTPError(400, "this is not HTTP")
        while (at := data.find(b"\n", self._checked)) >= 0:
            self._check_size(at)  # first, so that the answer is the same however the bytes are cut
            if data[max(at - 1, 0)] != _CARRIAGE_RETURN:
                raise HTTPError(400, "a line does not end with carriage return and line feed")
            self._checked, self._has_line = at + 1, True
            if data[max(at - 3, 0) : at] == b"\r\n\r":
                return self._cut(at + 1)
        self._check_size(len(data) - 1)
        self._checked = len(data)
        return None

    def _check_size(self, at: int) -> None:
        """Raise `HTTPError` if a head, or its first line, may not have a byte at the place `at`."""
        limits = self._limits
        if not self._has_line and at >= limits.target_bytes:
            raise HTTPError(414, f"the request line is longer than {limits.target_bytes} bytes")
        if at >= limits.head_bytes:
            raise HTTPError(431, f"the head is longer than {limits.head_bytes} bytes")

    def _cut(self, size: int) -> bytes:
        head = bytes(self.received[:size])
        del self.received[:size]
        self._checked, self._has_begun, self._has_line = 0, False, False
        return head

    def take_all(self) -> bytes:
        """Return all that has come, to be read as a part of a body."""
        return self._cut(len(self.received))

    def put_back(self, data: bytes) -> None:
        """Put bytes in front: the body has ended before them."""
        self.received[:0] = data


def check_request(head: bytes, limits: Limits) -> None:
    """Raise `HTTPError` unless a head is the unmistakable head of a request."""
    first, *lines = head[:-4].split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise HTTPError(400, "the request line is malformed")
    version = found[3]
    if version not in VERSIONS:
        raise HTTPError(505, "HTTP/1.1 and HTTP/1.0 are served here")
    fields = _fields(lines, limits)
    hosts = fields.get(b"host", [])
    if len(hosts) > 1 or (not hosts and version == b"1.1"):
        raise HTTPError(400, "there has to be one Host")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise HTTPError(400, "Host is malformed")
    _check_lengths(fields, version)


def check_response(head: bytes, limits: Limits) -> None:
    """Raise `HTTPError` unless a head is the unmistakable head of a response."""
    first, *lines = head[:-4].split(b"\r\n")
    if not _STATUS_LINE.fullmatch(first):
        raise HTTPError(400, "the status line is malformed")
    _check_lengths(_fields(lines, limits), first[5:8])


def _fields(lines: list[bytes], limits: Limits) -> dict[bytes, list[bytes]]:
    """Return the values of all fields by their names in lower case; raises `HTTPError`."""
    if len(lines) > limits.fields:
        raise HTTPError(431, f"there are more than {limits.fields} header fields")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        found = _FIELD.fullmatch(line)  # also refuses a line that continues the one before (obs-fold)
        if found is None:
            raise HTTPError(400, "a header field is malformed")
        fields.setdefault(found[1].lower(), []).append(found[2].strip(b" \t"))
    return fields


def _check_lengths(fields: dict[bytes, list[bytes]], version: bytes) -> None:
    """Raise `HTTPError` unless there is one way to tell where the body ends."""
    lengths, codings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise HTTPError(400, "Content-Length is malformed")
    if codings and (lengths or version == b"1.0"):
        raise HTTPError(400, "Transfer-Encoding cannot be here")
    if codings and [coding.lower() for coding in codings] != [b"chunked"]:
        raise HTTPError(501, "the only Transfer-Encoding is chunked")
