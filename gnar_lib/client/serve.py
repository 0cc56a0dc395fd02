"""The client: keeps its links, shows what is forwarded to where, reloads and stops."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable

import gevent
import gevent.event

from gnar_lib import logger
from gnar_lib.client.link import Link
from gnar_lib.client.proxies import ClientProxy, ProxyState
from gnar_lib.config import Address, ClientConfig
from gnar_lib.errors import AuthError, UnsupportedError
from gnar_lib.lifecycle import Stopper
from gnar_lib.net import Crew
from gnar_lib.pio.meter import Meter

_FIXED = ("server", "token", "auth", "multiplex")  # what a reload cannot change

_log = logger.get("client")


class Client:
    """Everything that the end beside the service holds."""

    def __init__(self, config: ClientConfig, stop: Callable[[], None]) -> None:
        self.config = config
        self.client_id = secrets.token_hex(16)  # tells the server that it is us who come back
        self.crew = Crew("client")
        self.users = Crew("user")
        self.failed = False
        self.answered: gevent.event.Event = gevent.event.Event()  # every proxy is open, or given up
        self._stop = stop
        self._links: list[Link] = []
        self.meter = Meter()  # of all proxies together
        self._proxies = {proxy.proxy_name: ClientProxy(proxy, self.meter) for proxy in config.proxies}
        self._shown: set[str] = set()

    def start(self) -> None:
        """Connect, with all proxies on one link."""
        self.start_link([*self._proxies.values()])

    def start_link(self, proxies: list[ClientProxy]) -> None:
        """Have a control connection of their own for some proxies."""
        link = Link(self, proxies)
        self._links.append(link)
        self.crew.spawn(self._run_link, link)

    def _run_link(self, link: Link) -> None:
        try:
            link.run()
        except (AuthError, UnsupportedError) as exc:
            _log.error("%s", exc)
            self._fail()
        except Exception:  # a defect: better to end, and to be started again, than to be here for nothing
            self._fail()
            raise
        finally:
            self._links.remove(link)

    def _fail(self) -> None:
        self.failed = True
        self._stop()

    # ---- what links tell -----------------------------------------------------------------------------------

    def proxy_opened(self, proxy: ClientProxy) -> None:
        """Show where it is, the first time in a block of all that are open."""
        proxy.log.info("open at %s", location(self.config.server, proxy))
        self._show_when_all_answered()

    def proxy_refused(self, proxy: ClientProxy) -> None:
        """Go on without it, or end when it was the last."""
        del self._proxies[proxy.name]
        proxy.end()
        if not self._proxies:
            _log.error("no proxy is left")
            self._fail()
        else:
            self._show_when_all_answered()

    def _show_when_all_answered(self) -> None:
        if any(proxy.state is ProxyState.PENDING for proxy in self._proxies.values()):
            return
        self.answered.set()
        fresh = [proxy for proxy in self._proxies.values() if proxy.name not in self._shown]
        self._shown.update(proxy.name for proxy in fresh)
        show(self.config.server, fresh)

    def location(self, name: str) -> str:
        """Return where users find a proxy; empty while it is not open."""
        proxy = self._proxies.get(name)
        return location(self.config.server, proxy) if proxy and proxy.state is ProxyState.OPEN else ""

    # ---- changes and the end -------------------------------------------------------------------------------

    def reload(self, config: ClientConfig) -> None:
        """Start new proxies and cancel removed ones; the connections of the others are not touched."""
        wanted = {proxy.proxy_name: proxy for proxy in config.proxies}
        for name, proxy in [*self._proxies.items()]:
            if wanted.get(name) == proxy.config:
                del wanted[name]
                continue
            del self._proxies[name]
            proxy.end()
            self._shown.discard(name)
            for link in [link for link in self._links if link.proxies.get(name) is proxy]:
                link.remove(proxy)
        if any(getattr(config, key) != getattr(self.config, key) for key in _FIXED):
            _log.warning("server address, token, auth and multiplex stay as they are until the next start")
        _log.info("configuration reloaded: %d new", len(wanted))
        for fresh in wanted.values():
            self._add(ClientProxy(fresh, self.meter))
        for link in [*self._links]:
            link.end_without_proxies()

    def _add(self, proxy: ClientProxy) -> None:
        self._proxies[proxy.name] = proxy
        for link in self._links:
            if link.takes_more:
                link.add(proxy)
                return
        self.start_link([proxy])

    def stop_taking_users(self) -> None:
        """Cancel every proxy; users that are served go on."""
        for link in [*self._links]:
            link.cancel_all()

    def close(self) -> None:
        """End everything at once."""
        self.users.kill()
        for proxy in self._proxies.values():
            proxy.end()
        for link in [*self._links]:
            link.end()
        self.crew.kill()

    def status(self) -> str:
        """Return what there is at the moment, in one line."""
        idle = sum(link.waiting for link in self._links)
        totals = self.meter.totals()
        return (
            f"links={len(self._links)} proxies={len(self._proxies)} users={len(self.users) - idle} "
            f"users_total={totals.users_total} bytes_up={totals.up} bytes_down={totals.down} waiting={idle} "
            f"udp_sessions={sum(proxy.udp.sessions for proxy in self._proxies.values() if proxy.udp)} "
            f"udp_dropped={totals.dropped}"
        )


# ---- what a person sees ------------------------------------------------------------------------------------


def location(server: Address, proxy: ClientProxy) -> str:
    """Return where users find a proxy: its URL when it has a domain, else host:port of the server."""
    if proxy.domain:
        return f"https://{logger.printable(proxy.domain)}"  # what a server says goes to a terminal here
    return str(Address(server.host, proxy.remote_port))


def show(server: Address, proxies: list[ClientProxy]) -> None:
    """Print what is forwarded to where, with a link to click where a terminal can show one (OSC 8)."""
    if not proxies:
        return
    width = max(len(proxy.name) for proxy in proxies)
    lines = [""]
    for proxy in proxies:
        where = location(server, proxy)
        if logger.takes_escapes(sys.stdout) and proxy.config.proxy_type == "tcp":
            url = where if "://" in where else f"http://{where}"
            where = f"\033]8;;{url}\033\\{where}\033]8;;\033\\"
        local = Address(proxy.config.local_host, proxy.config.local_port)
        lines.append(f"  {proxy.name:<{width}}  {where}  ->  {local}")
    logger.show("\n".join([*lines, "", ""]))


def run_client(load: Callable[[], ClientConfig]) -> int:
    """Run until a signal, or until nothing is left to do; returns the exit status.

    `load` gives the configuration now, and again on SIGHUP.
    """
    config = load()
    stopper = Stopper()
    client = Client(config, stopper.stop)
    stopper.on_reload(lambda: client.reload(load()))
    stopper.on_status(client.status)
    client.start()
    stopper.wait(client.answered)
    if not client.failed:
        _log.info("stopping")
    client.stop_taking_users()
    gevent.sleep(0)  # the data connections that waited were closed: let go of them before users are counted
    stopper.wait_or_second(client.users, 0 if client.failed else config.grace_s)
    client.close()
    gevent.sleep(0)  # the greenlets that were just ended close what they hold
    stopper.close()
    return 1 if client.failed else 0
