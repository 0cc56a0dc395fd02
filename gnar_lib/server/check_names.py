"""The part of a server's check about names: their ports, DNS and Caddy; gives nobody a name."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress

from gnar_lib.checklist import Budget, Checklist
from gnar_lib.config import ServerConfig
from gnar_lib.config.model import LOOPBACK
from gnar_lib.errors import ConfigError, ConnError, DialError, GnarError, PortTakenError, UnreachableError
from gnar_lib.net import bind_udp, deadline, listen
from gnar_lib.net.endpoint import is_denied
from gnar_lib.server.names.check import Name, has_names, url_of
from gnar_lib.visit import JSON_ERROR, addresses_of, visit

NAME_S = 5.0  # for each look-up
WHO_S = 2.0  # for whoever has a port to say who that is
EVERY_ADDRESS = ("", "0.0.0.0", "::")
_NOT_FOUND = 404
_GRANT = "or let systemd grant the right (docs/systemd.md)"
_MADE_UP = "gnar-check"  # how names begin that nobody has


class NamesCheck:
    """One check. `is_running`: a gnar server answers at the control port already."""

    def __init__(
        self, config: ServerConfig, checklist: Checklist, budget: Budget, *, is_running: bool
    ) -> None:
        self._config = config
        self._list = checklist
        self._budget = budget
        self._is_running = is_running

    def run(self) -> None:
        """Check everything about names; nothing if the server has none."""
        config = self._config
        if not has_names(config):
            return
        if config.domain:
            self._list.ok(
                "names", f"NAME of a client is {url_of(Name('http', f'NAME.{config.domain}'), config)}"
            )
        self._try_port("http", config.http_bind, config.http_port)
        self._try_port("https", config.bind, config.https_port)
        if config.domain:
            self._look_up()
        if config.caddy_api:
            self._ask_caddy()

    # ---- ports ---------------------------------------------------------------------------------------------

    def _try_port(self, scheme: str, bind: str, port: int) -> None:
        """Try to listen on a port to which users of names come."""
        if not port:
            return
        key = f"{scheme}-port"
        try:
            with deadline(self._budget.of(NAME_S), "looking the address up"):
                listen(bind, port).close()
        except PortTakenError:
            self._tell_who_has(scheme, bind, port)
        except ConnError as exc:
            if is_denied(exc):
                exc = ConnError(
                    f"{port} needs a right that this user lacks: choose another --{key}, {_GRANT}"
                )
            self._list.wrong(key, str(exc))
        else:
            self._list.ok(key, f"{port} is free for users of names")

    def _tell_who_has(self, scheme: str, bind: str, port: int) -> None:
        key, program = f"{scheme}-port", ""
        with suppress(GnarError):
            at = LOOPBACK if bind in EVERY_ADDRESS else bind
            url = f"{scheme}://{_made_up('localhost')}:{port}/"
            seen = visit(url, self._budget.of(WHO_S), at=at, trusts_all=True)
            program = "gnar" if (seen.status, seen.kind) == (_NOT_FOUND, JSON_ERROR) else seen.program
        if program == "gnar" and self._is_running:
            self._list.ok(key, f"{port} is open: the gnar server that is running has it")
            return
        if not program and self._is_running and scheme == "https" and not self._config.tls_cert:
            self._list.ok(key, f"{port} is open, most likely of the gnar server that is running")
            return
        name = "another gnar server" if program == "gnar" else program or "another program"
        advice = f"stop that, or choose another --{key}"
        if program.lower() == "caddy":
            advice = "have Caddy lead users to gnar by --caddy-api (docs/caddy.md), or choose another"
        self._list.wrong(key, f"{port} is taken by {name}: {advice}")

    # ---- DNS -----------------------------------------------------------------------------------------------

    def _look_up(self) -> None:
        """Tell where a name leads that nobody has."""
        domain = self._config.domain
        if domain == "localhost" or domain.endswith(".localhost"):
            self._list.ok(
                "dns", f"names below {domain} lead browsers to their own machine, without any record"
            )
            return
        try:
            with deadline(self._budget.of(NAME_S), "looking a name up"):
                found = addresses_of(_made_up(domain))
        except ConnError as exc:
            if isinstance(exc, DialError) and not isinstance(exc, UnreachableError):
                record = f"a record `*.{domain}` (A, or AAAA) with the address of this machine"
                self._list.wrong("dns", f"names below {domain} lead nowhere: its DNS needs {record}")
            else:
                self._list.skip("dns", f"nobody can tell where names lead: {exc}")
            return
        elsewhere = [each for each in found if not _is_of_this_machine(each)]
        text = f"names below {domain} lead to {', '.join(found)}"
        if elsewhere:
            which = "which is no address" if len(found) == 1 else f"of which {', '.join(elsewhere)} is none"
            text += f", {which} of this machine: right behind NAT, or with another machine in front"
        self._list.ok("dns", text)

    # ---- Caddy ---------------------------------------------------------------------------------------------

    def _ask_caddy(self) -> None:
        """Read Caddy's configuration, and tell what a start would do there; nothing is written."""
        from gnar_lib.server.caddy import Caddy, CaddyError  # loads what nothing else needs

        config = self._config
        try:
            caddy = Caddy(
                config.caddy_api,
                config.caddy_srv_name,
                domain=config.domain,
                allow_hosts=config.allow_hosts,
                web_address=(config.http_bind, config.http_port),
                removes=False,
            )
            with deadline(self._budget.of(NAME_S), "Caddy's answer"):
                planned, is_there = caddy.foresee()
        except (ConfigError, CaddyError, ConnError) as exc:
            self._list.wrong("caddy", f"{exc}; names have no HTTPS before that is right (docs/caddy.md)")
            return
        tell: Callable[[str, str], None] = self._list.warn if planned.is_ready else self._list.wrong
        if planned.trouble:
            tell("caddy", planned.trouble)
        elif is_there:
            self._list.ok("caddy", "leads users of names to gnar already")
        else:
            self._list.ok("caddy", f"server {config.caddy_srv_name!r} gets gnar's route when gnar starts")


def _made_up(domain: str) -> str:
    return f"{_MADE_UP}-{secrets.token_hex(4)}.{domain}"


def _is_of_this_machine(address: str) -> bool:
    """Tell whether this machine has an IP address; only such a one can be listened on."""
    try:
        bind_udp(address, 0).close()
    except ConnError:
        return False
    return True
