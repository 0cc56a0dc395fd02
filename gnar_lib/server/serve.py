"""The server as a whole: starts its rooms, watches over deadlines, reloads, drains and stops."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace

import gevent

from gnar_lib import logger, memory
from gnar_lib.auth import Rights
from gnar_lib.config import ServerConfig, changed_keys
from gnar_lib.events import Reloaded, Side, Stopping, emit
from gnar_lib.lifecycle import Stopper
from gnar_lib.net import options
from gnar_lib.server.ingress.control import ControlIngress
from gnar_lib.server.places import UserLimits
from gnar_lib.server.shared import Shared
from gnar_lib.yamux.holdings import holdings

EXPIRE_EVERY_S = 1.0

_log = logger.get("server")


class Server:
    """The public end of gnar; `start` opens it, `close` ends it."""

    def __init__(self, config: ServerConfig) -> None:
        self.shared = Shared(config)  # what all parts of this server have in common
        self.control_ingress = ControlIngress(self.shared)  # the control port, with the clients

    def start(self) -> int:
        """Listen on the control port, and return it; raises `ListenError`."""
        port = self.control_ingress.start()
        self.shared.crew.spawn(self._expire)
        return port

    def _expire(self) -> None:
        """Once a second: close who waits too long for a data connection, or takes too long to log in."""
        while True:
            gevent.sleep(EXPIRE_EVERY_S)
            self.shared.conn_map.expire()
            self.control_ingress.in_progress.expire()

    def reload(self, config: ServerConfig) -> None:
        """Take new settings over, for logins and proxies to come; proxies that are open stay as they are."""
        before = self.shared.config
        _apply(config)
        self.shared.config = replace(config, port=before.port, bind=before.bind, udp_bind=before.udp_bind)
        self.shared.places.limits = UserLimits(config.max_users, config.max_users_per_address)
        for control in self.control_ingress.clients:
            control.rights = Rights.of(config)
        emit(Reloaded, Side.SERVER, 0, unchanged=changed_keys(self.shared.config, config))

    def stop_listening(self) -> None:
        """Take no more clients, proxies and users; those that are there go on."""
        self.shared.stopping = True
        self.control_ingress.stop_listening()
        for control in self.control_ingress.clients:
            control.stop_listening()

    def close(self) -> None:
        """End everything at once."""
        self.control_ingress.stop_listening()
        self.shared.users.kill()
        for control in [*self.control_ingress.clients]:
            control.end()
        self.shared.crew.kill()

    def status(self) -> str:
        """Return what there is at the moment, in one line."""
        shared, clients = self.shared, self.control_ingress.clients
        logins = len(self.control_ingress.in_progress)
        waiting = sum(control.upstream.waiting for control in clients)
        totals = shared.meter.totals()
        return (
            f"clients={len(clients)} proxies={len(shared.ports)} users={len(shared.users)} "
            f"users_total={totals.users_total} bytes_up={totals.up} bytes_down={totals.down} "
            f"udp_users={sum(control.udp_users for control in clients)} udp_dropped={totals.dropped} "
            f"waiting={waiting} conn_map={len(shared.conn_map)} logins={logins}"
        )


def _apply(config: ServerConfig) -> None:
    """Apply the settings that hold for the whole process."""
    options.set_dead_after(config.dead_after_s)
    options.set_half_close_timeout(config.half_close_timeout_s)
    holdings.set_limit(memory.for_peers(config.max_memory or memory.default_limit()))


def is_loopback(bind: str) -> bool:
    """Tell whether an address to listen on can be reached from this machine alone."""
    try:
        return bind == "localhost" or ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False


def run_server(load: Callable[[], ServerConfig], *, has_file: bool = False) -> int:
    """Run until a signal comes; returns the exit status.

    `load` gives the configuration now, and again on SIGHUP, from a file if `has_file`.
    """
    config = load()
    _apply(config)
    server = Server(config)
    stopper = Stopper()  # before anybody can hear that the server listens, and send a signal
    stopper.on_reload(lambda: server.reload(load()), has_file=has_file)
    stopper.on_status(server.status)
    try:
        port = stopper.call_until_stopped(server.start)
        if port is None:
            server.close()
            return 0
        _log.info("listening on port %d%s", port, f" of {config.bind}" if config.bind else "")
        if not config.token and not is_loopback(config.bind):
            _log.warning("no token: whoever reaches port %d may open ports here; set GNAR_TOKEN", port)
        stopper.wait()
        emit(Stopping, Side.SERVER)
        server.stop_listening()
        gevent.sleep(0)  # users who waited for a data connection leave before users are counted
        stopper.drain(server.shared.users, server.shared.config.grace_s)
        server.close()
        gevent.sleep(0)  # the greenlets that were just ended close what they hold
    finally:
        stopper.close()
    return 0
