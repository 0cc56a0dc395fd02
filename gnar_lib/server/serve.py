"""The server as a whole: starts its rooms, watches over deadlines, reloads, drains and stops."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import gevent

from gnar_lib import logger, memory
from gnar_lib.auth import Rights
from gnar_lib.config import ServerConfig, after_reload, changed_keys
from gnar_lib.config.values import is_loopback
from gnar_lib.errors import ListenError, UsageError
from gnar_lib.events import Reloaded, Side, Stopping, emit
from gnar_lib.hooks import Hooks
from gnar_lib.lifecycle import Stopper
from gnar_lib.net import Listener, listen, options
from gnar_lib.net.given import GivenSocket, given_sockets
from gnar_lib.server import certificates
from gnar_lib.server.given import control_socket
from gnar_lib.server.handover import Offer, Predecessor, take_over
from gnar_lib.server.ingress.control import ControlIngress
from gnar_lib.server.ingress.noweb import NoWeb
from gnar_lib.server.names.check import has_names
from gnar_lib.server.places import UserLimits
from gnar_lib.server.shared import Shared
from gnar_lib.yamux.holdings import holdings
from gnar_lib.yamux.parting import parting

if TYPE_CHECKING:
    from gnar_lib.server.admin.serve import Admin
    from gnar_lib.server.caddy import Caddy
    from gnar_lib.server.ingress.web import WebIngress

EXPIRE_EVERY_S = 1.0
READ_CERTIFICATES_EVERY = 5  # of these
LEAVE_S = 10.0  # for clients to connect to the process that has taken over
LOOK_EVERY_S = 0.05
ADMIN_WAIT_S = 5.0  # for the process that was replaced to close its admin port

# Settings that a reload leaves as they are.
_UNTIL_RESTART = (
    *("port", "bind", "udp_bind", "state_dir", "domain"),
    *("http_port", "http_bind", "https_port", "tls_cert", "tls_key"),
    *("caddy_api", "caddy_srv_name", "caddy_remove"),
)

_log = logger.get("server")


class Server:
    """The public end of gnar; `start` opens it, `close` ends it."""

    def __init__(self, config: ServerConfig) -> None:
        self.shared = Shared(config)  # what all parts of this server have in common
        self.web = _web_of(self.shared)  # the ports at which users reach names
        self.control_ingress = ControlIngress(self.shared, self.web)  # the control port, with the clients
        self._caddy: Caddy | None = None  # the Caddy in front, if gnar looks after its route
        self.is_given = False  # `start_given` was called
        self._admin: Admin | None = None  # while there is an admin port

    def start(self, predecessor: Predecessor | None = None) -> int:
        """Listen on the control port, or take it over from `predecessor`, and return it.

        Raises `ListenError`, or what `take_over` raises.
        """
        if predecessor is None:
            return self._serve(listen(self.shared.config.bind, self.shared.config.port))
        port = take_over(predecessor, self.control_ingress, self.web, self.shared)
        self._run()
        return port

    def _serve(self, listener: Listener) -> int:
        """Have clients come to `listener`, open all else, and return the port; raises `ListenError`."""
        self.shared.control_port = listener.port
        try:
            self.web.start()
        except BaseException:
            listener.close()
            raise
        self.control_ingress.serve(listener)
        self._run()
        return listener.port

    def _run(self) -> None:
        """Start what runs besides."""
        self.shared.crew.spawn(self._expire)
        config = self.shared.config
        if config.caddy_api and config.http_port:
            from gnar_lib.server.caddy import Caddy  # loads what nothing else needs

            self._caddy = Caddy(
                config.caddy_api,
                config.caddy_srv_name,
                domain=config.domain,
                allow_hosts=config.allow_hosts,
                web_address=(config.http_bind, config.http_port),
                removes=config.caddy_remove,
            )
            self.shared.crew.spawn(self._caddy.run)

    def start_given(self, given: list[GivenSocket]) -> int:
        """Start with sockets of a service manager, and return the control port.

        Raises `UsageError` if they do not fit, or `ListenError`.
        """
        self.is_given = True
        control = control_socket(given, self.shared.config.port)
        for each in given:
            if each is not control:
                self.shared.ports.given.add(each)
        if control is None:
            return self.start()
        return self._serve(Listener(control.sock))

    def start_admin(self, wait_s: float = 0.0) -> None:
        """Open the admin port if there is to be one; a port that is taken is tried again for `wait_s`.

        Raises `ListenError`.
        """
        if self.shared.config.admin.port:
            from gnar_lib.server.admin.serve import Admin  # loads what nothing else needs

            admin = Admin(self.shared, self.control_ingress)
            admin.start(wait_s)
            self._admin = admin

    def close_admin(self) -> None:
        """Close the admin port, if there is one."""
        if self._admin is not None:
            self._admin.close()

    def _expire(self) -> None:
        """Once a second: close who waits too long for a data connection, to log in, or for a client."""
        for second in itertools.count(1):
            gevent.sleep(EXPIRE_EVERY_S)
            if self.shared.certificates is not None and second % READ_CERTIFICATES_EVERY == 0:
                self.shared.certificates.tend()
            self.shared.conn_map.expire()
            self.control_ingress.in_progress.expire()
            self.control_ingress.kept.tend()
            self.shared.ports.tend()
            self.shared.names.tend()

    def wait_clients(self, timeout_s: float) -> None:
        """Wait until all clients have gone to the process that has taken over; then end those that have not.

        Ends after `timeout_s`.
        """
        until_s = time.monotonic() + timeout_s
        while self.control_ingress.clients and time.monotonic() < until_s:
            gevent.sleep(LOOK_EVERY_S)
        for control in [*self.control_ingress.clients]:
            control.end()

    def reload(self, config: ServerConfig) -> None:
        """Take new settings over, for logins and proxies to come; proxies that are open stay as they are.

        Raises `ConfigError`, and changes nothing, if they cannot be.
        """
        before = self.shared.config
        admin = after_reload(before.admin, config.admin)
        self.web.use(config)
        _apply(config)
        self.shared.config = replace(
            config,
            admin=admin,
            **{key: getattr(before, key) for key in _UNTIL_RESTART},
        )
        self.shared.places.limits = UserLimits(config.max_users, config.max_users_per_address)
        self.shared.balancers.use(config.accept_proxy_protocol)
        for control in self.control_ingress.clients:
            control.rights = Rights.of(config)
        emit(Reloaded, Side.SERVER, 0, unchanged=changed_keys(self.shared.config, config))

    @property
    def grace_s(self) -> float | None:
        """How long users may finish when the server stops; no limit once another process has taken over."""
        return None if self.control_ingress.is_left else self.shared.config.grace_s

    def stop_listening(self) -> None:
        """Take no more clients, proxies and users; those that are there go on."""
        self.shared.stopping = True
        if self._caddy is not None:
            self._caddy.remove()
        self.web.stop_listening()
        self.control_ingress.stop_listening()
        self.shared.ports.given.close()
        for control in self.control_ingress.clients:
            control.stop_listening()

    def close(self) -> None:
        """End everything at once."""
        self.web.close()
        self.shared.ports.given.close()
        self.shared.users.kill()
        self.control_ingress.close()
        self.close_admin()
        self.shared.crew.kill()

    def status(self) -> str:
        """Return what there is at the moment, in one line."""
        shared, clients = self.shared, self.control_ingress.clients
        logins = len(self.control_ingress.in_progress)
        waiting = sum(control.upstream.waiting for control in clients)
        totals = shared.meter.totals()
        return (
            f"clients={len(clients)} proxies={shared.proxies} users={len(shared.users)} "
            f"users_total={totals.users_total} bytes_up={totals.up} bytes_down={totals.down} "
            f"udp_users={sum(control.udp_users for control in clients)} udp_dropped={totals.dropped} "
            f"waiting={waiting} conn_map={len(shared.conn_map)} logins={logins}"
        )


def _web_of(shared: Shared) -> WebIngress | NoWeb:
    """Return the users of names of a server, which has yet to start their ports; raises `UsageError`."""
    if not has_names(shared.config):
        return NoWeb()
    from gnar_lib.server.ingress.web import WebIngress  # loads what nothing else needs

    return WebIngress(shared)


def _apply(config: ServerConfig) -> None:
    """Apply the settings that hold for the whole process."""
    options.set_dead_after(config.dead_after_s)
    options.set_half_close_timeout(config.half_close_timeout_s)
    holdings.set_limit(memory.for_peers(config.max_memory or memory.default_limit()))


def _start(server: Server, config: ServerConfig, *, replaces: bool) -> int:
    """Start the server: with the sockets of a service manager, or in place of the one that runs.

    Raises `GnarError`.
    """
    if not replaces:
        server.start_admin()
    if given := given_sockets():
        if replaces:
            raise UsageError("--replace: a server with sockets of systemd is restarted by systemctl restart")
        return server.start_given(given)
    if not replaces:
        return server.start()
    predecessor = Predecessor.find(config)
    try:
        port = server.start(predecessor)
    finally:
        predecessor.close()
    try:
        server.start_admin(ADMIN_WAIT_S)
    except ListenError as exc:  # the ports are this process's already, and users matter more
        _log.error("no admin port: %s", exc)
    return port


def run_server(load: Callable[[], ServerConfig], *, has_file: bool = False, replaces: bool = False) -> int:
    """Run until a signal comes, or until another process takes over; returns the exit status.

    `load` gives the configuration now, and again on SIGHUP, from a file if `has_file`. `replaces`: take over
    from the server that runs.
    """
    config = load()
    _apply(config)
    server, hooks = Server(config), Hooks(Side.SERVER)
    stopper = Stopper()  # before anybody can hear that the server listens, and send a signal

    def reload() -> None:
        config = load()
        after_reload(server.shared.config.admin, config.admin)  # raises an error before a change
        hooks.use(config.hooks)
        server.reload(config)

    stopper.on_reload(reload, has_file=has_file)
    stopper.on_status(server.status)
    try:
        hooks.use(config.hooks)
        port = stopper.call_until_stopped(lambda: _start(server, config, replaces=replaces))
        if port is None:
            server.close()
            return 0
        offer = Offer(server.control_ingress, server.web, server.shared, stopper.stop)
        if not (stopper.is_watched_over or server.is_given):  # a service manager starts the next process
            offer.open()
        _log.info("listening on port %d%s", port, f" of {config.bind}" if config.bind else "")
        if (found := server.shared.certificates) is not None:
            certificates.tell(config, found)
        if not config.token and not is_loopback(config.bind):
            _log.warning("no token: whoever reaches port %d may open ports here; set GNAR_TOKEN", port)
        stopper.wait()
        if server.control_ingress.is_left:
            hooks.finish()  # the process that has taken over tells what happens from now on
        emit(Stopping, Side.SERVER)
        offer.close()
        if server.control_ingress.is_left:
            server.close_admin()  # the process that has taken over waits for the port
            server.wait_clients(LEAVE_S)
        else:
            server.stop_listening()
        gevent.sleep(0)  # users who waited for a data connection leave before users are counted
        stopper.drain(server.shared.users, server.grace_s)
        hooks.finish()  # it is no news that all clients go with the server
        server.close()
        gevent.sleep(0)  # the greenlets that were just ended close what they hold
        stopper.drain_rest(parting)
        stopper.drain_rest(hooks.crew)
    finally:
        hooks.close()
        stopper.close()
    return 0
