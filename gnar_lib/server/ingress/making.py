"""Makes the ingress of a proxy that a client asks for, and fits one to another request; opens no port."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gnar_lib.auth import Rights
from gnar_lib.config import PortRanges, Rate, ServerConfig
from gnar_lib.config.model import DEFAULT_UDP_TIMEOUT_S, NAMED_KINDS
from gnar_lib.net import DatagramSocket, Listener
from gnar_lib.proto import ProxyReq
from gnar_lib.server.admission import AddressRules
from gnar_lib.server.ingress.named import NamedIngress
from gnar_lib.server.ingress.tcp import TcpIngress
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.names.check import Name, name_of
from gnar_lib.server.places import Places, UserLimits
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.room import TEXT_BYTES
from gnar_lib.server.shared import Shared
from gnar_lib.server.udp_proxy import UdpProxy
from gnar_lib.server.upstream import Upstream
from gnar_lib.server.web.settings import WebSettings

Key = tuple[str, int | str]
"""What no two ingresses of a server have in common: such as ("tcp", 9000), or ("http", "example.com/api")."""

Ingress = TcpIngress | UdpIngress | NamedIngress


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks for, as far as that can be had here at all."""

    request: ProxyReq
    name: Name | None  # None: the proxy has no name, or the server chooses it
    rules: AddressRules
    web: WebSettings
    session_s: float | None  # how long the client keeps UDP sessions; None if nobody knows

    @classmethod
    def of(cls, request: ProxyReq, config: ServerConfig, *, is_go: bool) -> Wanted:
        """Return what a request asks for, of a Go client if `is_go`; raises `ProxyRefusedError`."""
        rules = AddressRules.of(request.allow_from, request.deny_from)
        session_s = None if is_go else request.udp_timeout or DEFAULT_UDP_TIMEOUT_S
        return cls(request, name_of(request, config), rules, WebSettings.of(request), session_s)

    @property
    def size(self) -> int:
        """How many bytes it takes to keep what is wanted, besides what every proxy takes."""
        asked = self.request
        lists = (
            asked.request_headers,
            asked.response_headers,
            asked.basic_auth,
            asked.allow_from,
            asked.deny_from,
        )
        texts = [each for texts in lists for each in texts] + [asked.error_page] * bool(asked.error_page)
        return sum(len(text) + TEXT_BYTES for text in texts)

    @property
    def is_named(self) -> bool:
        """Whether the proxy is to have a name and no port."""
        return self.request.proxy_type in NAMED_KINDS

    @property
    def key(self) -> Key | None:
        """The key of the ingress that the client means; None if it leaves port and name to the server."""
        if self.is_named:
            return None if self.name is None else self.name.key
        port = self.request.remote_port
        return (self.request.proxy_type, port) if port else None

    def fits(self, ingress: Ingress, allowed: PortRanges) -> bool:
        """Tell whether an ingress, which the client has had before, is what is asked for now."""
        named, is_allowed = ingress.named, not ingress.public_port or allowed.allows(ingress.public_port)
        if self.name is None:
            has_its_name = (named is not None) == self.is_named
        else:
            has_its_name = named is not None and named.name == self.name
        is_alike = (ingress.proxy.name, ingress.proxy.kind) == (
            self.request.proxy_name,
            self.request.proxy_type,
        )
        return is_alike and has_its_name and is_allowed


def new_ingress(
    shared: Shared,
    opened: Listener | DatagramSocket | None,
    upstream: Upstream,
    rights: Rights,
    wanted: Wanted,
) -> Ingress:
    """Return an ingress, which has yet to start, with the proxy that is wanted; it closes the open port.

    The name has yet to be taken.
    """
    request, name = wanted.request, wanted.name
    places = Places(f"proxy {request.proxy_name!r}", limits_of(request), shared.places)
    if isinstance(opened, DatagramSocket):
        udp_proxy = UdpProxy(request.proxy_name, upstream, rights, shared.meter, places)
        ingress: Ingress = UdpIngress(opened, udp_proxy, shared.crew, wanted.session_s)
    else:
        proxy = Proxy(request.proxy_name, upstream, rights, shared.meter, places)
        proxy.kind = request.proxy_type
        named = None if name is None else NamedIngress(name, shared.url_of(name), proxy, shared.names)
        if opened is None:
            assert named is not None  # noqa: S101  (what has no port has a name)
            ingress = named
        else:
            is_local = named is not None and not request.remote_port
            ingress = TcpIngress(opened, proxy, shared, named, is_local=is_local)
    fit(ingress, wanted)
    return ingress


def fit(ingress: Ingress, wanted: Wanted) -> None:
    """Have an ingress keep to what a client asks for, which may have come back."""
    proxy, request = ingress.proxy, wanted.request
    named = ingress.named
    ingress.request = request if named is None else replace(request, subdomain=named.name.host)
    proxy.places.limits, proxy.own_limit = limits_of(request), own_limit_of(request)
    proxy.rules = wanted.rules
    if isinstance(proxy, Proxy):
        proxy.web = wanted.web
    if isinstance(ingress, UdpIngress):
        ingress.set_session(wanted.session_s)


def own_limit_of(request: ProxyReq) -> Rate:
    """Return the speed limit that a client keeps to by itself."""
    return Rate(max(request.limit_up, 0) or None, max(request.limit_down, 0) or None)


def limits_of(request: ProxyReq) -> UserLimits:
    """Return the limits for which a client has asked; what is no number of users is no limit."""
    return UserLimits(max(request.max_users, 0), max(request.max_users_per_address, 0))
