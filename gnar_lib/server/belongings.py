"""What one client has at the server: opens, closes and keeps its ingresses; knows no control connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gnar_lib import logger
from gnar_lib.auth import Rights
from gnar_lib.config.model import DEFAULT_UDP_TIMEOUT_S
from gnar_lib.errors import ConnClosed, GnarError, ProxyRefusedError
from gnar_lib.events import CloseReason
from gnar_lib.net import Sockaddr, format_address, host_of
from gnar_lib.proto import ProxyCancel, ProxyReq, ProxyResp
from gnar_lib.proto.msg import STATUS_FAILED, STATUS_SUCCESS
from gnar_lib.proto.pace import MESSAGE_S, pace
from gnar_lib.server.ingress.kept import KeptIngresses
from gnar_lib.server.ingress.making import Ingress, Key, fit, new_ingress
from gnar_lib.server.ingress.udp import UdpIngress
from gnar_lib.server.logins import Peer
from gnar_lib.server.opening import PORT_KINDS, open_port
from gnar_lib.server.teller import Teller
from gnar_lib.server.upstream import Upstream

BY_ADMINISTRATOR = "ended by an administrator"

_log = logger.get("control")


class Belongings:
    """The ingresses of a client, for as long as its control connection lasts.

    `post` sends an answer to the client, and never waits.
    """

    def __init__(
        self,
        kept: KeptIngresses,
        upstream: Upstream,
        peer: Peer,
        address: Sockaddr,
        post: Callable[[ProxyResp], None],
    ) -> None:
        self.rights = Rights.of(kept.shared.config)  # replaced by a reload
        self.tell = Teller(peer, address)
        self.is_dismissed = False  # an administrator has ended the client: no more proxies
        self.is_over = False  # the control connection has ended: no more proxies, which nobody would close
        self._shared = kept.shared
        self._kept = kept  # the ingresses of clients that are away
        self._upstream = upstream
        self._peer = peer
        self._address = address
        self._post = post
        self._used: dict[Key, Ingress] = {}  # which serve proxies that the client has asked for
        # Those of the client's control connection before this one for which the client has not asked again.
        self._inherited: dict[Key, Ingress] = {}
        self._owner = (peer.credential, host_of(address))  # whose the ports of this client are

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
        self._post(answer if self._peer.session is not None else ProxyResp("", answer.status))

    # ---- opening -------------------------------------------------------------------------------------------

    def open_proxy(self, request: ProxyReq) -> None:
        """Open the proxy that the client asks for and answer; a refusal is an answer, too."""
        name, kind = request.proxy_name, request.proxy_type
        is_over = self._shared.stopping or self.is_dismissed
        if not is_over and (self._inherit(request) or self._return_to(request)):
            return
        try:
            ingress = self._open(request)
        except GnarError as exc:
            self.tell.refused(name, kind, str(exc))
            retry = not isinstance(exc, ProxyRefusedError)
            own = self._shared.ports.owner(kind, request.remote_port) == self._owner
            answer = ProxyResp("", STATUS_FAILED, str(exc), retry, proxy_name=name, own=own)
            self._answer(answer)
            return
        self.tell.opened(ingress)
        self._answer_opened(ingress)
        ingress.start()

    def _open(self, request: ProxyReq) -> Ingress:
        """Return a new ingress, with its proxy, that has yet to start; raises `GnarError` that says why not.

        `close` closes the ingress.
        """
        shared, rights = self._shared, self.rights
        if self.is_dismissed:
            raise ProxyRefusedError(f"this client was {BY_ADMINISTRATOR}")
        opened = open_port(shared, rights, request, len(self._used))
        request = replace(request, udp_timeout=int(self._session_s(request) or 0))
        ingress = new_ingress(shared, opened, self._upstream, rights, request)
        if self.is_over:  # since the look-up of the address to bind to: nobody would call `close`
            ingress.close()
            raise ConnClosed("the control connection has ended")
        shared.ports.hold(ingress.proxy.kind, ingress.port, self._owner)
        self._used[ingress.key] = ingress
        return ingress

    def _answer_opened(self, ingress: Ingress) -> None:
        name = ingress.proxy.name
        self._answer(ProxyResp("", STATUS_SUCCESS, remote_port=ingress.port, proxy_name=name))
        if ingress.proxy.kind != "udp":
            self._upstream.expect_users()

    def _session_s(self, request: ProxyReq) -> float | None:
        """Return how long the client keeps idle UDP sessions; None if it is Go's, which does not say."""
        return None if self._peer.session is None else request.udp_timeout or DEFAULT_UDP_TIMEOUT_S

    # ---- closing -------------------------------------------------------------------------------------------

    def find(self, message: ProxyCancel) -> Ingress | None:
        """Return the ingress that a cancel means, if the client has that."""
        found = (self._used.get((kind, message.remote_port)) for kind in PORT_KINDS)
        return next((each for each in found if each and each.proxy.name == message.proxy_name), None)

    def cancel(self, message: ProxyCancel) -> None:
        """Close a proxy of this client; its users stay. Refused if the client has no such proxy."""
        ingress = self.find(message)
        if ingress is None:
            client = format_address(self._address)
            _log.warning("refused: %s cancels %r on port %d", client, message.proxy_name, message.remote_port)
            return
        self.close(ingress, CloseReason.CANCELLED)
        if self._peer.session is None and ingress.proxy.kind == "tcp":  # as the Go server does
            self._post(ProxyResp(domain="", status=STATUS_FAILED))

    def close(self, ingress: Ingress, reason: CloseReason) -> None:
        """Close one of `all` with its proxy, and free the port; users who have a data connection stay."""
        self._inherited.pop(ingress.key, None)
        self._used.pop(ingress.key, None)
        self._shared.ports.release(ingress.proxy.kind, ingress.port)
        ingress.close()
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
        port, name = ingress.port, ingress.proxy.name
        self._answer(ProxyResp("", STATUS_FAILED, BY_ADMINISTRATOR, remote_port=port, proxy_name=name))

    def close_all(self, reason: CloseReason) -> None:
        """Close all, for good.

        Others have their turn while thousands of ports are freed, unless the server stops. Whoever calls this
        meanwhile helps, so that all ports are free whenever it returns.
        """
        self.is_over = True
        self._used.update(self._inherited)
        self._inherited = {}
        while self._used:
            self.close(next(reversed(self._used.values())), reason)
            if not self._shared.stopping:
                pace.take(MESSAGE_S)

    # ---- a client that comes back --------------------------------------------------------------------------

    def take_over(self, older: Belongings) -> None:
        """Take the ingresses over from an earlier control connection of the same client.

        Users who come meanwhile wait. What the client does not ask for again is to be closed.
        """
        ingresses = {**older._inherited, **older._used}
        older._inherited, older._used = {}, {}
        for ingress in ingresses.values():
            ingress.rest(self._kept.nobody)
        self._inherited.update(ingresses)

    def _inherit(self, request: ProxyReq) -> bool:
        """Go on with the ingress that the client had on its control connection before this one.

        False if there is none, or if it is not allowed any more.
        """
        ingress = self._inherited_for(request)
        if ingress is None:
            return False
        if ingress.proxy.name != request.proxy_name or not self.rights.ports.allows(ingress.port):
            self.close_inherited(ingress.key)
            return False
        self._adopt(self._inherited.pop(ingress.key), request)
        return True

    def _adopt(self, ingress: Ingress, request: ProxyReq) -> None:
        """Have an ingress serve the proxy that is asked for, and answer."""
        self._used[ingress.key] = ingress
        fit(ingress, request, self._session_s(request))
        self._answer_opened(ingress)
        ingress.go_on(self._upstream)

    def _inherited_for(self, request: ProxyReq) -> Ingress | None:
        """Return what is inherited at the port that is asked for, or, if any will do, under that name."""
        kind, port = request.proxy_type, request.remote_port
        if port:
            return self._inherited.get((kind, port))
        for ingress in self._inherited.values():
            if ingress.proxy.kind == kind and ingress.proxy.name == request.proxy_name:
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
                self._kept.keep(ingress, self._peer.credential)
                pace.take(MESSAGE_S)
        self._upstream.expect_no_users()

    def _return_to(self, request: ProxyReq) -> bool:
        """Go on with the ingress that has waited for this client; False if there is none."""
        if len(self._used) >= self.rights.proxies or not len(self._kept):
            return False
        client_id = self._peer.login.client_id
        ingress = self._kept.take(request, self._peer.credential, client_id, self.rights.ports)
        if ingress is None:
            return False
        self.tell.opened(ingress)
        self._adopt(ingress, request)
        return True

    def hand_on(self) -> None:
        """Close all without a word: another process has them."""
        ingresses, self._used, self._inherited = self.all, {}, {}
        for ingress in ingresses:
            self._shared.ports.release(ingress.proxy.kind, ingress.port)
            ingress.close()
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
