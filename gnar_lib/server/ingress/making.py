"""Makes the ingress of a proxy that a client asks for, and fits one to another request; opens no port."""

from __future__ import annotations

from gnar_lib.auth import Rights
from gnar_lib.config import Rate
from gnar_lib.net import DatagramSocket, Listener
from gnar_lib.proto import ProxyReq
from gnar_lib.server.ingress.tcp import TcpIngress
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.places import Places, UserLimits
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.shared import Shared
from gnar_lib.server.udp_proxy import UdpProxy
from gnar_lib.server.upstream import Upstream

Key = tuple[str, int | str]
"""What no two ingresses of a server have in common: such as ("tcp", 9000), or ("udp", 53)."""

Ingress = TcpIngress | UdpIngress


def new_ingress(
    shared: Shared, opened: Listener | DatagramSocket, upstream: Upstream, rights: Rights, request: ProxyReq
) -> Ingress:
    """Return an ingress, which has yet to start, with the proxy of a request; it closes the open port.

    With `udp_timeout` 0 nobody knows how long the client keeps UDP sessions.
    """
    name = request.proxy_name
    places = Places(f"proxy {name!r}", limits_of(request), shared.places)
    if isinstance(opened, Listener):
        proxy = Proxy(name, upstream, rights, shared.meter, places)
        proxy.own_limit = own_limit_of(request)
        return TcpIngress(opened, proxy, shared.users)
    udp_proxy = UdpProxy(name, upstream, rights, shared.meter, places)
    udp_proxy.own_limit = own_limit_of(request)
    return UdpIngress(opened, udp_proxy, shared.crew, request.udp_timeout or None)


def fit(ingress: Ingress, request: ProxyReq, session_s: float | None) -> None:
    """Have an ingress keep to what a client asks for that has come back; `session_s` is of UDP sessions."""
    ingress.proxy.places.limits, ingress.proxy.own_limit = limits_of(request), own_limit_of(request)
    if isinstance(ingress, UdpIngress):
        ingress.set_session(session_s)


def own_limit_of(request: ProxyReq) -> Rate:
    """Return the speed limit that a client keeps to by itself."""
    return Rate(max(request.limit_up, 0) or None, max(request.limit_down, 0) or None)


def limits_of(request: ProxyReq) -> UserLimits:
    """Return the limits for which a client has asked; what is no number of users is no limit."""
    return UserLimits(max(request.max_users, 0), max(request.max_users_per_address, 0))
