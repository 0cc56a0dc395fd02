"""Opens what a client asks for, a port, a name or both, or says why not; knows no control connection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gnar_lib.auth import Credential, Rights
from gnar_lib.config.model import NAMED_KINDS
from gnar_lib.errors import GnarError, ListenError, ProxyRefusedError
from gnar_lib.net import DatagramSocket, Listener
from gnar_lib.server.ingress.making import Ingress, Wanted, new_ingress
from gnar_lib.server.names.check import Name
from gnar_lib.server.names.readable import readable_label
from gnar_lib.server.names.table import Holder
from gnar_lib.server.proxies import Proxy
from gnar_lib.server.shared import Shared
from gnar_lib.server.upstream import Upstream

PORT_KINDS = ("tcp", "udp")


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: whose the proxy will be."""

    owner: tuple[Credential, str]  # the credential of the client, and the address from which it has come
    holder: Holder
    upstream: Upstream
    rights: Rights
    proxies: int  # that the client has already


def open_ingress(shared: Shared, asker: Asker, wanted: Wanted) -> Ingress:
    """Return a new ingress with its proxy, which has yet to start; its port is held, its name is taken.

    `close` below frees both. Raises `ProxyRefusedError` if the client can never have that, and `ListenError`
    or `NameTakenError` if it may have it another time.
    """
    _check(shared, asker, wanted)
    wanted = _with_name(shared, wanted)
    if wanted.name is not None:
        shared.names.check(wanted.name, asker.owner[0])
    opened = None if wanted.is_named else _open_port(shared, asker.rights, wanted)
    ingress = new_ingress(shared, opened, asker.upstream, asker.rights, wanted)
    try:
        if wanted.name is not None and isinstance(ingress.proxy, Proxy):
            shared.names.take(wanted.name, ingress.proxy, asker.owner, asker.holder)
    except GnarError:
        ingress.close()
        raise
    shared.room.take(ingress.key, wanted.size)
    if ingress.port:
        shared.ports.hold(ingress.proxy.kind, ingress.port, asker.owner)
    return ingress


def close(shared: Shared, ingress: Ingress) -> None:
    """Close an ingress with its proxy, and free port and name; users who have a data connection stay."""
    shared.room.free(ingress.key)
    shared.ports.release(ingress.proxy.kind, ingress.port)
    ingress.close()


def _check(shared: Shared, asker: Asker, wanted: Wanted) -> None:
    """Raise an error if the server opens nothing of that kind, or nothing more."""
    kind = wanted.request.proxy_type
    if shared.stopping:
        raise ListenError("the server is stopping")
    if kind not in (*PORT_KINDS, *NAMED_KINDS):
        raise ProxyRefusedError(f"proxy type {kind!r} is not supported by this server")
    if asker.proxies >= asker.rights.proxies:
        raise ProxyRefusedError(f"one client may have {asker.rights.proxies} proxies")
    if not shared.room.has(wanted.size):
        taken_mib = shared.room.taken >> 20
        raise ListenError(f"the settings of all proxies take {taken_mib} MiB already (max-memory)")


def _with_name(shared: Shared, wanted: Wanted) -> Wanted:
    """Return what is wanted with a name that is free, if the server is to choose one."""
    if wanted.name is not None or not wanted.is_named:
        return wanted
    domain, kind = shared.config.domain, wanted.request.proxy_type
    label = readable_label(lambda label: not shared.names.knows(f"{label}.{domain}"))
    return replace(wanted, name=Name(kind, f"{label}.{domain}", wanted.request.path.rstrip("/")))


def _open_port(shared: Shared, rights: Rights, wanted: Wanted) -> Listener | DatagramSocket:
    """Return what listens at the port that is wanted; raises as `open_ingress`."""
    port = wanted.request.remote_port
    if wanted.request.proxy_type == "udp":
        return shared.ports.bind_udp(port, rights.ports)
    if wanted.name is not None and not port:
        return shared.ports.listen_locally()
    return shared.ports.listen(port, rights.ports)
