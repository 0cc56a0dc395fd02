"""Which names clients can have, under the settings of the server; does not know who has which."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gnar_lib.config import ServerConfig
from gnar_lib.config.hosts import ascii_host, fits
from gnar_lib.config.model import DEFAULT_HTTP_PORT, DEFAULT_HTTPS_PORT, NAMED_KINDS
from gnar_lib.config.values import is_loopback
from gnar_lib.errors import ConfigError, ProxyRefusedError
from gnar_lib.proto import ProxyReq

MAX_PATH = 255
_DEFAULT_PORTS = {"http": DEFAULT_HTTP_PORT, "https": DEFAULT_HTTPS_PORT}
_PATH = re.compile(r"/[!-~]*")


@dataclass(frozen=True, slots=True)
class Name:
    """A host name, with the beginning of the paths there, at which users reach a proxy.

    `kind` is "http" for what the Host of a request names, "https" for what a ClientHello names. The first
    label of the host may be `*`. `path` has no slash at its end, and is empty for all paths.
    """

    kind: str
    host: str
    path: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What no other name has."""
        return self.kind, self.host + self.path

    def __str__(self) -> str:
        return self.host + self.path


def has_names(config: ServerConfig) -> bool:
    """Tell whether a server gives names to clients."""
    return bool(config.domain or config.allow_hosts)


def name_of(request: ProxyReq, config: ServerConfig) -> Name | None:
    """Return the name that a request asks for; None if it leaves the choice to the server, or wants none.

    Raises `ProxyRefusedError` that says why nobody can have the name here.
    """
    kind, subdomain = request.proxy_type, request.subdomain
    is_named = kind in NAMED_KINDS
    if not (is_named or subdomain):
        return None
    if not has_names(config):
        raise ProxyRefusedError("this server has no domain: leave the name out, or ask for a port")
    if kind == "udp":
        raise ProxyRefusedError("a proxy of UDP has no name: leave the subdomain out")
    if kind == "https" and not (config.https_port or serves_at_control_port(config)):
        raise ProxyRefusedError("this server has no https-port, so it passes no TLS through")
    path = _path_of(request)
    if not subdomain:
        if not config.domain:
            raise ProxyRefusedError("this server has no domain to choose a name under: ask for a whole name")
        return None
    return Name("https" if kind == "https" else "http", host_of(subdomain, config), path)


def host_of(subdomain: str, config: ServerConfig) -> str:
    """Return the host name that a subdomain means; raises `ProxyRefusedError`.

    That is a whole name if it ends with the domain, or if a pattern of `allow-hosts` fits, and otherwise one
    under the domain.
    """
    try:
        host = ascii_host(subdomain, wildcard=True)
    except ConfigError as exc:
        raise ProxyRefusedError(f"{subdomain[:80]!r} is no name: {exc}") from None
    if any(fits(host, pattern) for pattern in config.allow_hosts):
        return host
    domain = config.domain
    if not domain:
        raise ProxyRefusedError(f"{host} is not allowed here (allow-hosts)")
    if host == domain:
        raise ProxyRefusedError(f"{host} is the domain itself, which only allow-hosts gives away")
    labels = host.removesuffix(f".{domain}")
    last = labels.rpartition(".")[2]
    if last == "*":
        raise ProxyRefusedError(f"*.{domain} would be all names: put a label behind it, as in *.dev")
    if last in config.reserved_names:
        raise ProxyRefusedError(f"the name {last!r} is reserved (reserved-names)")
    try:
        return ascii_host(f"{labels}.{domain}", wildcard=True)
    except ConfigError as exc:
        raise ProxyRefusedError(f"{subdomain[:80]!r} is no name here: {exc}") from None


def _path_of(request: ProxyReq) -> str:
    path = request.path
    if path and request.proxy_type == "https":
        raise ProxyRefusedError("a path goes with proxy type http: nobody sees one inside TLS")
    if path and (len(path) > MAX_PATH or not _PATH.fullmatch(path) or "?" in path or "#" in path):
        raise ProxyRefusedError("the path has to be one such as /api")
    return path.rstrip("/")


def is_behind_another(config: ServerConfig) -> bool:
    """Tell whether users come by another program on this machine: a Caddy, or what somebody has set up."""
    if config.caddy_api:
        return True
    is_inside = bool(config.http_port) and is_loopback(config.http_bind) and not is_loopback(config.bind)
    return is_inside and not config.tls_cert


def serves_at_control_port(config: ServerConfig) -> bool:
    """Tell whether users of names may come to the control port, with and without TLS.

    Where another program is in front, they may not: that program may ask for a password.
    """
    return has_names(config) and (not is_behind_another(config) or bool(config.tls_cert))


def https_port_of(config: ServerConfig, control_port: int) -> int:
    """Return the port at which users of names come by TLS with a certificate for the name.

    Without certificates of its own, a server takes for granted that somebody in front has them.
    """
    return config.https_port or (control_port if config.tls_cert else DEFAULT_HTTPS_PORT)


def url_of(name: Name, config: ServerConfig, control_port: int = 0) -> str:
    """Return where users find a proxy with this name; `control_port` is that of the settings unless given.

    Without `tls-cert` that is no https, although the control port takes it: browsers would warn of the
    certificate.
    """
    control_port = control_port or config.port
    if name.kind == "https":
        return _url("https", name, config.https_port or control_port)
    if is_behind_another(config):
        return f"https://{name}"
    if config.tls_cert:
        return _url("https", name, https_port_of(config, control_port))
    return _url("http", name, config.http_port or control_port)


def _url(scheme: str, name: Name, port: int) -> str:
    shown = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{name.host}{shown}{name.path}"
