"""`gnar server --check`: tries what a start needs, and says what is right and what is wrong."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from contextlib import suppress
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import gnar_lib
from gnar_lib import health, memory
from gnar_lib.checklist import Budget, Checklist, tell_descriptors, try_admin, try_hooks
from gnar_lib.config import ServerConfig
from gnar_lib.config.values import is_loopback
from gnar_lib.errors import ConnError, GnarError, PortTakenError
from gnar_lib.net import bind_udp, deadline, format_address, give_way, listen, resolve
from gnar_lib.net.datagram import BUFFER_BYTES
from gnar_lib.net.endpoint import is_denied
from gnar_lib.server.check_names import NamesCheck
from gnar_lib.server.check_tls import TlsCheck
from gnar_lib.server.names.check import serves_at_control_port

TOTAL_S = 15.0  # for everything
NAME_S = 5.0  # for each name
HEALTH_S = 3.0
MOST_PORTS = 4096  # of allow-ports, that are tried
MOST_SHOWN = 5  # ports that are not free
FIRST_FREE_PORT = 1024  # those below need rights, on most systems
TIME_ERROR = 5  # what adjtimex(2) returns while nothing keeps the clock right
TIMEX_BYTES = 512  # more than `struct timex` has; all zero, it only asks
_NEEDS_RIGHTS = "needs rights that this user lacks: choose one from 1024 on, or let systemd grant it"


class ServerCheck:
    """One check. `source` is the path of the configuration file, or empty."""

    def __init__(self, config: ServerConfig, source: str, checklist: Checklist) -> None:
        self._config = config
        self._source = source
        self._list = checklist
        self._budget = Budget(TOTAL_S)
        self._is_running = False  # a gnar server answers at the control port

    def run(self) -> None:
        """Check everything."""
        self._tell_settings()
        self._tell_token()
        host = self._try_bind()
        if host is not None:
            self._try_control_port(host)
            self._try_ports(host)
        self._try_udp()
        TlsCheck(self._config, self._list).run()
        NamesCheck(self._config, self._list, self._budget, is_running=self._is_running).run()
        try_admin(self._list, self._config.admin, self._budget.of(HEALTH_S))
        try_hooks(self._list, self._config.hooks, self._budget.of(NAME_S))
        self._tell_state_dir()
        self._tell_limits()
        self._tell_clock()
        self._tell_files()

    # ---- settings ------------------------------------------------------------------------------------------

    def _tell_settings(self) -> None:
        where = f"{self._source}, variables and flags" if self._source else "variables and flags"
        self._list.ok("settings", f"read from {where}")

    def _tell_token(self) -> None:
        config = self._config
        if config.token:
            kinds = "hmac alone" if config.auth == "hmac" else "hmac, and md5 of Go clients"
            self._list.ok("token", f"set; logins by {kinds}")
        elif is_loopback(config.bind):
            self._list.ok("token", "none, and only this machine reaches the server")
        else:
            self._list.warn("token", "none: whoever reaches the server may open ports here; set GNAR_TOKEN")

    # ---- addresses and ports -------------------------------------------------------------------------------

    def _try_bind(self) -> str | None:
        """Return the address to listen on, empty for all; None, after a line, if there is none here."""
        bind = self._config.bind
        try:
            with deadline(self._budget.of(NAME_S), "looking the address up"):
                host = str(resolve(bind, 0)[0][1][0]) if bind else ""
            listener = listen(host, 0)
            family = listener.sock.family
            listener.close()
        except ConnError as exc:
            self._list.wrong("bind", f"{exc}; is {bind} of this machine? Without bind, all are used")
            return None
        if not host:
            kinds = "IPv4 and IPv6" if family == socket.AF_INET6 else "IPv4: this machine has no IPv6"
            self._list.ok("bind", f"all addresses of this machine, {kinds}")
        else:
            is_at = "" if host == bind else f" is {host}, which"
            self._list.ok("bind", f"{bind}{is_at} is an address of this machine")
        return host

    def _try_control_port(self, host: str) -> None:
        port = self._config.port
        try:
            listen(host, port).close()
        except PortTakenError:
            self._tell_who_has(port)
        except ConnError as exc:
            self._list.wrong("port", f"{port} {_NEEDS_RIGHTS}" if is_denied(exc) else str(exc))
        else:
            users = " and users of names" if serves_at_control_port(self._config) else ""
            self._list.ok("port", f"{port} is free for clients{users} to come to")

    def _tell_who_has(self, port: int) -> None:
        """Find out who listens at the control port."""
        with suppress(GnarError):
            health.check(health.own_address(self._config), self._budget.of(HEALTH_S))
            self._is_running = True
        if self._is_running:
            text = f"a gnar server answers at {port} already; a second one needs --replace, or another port"
            self._list.warn("port", text)
        else:
            self._list.wrong("port", f"{port} is taken by another program; stop that, or choose another port")

    def _try_ports(self, host: str) -> None:
        """Try to listen on the ports that clients may open."""
        allowed = self._config.allow_ports
        if not allowed:
            self._list.ok("ports", f"clients may open every port that is free{_below_1024(host)}")
            return
        free, taken, denied = 0, list[int](), list[int]()
        tried = [*islice(allowed, MOST_PORTS)]
        for port in tried:
            try:
                listen(host, port).close()
                free += 1
            except ConnError as exc:
                (denied if is_denied(exc) else taken).append(port)
            give_way()
        of = f"{len(tried)}" if len(tried) == len(allowed) else f"the first {len(tried)}"
        text = f"{allowed}: {free} of {of} are free for clients{_shown('taken', taken)}"
        text += _shown("below 1024, which needs rights that this user lacks", denied)
        if not free and not self._is_running:
            self._list.wrong("ports", f"{text}; allow others")
        elif denied:
            self._list.warn("ports", text)
        else:
            self._list.ok("ports", text)

    def _try_udp(self) -> None:
        where = self._config.udp_bind or self._config.bind
        try:
            with deadline(self._budget.of(NAME_S), "looking the address up"):
                sock = bind_udp(where, 0)
        except ConnError as exc:
            key = "udp-bind" if self._config.udp_bind else "bind"
            self._list.wrong("udp", f"{exc}; has this machine that address? See {key}")
            return
        size = sock.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if sys.platform == "linux":
            size //= 2  # which counts what it needs itself, socket(7)
        at = format_address(sock.sock.getsockname()).rpartition(":")[0]
        sock.close()
        text = f"datagrams at {at if where else 'all addresses'}, with buffers of {size >> 10} KiB"
        if size < BUFFER_BYTES and sys.platform == "linux":
            text += f"; for longer bursts: sysctl net.core.rmem_max={BUFFER_BYTES}, and wmem_max"
        self._list.ok("udp", text)

    def _tell_state_dir(self) -> None:
        if not self._config.state_dir:
            return
        folder = Path(self._config.state_dir)
        try:
            folder = folder.absolute()
            there = _nearest(folder)
            is_good = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        except OSError as exc:  # such as a name that is too long, or a folder that may not be entered
            self._list.wrong("state-dir", f"{folder}: {exc.strerror or exc}; choose another")
            return
        if is_good:
            self._list.ok("state-dir", f"{folder} can be written to")
        elif not there.is_dir():
            self._list.wrong("state-dir", f"{there} is no folder: choose another")
        else:
            self._list.wrong("state-dir", f"this user cannot write to {there}: chown it, or choose another")

    # ---- this machine --------------------------------------------------------------------------------------

    def _tell_limits(self) -> None:
        tell_descriptors(self._list)
        there_is = memory.SHARE * memory.default_limit()
        may_take = self._config.max_memory or memory.default_limit()
        text = f"at most {may_take >> 20} MiB for gnar, of {there_is >> 20} MiB"
        if may_take > there_is:
            self._list.warn("memory", f"{text}: lower max-memory, or the system ends the process first")
        else:
            self._list.ok("memory", text)

    def _tell_clock(self) -> None:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        is_kept = _clock_is_kept_right()
        if is_kept is None:
            self._list.skip("clock", f"{now}; whether anything keeps it right cannot be told here")
        elif is_kept:
            self._list.ok("clock", f"{now}, kept right by the system")
        else:
            self._list.warn("clock", f"{now}; the kernel knows of nothing that keeps it right: is NTP on?")

    def _tell_files(self) -> None:
        """Tell who else could change the program that runs."""
        if sys.platform == "win32":
            return
        try:
            folder = Path(gnar_lib.__file__).resolve().parent
            open_to = [each for each in (folder, *folder.parents) if _others_may_write(each)]
        except OSError as exc:  # such as a folder that was removed
            self._list.skip("program", f"nobody can tell from where it runs: {exc.strerror or exc}")
            return
        if open_to:
            self._list.warn("program", f"others may write to {open_to[0]}, from where gnar runs: chmod go-w")
        else:
            self._list.ok("program", f"runs from {folder.parent}, which no other user can change")


def _nearest(folder: Path) -> Path:
    """Return a folder, or what is there of those around it; raises `OSError` if nobody can tell."""
    for each in (folder, *folder.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            each.stat()
            return each
    return Path(folder.anchor)


def _below_1024(host: str) -> str:
    """Return what there is to say of ports below 1024; empty if they are as all others."""
    for port in range(FIRST_FREE_PORT - 1, 0, -1):
        try:
            listen(host, port).close()
        except PortTakenError:
            continue
        except ConnError as exc:
            return ", but for those below 1024, for which this user has no right" if is_denied(exc) else ""
        break
    return ""


def _shown(what: str, ports: list[int]) -> str:
    """Return a part of a text that names some ports; empty if there are none."""
    if not ports:
        return ""
    more = f" and {len(ports) - MOST_SHOWN} more" if len(ports) > MOST_SHOWN else ""
    return f"; {what}: {', '.join(map(str, ports[:MOST_SHOWN]))}{more}"


def _clock_is_kept_right() -> bool | None:
    """Return whether the kernel knows that something keeps its clock right; None where nobody can tell."""
    status = -1
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            status = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)))
    return None if status < 0 else status != TIME_ERROR


def _others_may_write(path: Path) -> bool:
    """Tell whether a user who is not root could put something else in the place of what a folder holds."""
    if sys.platform == "win32":
        return False
    found = path.stat()
    is_sticky = bool(found.st_mode & 0o1000)  # only owners remove what is in it, as in /tmp
    return (bool(found.st_mode & 0o022) and not is_sticky) or found.st_uid not in (0, os.geteuid())
