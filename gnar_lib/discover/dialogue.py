"""Asks the person at the terminal which service to publish, at which server and under which name.

The result is the command line that does it. Publishes nothing itself.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from gnar_lib import logger
from gnar_lib.config import Access, Address, Secret
from gnar_lib.config.keys import PROXY
from gnar_lib.config.model import DEFAULT_PORT
from gnar_lib.config.target import web_target
from gnar_lib.config.transport import server_address
from gnar_lib.config.values import secret
from gnar_lib.discover import listing
from gnar_lib.discover.asking import MOST_PORTS, Kind, Service, ask, ask_all
from gnar_lib.discover.find import find
from gnar_lib.discover.known import why_hidden
from gnar_lib.discover.listening import Listening
from gnar_lib.errors import ConnError, DiscoveryError, UsageError
from gnar_lib.terminal.screen import Screen

_LABEL_BYTES = 32  # of a name that is offered
_LEAVING = ("q", "quit", "exit")
_RANDOM = "-"  # typed for a name that the server chooses
_HERE = Address("localhost", DEFAULT_PORT)

Answer = TypeVar("Answer")


class _LeftError(Exception):
    """The person wants nothing to be published."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person has chosen: the words of a command line, and a token that is in no setting."""

    words: tuple[str, ...]
    token: Secret


class Dialogue:
    """Talks with the person at a terminal, line by line, so that any terminal will do."""

    def __init__(self, access: Access) -> None:
        self._access = access  # what the settings say of the server
        self._is_plain = os.environ.get("TERM", "dumb") == "dumb" or not logger.takes_escapes(sys.stdout)
        self._in_colour = not os.environ.get("NO_COLOR")
        self._room, _ = Screen().size()
        self._services: Sequence[Service] = ()

    def run(self) -> Choice | None:
        """Return what the person has chosen; None if they have left."""
        try:
            self._look()
            service = self._choose()
            if service.kind is Kind.SILENT:
                service = replace(service, kind=self._speaks_http(service))
            server, token = self._settle_server()
            words = self._words(service)
        except (_LeftError, KeyboardInterrupt):
            self._say("\nNothing is published.")
            return None
        words += ("--server-addr", str(server)) if server else ()
        self._say("This does the same the next time:\n")
        logger.show(f"    {'GNAR_TOKEN=... ' if token else ''}{shlex.join([_own_name(), *words])}\n\n")
        return Choice(words, token)

    # ---- services ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find the services of this machine, and show them."""
        self._say("Looking for services of yours on this machine...")
        found: list[Listening] = []
        try:
            found = find()
        except DiscoveryError as exc:
            self._say(str(exc))
        reasons = [(listening, why_hidden(listening)) for listening in found]
        offered = [listening for listening, reason in reasons if not reason]
        self._services = ask_all(offered)
        if self._services:
            shown = listing.table(
                self._services, self._room, in_colour=self._in_colour, is_plain=self._is_plain
            )
            logger.show(f"\n{shown}\n")
        else:
            self._say(
                "No service is found that you have started. One of another user, or in a container, may be "
                "there."
            )
        if len(offered) > MOST_PORTS:
            self._say(f"{len(offered) - MOST_PORTS} more are not shown.")
        self._say(listing.hidden([(listening, reason) for listening, reason in reasons if reason]))

    def _choose(self) -> Service:
        if self._services:
            question = (
                "Which one shall others reach? Type its number, another port, or an address such as "
                "web.local:8080; q leaves."
            )
        else:
            question = (
                "Which port shall others reach? It may be on another host, as web.local:8080; q leaves."
            )
        return self._ask(question, self._read_service)

    def _read_service(self, text: str) -> Service:
        """Return the service of a number in the list, or of a port, or of an address; raises `UsageError`."""
        if text.isdecimal() and 1 <= int(text) <= len(self._services):
            return self._services[int(text) - 1]
        where = web_target(text)
        for service in self._services:
            if (service.listening.host, service.listening.port) == (where.host, where.port):
                return service
        try:
            return ask(Listening(where.port, where.host))
        except ConnError as exc:
            raise UsageError(str(exc)) from None

    def _speaks_http(self, service: Service) -> Kind:
        """Ask what a service speaks that has not told it."""
        port = listing.port_of(service.listening)
        question = f"Port {port} does not say what it is. Is it a web service? Enter for yes, n for no."
        return self._ask(question, _read_kind)

    # ---- server and name -----------------------------------------------------------------------------------

    def _settle_server(self) -> tuple[Address | None, Secret]:
        """Return the server and the token that the person gives; what the settings say is only shown."""
        if self._access.server is not None:
            self._say(f"The server is {self._access.server} ({self._access.place}).")
            return None, Secret()
        question = f"At which server? Type its address, such as example.com; Enter for {_HERE}."
        server = self._ask(question, lambda text: server_address(text) if text else _HERE)
        token = Secret()
        if not self._access.has_token:
            self._say("What is its token? You do not see what you type; Enter for none.")
            token = secret(_read_unseen())
        return (None if server == _HERE else server), token

    def _words(self, service: Service) -> tuple[str, ...]:
        """Return the command line for a service, without the server."""
        listening = service.listening
        if service.kind is Kind.WEB:
            name = self._ask_name(service)
            return ("http", listing.port_of(listening), *(("--name", name) if name else ()))
        self._say(
            "It does not speak HTTP, so it gets a port of the server and no name. "
            "Everybody who reaches this port reaches the service."
        )
        if self._access.others:
            self._say(f"The {self._access.others} proxies of {self._access.file} are opened, too.")
        return ("client", f"{listing.port_of(listening)}:0" if listening.host else str(listening.port))

    def _ask_name(self, service: Service) -> str:
        offered = offered_name(service)
        answers = "Type one, such as blog; Enter for"
        if offered:
            answers = f"Enter for {offered}; or type another, {_RANDOM} for"
        question = f"Under which name? {answers} one that the server chooses."

        def read(text: str) -> str:
            return "" if text == _RANDOM else str(PROXY["subdomain"](text or offered))

        return self._ask(question, read)

    # ---- the terminal --------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        """Show a paragraph in lines as wide as the terminal."""
        width = max(self._room - 1, 1)
        lines = (textwrap.fill(line, width, break_on_hyphens=False) for line in text.split("\n"))
        if text and not logger.show("\n".join(lines) + "\n"):
            raise _LeftError

    def _ask(self, question: str, read: Callable[[str], Answer]) -> Answer:
        """Ask until `read` raises no `UsageError` for what is typed; raises `_LeftError`."""
        self._say(question)
        while True:
            if not logger.show("> "):
                raise _LeftError
            text = _read_line()
            if text.lower() in _LEAVING:
                raise _LeftError
            try:
                return read(text)
            except UsageError as exc:
                self._say(logger.printable(str(exc)))


def _read_line() -> str:
    """Return what is typed up to Enter; raises `_LeftError` at ^D, or when the terminal has gone."""
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        return "?"  # nothing that could be meant
    except OSError:
        raise _LeftError from None
    if not line:
        raise _LeftError
    return line.strip()


def _read_unseen() -> str:
    """Return what is typed, which the terminal does not show; raises `_LeftError` as `_read_line`."""
    try:
        return getpass.getpass("> ")
    except (EOFError, OSError):
        raise _LeftError from None


def _read_kind(text: str) -> Kind:
    """Return what the answer yes or no means; raises `UsageError`."""
    if text.lower() in ("", "y", "yes"):
        return Kind.WEB
    if text.lower() in ("n", "no"):
        return Kind.OTHER
    raise UsageError(f"{text!r}: expected y or n")


def offered_name(service: Service) -> str:
    """Return a name for a service that its folder suggests, or its short title; empty if there is none."""
    folder = service.listening.process.folder
    home = os.path.expanduser("~")
    names = ["" if folder in (home, "/") else re.split(r"[/\\]", folder)[-1], service.name]
    for name in names:
        label = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
        if label and len(label) <= _LABEL_BYTES:
            return label
    return ""


def _own_name() -> str:
    """Return how gnar is called: its name if the shell finds it by that, else the path it was called by."""
    path = sys.argv[0]
    name = os.path.basename(path)
    found = shutil.which(name)
    return name if found and os.path.realpath(found) == os.path.realpath(path) else path
