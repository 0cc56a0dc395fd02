"""How the requests for one proxy are to be treated: what its client asks for, checked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnar_lib.errors import ProxyRefusedError
from gnar_lib.http.heads import Pairs, plain_name
from gnar_lib.proto import ProxyReq

if TYPE_CHECKING:
    from gnar_lib.server.web.basic import BasicAuth

MAX_EDITS = 64  # of header fields, in each direction
_EDIT = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_REMOVAL = re.compile(r"-([!#$%&'*+.^_`|~0-9A-Za-z-]+)")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
# What says how a message is to be read, or is gnar's own to say.
_NOT_YOURS = frozenset(
    {
        b"connection",
        b"content-length",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class Edits:
    """Header fields that are set, in place of those that are there, and such that are removed."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.lines = b""  # of the fields that are set
        names = set()
        for text in texts:
            if found := _EDIT.fullmatch(text):
                self.lines += f"{found[1]}: {found[2].strip()}\r\n".encode("latin-1")
            elif not (found := _REMOVAL.fullmatch(text)):
                raise ProxyRefusedError(f"{text!r} is no header field, such as 'Name: value' or '-Name'")
            name = plain_name(found[1].encode())
            if name in _NOT_YOURS:
                hint = "; there is host-header" if name == b"host" else ""
                raise ProxyRefusedError(f"the header field {found[1]} cannot be set or removed{hint}")
            names.add(name)
        if len(names) > MAX_EDITS:
            raise ProxyRefusedError(f"at most {MAX_EDITS} header fields can be set or removed")
        self.names = frozenset(names)

    def __bool__(self) -> bool:
        return bool(self.names)

    def without(self, pairs: Pairs) -> Pairs:
        """Return fields without those that are set or removed, however their names are spelled."""
        return [pair for pair in pairs if plain_name(pair[0]) not in self.names] if self.names else pairs


_NO_EDITS = Edits(())


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What the client of a proxy wants to happen to the requests of its users."""

    host_header: bytes = b""  # takes the place of Host; empty leaves it
    request_edits: Edits = _NO_EDITS
    response_edits: Edits = _NO_EDITS
    basic_auth: BasicAuth | None = None  # who may come, by name and password; None lets all come
    redirects_https: bool = False
    passes_http2: bool = False  # connections of users who begin with HTTP/2
    error_page: str = ""  # in HTML; empty for gnar's own
    tells_address: bool = False  # the service is told once for each connection whose it is

    @classmethod
    def of(cls, request: ProxyReq) -> WebSettings:
        """Return what a request for a proxy asks for; raises `ProxyRefusedError`."""
        if request.host_header and not _HOST.fullmatch(request.host_header):
            raise ProxyRefusedError(f"host-header: {request.host_header!r} is no host")
        return cls(
            request.host_header.encode(),
            Edits(request.request_headers),
            Edits(request.response_headers),
            _basic_auth(request.basic_auth),
            request.redirect_https,
            request.http2,
            request.error_page,
            request.tells_address,
        )


NO_SETTINGS = WebSettings()


def _basic_auth(users: tuple[str, ...]) -> BasicAuth | None:
    """Return who may come, None for everybody; raises `ProxyRefusedError`."""
    if not users:
        return None
    from gnar_lib.server.web.basic import BasicAuth  # most proxies need no passwords

    return BasicAuth(users)
