"""Who has which name: finds the proxy of a user's request; knows no connection, and asks nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gnar_lib.auth import Credential
from gnar_lib.errors import NameTakenError
from gnar_lib.server.names.check import Name
from gnar_lib.server.names.paths import is_odd, plain_path
from gnar_lib.server.proxies import Proxy

AWAY_S = 60.0  # for which a name is held for a client that has gone without a word
MAX_AWAY = 4096  # names; further ones are free at once
MAX_PATHS = 256  # of one host, at which a request has to be looked for one by one


class Holder(Protocol):
    """Who has a name: a client that is there, or that is waited for."""

    @property
    def is_silent(self) -> bool:
        """Whether the client should have been heard, and has not."""

    def lose(self, name: Name) -> None:
        """Give up the proxy with this name: another client has it."""


@dataclass(slots=True, eq=False)
class Held:
    """A name that somebody has, with the proxy that its users reach."""

    name: Name
    proxy: Proxy
    owner: tuple[Credential, str]  # the credential of the client, and the address from which it has come
    holder: Holder | None  # None: nobody, for as long as it is held for a client that is away
    is_open: bool = False  # users can come, if only to be told that the client is away
    until_s: float = 0.0  # of `time.monotonic`: how long it is held without a holder
    plain_path: str = field(init=False)  # the beginning of the paths, as services read it

    def __post_init__(self) -> None:
        path = self.name.path
        self.plain_path = plain_path(path).rstrip("/") if is_odd(path) else path


class Names:
    """The names of all proxies of a server.

    A host may have several proxies, by path, if their clients have the same credential.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[tuple[str, str], Held] = {}  # by key
        self._hosts: dict[tuple[str, str], list[Held]] = {}  # by kind and host; the longest path first
        self._away: dict[tuple[str, str], Held] = {}  # those without a holder; who has left first is first

    def __len__(self) -> int:
        return len(self._held) - len(self._away)

    @property
    def without_port(self) -> int:
        """How many of their proxies have no port."""
        return sum(held.holder is not None and held.proxy.kind != "tcp" for held in self._held.values())

    # ---- for users -----------------------------------------------------------------------------------------

    def find(self, host: str, path: str) -> Proxy | None:
        """Return the proxy that has the requests for a host and a path; None if there is none.

        `host` is without a port. The host itself goes before `*`, and the longest of the paths before others,
        as services read the path: `//api`, `/%61pi` and `/x/../api` are `/api`.
        """
        return self._find("http", host, path)

    def has_paths(self, host: str) -> bool:
        """Tell whether the path decides which proxy has the requests for a host."""
        host = _plain(host)
        on_hosts = (self._hosts.get(("http", each), ()) for each in (host, _wildcard_of(host)))
        return any(held.name.path for on_host in on_hosts for held in on_host)

    def find_tls(self, host: str) -> Proxy | None:
        """Return the proxy to which TLS for a host is passed through; None if there is none."""
        return self._find("https", host, "")

    def knows(self, host: str) -> bool:
        """Tell whether users of a host can come to some proxy, or could until a moment ago."""
        host = _plain(host)
        return any((kind, each) in self._hosts for each in (host, _wildcard_of(host)) for kind in _KINDS)

    def _find(self, kind: str, host: str, path: str) -> Proxy | None:
        host = _plain(host)
        for each in (host, _wildcard_of(host)):
            on_host = self._hosts.get((kind, each), ())
            if on_host and on_host[0].plain_path and is_odd(path):
                path = plain_path(path)
            for held in on_host:
                if held.is_open and _is_below(path, held.plain_path):
                    return held.proxy
        return None

    # ---- for clients ---------------------------------------------------------------------------------------

    def check(self, name: Name, credential: Credential) -> None:
        """Raise `NameTakenError` unless a client with this credential can have the name now."""
        for host in (name.host, _wildcard_of(name.host)):
            for kind in _KINDS:
                for held in self._hosts.get((kind, host), ())[:1]:  # the others are of the same credential
                    if held.owner[0] != credential:
                        raise NameTakenError(f"the name {name} is taken", held.owner)
        if len(self._hosts.get((name.kind, name.host), ())) >= MAX_PATHS and name.key not in self._held:
            raise NameTakenError(f"{name.host} has {MAX_PATHS} paths already")
        held_now = self._held.get(name.key)
        if held_now is not None and held_now.holder is not None and not held_now.holder.is_silent:
            raise NameTakenError(f"the name {name} is taken", held_now.owner)

    def take(self, name: Name, proxy: Proxy, owner: tuple[Credential, str], holder: Holder) -> None:
        """Give a name to a client, until `release` or `leave`; raises `NameTakenError`.

        A client with the same credential that is away, or silent, loses it. Users cannot come yet.
        """
        self.check(name, owner[0])
        before = self._held.get(name.key)
        if before is not None:
            self._remove(before)
            if before.holder is not None:
                before.holder.lose(name)
        held = Held(name, proxy, owner, holder)
        self._held[name.key] = held
        on_host = self._hosts.setdefault((name.kind, name.host), [])
        on_host.append(held)
        on_host.sort(key=lambda each: -len(each.plain_path))

    def open(self, name: Name, proxy: Proxy) -> None:
        """Let users of a name come to the proxy that has it."""
        if (held := self._of(name, proxy)) is not None:
            held.is_open = True

    def move(self, name: Name, proxy: Proxy, owner: tuple[Credential, str], holder: Holder) -> None:
        """Note that a client has come back for a name, whose proxy goes on."""
        if (held := self._of(name, proxy)) is not None:
            held.owner, held.holder = owner, holder

    def release(self, name: Name, proxy: Proxy) -> None:
        """Note that a name is free, if that proxy has it, and it is not held for a client that is away.

        More than once does no harm.
        """
        if (held := self._of(name, proxy)) is not None and held.holder is not None:
            self._remove(held)

    def leave(self, name: Name, proxy: Proxy, hold_s: float = AWAY_S) -> None:
        """Hold a name for a client that is away: its proxy takes no users, who are told so."""
        held = self._of(name, proxy)
        if held is None or name.key in self._away:
            return
        if len(self._away) >= MAX_AWAY:
            self._remove(held)
            return
        held.holder, held.until_s = None, self._clock() + hold_s
        proxy.is_away = True
        self._away[name.key] = held

    def tend(self) -> None:
        """Free the names that have been held for long enough; to be called once a second."""
        now_s = self._clock()
        for held in [held for held in self._away.values() if held.until_s <= now_s]:
            self._remove(held)

    def _of(self, name: Name, proxy: Proxy) -> Held | None:
        held = self._held.get(name.key)
        return held if held is not None and held.proxy is proxy else None

    def _remove(self, held: Held) -> None:
        name = held.name
        del self._held[name.key]
        self._away.pop(name.key, None)
        on_host = self._hosts[name.kind, name.host]
        on_host.remove(held)
        if not on_host:
            del self._hosts[name.kind, name.host]


_KINDS = ("http", "https")


def _plain(host: str) -> str:
    """Return a host as names are kept: case and a dot at the end do not matter."""
    return host.lower().removesuffix(".")


def _wildcard_of(host: str) -> str:
    """Return the name by which all hosts beside this one could be had."""
    return "*." + host.partition(".")[2]


def _is_below(path: str, prefix: str) -> bool:
    """Tell whether a path is `prefix`, or below it."""
    return path.startswith(prefix) and (len(path) == len(prefix) or not prefix or path[len(prefix)] in "/?")
