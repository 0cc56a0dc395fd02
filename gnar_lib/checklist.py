"""Runs a check, and shows a line for each fact as soon as it is known. Checks what both ends have to."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from shutil import which
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from gnar_lib import logger
from gnar_lib.config import Address, AdminConfig, HookConfig, LogConfig
from gnar_lib.config.model import LOOPBACK
from gnar_lib.errors import ConnError, PortTakenError
from gnar_lib.lifecycle import Stopper
from gnar_lib.net import Crew, deadline, descriptors, listen, resolve
from gnar_lib.net.descriptors import USER_COSTS
from gnar_lib.net.target import Target

MOST_LINES = 20  # about things of one kind; the others are counted
MAX_TEXT = 1000  # characters of one line: a peer can send texts of 64 KiB
FEW_DESCRIPTORS = 1024
MAX_ANSWER_BYTES = 4096  # of whoever has the admin port
WHAT_WIDTH = 11  # of the longest word for what was checked


class Verdict(Enum):
    """How it stands with one thing."""

    OK = "ok"
    WARN = "warn"  # works, and may not be what is meant
    WRONG = "wrong"
    SKIP = "skip"  # nobody can tell, for the reason in the line


_COLOURS = {Verdict.OK: "32", Verdict.WARN: "33", Verdict.WRONG: "31", Verdict.SKIP: "2"}


class Checklist:
    """Writes the lines to standard output: text, or JSON objects with `verdict`, `check` and `text`."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._counts: Counter[Verdict] = Counter()
        self._left_out: dict[str, Counter[Verdict]] = {}  # of what there are many
        self._told: Counter[str] = Counter()
        self._is_written = True  # all that was told
        self._as_json = as_json
        self._in_colour = logger.takes_escapes(sys.stdout) and not os.environ.get("NO_COLOR")

    @property
    def status(self) -> int:
        """The exit status of a process that has checked: 1 if anything is wrong, or could not be told."""
        return 1 if self._counts[Verdict.WRONG] or not self._is_written else 0

    def ok(self, what: str, text: str) -> None:
        """Tell that something is right."""
        self.tell(Verdict.OK, what, text)

    def warn(self, what: str, text: str) -> None:
        """Tell of something that works, and may not be what is meant."""
        self.tell(Verdict.WARN, what, text)

    def wrong(self, what: str, text: str) -> None:
        """Tell what is wrong, and what to do about it."""
        self.tell(Verdict.WRONG, what, text)

    def skip(self, what: str, text: str) -> None:
        """Tell what was not checked, and why."""
        self.tell(Verdict.SKIP, what, text)

    def tell(self, verdict: Verdict, what: str, text: str) -> None:
        """Write one line at once."""
        self._counts[verdict] += 1
        text = logger.printable(text[:MAX_TEXT])
        if self._as_json:
            fields = {"verdict": verdict.value, "check": what, "text": text}
            self._show(json.dumps(fields, ensure_ascii=False))
            return
        word = f"{verdict.value:<5}"
        if self._in_colour:
            word = f"\033[{_COLOURS[verdict]}m{word}\033[0m"
        self._show(f"{word}  {what:<{WHAT_WIDTH}}  {text}")

    def _show(self, line: str) -> None:
        self._is_written &= logger.show(f"{line}\n")

    def tell_one_of_many(self, verdict: Verdict, what: str, text: str) -> None:
        """Write one line, or only count it when there have been many about `what`; see `tell_rest`."""
        self._told[what] += 1
        if self._told[what] <= MOST_LINES:
            self.tell(verdict, what, text)
        else:
            self._left_out.setdefault(what, Counter())[verdict] += 1

    def tell_rest(self, what: str) -> None:
        """Write one line about those that were only counted."""
        left_out = self._left_out.pop(what, None)
        if left_out:
            worst = next(each for each in (Verdict.WRONG, Verdict.WARN, *Verdict) if left_out[each])
            parts = [f"{left_out[each]} {each.value}" for each in Verdict if left_out[each]]
            self.tell(worst, what, f"further ones: {', '.join(parts)}")


def tell_descriptors(checklist: Checklist) -> None:
    """Tell how many users the descriptors of this process suffice for."""
    limit = descriptors.limit
    users = max(limit - descriptors.reserve, 0) // USER_COSTS
    text = f"at most {limit} open files and sockets: about {users} users at the same time"
    if limit < FEW_DESCRIPTORS:
        checklist.warn("descriptors", f"{text}; raise the limit (ulimit -n)")
    else:
        checklist.ok("descriptors", text)


def try_admin(checklist: Checklist, admin: AdminConfig, timeout_s: float) -> None:
    """Tell whether the admin port can be listened on, if there is to be one, or who has it already."""
    if not admin.port:
        return
    where = Address(admin.bind or "every address", admin.port)
    try:
        with deadline(timeout_s, "looking the address up"):
            listen(admin.bind, admin.port).close()
    except PortTakenError:
        if _is_gnar(Address(admin.bind or LOOPBACK, admin.port), timeout_s):
            checklist.warn("admin", f"a gnar answers at {where} already: yours, if it is running")
        else:
            checklist.wrong("admin", f"{where} is taken by another program; choose another admin-port")
    except ConnError as exc:
        checklist.wrong("admin", f"{exc}; see admin-bind and admin-port")
    else:
        who = "with a password" if admin.password else "for whoever is on this machine"
        checklist.ok("admin", f"{where} is free, {who}")


def _is_gnar(where: Address, timeout_s: float) -> bool:
    """Tell whether an admin port of gnar answers at an address."""
    request = f"GET /healthz HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n"
    answer = b""
    with suppress(ConnError), deadline(timeout_s, "the answer"):
        conn = Target(where.host, where.port).dial()
        try:
            conn.sendall(request.encode())
            while len(answer) < MAX_ANSWER_BYTES and (data := conn.recv(MAX_ANSWER_BYTES)):
                answer += data
        finally:
            conn.close()
    return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nok\n")


class Budget:
    """The time that a whole check may take."""

    def __init__(self, seconds: float) -> None:
        self._until_s = time.monotonic() + seconds

    def of(self, most_s: float) -> float:
        """Return how many seconds a part of the check may take: `most_s`, or what is left."""
        return round(max(min(most_s, self._until_s - time.monotonic()), 0.0), 1)


# ---- hooks -------------------------------------------------------------------------------------------------


def try_hooks(checklist: Checklist, hooks: Sequence[HookConfig], timeout_s: float) -> None:
    """Tell whether hosts of hooks have addresses, and their programs are there; nothing is posted or run."""
    hosts = {hook: urlsplit(hook.url.reveal()).hostname or "" for hook in hooks if not hook.command}
    reasons = _look_up(set(hosts.values()), timeout_s)
    for hook in hooks:
        reason = reasons[hosts[hook]] or _missing_tls(hook) if hook in hosts else _missing_program(hook)
        if reason:
            checklist.tell_one_of_many(Verdict.WRONG, "hook", f"{hook.label}: {reason}")
        else:
            good = "has an address; nothing is posted" if hook in hosts else "is there; it is not run"
            checklist.tell_one_of_many(Verdict.OK, "hook", f"{hook.label} {good}")
    checklist.tell_rest("hook")


def _look_up(hosts: Iterable[str], timeout_s: float) -> dict[str, str]:
    """Return what is wrong with each host; an empty text for one that has an address."""
    reasons = dict.fromkeys(hosts, f"looking the name up took longer than {timeout_s:g} s")

    def look_up(host: str) -> None:
        try:
            resolve(host, 0)
        except ConnError as exc:
            reasons[host] = str(exc)
        else:
            reasons[host] = ""

    crew = Crew("check of hooks")
    try:
        for host in reasons:
            crew.spawn(look_up, host)
        crew.wait_empty(timeout_s)
    finally:
        crew.kill()
    return dict(reasons)


def _missing_tls(hook: HookConfig) -> str:
    """Return what is wrong if this Python lacks the TLS that a URL needs; else an empty text."""
    if hook.url.reveal().lower().startswith("https:"):
        try:
            import ssl  # noqa: F401  (whether it is there is all that is asked)
        except ImportError:
            return "this Python has no TLS, which an https URL needs"
    return ""


def _missing_program(hook: HookConfig) -> str:
    """Return what is wrong if the program of a command cannot be run; else an empty text."""
    if which(hook.command[0]) is None:
        return f"there is no program {hook.command[0]} that this user may run"
    return ""


# ---- a whole check -----------------------------------------------------------------------------------------


class Check(Protocol):
    """Tries everything that a start with some settings needs."""

    def run(self) -> None:
        """Check everything."""


AnyConfig = TypeVar("AnyConfig", bound=LogConfig)


def run_check(make: Callable[[AnyConfig, str, Checklist], Check], config: AnyConfig, source: str) -> int:
    """Check settings that were read from the file `source`, if any, and return the exit status.

    That is 1 if anything is wrong, or if the check was interrupted.
    """
    checklist = Checklist(as_json=config.log_format == "json")
    stopper = Stopper()
    try:
        stopper.call_until_stopped(make(config, source, checklist).run)
    finally:
        stopper.close()
    if stopper.stopping:
        logger.complain("interrupted: not everything was checked")
        return 1
    return checklist.status
