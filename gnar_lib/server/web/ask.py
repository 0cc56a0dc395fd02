"""The question of Caddy whether a name is in use, before it gets a certificate for it (on-demand TLS)."""

from __future__ import annotations

from urllib.parse import parse_qs

from gnar_lib.http.heads import RequestToPass
from gnar_lib.server.names.table import Names
from gnar_lib.server.web.forwarded import Peer, address_of

PATH = "/.well-known/gnar/ask"  # at the web port, by its address: no proxy can have such a name


def answer_of(names: Names, peer: Peer, request: RequestToPass) -> bool | None:
    """Return whether the name that somebody trusted asks for is in use; None if this is no such question."""
    if request.path != PATH or not peer.is_trusted:
        return None
    if request.host != "localhost" and address_of(request.host) is None:
        return None
    query = request.target.partition(b"?")[2].decode("latin-1")
    return names.knows(parse_qs(query).get("domain", [""])[0].lower())
