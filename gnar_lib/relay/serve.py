"""Relays connections: listens on one address and joins each user with a target; parses no addresses."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from gnar_lib import logger, net
from gnar_lib.errors import ConnError, DialError, UsageError
from gnar_lib.lifecycle import Stopper
from gnar_lib.proxy.stream import stream
from gnar_lib.relay.address import Address, Role, parse_address
from gnar_lib.relay.datagrams import DatagramRelay

LOOKUP_PAUSE_S = 1.0  # least time between two look-ups of a target's name, however many users come

_ANY, _V4, _V6 = int(socket.AF_UNSPEC), int(socket.AF_INET), int(socket.AF_INET6)

_log = logger.get("relay")


class _Target:
    """Where users are joined to: the addresses of a name, the one that answered last first."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._known = self._look_up()
        self._next_lookup_s = time.monotonic() + LOOKUP_PAUSE_S

    def dial(self) -> net.SocketConn:
        """Connect to the first address that answers; a name whose addresses all fail is looked up again.

        Raises `DialError`.
        """
        try:
            return self._dial_known()
        except DialError:
            if not self._look_up_again():
                raise
        return self._dial_known()

    def _dial_known(self) -> net.SocketConn:
        known = self._known  # another user's greenlet may replace it

        def dial(family: int, address: net.Sockaddr) -> net.SocketConn:
            conn = net.dial(family, address, source=self._address.source)
            if address != known[0][1]:
                self._known = [(family, address), *(each for each in known if each[1] != address)]
            return conn

        return net.first_that_opens(known, dial, self._address)

    def _look_up_again(self) -> bool:
        """Tell whether there are other addresses than before."""
        now = time.monotonic()
        if now < self._next_lookup_s:
            return False
        self._next_lookup_s = now + LOOKUP_PAUSE_S
        try:
            found = self._look_up()
        except DialError:
            return False
        changed = sorted(map(str, found)) != sorted(map(str, self._known))
        self._known = found
        return changed

    def _look_up(self) -> list[tuple[int, net.Sockaddr]]:
        if self._address.transport == "unix":
            return [(net.unix_family(), self._address.path)]
        found = net.resolve(self._address.host, self._address.port)
        return _of_family(found, self._address)


def _of_family(found: list[tuple[int, net.Sockaddr]], address: Address) -> list[tuple[int, net.Sockaddr]]:
    """Return the found addresses whose family the keyword and `bind=` of `address` allow.

    Raises `DialError` when there are none.
    """
    family = address.family
    if address.source:
        family = _V6 if ":" in address.source else _V4
    fitting = [each for each in found if family in (_ANY, each[0])]
    if not fitting:
        raise DialError(f"{address.host} has no {'IPv4' if family == _V4 else 'IPv6'} address")
    return fitting


def _listen(address: Address) -> net.Listener:
    """Return a listener on a Unix path or a TCP port; the caller closes it. Raises `ConnError`."""
    if address.transport == "unix":
        return net.listen_unix(address.path, address.mode, keep_file=address.keep_file)
    host = address.host
    if host and address.family != _ANY:
        host = str(_of_family(net.resolve(host, address.port), address)[0][1][0])
    return net.listen(host, address.port)


class Relay:
    """A listener, and a greenlet for each of its users; that greenlet closes the user's conn.

    The constructor starts listening and raises `ConnError` when it cannot, or when the target's name is
    unknown. A relay whose address lacks `fork` serves one user and then calls `on_end`.
    """

    def __init__(self, listen: Address, target: Address, on_end: Callable[[], None]) -> None:
        self.users = net.Crew("relay")  # a greenlet for each user
        self.error: ConnError | None = None  # why the only user of a relay without `fork` failed
        self._on_end = on_end
        self._target = _Target(target)
        self._refused = logger.Burst()  # warnings about users who were turned away
        self.listener = _listen(listen)
        self.listener.serve(self.users, self._serve if listen.fork else self._serve_only_user)

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
        try:
            target = self._target.dial()
        except DialError as exc:
            user.abort()  # a reset, since the user could take an orderly close for an empty answer
            self._refused.warning(_log, "%s; users are turned away", exc)
            raise
        except BaseException:
            user.abort()
            raise
        self._refused.end(_log)
        stream(user, target)

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


def run_relay(listen: str, target: str, grace_s: float) -> int:
    """Relay until a signal comes, or until the only user of an address without `fork` has gone; returns 0.

    Users who are connected when the signal comes have `grace_s` seconds to finish. Raises `UsageError` for
    an address that gnar does not understand, and `ConnError` when `listen` cannot be listened on, when the
    name of `target` is unknown, or when the connection of the only user failed.
    """
    listen_address = parse_address(listen, Role.LISTEN)
    target_address = parse_address(target, Role.TARGET)
    if listen_address.is_datagram != target_address.is_datagram:
        raise UsageError(f"{listen} and {target}: one is for connections, the other for datagrams")
    if is_loop(listen_address, target_address):
        raise UsageError(f"{listen} to {target} would be a relay to itself")
    stopper = Stopper()  # made first: a signal must not end the process before it removes its socket file
    try:
        relay = stopper.call_until_stopped(lambda: _open(listen_address, target_address, stopper.stop))
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


def _open(listen: Address, target: Address, on_end: Callable[[], None]) -> Relay | DatagramRelay:
    """Look the target up and listen; the caller closes the relay. Raises `ConnError`."""
    return DatagramRelay(listen, target) if listen.is_datagram else Relay(listen, target, on_end)


def _listening_on(address: Address, listener: net.Listener | net.DatagramSocket) -> str:
    """Return the address of a listener as text, with the port that the system chose."""
    return str(replace(address, port=listener.port) if not address.path else address)
