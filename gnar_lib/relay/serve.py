"""Relays connections: listens on one address and joins each user with a target; parses no addresses."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gnar_lib import logger, net
from gnar_lib.config import AdminConfig
from gnar_lib.config.model import NO_ADMIN
from gnar_lib.errors import ConnError, DialError, UsageError
from gnar_lib.events import Side
from gnar_lib.lifecycle import Stopper
from gnar_lib.net.datagram import pack_address
from gnar_lib.net.target import Target, UnixTarget
from gnar_lib.pio.meter import Meter
from gnar_lib.proxy.joiner import Joiner
from gnar_lib.proxy.one_way import Muted
from gnar_lib.relay.address import Address, Role, parse_address
from gnar_lib.relay.attempts import open_in_the_end
from gnar_lib.relay.datagrams import DEFAULTS, DatagramRelay, UdpSettings
from gnar_lib.relay.proxy_options import masked
from gnar_lib.relay.socat import NO_OPTIONS, SocatOptions

if TYPE_CHECKING:
    from gnar_lib.admin.port import AdminPort
    from gnar_lib.relay.proxied import ProxyTarget
    from gnar_lib.relay.secure import Dials, TlsTarget, UserTls

HALF_CLOSED_WAIT_S = 10.0  # for a target, by users who send no more

_log = logger.get("relay")


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """What gnar's own options say of a relay."""

    grace_s: float  # for which connected users may finish when the relay stops
    udp: UdpSettings = DEFAULTS  # for a relay of datagrams
    admin: AdminConfig = NO_ADMIN


def _target(address: Address) -> Target | UnixTarget | ProxyTarget:
    """Return what dials `address`.

    Raises `DialError` if the name is unknown and is not to be tried again, and `UsageError` for a file that
    cannot be used.
    """
    if address.transport == "unix":
        return UnixTarget(address.path, address.how_to_dial)
    target: Target | ProxyTarget
    if address.through is None:
        target = Target(address.host, address.port, address.family, address.how_to_dial)
    else:
        from gnar_lib.relay.proxied import ProxyTarget

        target = ProxyTarget(address, address.through)
    try:
        target.look_up()
    except DialError as exc:
        if not address.retry.times:
            raise
        _log.warning("%s; looked up again when users come", exc)
    return target


def _target_tls(target: Target | UnixTarget | ProxyTarget, address: Address) -> TlsTarget | None:
    """Return what shakes hands with a target that is at `address`; None if it is dialled without TLS.

    Raises `UsageError` for files that cannot be used.
    """
    if address.tls is None:
        return None
    with _expecting_tls():
        from gnar_lib.relay.secure import TlsTarget  # loads OpenSSL
    return TlsTarget(target, address.tls)


def _user_tls(address: Address) -> UserTls | None:
    """Return what shakes hands with users who come to `address`; None if they come without TLS.

    Raises `UsageError` for files that cannot be used.
    """
    if address.tls is None:
        return None
    with _expecting_tls():
        from gnar_lib.relay.secure import UserTls  # loads OpenSSL
    return UserTls(address.tls, str(address))


@contextmanager
def _expecting_tls() -> Iterator[None]:
    """Raise `UsageError` where Python lacks what the block imports."""
    try:
        yield
    except ImportError:
        raise UsageError("this Python has no TLS; use another one") from None


def _listen(address: Address) -> net.Listener:
    """Return a listener on a Unix path or a TCP port; the caller closes it. Raises `ConnError`."""
    if address.transport == "unix":
        return net.listen_unix(address.path, address.file, address.options)
    host = address.host
    if host and address.family != socket.AF_UNSPEC:
        host = str(net.resolve(host, address.port, family=address.family)[0][1][0])
    return net.listen(host, address.port, address.options)


class Relay:
    """A listener, and a greenlet for each of its users; that greenlet closes the user's conn.

    The constructor starts listening and raises `ConnError` when it cannot, or when the target's name is
    unknown, and `UsageError` when files of TLS cannot be used. A relay whose address lacks `fork` serves one
    user and then calls `on_end`.
    """

    kind = "tcp"

    def __init__(
        self, listen: Address, target: Address, on_end: Callable[[], None], socat: SocatOptions = NO_OPTIONS
    ) -> None:
        self.users = net.Crew("relay")  # a greenlet for each user
        self.error: ConnError | None = None  # why the only user of a relay without `fork` failed
        self.name = str(listen)
        self.meter = Meter()
        self._joiner = Joiner(Side.RELAY, self.name, self.meter, socat.idle_timeout_s)
        self._silent = socat.silent  # the side to which nothing is written
        self._on_end = on_end
        self._tls = _user_tls(listen)
        plain = _target(target)
        self._target_tls = _target_tls(plain, target)
        self._target: Dials = self._target_tls or plain
        self._retry = target.retry
        self._allowed = listen.allowed
        self._most_users = listen.most_users
        self._refused = logger.Burst()  # warnings about users whom the target does not take
        self._turned_away = logger.Burst()  # warnings about users who may not come
        self._is_closed = False
        self.listener = open_in_the_end(lambda: _listen(listen), listen.retry)
        self._handle = self._admit if listen.fork else self._admit_only_user
        self._accept()
        if self._tls is not None and listen.account is None:  # else the files may soon be unreadable
            self._tls.tend()

    def close(self) -> None:
        """Stop listening; users who are connected stay connected."""
        self._is_closed = True
        self.listener.close()
        if self._tls is not None:
            self._tls.close()

    def status(self) -> str:
        """Return the number of users, as `name=value`."""
        return f"users={len(self.users)}"

    # ---- who comes in --------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept users from now on."""
        self.listener.serve(self.users, self._handle, is_for_users=True)

    def _admit(self, user: net.SocketConn) -> None:
        """Serve a user who may come; when that makes as many as there may be, others wait in the backlog."""
        if len(self.users) >= self._most_users:
            self.listener.pause()
        try:
            if self._may_come(user):
                self._serve(user)
        finally:
            if self._most_users < math.inf and not self._is_closed:
                self._accept()

    def _admit_only_user(self, user: net.SocketConn) -> None:
        """Serve the first user who may come, keep the error in `self.error`, and end the relay."""
        if not self._may_come(user):
            return
        self.close()
        try:
            self._serve(user)
        except ConnError as exc:
            self.error = exc
        finally:
            self._on_end()

    def _may_come(self, user: net.SocketConn) -> bool:
        """Tell whether a user comes from an address that is allowed; closes the conn of any other."""
        if self._allowed is None or self._allowed.has(pack_address(user.getpeername())):
            return True
        self._turned_away.warning(_log, "%s is outside the range and turned away", user)
        user.close()
        return False

    # ---- serving -------------------------------------------------------------------------------------------

    def _serve(self, user: net.SocketConn) -> None:
        """Join one user with the target; returns when both are closed.

        When the target cannot be dialled, resets the user, logs a warning and raises `DialError`.
        """
        conn = user if self._tls is None else self._shake_hands(self._tls, user)
        heard = Muted(conn) if self._silent is Role.LISTEN else conn
        if self._target_tls is None:
            self._joiner.join(heard, user.getpeername(), lambda: self._dial(conn))
        else:
            self._join_by_tls(heard, conn, self._target_tls)

    def _join_by_tls(self, heard: net.Conn, user: net.Conn, target: TlsTarget) -> None:
        dialled: list[net.Conn] = []

        def dial() -> net.Conn:
            dialled.append(self._dial(user))
            return dialled[0]

        try:
            self._joiner.join(heard, user.getpeername(), dial)
        except ConnError:
            if dialled:
                target.tell_broken(dialled[0])
            raise

    @staticmethod
    def _shake_hands(tls: UserTls, user: net.SocketConn) -> net.Conn:
        try:
            return tls.accept(user)
        except BaseException:
            user.close()
            raise

    def _dial(self, user: net.Conn) -> net.Conn:
        """Return a conn to the target, which the caller closes; raises `DialError` after a warning.

        Failed attempts are repeated as often as the target's address says, but not for a user who has left.
        """
        left, began_s = self._retry.times, time.monotonic()
        while True:
            try:
                conn = self._target.dial()
            except DialError as exc:
                # A user who sends no more may be one who wants the answer, and is waited for a bit longer.
                waited_s = time.monotonic() - began_s
                if left <= 0 or (waited_s > HALF_CLOSED_WAIT_S and user.has_hung_up):
                    self._refused.warning(_log, "%s; users are turned away", exc)
                    raise
                self._refused.warning(_log, "%s; tried again every %g s", exc, self._retry.interval_s)
            else:
                self._refused.end(_log)
                return Muted(conn) if self._silent is Role.TARGET else conn
            left -= 1
            net.give_way(self._retry.interval_s)


def is_loop(listen: Address, target: Address) -> bool:
    """Tell whether a relay from `listen` to `target` would dial itself without end.

    Compares the addresses as they are written: another name of this machine is not recognised.
    """
    if _carrier(listen) != _carrier(target) or target.through is not None:
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


def _carrier(address: Address) -> str:
    """Return what carries the bytes to an address, with or without TLS."""
    return "tcp" if address.tls is not None else address.transport


def run_relay(
    listen: str,
    target: str,
    settings: RelaySettings,
    socat: SocatOptions = NO_OPTIONS,
) -> int:
    """Relay until a signal comes, or until the only user of an address without `fork` has gone; returns 0.

    `socat` are options in socat's spelling. Raises `UsageError` for an address that gnar does not understand,
    or whose files cannot be used, and `ConnError` when `listen` cannot be listened on, when the name of
    `target` is unknown, or when the connection of the only user failed.
    """
    udp = settings.udp
    listen_address = parse_address(listen, Role.LISTEN, socat.family)
    target_address = parse_address(target, Role.TARGET, socat.family)
    if listen_address.is_datagram != target_address.is_datagram:
        raise UsageError(f"{listen} and {masked(target)}: one is for connections, the other for datagrams")
    if udp != DEFAULTS and not listen_address.is_datagram:
        raise UsageError("--udp-timeout and --udp-any-source are for relays of datagrams (udp:)")
    if listen_address.is_datagram and socat.silent is Role.TARGET:
        raise UsageError("-U: users of a relay of datagrams have to speak first")
    if is_loop(listen_address, target_address):
        raise UsageError(f"{listen} to {target} would be a relay to itself")
    if socat.ignored:
        _log.warning("%s has no effect: gnar logs to standard error", " and ".join(socat.ignored))
    port: AdminPort | None = None
    stopper = Stopper()  # made first: a signal must not end the process before it removes its socket file
    try:
        relay = stopper.call_until_stopped(
            lambda: _open(listen_address, target_address, udp, socat, stopper.stop)
        )
        if relay is None:
            return 0
        stopper.on_status(relay.status)
        port = _open_admin(settings.admin, relay) if settings.admin.port else None
        where = _listening_on(listen_address, relay.listener)
        _log.info("relaying %s to %s%s", where, target_address, _on_the_way(target_address))
        stopper.wait()
        error = relay.error
        relay.close()
        stopper.drain(relay.users, settings.grace_s)
    finally:
        if port is not None:
            port.close()
        stopper.close()
    if error is not None:
        raise error
    return 0


def _open_admin(config: AdminConfig, relay: Relay | DatagramRelay) -> AdminPort | None:
    """Return the admin port of a relay, which the caller closes. Raises `ListenError`."""
    from gnar_lib.admin.watched import open_port  # loads what nothing else needs
    from gnar_lib.metrics import OpenProxy, State

    def state() -> State:
        return State(relay.meter, [OpenProxy(relay.name, relay.kind, relay.meter)])

    return open_port(Side.RELAY, lambda: config, state, lambda: True)


def _open(
    listen: Address, target: Address, udp: UdpSettings, socat: SocatOptions, on_end: Callable[[], None]
) -> Relay | DatagramRelay:
    """Look the target up, listen, and give up the rights that are needed no more; the caller closes it.

    Raises `ConnError`, and `UsageError` when the rights cannot be given up.
    """
    relay: Relay | DatagramRelay
    if listen.is_datagram:
        relay = DatagramRelay(listen, target, udp, socat)
    else:
        relay = Relay(listen, target, on_end, socat)
    try:
        if listen.account is not None:
            listen.account.become()
    except UsageError:
        relay.close()
        raise
    return relay


def _on_the_way(target: Address) -> str:
    """Return words for the proxy on the way to a target; empty if there is none."""
    return f" through {target.through.server}" if target.through is not None else ""


def _listening_on(address: Address, listener: net.Listener | net.DatagramSocket) -> str:
    """Return the address of a listener as text, with the port that the system chose."""
    return str(replace(address, port=listener.port) if not address.path else address)
