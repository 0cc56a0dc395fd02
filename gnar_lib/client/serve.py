"""The client as a whole: starts its links, shows what is forwarded to where, reloads and stops."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import gevent
import gevent.event

from gnar_lib import logger, memory
from gnar_lib.client.link import Callbacks, Link
from gnar_lib.client.proxies import ClientProxy, ProxyState
from gnar_lib.client.shared import Shared
from gnar_lib.client.way import Way
from gnar_lib.config import Address, ClientConfig, after_reload, changed_keys
from gnar_lib.errors import AuthError, DismissedError, ProxyLoginError, UnsupportedError
from gnar_lib.events import Reloaded, Side, Stopping, emit
from gnar_lib.hooks import Hooks
from gnar_lib.lifecycle import Stopper
from gnar_lib.net import options
from gnar_lib.yamux.holdings import holdings
from gnar_lib.yamux.parting import parting

if TYPE_CHECKING:
    from gnar_lib.admin.port import AdminPort
    from gnar_lib.client.inspector.serve import ClientInspector
    from gnar_lib.client.live import Board
    from gnar_lib.terminal.view import View

LEAVE_S = 1.0  # the longest wait for the server's word that no more users come

STATUS_DISMISSED = 3  # of the process: whoever starts clients again should not start this one

_OF_START = ("server", "plain", "inspect", "inspect_bodies", "inspect_log")  # settings that a reload leaves
# Settings that hold from one login to the next.
_OF_LOGIN = ("token", "auth", "tls", "fingerprint", "proxy", "multiplex", "heartbeat")

_log = logger.get("client")


class Client:
    """The end beside the service; `start` opens it, `close` ends it.

    When the server has refused the login, or every proxy, there is nothing left to do: then the client sets
    `failed` and calls `stop`.
    """

    def __init__(self, config: ClientConfig, stop: Callable[[], None]) -> None:
        self.shared = Shared(config)  # what all links have in common
        self.failed = False  # nothing is left to do, since the server refused everything
        self.is_dismissed = False  # the server has ended this client, or its last proxy
        self.answered: gevent.event.Event = gevent.event.Event()  # every proxy is open, or given up
        self._admin: AdminPort | None = None  # while there is one
        self._inspector: ClientInspector | None = None  # while there is one
        self._stop = stop
        self._links: list[Link] = []  # that are running
        # Those of the settings that the server has not refused, by name.
        self._proxies = {each.proxy_name: ClientProxy(each, self.shared.meter) for each in config.proxies}
        self._shown: set[str] = set()  # names of the proxies that a person has been shown

    def open_admin(self) -> None:
        """Open the admin port, if there is to be one; raises `ListenError`."""
        if self.shared.config.admin.port:
            from gnar_lib.client.admin import open_admin  # loads what nothing else needs

            self._admin = open_admin(self.shared, self._links, self._proxies.values)

    def open_inspector(self) -> None:
        """Look at what passes from now on, if that is wanted; raises `ListenError` and `StorageError`."""
        config = self.shared.config
        if config.inspect is not None or config.inspect_log:
            from gnar_lib.client.inspector.serve import ClientInspector  # as above

            self._inspector = ClientInspector(config, self._proxies.get)
            for proxy in self._proxies.values():
                self._inspect(proxy)

    def _inspect(self, proxy: ClientProxy) -> None:
        """Have the inspector look at what passes through a proxy, if there is an inspector."""
        if self._inspector is not None:
            proxy.inspector = self._inspector.inspector

    @property
    def inspector_url(self) -> str:
        """Where the page of the inspector is; empty if there is none."""
        return "" if self._inspector is None else self._inspector.url

    def start(self) -> None:
        """Connect, with all proxies on one link."""
        self._start_link([*self._proxies.values()])

    def _start_link(self, proxies: list[ClientProxy]) -> None:
        """Start a link of their own for some proxies."""
        link = Link(self.shared, proxies, Callbacks(self._on_opened, self._on_refused, self._on_left_over))
        self._links.append(link)
        self.shared.crew.spawn(self._run_link, link)

    def _run_link(self, link: Link) -> None:
        try:
            link.run()
        except (AuthError, DismissedError, ProxyLoginError, UnsupportedError) as exc:
            self.is_dismissed = isinstance(exc, DismissedError)
            _log.error("%s", exc)
            self._fail()
        except Exception:  # a defect: the process ends, so that whoever watches it can start it again
            self._fail()
            raise
        finally:
            self._links.remove(link)

    def _fail(self) -> None:
        self.failed = True
        self._stop()

    # ---- what links tell -----------------------------------------------------------------------------------

    def _on_opened(self, _proxy: ClientProxy) -> None:
        self._show_when_all_answered()

    def _on_left_over(self, proxy: ClientProxy) -> None:
        self._start_link([proxy])

    def _on_refused(self, proxy: ClientProxy) -> None:
        """Go on without a proxy, or end if it was the last."""
        del self._proxies[proxy.name]
        proxy.end()
        if not self._proxies:
            self.is_dismissed = proxy.state is ProxyState.ENDED
            _log.error("no proxy is left")
            self._fail()
        else:
            self._show_when_all_answered()

    def _show_when_all_answered(self) -> None:
        """Show where the new proxies are, once the server has answered for every proxy."""
        # They are asked for one after the other: the last is found at once among thousands.
        if any(proxy.state is ProxyState.PENDING for proxy in reversed(self._proxies.values())):
            return
        self.answered.set()
        fresh = [proxy for proxy in self._proxies.values() if proxy.name not in self._shown]
        self._shown.update(proxy.name for proxy in fresh)
        show(self.shared.config.server, fresh)

    def location(self, name: str) -> str:
        """Return where users find the proxy of that name; empty while there is none that is open."""
        proxy = self._proxies.get(name)
        if proxy is None or proxy.state is not ProxyState.OPEN:
            return ""
        return proxy.location(self.shared.config.server)

    # ---- changes and the end -------------------------------------------------------------------------------

    def reload(self, config: ClientConfig) -> None:
        """Take new settings over: start new proxies and cancel removed ones, leave the others alone.

        A proxy whose settings have changed is cancelled, and another is started in its place. The address of
        the server stays.
        """
        before = self.shared.config
        admin = after_reload(before.admin, config.admin)
        _apply(config)
        kept = {name: getattr(before, name) for name in _OF_START}
        self.shared.config = replace(config, admin=admin, **kept)
        wanted = {proxy.proxy_name: proxy for proxy in config.proxies}
        for name, proxy in [*self._proxies.items()]:
            if wanted.get(name) == proxy.config:
                del wanted[name]
            else:
                self._remove(proxy)
        until_s = time.monotonic() + LEAVE_S
        for link in [*self._links]:  # so that a Go server has freed a port before it is asked for again
            link.wait_told(until_s - time.monotonic())
        unchanged = changed_keys(self.shared.config, config)
        at_login = tuple(key for key in changed_keys(before, self.shared.config) if key in _OF_LOGIN)
        if at_login:  # connections of the present login go the way that it has gone
            self.shared.way = Way(self.shared.config)
        emit(Reloaded, Side.CLIENT, len(wanted), unchanged, at_login)
        for fresh in wanted.values():
            self._add(ClientProxy(fresh, self.shared.meter))
        for link in [*self._links]:
            link.end_without_proxies()

    def _remove(self, proxy: ClientProxy) -> None:
        del self._proxies[proxy.name]
        self._shown.discard(proxy.name)
        proxy.end()
        for link in [link for link in self._links if link.proxies.get(proxy.name) is proxy]:
            link.remove(proxy)

    def _add(self, proxy: ClientProxy) -> None:
        self._proxies[proxy.name] = proxy
        self._inspect(proxy)
        for link in self._links:
            if link.takes_more:
                link.add(proxy)
                return
        self._start_link([proxy])

    def stop_taking_users(self, *, may_return: bool = False) -> None:
        """Cancel every proxy; users who are served go on.

        `may_return`: the ports are kept for a while, in case that this client is started again.
        """
        links, until_s = [*self._links], time.monotonic() + LEAVE_S
        for link in links:
            link.cancel_all(may_return=may_return)
        for link in links:
            link.wait_cancelled(until_s - time.monotonic())

    def close(self) -> None:
        """End everything at once."""
        self.shared.users.kill()
        for proxy in self._proxies.values():
            proxy.end()
        for link in [*self._links]:
            link.end()
        self.shared.crew.kill()
        if self._admin is not None:
            self._admin.close()
        if self._inspector is not None:
            self._inspector.close()

    def status(self) -> str:
        """Return what there is at the moment, in one line."""
        idle = sum(link.waiting for link in self._links)
        totals = self.shared.meter.totals()
        users = len(self.shared.users) - idle
        return (
            f"links={len(self._links)} proxies={len(self._proxies)} users={users} "
            f"users_total={totals.users_total} bytes_up={totals.up} bytes_down={totals.down} waiting={idle} "
            f"udp_sessions={sum(proxy.udp.sessions for proxy in self._proxies.values() if proxy.udp)} "
            f"udp_dropped={totals.dropped}"
        )

    def view(self, board: Board, first: int, count: int) -> View:
        """Return what a live view shows now, with `count` of the proxies from the number `first` on."""
        connections = [link.connection for link in self._links]
        return board.view(connections, [*self._proxies.values()], first, count)


# ---- what a person sees ------------------------------------------------------------------------------------


def show(server: Address, proxies: list[ClientProxy]) -> None:
    """Print what is forwarded to where; a terminal that can show links gets one to click (OSC 8)."""
    if not proxies:
        return
    width = max(len(proxy.name) for proxy in proxies)
    lines = [""]
    for proxy in proxies:
        where = proxy.location(server)
        if logger.takes_escapes(sys.stdout) and proxy.kind != "udp":
            where = f"\033]8;;{proxy.url(server)}\033\\{where}\033]8;;\033\\"
        lines.append(f"  {proxy.name:<{width}}  {where}  ->  {proxy.config.local_service}")
    logger.announce("\n".join([*lines, "", ""]))


def _wants_view(config: ClientConfig) -> bool:
    """Tell whether a person wants to look at a live view; JSON is for programs."""
    return not config.plain and config.log_format == "text"


@contextmanager
def _live_view(client: Client, *, is_wanted: bool) -> Iterator[None]:
    """Show a live view during the block, where there is a terminal for it."""
    if not is_wanted or not sys.stdout.isatty():
        yield
        return
    from gnar_lib.client.live import Board  # loads what nothing else needs
    from gnar_lib.terminal.live import LiveView
    from gnar_lib.terminal.screen import is_usable

    if not is_usable(os.environ):
        yield
        return
    board = Board(client.shared.config.server, client.shared.meter, client.inspector_url)
    live = LiveView(partial(client.view, board))
    board.start()
    live.start(client.answered)
    try:
        yield
    finally:
        live.close()
        board.close()


def _apply(config: ClientConfig) -> None:
    """Apply the settings that hold for the whole process."""
    options.set_dead_after(config.dead_after_s)
    options.set_half_close_timeout(config.half_close_timeout_s)
    holdings.set_limit(memory.for_peers(memory.default_limit()))


def run_client(load: Callable[[], ClientConfig], *, has_file: bool = False) -> int:
    """Run until a signal, or until nothing is left to do; returns the exit status.

    That is 0, or 1 if the server refused everything, or `STATUS_DISMISSED`.

    `load` gives the configuration now, and again on SIGHUP, from a file if `has_file`.
    """
    config = load()
    _apply(config)
    stopper, hooks = Stopper(), Hooks(Side.CLIENT)
    try:
        client = Client(config, stopper.stop)

        def reload() -> None:
            config = load()
            after_reload(client.shared.config.admin, config.admin)  # raises an error before a change
            hooks.use(config.hooks)
            client.reload(config)

        stopper.on_reload(reload, has_file=has_file)
        stopper.on_status(client.status)
        hooks.use(config.hooks)
        client.open_admin()
        client.open_inspector()
        client.start()
        with _live_view(client, is_wanted=_wants_view(config) and not stopper.is_watched_over):
            stopper.wait(client.answered)
        if not client.failed:
            emit(Stopping, Side.CLIENT)
        client.stop_taking_users(may_return=stopper.is_terminated and not client.failed)
        gevent.sleep(0)  # data connections that waited were closed: let go of them before users are counted
        stopper.drain(client.shared.users, 0 if client.failed else client.shared.config.grace_s)
        hooks.finish()
        client.close()
        gevent.sleep(0)  # the greenlets that were just ended close what they hold
        stopper.drain_rest(parting)
        stopper.drain_rest(hooks.crew)
    finally:
        hooks.close()
        stopper.close()
    if client.is_dismissed:
        return STATUS_DISMISSED
    return 1 if client.failed else 0
