"""Reads the heads of requests and answers that are passed on, strictly and quickly; knows no conn.

Whoever stands in front of gnar, and the service behind it, may read the same bytes differently, and an
attacker could hide a request in between (request smuggling). So whatever two programs could read in different
ways is refused here: bare line feeds, folded lines, white space before a colon, more than one length. What is
passed on is put together anew from what was understood (RFC 9110, RFC 9112).

A head takes some 10 microseconds: one regular expression tells whether all of it is well-formed, and another
one cuts it into fields.
"""

from __future__ import annotations

import re

from gnar_lib.http.head import TOKEN
from gnar_lib.http.limits import Limits
from gnar_lib.http.message import HTTPError

_FIELD_LINES = rb"(?:" + TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*"
_REQUEST = re.compile(
    rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e\x80-\xff]+) HTTP/1\.([01])\r\n(" + _FIELD_LINES + rb")\r\n"
)
_RESPONSE = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])( [\t\x20-\x7e\x80-\xff]*)?\r\n(" + _FIELD_LINES + rb")\r\n"
)
_FIELD = re.compile(rb"([^:\r\n]+):([^\r\n]*)\r\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=-]+)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)

CHUNKED = -1  # in the place of a length: the body is chunked
UNTIL_CLOSE = -2  # in the place of a length: the body ends with the connection

Pairs = list[tuple[bytes, bytes]]
"""Header fields in their order: names and values as they came, white space around a value included."""

# What concerns one connection alone, and is not passed on (RFC 9110, section 7.6.1).
_OF_CONNECTION = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
        b"transfer-encoding",
        b"content-length",
    }
)
# Header fields about which something has to be known; all others are passed on unseen.
_LOOKED_AT_IN_REQUEST = _OF_CONNECTION | {
    b"host",
    b"expect",
    b"proxy",  # which CGI programs would take for the setting HTTP_PROXY
    b"proxy-authorization",
    b"authorization",
    b"forwarded",
    b"x-real-ip",
}
_LOOKED_AT_IN_RESPONSE = _OF_CONNECTION
_KEEP_ALIVE = [b"keep-alive"]
_LENGTHS = (b"content-length", b"transfer-encoding", b"host")
FORWARDED = b"x-forwarded-"  # with -for, -proto and others: what whoever passes a request on says of the user
_PUNCTUATION = b"!#$%&'*+.^_`|~"
_AS_HYPHENS = bytes.maketrans(_PUNCTUATION, b"-" * len(_PUNCTUATION))


class RequestToPass:
    """A request that is passed on. Its fields lack what concerns the connection, its length, and its Host."""

    __slots__ = (
        "authority",
        "expects_continue",
        "host",
        "is_1_0",
        "keeps_alive",
        "length",
        "method",
        "pairs",
        "path",
        "seen",
        "target",
        "trailers",
        "upgrade",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""  # in origin form, or `*`
        self.path = ""  # of the target, as it came
        self.authority = b""  # what Host says: host, and perhaps a port
        self.host = ""  # the host of `authority` in lower case, without a dot at the end; empty without Host
        self.is_1_0 = False
        self.keeps_alive = True  # the peer would send another request behind this one
        self.length = 0  # of the body in bytes; or `CHUNKED`
        self.upgrade = b""  # the protocol for which the peer asks; empty for none
        self.expects_continue = False
        self.trailers = False  # the peer takes trailers (TE)
        self.pairs: Pairs = []
        self.seen: dict[bytes, list[bytes]] = {}  # by name in lower case: the fields that were looked at


class ResponseToPass:
    """A final or an interim answer that is passed on. Its fields lack what concerns the connection."""

    __slots__ = ("keeps_alive", "length", "lines", "pairs", "reason", "status", "upgrade")

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""  # with the space in front
        self.keeps_alive = True  # another request may be sent on the connection
        self.length = 0  # of the body in bytes; or `CHUNKED`, or `UNTIL_CLOSE`
        self.upgrade = b""
        self.pairs: Pairs = []
        self.lines = b""  # the fields as they are sent


def read_request(head: bytes, limits: Limits) -> RequestToPass:
    """Return the request whose whole head is given, its empty line included. Raises `HTTPError`."""
    found = _REQUEST.fullmatch(head)
    if found is None:
        raise _what_is_wrong(head)
    request = RequestToPass()
    request.method, target, minor, lines = found.groups()
    request.is_1_0 = minor == b"0"
    pairs: Pairs = _FIELD.findall(lines)
    if len(pairs) > limits.fields:
        raise HTTPError(431, f"there are more than {limits.fields} header fields")
    seen, kept = request.seen, request.pairs
    for pair in pairs:
        name = plain_name(pair[0])
        if name not in _LOOKED_AT_IN_REQUEST and not name.startswith(FORWARDED):
            kept.append(pair)
        elif name == pair[0].lower():
            seen.setdefault(name, []).append(pair[1].strip(b" \t"))
        elif name in _LENGTHS:  # in an odd spelling; the others are left out
            raise HTTPError(400, f"{pair[0].decode()} is not the name of a header field here")
    _read_connection(request, seen, kept)
    _read_host(request, target, seen)
    request.length = _length(seen, is_1_0=request.is_1_0)
    if expected := seen.get(b"expect"):
        if len(expected) > 1 or expected[0].lower() != b"100-continue":
            raise HTTPError(417, "the only Expect is 100-continue")
        request.expects_continue = not request.is_1_0
    return request


def plain_name(name: bytes) -> bytes:
    """Return the name of a field as a service may take it: in lower case, punctuation as hyphens.

    CGI knows X_Real_IP by the same name as X-Real-IP, and PHP knows X.Real.IP by that, too.
    """
    return name.lower().translate(_AS_HYPHENS)


def _read_connection(request: RequestToPass, seen: dict[bytes, list[bytes]], kept: Pairs) -> None:
    """Take note of what concerns the connection, and leave out what `Connection` names."""
    request.keeps_alive = not request.is_1_0
    given = seen.get(b"connection")
    if given is None or (given == _KEEP_ALIVE and request.keeps_alive):  # as browsers say
        return
    options = _options(given)
    if b"close" in options:
        request.keeps_alive = False
    if b"upgrade" in options and not request.is_1_0:
        upgrade = b", ".join(seen.get(b"upgrade", []))
        if b"h2c" not in upgrade.lower():  # which nobody here could follow
            request.upgrade = upgrade
    request.trailers = b"te" in options and b"trailers" in _options(seen.get(b"te", []))
    _leave_out(options, kept)


def _leave_out(options: set[bytes], kept: Pairs) -> None:
    """Remove the fields that `Connection` names, but none that a service may rely on to come from gnar."""
    if more := options - {b"close", b"keep-alive", b"upgrade", b"te"}:
        kept[:] = [pair for pair in kept if pair[0].lower() not in more]


def _options(values: list[bytes]) -> set[bytes]:
    """Return the words of a list in header fields, in lower case."""
    return {word.strip(b" \t").lower() for value in values for word in value.split(b",")} - {b""}


def _read_host(request: RequestToPass, target: bytes, seen: dict[bytes, list[bytes]]) -> None:
    """Find out for which host and path a request is. Raises `HTTPError`."""
    hosts = seen.get(b"host", [])
    if len(hosts) > 1 or (not hosts and not request.is_1_0):
        raise HTTPError(400, "there has to be one Host")
    authority = hosts[0] if hosts else b""
    if (method := request.method.upper()) == b"CONNECT":
        # Whatever its target: services disagree about where such a request ends.
        raise HTTPError(405, "CONNECT is not served here", [("Allow", "GET, HEAD, POST, PUT, DELETE")])
    if method == b"HEAD" != request.method:
        raise HTTPError(501, "a service may take this method for HEAD, whose answer has no body")
    if target[:1] == b"/":
        request.target = target
    elif found := _ABSOLUTE.fullmatch(target):
        # The target says the host, whatever Host says (RFC 9112, section 3.2.2).
        authority, path, query = found[1], found[2] or b"/", found[3] or b""
        request.target = path + query
    elif target == b"*" and request.method == b"OPTIONS":
        request.target = target
    else:
        raise HTTPError(400, "the target is malformed")
    if authority or hosts:
        host = _AUTHORITY.fullmatch(authority)
        if host is None:
            raise HTTPError(400, "Host is malformed")
        request.host = host[1].decode().lower().removesuffix(".")
    request.authority = authority
    request.path = request.target.partition(b"?")[0].decode("latin-1")


def _length(seen: dict[bytes, list[bytes]], *, is_1_0: bool) -> int:
    """Return how long the body is that fields tell of, 0 if they tell of none. Raises `HTTPError`."""
    lengths, codings = seen.get(b"content-length"), seen.get(b"transfer-encoding")
    if codings is None:
        if lengths is None:
            return 0
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            raise HTTPError(400, "Content-Length is malformed")
        return int(lengths[0])
    if lengths is not None or is_1_0:
        raise HTTPError(400, "Transfer-Encoding cannot be here")
    if [coding.lower() for coding in codings] != [b"chunked"]:
        raise HTTPError(501, "the only Transfer-Encoding is chunked")
    return CHUNKED


def _what_is_wrong(head: bytes) -> HTTPError:
    """Return the error for the head of a request that is not well-formed."""
    line, _, _ = head.partition(b"\r\n")
    found = re.fullmatch(TOKEN + rb" [^ ]+ HTTP/([0-9]\.[0-9])", line)
    if found and found[1] not in (b"1.0", b"1.1"):
        return HTTPError(505, "HTTP/1.1 and HTTP/1.0 are served here")
    if found is None or re.fullmatch(rb"[^ ]+ [^ #]+ [^ ]+", line) is None:
        return HTTPError(400, "the request line is malformed")
    return HTTPError(400, "a header field is malformed")


# ---- answers -----------------------------------------------------------------------------------------------

_NO_CONTENT, _NOT_MODIFIED, _FIRST_FINAL = 204, 304, 200


def read_response(head: bytes, limits: Limits, *, to_head: bool) -> ResponseToPass:
    """Return the answer whose whole head is given; raises `HTTPError` 502. `to_head`: HEAD was asked for."""
    found = _RESPONSE.fullmatch(head)
    if found is None:
        raise HTTPError(502, "what the service has sent is no HTTP")
    response = ResponseToPass()
    minor, status, reason, lines = found.groups()
    response.status, response.reason = int(status), reason or b" "
    pairs: Pairs = _FIELD.findall(lines)
    if len(pairs) > limits.fields:
        raise HTTPError(502, "the service has sent too many header fields")
    seen: dict[bytes, list[bytes]] = {}
    kept = response.pairs
    for pair in pairs:
        name = pair[0].lower()
        if name in _LOOKED_AT_IN_RESPONSE:
            seen.setdefault(name, []).append(pair[1].strip(b" \t"))
        else:
            kept.append(pair)
    is_1_0 = minor == b"0"
    given = seen.get(b"connection")
    if given is None or given == _KEEP_ALIVE:
        response.keeps_alive = not is_1_0 or given is not None
    else:
        options = _options(given)
        response.keeps_alive = b"close" not in options and (not is_1_0 or b"keep-alive" in options)
        response.upgrade = b", ".join(seen.get(b"upgrade", []))
        _leave_out(options, kept)
    try:
        length = _length(seen, is_1_0=is_1_0)
    except HTTPError as exc:
        raise HTTPError(502, "nobody can tell how long the answer of the service is") from exc
    has_length = b"content-length" in seen or length == CHUNKED
    # Answers without a body may not even speak of one (RFC 9110, section 8.6; RFC 9112, section 6.1).
    is_bodiless = response.status < _FIRST_FINAL or response.status == _NO_CONTENT
    if length == CHUNKED and not is_bodiless:
        kept.append((b"Transfer-Encoding", b" chunked"))
    elif has_length and not is_bodiless:
        kept.append((b"Content-Length", b" " + seen[b"content-length"][0]))
    if to_head or is_bodiless or response.status == _NOT_MODIFIED:
        response.length = 0
    else:
        response.length = length if has_length else UNTIL_CLOSE
    response.lines = lines_of(kept)
    return response


def lines_of(pairs: Pairs) -> bytes:
    """Return header fields as they are sent."""
    return b"".join([b"%b:%b\r\n" % pair for pair in pairs])
