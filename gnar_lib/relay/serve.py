"""Relays connections: listens on one address and joins each user with a target; parses no addresses."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace

from gnar_lib import logger, net
from gnar_lib.errors import ConnError, DialError, UsageError
from gnar_lib.events import Side
from gnar_lib.lifecycle import Stopper
from gnar_lib.net.target import Target, UnixTarget
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.joiner import Joiner
from gnar_lib.relay.address import Address, Role, parse_address
from gnar_lib.relay.datagrams import DEFAULTS, DatagramRelay, UdpSettings

_log = logger.get("relay")


def _target(address: Address) -> Target | UnixTarget:
    """Return what dials `address`; raises `DialError` if the name is unknown."""
    if address.transport == "unix":
        return UnixTarget(address.path)
    target = Target(address.host, address.port, address.family, address.source)
    target.look_up()
    return target


def _listen(address: Address) -> net.Listener:
    """Return a listener on a Unix path or a TCP port; the caller closes it. Raises `ConnError`."""
    if address.transport == "unix":
        return net.listen_unix(address.path, address.mode, keep_file=address.keep_file)
    host = address.host
    if host and address.family != socket.AF_UNSPEC:
        host = str(net.resolve(host, address.port, family=address.family)[0][1][0])
    return net.listen(host, address.port)


class Relay:
    """A listener, and a greenlet for each of its users; that greenlet closes the user's conn.

    The constructor starts listening and raises `ConnError` when it cannot, or when the target's name is
    unknown. A relay whose address lacks `fork` serves one user and then calls `on_end`.
    """

    def __init__(self, listen: Address, target: Address, on_end: Callable[[], None]) -> None:
        self.users = net.Crew("relay")  # a greenlet for each user
        self.error: ConnError | None = None  # why the only user of a relay without `fork` failed
        self._joiner = Joiner(Side.RELAY, str(listen), Meter())
        self._on_end = on_end
        self._target = _target(target)
        self._refused = logger.Burst()  # warnings about users who were turned away
        self.listener = _listen(listen)
        self.listener.serve(
            self.users, self._serve if listen.fork else self._serve_only_user, is_for_users=True
        )

    def close(self) -> None:
        """Stop listening; users who are connected stay connected."""
        self.listener.close()

    def status(self) -> str:
        """Return the number of users, as `name=value`."""
        return f"users={len(self.users)}"

    def _serve(self, user: net.SocketConn) -> None:
        """Join one user with the target; returns when both are closed.

        When the target cannot be dialled, resets the user, logs a warning and raises `DialError`.
        """
        self._joiner.join(user, user.getpeername(), self._dial)

    def _dial(self) -> net.SocketConn:
        """Return a conn to the target, which the caller closes; raises `DialError` after a warning."""
        try:
            conn = self._target.dial()
        except DialError as exc:
            self._refused.warning(_log, "%s; users are turned away", exc)
            raise
        self._refused.end(_log)
        return conn

    def _serve_only_user(self, user: net.SocketConn) -> None:
        """Serve one user, keep the error in `self.error`, and end the relay."""
        self.close()
        try:
            self._serve(user)
        except ConnError as exc:
            self.error = exc
        finally:
            self._on_end()


def is_loop(listen: Address, target: Address) -> bool:
    """Tell whether a relay from `listen` to `target` would dial itself without end.

    Compares the addresses as they are written: another name of this machine is not recognised.
    """
    if listen.transport != target.transport:
        return False
    if listen.path:
        return os.path.realpath(listen.path) == os.path.realpath(target.path)
    if listen.port != target.port:
        return False
    if listen.host == "0.0.0.0":
        return target.host == "localhost" or target.host.startswith("127.")
    return target.host == listen.host or (
        listen.host in ("", "::") and (target.host in ("localhost", "::1") or target.host.startswith("127."))
    )


def run_relay(listen: str, target: str, grace_s: float, udp: UdpSettings = DEFAULTS) -> int:
    """Relay until a signal comes, or until the only user of an address without `fork` has gone; returns 0.

    Users who are connected when the signal comes have `grace_s` seconds to finish. `udp` is for a relay of
    datagrams. Raises `UsageError` for
    an address that gnar does not understand, and `ConnError` when `listen` cannot be listened on, when the
    name of `target` is unknown, or when the connection of the only user failed.
    """
    listen_address = parse_address(listen, Role.LISTEN)
    target_address = parse_address(target, Role.TARGET)
    if listen_address.is_datagram != target_address.is_datagram:
        raise UsageError(f"{listen} and {target}: one is for connections, the other for datagrams")
    if udp != DEFAULTS and not listen_address.is_datagram:
        raise UsageError("--udp-timeout and --udp-any-source are for relays of datagrams (udp:)")
    if is_loop(listen_address, target_address):
        raise UsageError(f"{listen} to {target} would be a relay to itself")
    stopper = Stopper()  # made first: a signal must not end the process before it removes its socket file
    try:
        relay = stopper.call_until_stopped(lambda: _open(listen_address, target_address, udp, stopper.stop))
        if relay is None:
            return 0
        stopper.on_status(relay.status)
        _log.info("relaying %s to %s", _listening_on(listen_address, relay.listener), target_address)
        stopper.wait()
        error = relay.error
        relay.close()
        stopper.drain(relay.users, grace_s)
    finally:
        stopper.close()
    if error is not None:
        raise error
    return 0


def _open(
    listen: Address, target: Address, udp: UdpSettings, on_end: Callable[[], None]
) -> Relay | DatagramRelay:
    """Look the target up and listen; the caller closes the relay. Raises `ConnError`."""
    return DatagramRelay(listen, target, udp) if listen.is_datagram else Relay(listen, target, on_end)


def _listening_on(address: Address, listener: net.Listener | net.DatagramSocket) -> str:
    """Return the address of a listener as text, with the port that the system chose."""
    return str(replace(address, port=listener.port) if not address.path else address)
