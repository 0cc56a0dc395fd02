"""The part of a client's check about names: comes to each by its URL, as a user does; asks for none."""

from __future__ import annotations

import ipaddress
import time
from urllib.parse import urlsplit

from gnar_lib.checklist import Budget, Checklist, Verdict
from gnar_lib.client.trial import Port, Trial
from gnar_lib.config import ClientConfig, ProxyConfig
from gnar_lib.config.hosts import whole_host
from gnar_lib.errors import ConfigError, ConnError, DialError, GnarError, UnreachableError
from gnar_lib.net import Crew, deadline
from gnar_lib.terminal.text import milliseconds
from gnar_lib.visit import JSON_ERROR, PORTS, Seen, addresses_of, visit

VISIT_S = 8.0  # for an answer, since a certificate may have to be got first
MOST_VISITED = 16  # names at which users are tried
_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _REDIRECT = 200, 401, 403, 404, 308


class NamesCheck:
    """The part of a check that is about names."""

    def __init__(self, config: ClientConfig, checklist: Checklist, budget: Budget) -> None:
        self._config = config
        self._list = checklist
        self._budget = budget
        self._crew = Crew("check of names")  # users who come to names

    def run(self, trial: Trial, ports: list[Port]) -> None:
        """Come to the names that the server has given for the trial; those without one are passed over."""
        named = [port for port in ports if port.is_open and port.of.has_name]
        for port in named[:MOST_VISITED]:
            self._crew.spawn(self._come, trial, port)
        self._crew.wait_empty()
        for port in named[MOST_VISITED:]:
            self._tell(
                Verdict.OK, port.of, f"{_url_of(port)} is allowed and free; not tried, as there are many"
            )
        self._list.tell_rest("url")

    def _tell(self, verdict: Verdict, proxy: ProxyConfig, text: str) -> None:
        self._list.tell_one_of_many(verdict, "url", f"{proxy.proxy_name}: {text}")

    def _come(self, trial: Trial, port: Port) -> None:
        """Come to a name once, and tell how that went."""
        url = _url_of(port)
        if reason := _why_not(port, url):
            self._tell(Verdict.OK, port.of, f"{url or 'the name'} is allowed and free; not tried: {reason}")
            return
        url, began_s = url.replace("*.", "gnar-check.", 1), time.monotonic()
        try:
            seen = self._visit(trial, port, url)
        except GnarError as exc:
            text = f"{url} is allowed and free, but users do not get there: {exc}"
            if self._config.proxy is None:
                self._tell(Verdict.WRONG, port.of, text)
            else:
                self._tell(Verdict.SKIP, port.of, f"{text}; users elsewhere go through no proxy")
            return
        if seen.status == _OK and seen.body == trial.page:
            took = milliseconds(time.monotonic() - began_s)
            self._tell(Verdict.OK, port.of, f"{url} is allowed and free, and users reach it ({took})")
        else:
            self._tell(*_meaning_of(seen, port.of, url))

    def _visit(self, trial: Trial, port: Port, url: str) -> Seen:
        """Return what answers for a URL. Raises `GnarError` that says why users do not get there."""
        parts = urlsplit(url)
        page = f"{parts.scheme}://{parts.netloc}{port.of.path.rstrip('/')}/{trial.page_name}"
        host = parts.hostname or ""
        try:
            with deadline(self._left_s, f"looking {host} up"):
                found = addresses_of(host)[0]
        except DialError as exc:
            if isinstance(exc, UnreachableError):
                raise
            if parts.scheme == "http" and self._server_answers(trial, page):
                raise ConnError(f"the server passes requests on, but DNS has no address for {host}") from exc
            record = f"*.{host.partition('.')[2]}"
            raise ConnError(f"DNS has no address for {host}: is there a record for {record}?") from exc
        with deadline(self._left_s, "looking the server up"):
            is_strange = not _is_public(found) and all(
                map(_is_public, addresses_of(self._config.server.host))
            )
        if is_strange:  # a server has no business to have this client come to others in its network
            raise ConnError(
                f"DNS says that {host} is {found}, which is no public address; the server has one"
            )
        return visit(page, self._left_s, at=found)

    def _server_answers(self, trial: Trial, page: str) -> bool:
        """Tell whether the server itself passes a request on, wherever DNS leads.

        Not to be asked by HTTPS: a Caddy would try to get a certificate, in vain, for which it has few tries.
        """
        try:
            return visit(page, self._left_s, at=self._config.server.host).body == trial.page
        except GnarError:
            return False

    @property
    def _left_s(self) -> float:
        return self._budget.of(VISIT_S)


def _url_of(port: Port) -> str:
    """Return the URL that a server has given, without its path; empty if it is none."""
    url = port.answer.url if port.answer is not None else ""
    try:
        parts = urlsplit(url)
        host, number = whole_host(parts.hostname or "", wildcard=True), parts.port
    except (ValueError, ConfigError):
        return ""
    if parts.scheme not in PORTS:
        return ""
    return f"{parts.scheme}://{host}{'' if number is None else f':{number}'}"


def _why_not(port: Port, url: str) -> str:
    """Return why a name is not visited; empty if it is."""
    if not url:
        return "the server does not say where users find it"
    if port.of.proxy_type == "https":
        return "TLS is for the service itself, whose certificate the check does not have"
    is_new = "*" in url or not port.of.subdomain
    if is_new and url.startswith("https:"):
        return "a certificate might be got for it, and such a name is used once"
    return ""


def _meaning_of(seen: Seen, proxy: ProxyConfig, url: str) -> tuple[Verdict, ProxyConfig, str]:
    """Return what to tell of an answer that is not the trial's own."""
    free = f"{url} is allowed and free"
    if seen.status == _UNAUTHORIZED and proxy.basic_auth:
        return Verdict.OK, proxy, f"{free}, and asks users for a password, as basic-auth has it"
    if seen.status == _FORBIDDEN and (proxy.allow_from or proxy.deny_from):
        return (
            Verdict.OK,
            proxy,
            f"{free}; this machine may not come there, as allow-from or deny-from has it",
        )
    if seen.status == _REDIRECT and proxy.redirect_https:
        return (
            Verdict.OK,
            proxy,
            f"{free}, and leads users to HTTPS, as redirect-https has it; that is not tried",
        )
    if seen.status == _NOT_FOUND and seen.kind == JSON_ERROR:
        return (
            Verdict.WRONG,
            proxy,
            f"{free}, but a server that does not know it answers there: is DNS right?",
        )
    who = f"{seen.program or 'another web server'} answers there, with {seen.status}"
    return Verdict.WRONG, proxy, f"{free}, but {who}: it has to pass requests on to the gnar server"


def _is_public(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_global
