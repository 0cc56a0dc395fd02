"""What one client has at the server: opens, closes and keeps its ingresses; knows no control connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gnar_lib import logger
from gnar_lib.auth import Rights
from gnar_lib.errors import ConnClosed, GnarError, NameTakenError, ProxyRefusedError
from gnar_lib.events import CloseReason
from gnar_lib.net import Sockaddr, format_address, host_of
from gnar_lib.proto import ProxyCancel, ProxyReq, ProxyResp
from gnar_lib.proto.msg import STATUS_FAILED, STATUS_SUCCESS
from gnar_lib.proto.pace import MESSAGE_S, pace
from gnar_lib.server.ingress.kept import KeptIngresses
from gnar_lib.server.ingress.making import Ingress, Key, Wanted, fit
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.logins import Peer
from gnar_lib.server.names.check import Name
from gnar_lib.server.opening import PORT_KINDS, Asker, close, open_ingress
from gnar_lib.server.teller import Teller
from gnar_lib.server.upstream import Upstream

BY_ADMINISTRATOR = "ended by an administrator"

_log = logger.get("control")


@dataclass(frozen=True, slots=True)
class Client:
    """Whose belongings these are. `post` sends an answer to the client, and never waits.

    `is_silent` tells whether the client should have been heard: then others may have its names, of which
    `on_lost` is told.
    """

    peer: Peer
    address: Sockaddr
    post: Callable[[ProxyResp], None]
    is_silent: Callable[[], bool]
    on_lost: Callable[[], None]


class Belongings:
    """The ingresses of a client, for as long as its control connection lasts."""

    def __init__(self, kept: KeptIngresses, upstream: Upstream, client: Client) -> None:
        self.rights = Rights.of(kept.shared.config)  # replaced by a reload
        self.tell = Teller(client.peer, client.address)
        self.is_dismissed = False  # an administrator has ended the client: no more proxies
        self.is_over = False  # the control connection has ended: no more proxies, which nobody would close
        self.has_datagrams = False  # a proxy of UDP was opened: `tend` has something to do
        self._shared = kept.shared
        self._kept = kept  # the ingresses of clients that are away
        self._upstream = upstream
        self._client = client
        self._peer = client.peer
        self._used: dict[Key, Ingress] = {}  # which serve proxies that the client has asked for
        # Those of the client's control connection before this one for which the client has not asked again.
        self._inherited: dict[Key, Ingress] = {}
        self._owner = (client.peer.credential, host_of(client.address))  # whose the ports of this client are

    @property
    def used(self) -> list[Ingress]:
        """The ingresses of the client's proxies at the moment."""
        return [*self._used.values()]

    @property
    def all(self) -> list[Ingress]:
        """The same, and those for which the client has not asked again."""
        return [*self._used.values(), *self._inherited.values()]

    @property
    def has_inherited(self) -> bool:
        """Whether there are ingresses for which the client has not asked again."""
        return bool(self._inherited)

    def has(self, ingress: Ingress) -> bool:
        """Tell whether this is one of `all`."""
        return ingress in (self._used.get(ingress.key), self._inherited.get(ingress.key))

    def _answer(self, answer: ProxyResp) -> None:
        """Answer a request, without what the Go program does not know to a client of that program."""
        self._client.post(
            answer if self._peer.session is not None else ProxyResp(answer.domain, answer.status)
        )

    # ---- opening -------------------------------------------------------------------------------------------

    def open_proxy(self, request: ProxyReq) -> None:
        """Open the proxy that the client asks for and answer; a refusal is an answer, too."""
        try:
            wanted = Wanted.of(request, self._shared.config, is_go=self._peer.session is None)
            if not (self._inherit(wanted) or self._return_to(wanted)):
                self._open(wanted)
        except GnarError as exc:
            self.tell.refused(request.proxy_name, request.proxy_type, str(exc))
            self._answer_refused(request, exc)

    def _open(self, wanted: Wanted) -> None:
        """Open a new ingress, and answer; raises `GnarError` that says why not."""
        if self.is_dismissed:
            raise ProxyRefusedError(f"this client was {BY_ADMINISTRATOR}")
        asker = Asker(self._owner, self, self._upstream, self.rights, len(self._used))
        ingress = open_ingress(self._shared, asker, wanted)
        if self.is_over:  # since the look-up of the address to bind to: nobody would close it
            close(self._shared, ingress)
            raise ConnClosed("the control connection has ended")
        self._use(ingress)
        self.tell.opened(ingress)
        self._answer_opened(ingress)
        ingress.start()

    def _use(self, ingress: Ingress) -> None:
        self._used[ingress.key] = ingress
        self.has_datagrams = self.has_datagrams or isinstance(ingress, UdpIngress)

    def _answer_opened(self, ingress: Ingress) -> None:
        domain = "" if ingress.named is None else ingress.named.name.host
        name, port = ingress.proxy.name, ingress.public_port
        answer = ProxyResp(domain, STATUS_SUCCESS, remote_port=port, proxy_name=name, url=ingress.where)
        self._answer(answer)
        if ingress.proxy.kind != "udp":
            self._upstream.expect_users()

    def _answer_refused(self, request: ProxyReq, error: GnarError) -> None:
        owners = [self._shared.ports.owner(request.proxy_type, request.remote_port)]
        if isinstance(error, NameTakenError):
            owners.append(error.owner)
        retry = not isinstance(error, ProxyRefusedError)
        name, own = request.proxy_name, self._owner in owners
        self._answer(ProxyResp("", STATUS_FAILED, str(error), retry, proxy_name=name, own=own))

    # ---- closing -------------------------------------------------------------------------------------------

    def find(self, message: ProxyCancel) -> Ingress | None:
        """Return the ingress that a cancel means, if the client has that."""
        port, name = message.remote_port, message.proxy_name
        if port:
            found = [self._used.get((kind, port)) for kind in PORT_KINDS]
        else:
            found = [each for each in self._used.values() if not each.public_port]
        return next((each for each in found if each is not None and each.proxy.name == name), None)

    def has_port(self, port: int) -> bool:
        """Tell whether a proxy of this client has a port, of TCP or of UDP."""
        return any((kind, port) in self._used for kind in PORT_KINDS)

    def cancel(self, message: ProxyCancel) -> None:
        """Close a proxy of this client; its users stay. Refused if the client has no such proxy."""
        ingress = self.find(message)
        if ingress is None:
            client = format_address(self._client.address)
            _log.warning("refused: %s cancels %r on port %d", client, message.proxy_name, message.remote_port)
            return
        self.close(ingress, CloseReason.CANCELLED)
        if self._peer.session is None and ingress.proxy.kind == "tcp":  # as the Go server does
            self._client.post(ProxyResp(domain="", status=STATUS_FAILED))

    def close(self, ingress: Ingress, reason: CloseReason, *, holds_name: bool = False) -> None:
        """Close one of `all` with its proxy, and free the port; users who have a data connection stay.

        `holds_name`: the name is not free yet, but held for a while.
        """
        self._inherited.pop(ingress.key, None)
        self._used.pop(ingress.key, None)
        if holds_name:
            ingress.leave()
        close(self._shared, ingress)
        if ingress.proxy.kind != "udp" and not any(each.proxy.kind != "udp" for each in self._used.values()):
            self._upstream.expect_no_users()
        self.tell.closed(ingress, reason)

    def end(self, ingress: Ingress) -> None:
        """Close one of `all` for good, with its users: an administrator wants so."""
        self.close(ingress, CloseReason.ENDED)
        for live in [*ingress.proxy.meter.connections]:
            live.end(BY_ADMINISTRATOR)

    def tell_ended(self, ingress: Ingress) -> None:
        """Tell the client of what `end` has done."""
        port, name, url = ingress.public_port, ingress.proxy.name, ingress.where
        answer = ProxyResp("", STATUS_FAILED, BY_ADMINISTRATOR, remote_port=port, proxy_name=name, url=url)
        self._answer(answer)

    def close_all(self, reason: CloseReason) -> None:
        """Close all, for good; names are held for a while if the client has left without a word.

        Others have their turn while thousands of ports are freed, unless the server stops. Whoever calls this
        meanwhile helps, so that all ports are free whenever it returns.
        """
        self.is_over = True
        self._used.update(self._inherited)
        self._inherited = {}
        may_return = reason is CloseReason.CLIENT_LEFT and not (self.is_dismissed or self._peer.login.check)
        while self._used:
            self.close(next(reversed(self._used.values())), reason, holds_name=may_return)
            if not self._shared.stopping:
                pace.take(MESSAGE_S)
        self._client = replace(
            self._client, is_silent=_yes, on_lost=_ignore
        )  # lets go of the control connection

    # ---- names, which others may have while the client is silent -------------------------------------------

    @property
    def is_silent(self) -> bool:
        """Whether the client should have been heard, and has not."""
        return self._client.is_silent()

    def lose(self, name: Name) -> None:
        """Close the proxy that has had a name: another client has the name now."""
        ingress = self._used.get(name.key) or self._inherited.get(name.key) or self._with_port(name)
        if ingress is not None:
            self.close(ingress, CloseReason.CLIENT_LEFT)
            self._client.on_lost()

    def _with_port(self, name: Name) -> Ingress | None:
        """Return the ingress that has a name besides its port; None if there is none."""
        found = (each for each in self.all if each.named is not None and each.named.name == name)
        return next(found, None)

    # ---- a client that comes back --------------------------------------------------------------------------

    def take_over(self, older: Belongings) -> None:
        """Take the ingresses over from an earlier control connection of the same client.

        Users who come meanwhile wait. What the client does not ask for again is to be closed.
        """
        ingresses = {**older._inherited, **older._used}
        older._inherited, older._used = {}, {}
        for ingress in ingresses.values():
            ingress.rest(self._kept.nobody)
            if ingress.named is not None:
                self._shared.names.move(ingress.named.name, ingress.named.proxy, self._owner, self)
        self._inherited.update(ingresses)

    def _inherit(self, wanted: Wanted) -> bool:
        """Go on with the ingress that the client had on its control connection before this one.

        False if there is none, or if it is not allowed any more.
        """
        ingress = None if self._is_closing else self._inherited_for(wanted)
        if ingress is None:
            return False
        if not wanted.fits(ingress, self.rights.ports):
            self.close_inherited(ingress.key)
            return False
        self._adopt(self._inherited.pop(ingress.key), wanted)
        return True

    @property
    def _is_closing(self) -> bool:
        return self._shared.stopping or self.is_dismissed

    def _adopt(self, ingress: Ingress, wanted: Wanted) -> None:
        """Have an ingress serve the proxy that is asked for, and answer."""
        self._use(ingress)
        fit(ingress, wanted)
        self._shared.room.take(ingress.key, wanted.size)
        if ingress.named is not None:
            self._shared.names.move(ingress.named.name, ingress.named.proxy, self._owner, self)
        self._answer_opened(ingress)
        ingress.go_on(self._upstream)

    def _inherited_for(self, wanted: Wanted) -> Ingress | None:
        """Return what is inherited at the port or name that is asked for; if any will do, for the proxy."""
        if (key := wanted.key) is not None:
            return self._inherited.get(key)
        kind, name = wanted.request.proxy_type, wanted.request.proxy_name
        for ingress in self._inherited.values():
            if ingress.proxy.kind == kind and ingress.proxy.name == name:
                return ingress
        return None

    def close_inherited(self, *only: Key) -> None:
        """Close the ingresses for which the client has not asked again, or `only` some of them."""
        for key in only or [*self._inherited]:
            if (ingress := self._inherited.get(key)) is not None:  # else it was asked for just now
                self.close(ingress, CloseReason.CLIENT_LEFT)
                pace.take(MESSAGE_S)

    # ---- a client, or a server, that leaves ----------------------------------------------------------------

    def keep(self) -> None:
        """Keep the ingresses for the client's next start: it leaves."""
        for key in [*self._used]:
            if (ingress := self._used.pop(key, None)) is not None:  # else it was closed meanwhile
                self.tell.left(ingress)
                self._kept.keep(ingress, self._owner)
                pace.take(MESSAGE_S)
        self._upstream.expect_no_users()

    def _return_to(self, wanted: Wanted) -> bool:
        """Go on with the ingress that has waited for this client; False if there is none."""
        if self._is_closing or len(self._used) >= self.rights.proxies or not len(self._kept):
            return False
        client_id = self._peer.login.client_id
        ingress = self._kept.take(wanted, self._peer.credential, client_id, self.rights.ports)
        if ingress is None:
            return False
        self.tell.opened(ingress)
        self._adopt(ingress, wanted)
        return True

    def hand_on(self) -> None:
        """Close all without a word: another process has them."""
        ingresses, self._used, self._inherited = self.all, {}, {}
        for ingress in ingresses:
            close(self._shared, ingress)
        self._upstream.expect_no_users()

    # ---- once a second -------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Tend what needs it; to be called once a second."""
        for ingress in self._used.values():
            if isinstance(ingress, UdpIngress):
                ingress.tend()

    @property
    def udp_users(self) -> int:
        """How many users of UDP proxies have sent a datagram lately."""
        return sum(each.users for each in self._used.values() if isinstance(each, UdpIngress))

    def stop_listening(self) -> None:
        """Take no more users; those who have a data connection stay."""
        for ingress in self.all:
            ingress.close()


def _yes() -> bool:
    return True


def _ignore() -> None:
    """Stand for a client whose control connection has ended."""
