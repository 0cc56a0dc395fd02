"""Opens the port that a client asks for, if the client may have it; knows no control connection."""

from __future__ import annotations

from gnar_lib.auth import Rights
from gnar_lib.errors import ListenError, ProxyRefusedError
from gnar_lib.net import DatagramSocket, Listener
from gnar_lib.proto import ProxyReq
from gnar_lib.server.shared import Shared

PORT_KINDS = ("tcp", "udp")


def open_port(shared: Shared, rights: Rights, request: ProxyReq, proxies: int) -> Listener | DatagramSocket:
    """Return what listens at the port of a request, of a client that has so many `proxies` already.

    The caller closes what is returned. Raises `ProxyRefusedError` if the client can never have that, and
    `ListenError` if it may have it another time.
    """
    kind = request.proxy_type
    if shared.stopping:
        raise ListenError("the server is stopping")
    if kind not in PORT_KINDS:
        raise ProxyRefusedError(f"proxy type {kind!r} is not supported by this server")
    if request.subdomain:
        raise ProxyRefusedError("this server has no domain: leave the subdomain out")
    if proxies >= rights.proxies:
        raise ProxyRefusedError(f"one client may have {rights.proxies} proxies")
    if kind == "udp":
        return shared.ports.bind_udp(request.remote_port, rights.ports)
    return shared.ports.listen(request.remote_port, rights.ports)
