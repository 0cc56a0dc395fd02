"""The question of Caddy whether a name is in use, before it gets a certificate for it (on-demand TLS)."""

from __future__ import annotations

from urllib.parse import parse_qs

from gnar_lib.http.heads import RequestToPass
from gnar_lib.server.names.table import Names
from gnar_lib.server.web.forwarded import Peer

PATH = "/.well-known/gnar/ask"  # at the web port, by its address, or by any other name that no proxy has


def answer_of(names: Names, peer: Peer, request: RequestToPass) -> bool | None:
    """Return whether the name that somebody trusted asks for is in use; None if this is no such question."""
    if request.path != PATH or not peer.is_trusted:
        return None
    query = request.target.partition(b"?")[2].decode("latin-1")
    return names.knows(parse_qs(query).get("domain", [""])[0].lower())
