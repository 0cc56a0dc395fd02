"""The proxies that share one control connection: asks for them, cancels them, and comes back when it is lost.

With a server of gnar's own one link carries all proxies. A Go server takes one proxy for each control
connection: the link keeps its first, and gives the others back for links of their own.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import gevent
import gevent.event

from gnar_lib.client.backoff import LAST_S, Backoff
from gnar_lib.client.connect import ControlConn, why_names
from gnar_lib.client.connection import Connection
from gnar_lib.client.proxies import ClientProxy, ProxyState
from gnar_lib.client.shared import MAX_UNANSWERED, Shared
from gnar_lib.errors import (
    AuthError,
    ConnClosed,
    ConnError,
    NamesUnsupportedError,
    NetworkError,
    ProtocolError,
    ProxyLoginError,
    UnsupportedError,
)
from gnar_lib.events import (
    CloseReason,
    Connected,
    ConnectFailed,
    ProxyOpened,
    ProxyRefused,
    Side,
    emit,
)
from gnar_lib.net import Crew, Sockaddr
from gnar_lib.proto import Exchange, ProxyCancel, ProxyResp
from gnar_lib.proto.msg import STATUS_SUCCESS


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What a link tells the client."""

    on_opened: Callable[[ClientProxy], None]  # the server has opened a proxy
    on_refused: Callable[[ClientProxy], None]  # the server will not have a proxy: the link has given it up
    on_left_over: Callable[[ClientProxy], None]  # a proxy needs a link of its own


class Link:
    """Keeps a control connection to the server, and the proxies on it."""

    def __init__(self, shared: Shared, proxies: list[ClientProxy], callbacks: Callbacks) -> None:
        self.proxies = {proxy.name: proxy for proxy in proxies}  # which this link has asked for, or will
        self._shared = shared
        self._callbacks = callbacks
        # By which a server knows the link when it comes back. Each link has its own, since a server ends the
        # older one of two control connections with the same `client_id`.
        self._client_id = secrets.token_hex(16)
        self._connection: Connection | None = None  # from the login to the end of the control connection
        self._retired: list[Connection] = []  # those before it that have users left
        self._was_connected = False  # a login has succeeded before
        self._is_ending = False  # `cancel_all` or `end` was called
        self._is_over: gevent.event.Event = gevent.event.Event()  # `end` was called
        self._cancels = Crew("cancel")  # tell a Go server what is cancelled
        self._backoff = Backoff()  # between two control connections
        self._port_backoff = Backoff()  # between two requests for a port that is taken
        # All are about the present control connection, by the proxy's name: the proxies that are to be asked
        # for; those whose requests have no answer yet, the oldest request first; and when to ask again for a
        # port that is taken.
        self._to_ask: OrderedDict[str, ClientProxy] = OrderedDict()
        self._unanswered: dict[str, deque[ClientProxy]] = {}
        self._retry_at_s: dict[str, float] = {}
        self._unanswered_count = 0
        self._retry_s: float | None = None  # until the next tick, the pause for all ports that are taken

    @property
    def connection(self) -> Connection | None:
        """The control connection that new users come by, if there is one."""
        return self._connection

    @property
    def waiting(self) -> int:
        """How many data connections wait for a user."""
        return 0 if self._connection is None else len(self._connection.pool)

    # ---- the control connection ----------------------------------------------------------------------------

    def run(self) -> None:
        """Connect, serve, and come back, until the link is ended.

        When the server is silent, another control connection is tried beside the present one, and takes its
        place. If no server has ever let the client in, raises `AuthError` if the login is refused,
        `ProxyLoginError` if that is so at a proxy on the way, where further tries may lock a user out, and
        `UnsupportedError` if the server does not multiplex.
        """
        try:
            while self._goes_on():
                self._connect_or_wait()
            if self._is_ending:  # users who are being served stay, whatever becomes of the connection
                self._is_over.wait()
        finally:
            self._disconnect()
            for connection in self._retired:
                connection.close()

    def _connect_or_wait(self) -> None:
        """Connect if that is necessary, otherwise wait until it is; after a failure, wait for a while."""
        try:
            if self._connection is None or self._connection.needs_another:
                self._connect()
            else:
                self._connection.wait_for_trouble()
        except (AuthError, ConnError, ProtocolError, UnsupportedError) as exc:
            is_refused = isinstance(exc, AuthError | UnsupportedError | ProxyLoginError)
            if is_refused and not self._shared.was_let_in:
                raise
            if self._connection is not None and self._connection.has_ended:
                if self._connection.age_s > LAST_S:  # it was good, whatever became of its ports
                    self._backoff.reset()
                self._let_go()
            if self._goes_on():
                delay_s = self._backoff.next()
                is_lost = self._was_connected and self._connection is None  # else it is silent so far
                emit(ConnectFailed, str(exc), is_lost, delay_s, is_refused)
                gevent.sleep(delay_s)

    def _goes_on(self) -> bool:
        """Tell whether the link has something to do, and has not been ended."""
        return bool(self.proxies) and not self._is_ending

    def _connect(self) -> None:
        """Make a control connection, in place of the present one if there is one, and ask for the proxies.

        Raises whatever `ControlConn.log_in` raises.
        """
        first = next(iter(self.proxies.values()))
        control = ControlConn.dial(self._shared.config, self._client_id, self._shared.way)
        try:
            self._log_in(control, first)
        except NamesUnsupportedError:
            control.close()
            self._give_up_names(control.address)
            return
        except BaseException:
            control.close()
            raise
        if not control.gives_names:
            self._give_up_names(control.address)
        self._was_connected = self._shared.was_let_in = True
        emit(Connected, control.address, control.is_go)
        self._shared.crew.spawn(self._shared.warn_if_unproven, control)
        if self._connection is not None:
            self._retire(self._connection)
        self._connection = connection = Connection(self._shared, control, self._proxy_of)
        self._forget_answers()
        self._note_asked(first)
        self._ask_for_the_others(connection, first)
        connection.start(
            lambda answer: self._on_answer(connection, answer), lambda: self._on_tick(connection)
        )

    def _give_up_names(self, server: Sockaddr) -> None:
        """Give up the proxies that need names, or rules for addresses: the server knows neither."""
        for proxy in [*self.proxies.values()]:
            if reason := why_names(proxy.request()):
                emit(ProxyRefused, Side.CLIENT, proxy.name, proxy.kind, server, reason)
                self._give_up(proxy, ProxyState.REFUSED)

    def _retire(self, connection: Connection) -> None:
        """Another control connection takes the place of this one, whose users stay.

        Those before it are released, so that a server that lets in and never answers fills no descriptors.
        """
        self._release_retired()
        connection.retire()
        self._retired = [each for each in self._retired if not each.is_over]
        self._retired.append(connection)

    def _release_retired(self) -> None:
        for connection in self._retired:
            connection.release()

    def _let_go(self) -> None:
        """The control connection has ended. Users of its multiplexed session stay if that goes on.

        A server that leaves ends the control connection first, and lets users finish.
        """
        if self._connection is not None and self._connection.carries_users:
            self._retire(self._connection)
            self._connection.release()
            self._connection = None
        self._disconnect()

    def _disconnect(self) -> None:
        """Close the control connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._forget_answers()

    def _forget_answers(self) -> None:
        """The proxies have to be asked for again, on another control connection."""
        self._to_ask.clear()
        self._unanswered.clear()
        self._unanswered_count = 0
        self._retry_at_s.clear()
        for proxy in self.proxies.values():
            proxy.state = ProxyState.PENDING

    def _log_in(self, control: ControlConn, first: ClientProxy) -> None:
        """Log in; the error has a hint when a server hangs up that has never let the client in.

        Raises what `ControlConn.log_in` raises.
        """
        try:
            control.log_in(first.request())
        except NetworkError:
            raise
        except ConnClosed as exc:
            hint = "" if self._shared.was_let_in else f" ({control.hint})"
            raise ConnClosed(f"the server hung up at the login{hint}") from exc
        limit = control.max_proxies
        if limit and len(self.proxies) > limit and not self._was_connected:
            raise UnsupportedError(
                f"{len(self.proxies)} ports to forward: this server takes {limit} of one client; "
                "forward fewer, or set max-proxies at the server"
            )

    def _ask_for_the_others(self, connection: Connection, first: ClientProxy) -> None:
        """Ask for all proxies but the first, which the login has asked for; a Go server takes no others."""
        if self.proxies.get(first.name) is not first:  # removed while the login was under way
            self._cancel(connection, first, CloseReason.CANCELLED)
        others = [proxy for proxy in self.proxies.values() if proxy is not first]
        for proxy in others:
            if connection.control.is_go:
                del self.proxies[proxy.name]
                self._callbacks.on_left_over(proxy)
            else:
                self._to_ask[proxy.name] = proxy
        self._ask(connection)

    def _on_tick(self, connection: Connection) -> None:
        """Once a second: ask again for ports that were taken, tend the pool, tell of dropped datagrams."""
        now = time.monotonic()
        self._retry_s = None
        for name in [name for name, at_s in self._retry_at_s.items() if at_s <= now]:
            del self._retry_at_s[name]
            self._to_ask[name] = self.proxies[name]
        self._ask(connection)
        takes_users = any(
            proxy.kind != "udp" and proxy.state is ProxyState.OPEN for proxy in self.proxies.values()
        )
        connection.pool.tend(refill=takes_users)  # the server closes what waits while no user can come
        for proxy in self.proxies.values():
            proxy.tell_dropped()

    # ---- proxies -------------------------------------------------------------------------------------------

    def _proxy_of(self, exchange: Exchange) -> ClientProxy:
        """Return the proxy whose user an Exchange announces; raises `ProtocolError` if there is none."""
        if exchange.proxy_name in self.proxies:
            return self.proxies[exchange.proxy_name]
        if not exchange.proxy_name and len(self.proxies) == 1:  # a Go server names no proxy: there is one
            return next(iter(self.proxies.values()))
        raise ProtocolError(f"a user for {exchange.proxy_name!r}, which is no proxy here")

    def _on_answer(self, connection: Connection, answer: ProxyResp) -> None:
        """Take note that a proxy is open, or that it is not: for good, or to be asked for again.

        That a proxy is open which is open says nothing new, and is ignored.
        """
        control = connection.control
        if control.is_go:
            self._on_answer_of_go(control, answer)
            return
        if answer.status != STATUS_SUCCESS and (answer.remote_port or answer.url):
            self._on_ended(answer, control.address)
            return
        self._release_retired()  # the server has given the proxies to this connection
        unanswered = self._unanswered.get(answer.proxy_name)
        was_asked = bool(unanswered)
        if unanswered:
            proxy: ClientProxy | None = unanswered.popleft()
            self._unanswered_count -= 1
            self._ask(connection)
        else:
            proxy = self.proxies.get(answer.proxy_name)
        is_opened = answer.status == STATUS_SUCCESS
        if proxy is None or (is_opened and not was_asked and proxy.state is ProxyState.OPEN):
            return
        if self._is_ending or self.proxies.get(proxy.name) is not proxy:  # the proxy was cancelled meanwhile
            if is_opened and not proxy.can_be_cancelled:  # only now is it known what to cancel
                connection.post(ProxyCancel(proxy_name=proxy.name, remote_port=answer.remote_port))
            return
        self._retry_at_s.pop(proxy.name, None)
        if is_opened:
            self._on_opened(proxy, answer, control)
        else:
            self._on_refused(proxy, answer, control.address)

    def _on_answer_of_go(self, control: ControlConn, answer: ProxyResp) -> None:
        """Take note of what a Go server says, which names no proxy: the link has one."""
        proxy = next(iter(self.proxies.values()), None)
        if proxy is None or self._is_ending:  # it answers our cancel, and users may still be served
            return
        if answer.status != STATUS_SUCCESS:
            raise ConnError(proxy.why_failed_at_go)
        if proxy.state is not ProxyState.OPEN:
            self._on_opened(proxy, answer, control)

    def _on_opened(self, proxy: ClientProxy, answer: ProxyResp, control: ControlConn) -> None:
        self._backoff.reset()
        self._port_backoff.reset()
        proxy.opened(answer, control.address)
        where = proxy.location(self._shared.config.server)
        emit(ProxyOpened, Side.CLIENT, proxy.name, proxy.kind, proxy.remote_port, control.address, where)
        if proxy.limits_users and not control.limits_users:
            proxy.log.warning("max-users has no effect: the server does not know it, and takes all users")
        self._callbacks.on_opened(proxy)

    def _on_refused(self, proxy: ClientProxy, answer: ProxyResp, server: Sockaddr) -> None:
        retry_s = self._pause_for_ports() if answer.retry else None
        emit(ProxyRefused, Side.CLIENT, proxy.name, proxy.kind, server, answer.error, retry_s)
        if retry_s is not None:
            self._retry_at_s[proxy.name] = time.monotonic() + retry_s
            return
        self._give_up(proxy, ProxyState.REFUSED)

    def _on_ended(self, answer: ProxyResp, server: Sockaddr) -> None:
        """Give up a proxy that the server has closed for good."""
        proxy = self.proxies.get(answer.proxy_name)
        if proxy is None or (proxy.state, proxy.remote_port) != (ProxyState.OPEN, answer.remote_port):
            return
        proxy.tell_closed(self._shared.config.server, server, CloseReason.ENDED)
        self._give_up(proxy, ProxyState.ENDED)

    def _give_up(self, proxy: ClientProxy, state: ProxyState) -> None:
        proxy.state = state
        del self.proxies[proxy.name]
        self._callbacks.on_refused(proxy)
        self.end_without_proxies()

    def _pause_for_ports(self) -> float:
        """Return when to ask again for a port that is taken: the same for all that are refused together."""
        if self._retry_s is None:
            self._retry_s = self._port_backoff.next()
        return self._retry_s

    # ---- changes -------------------------------------------------------------------------------------------

    @property
    def takes_more(self) -> bool:
        """Whether further proxies can be asked for on this link, now or when it is connected again."""
        is_full = self._connection is not None and self._connection.control.is_go
        return not self._is_ending and not is_full

    def add(self, proxy: ClientProxy) -> None:
        """Ask for one more proxy."""
        self.proxies[proxy.name] = proxy
        if self._connection is not None:  # else it is asked for when there is a control connection
            self._to_ask[proxy.name] = proxy
            self._ask(self._connection)

    def _ask(self, connection: Connection) -> None:
        """Ask for the next proxies; answers to those that were asked for let others follow."""
        while self._to_ask and self._unanswered_count < MAX_UNANSWERED:
            _, proxy = self._to_ask.popitem(last=False)
            self._note_asked(proxy)
            connection.post(proxy.request())

    def _note_asked(self, proxy: ClientProxy) -> None:
        self._unanswered.setdefault(proxy.name, deque()).append(proxy)
        self._unanswered_count += 1

    def remove(self, proxy: ClientProxy) -> None:
        """Cancel a proxy; its users stay."""
        del self.proxies[proxy.name]
        if self._connection is not None:
            self._cancel(self._connection, proxy, CloseReason.CANCELLED)
        self._retry_at_s.pop(proxy.name, None)

    def _cancel(self, connection: Connection, proxy: ClientProxy, reason: CloseReason) -> None:
        """Cancel a proxy that is open or about to be.

        A proxy whose port nobody knows yet is cancelled when the answer comes.
        """
        if self._to_ask.pop(proxy.name, None) or proxy.name in self._retry_at_s or not proxy.can_be_cancelled:
            return
        control = connection.control
        if proxy.state is ProxyState.OPEN:
            proxy.tell_closed(self._shared.config.server, control.address, reason)
        if not control.is_go:
            connection.post(proxy.cancellation())
            return
        self._cancels.spawn(self._cancel_apart, control, proxy)

    @staticmethod
    def _cancel_apart(control: ControlConn, proxy: ClientProxy) -> None:
        try:
            control.cancel_apart(proxy.cancellation())
        except ConnError as exc:
            proxy.log.debug("not cancelled: %s", exc)

    # ---- the end -------------------------------------------------------------------------------------------

    def cancel_all(self, *, may_return: bool = False) -> None:
        """Take no more users; those who are served stay.

        `may_return`: this client may be started again soon, for which a server that can does keeps the ports.
        """
        self._is_ending = True
        if (connection := self._connection) is None:
            return
        if may_return and connection.control.keeps_ports:
            connection.leave()
            return
        for proxy in self.proxies.values():
            self._cancel(connection, proxy, CloseReason.STOPPING)

    def wait_cancelled(self, timeout_s: float) -> None:
        """Wait until no user can be on the way, and close the data connections that wait."""
        until_s = time.monotonic() + timeout_s
        if self._connection is not None:
            self._connection.wait_left(timeout_s)
        self.wait_told(until_s - time.monotonic())
        self._cancels.kill()

    def wait_told(self, timeout_s: float) -> None:
        """Wait until a Go server has been told of what is cancelled, which it is on other connections."""
        self._cancels.wait_empty(max(timeout_s, 0.0))

    def end_without_proxies(self) -> None:
        """End if the last proxy has been removed and none has come in its place."""
        if not self.proxies:
            self.end()

    def end(self) -> None:
        """Close the control connection, which ends `run`."""
        self._is_ending = True
        self._is_over.set()
        if self._connection is not None:
            self._connection.close()
