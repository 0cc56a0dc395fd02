"""Who may ask at the admin port, and for what: passwords, tokens, cookies, and pages of others in a browser.

Without a password and a token, whoever is on this machine may do everything: the port is on loopback then,
and only a page whose address is this machine's may ask.

A cookie is proof of a login (`sessions`). A browser sends a cookie to every port of a host, and other ports
of this host belong to clients and their services. So the panel keeps a key of its own, which browsers give to
no other port, and sends it with each request: a cookie is good only together with the key with which the
browser has logged in.
"""

from __future__ import annotations

import base64
import ipaddress
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gnar_lib import logger
from gnar_lib.admin.sessions import SESSION_S, Role, Session, Sessions
from gnar_lib.auth.attempts import Attempts
from gnar_lib.config import AdminConfig
from gnar_lib.config.model import NO_SECRET, Secret
from gnar_lib.http import HTTPError, Request
from gnar_lib.net import Sockaddr, host_of, network_of

COOKIE = "gnar-admin"  # the port follows: servers on one host, or behind one SSH, have a login each
PAGE_KEY = "x-gnar-page"  # the field with the key of a page
PAGE_PARAMETER = "page"  # the same in a query, for event streams: a browser adds no fields to those
MAX_COOKIES = 64  # of that name: another port of the host can set some, too
MAX_WRONG_WIDE = 100  # wrong passwords in a minute from all addresses of a wide network
WIDE_BITS = {4: 24, 6: 48}  # by the version of IP: what providers give to one customer, or more
LATELY_S = 900.0  # for which a program that has given the read token is not held up by others' mistakes
MAX_READERS = 1000  # networks with such programs
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/api/v1/login", "/api/openapi.json"})
OPEN_FOLDER = "static"
LOGOUT_PATH = "/api/v1/logout"
READING = frozenset({"GET", "HEAD", "OPTIONS"})

_log = logger.get("admin")


@dataclass(frozen=True, slots=True)
class Pass:
    """What somebody may do who asks, and what that rests on."""

    role: Role
    secret: Secret = NO_SECRET  # that was given, or with which the session began; empty if none is needed
    session: Session | None = None  # of a browser


class Access:
    """Decides about requests by the settings that `read` returns, which a reload may change."""

    def __init__(
        self,
        read: Callable[[], AdminConfig],
        mixed_in: Callable[[], Secret] = lambda: NO_SECRET,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read = read
        self._attempts = Attempts()
        self._wide_attempts = Attempts(MAX_WRONG_WIDE)  # of many networks that may belong to one owner
        self._lately: OrderedDict[str, float] = OrderedDict()  # whence the read token has come, and when
        self._sessions = Sessions(self._secrets, mixed_in, clock)

    def check(self, request: Request) -> None:
        """Raise `HTTPError` unless a request may be served; `pass_of` then tells what whoever asks may do."""
        self._check_page(request)
        if request.path in OPEN_PATHS or request.segments[0] == OPEN_FOLDER:
            return
        given = self._pass_of(request)
        if given.role is Role.READER and request.method not in READING and request.path != LOGOUT_PATH:
            raise HTTPError(403, "this token may look, and change nothing")
        request.context["pass"] = given

    def still_allows(self, given: Pass) -> bool:
        """Tell whether what was allowed once still is: the password is the same, the session not over."""
        if given.session is not None:
            return self._sessions.is_good(given.session)
        if not given.secret:
            return not self._read().needs_secret
        return (given.role, given.secret) in self._secrets()

    # ---- pages of others -----------------------------------------------------------------------------------

    def _check_page(self, request: Request) -> None:
        """Refuse what a page of somebody else has a browser ask for."""
        host = request.headers.get("host", "")  # HTTP/1.0 may come without, which no browser does
        if host and not self._read().needs_secret and not is_this_machine(host):
            raise HTTPError(
                403, "this port answers to the addresses of this machine alone, such as localhost"
            )
        site = request.headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") and request.path != "/":  # a link to the panel is all right
            raise HTTPError(403, "a page from elsewhere may not ask for this")
        origin = request.headers.get("origin")
        if request.method in READING or origin is None:
            return
        if not host or origin.partition("://")[2].lower() != host.lower():
            raise HTTPError(403, "a page from elsewhere may not ask for this")

    # ---- who asks ------------------------------------------------------------------------------------------

    def _pass_of(self, request: Request) -> Pass:
        if not self._read().needs_secret:
            return Pass(Role.ADMIN)
        session = self._session_of(request)
        if session is not None:
            return Pass(session.role, session.secret, session)
        given = _credentials_of(request)
        if given is None:
            raise _unauthorized("a password or a token is needed")
        return self._try(given, request)

    def _session_of(self, request: Request) -> Session | None:
        """Return the session that a browser proves. A made-up one counts as a wrong password."""
        values, page_key = _cookies_of(request), _page_key_of(request)
        must_wait = self._wait_s(request) > 0
        session = self._sessions.find(values, page_key, only_known=must_wait)
        if session is None and values and page_key and not must_wait:
            self._count(request)
        return session

    def _secrets(self) -> list[tuple[Role, Secret]]:
        config = self._read()
        return [
            (role, secret)
            for role, secret in ((Role.ADMIN, config.password), (Role.READER, config.read_token))
            if secret
        ]

    def _try(self, given: str, request: Request) -> Pass:
        """Return what whoever knows this secret may do. Raises `HTTPError` 401, or 429 after many tries."""
        text = Secret(given.encode(errors="replace").decode())  # JSON can hold what is no text
        wait_s = math.ceil(self._wait_s(request))
        if wait_s and not self._is_reader_of_late(text, request):
            detail = f"too many wrong passwords from there; try again in {wait_s} s"
            raise HTTPError(429, detail, [("Retry-After", str(wait_s))])
        found = [Pass(role, secret) for role, secret in self._secrets() if secret == text]
        if not found:
            self._count(request)
            _log.warning("a wrong password from %s", host_of(client_of(request)) or "this machine")
            raise _unauthorized("the password or the token is wrong")
        if found[0].role is Role.READER:
            self._note_reader(request)
        return found[0]

    def _wait_s(self, request: Request) -> float:
        return max(
            self._attempts.wait_s(network_of(client_of(request))),
            self._wide_attempts.wait_s(_wide_network_of(request)),
        )

    def _count(self, request: Request) -> None:
        self._attempts.count(network_of(client_of(request)))
        self._wide_attempts.count(_wide_network_of(request))

    def _is_reader_of_late(self, given: Secret, request: Request) -> bool:
        """Tell whether this is the read token, and has come from there lately: a program that goes on."""
        at_s = self._lately.get(network_of(client_of(request)))
        is_late = at_s is not None and time.monotonic() - at_s < LATELY_S
        return is_late and (Role.READER, given) in self._secrets()

    def _note_reader(self, request: Request) -> None:
        network = network_of(client_of(request))
        self._lately[network] = time.monotonic()
        self._lately.move_to_end(network)
        if len(self._lately) > MAX_READERS:
            self._lately.popitem(last=False)

    # ---- logins of browsers --------------------------------------------------------------------------------

    def log_in(self, request: Request, given: str) -> tuple[str, str]:
        """Return the header field that logs a browser in. Raises `HTTPError` 401 or 429."""
        if not self._read().needs_secret:
            return _cookie(request, "", 0)  # nothing is needed
        role = self._try(given, request).role
        return _cookie(request, self._sessions.begin(role, _page_key_of(request)), SESSION_S)

    def log_out(self, request: Request) -> tuple[str, str]:
        """End the session of a browser, and return the header field that has it forget the session."""
        session = self._sessions.find(_cookies_of(request), _page_key_of(request))
        if session is not None:
            self._sessions.end(session)
        return _cookie(request, "", 0)


def _wide_network_of(request: Request) -> str:
    """Return what many addresses have in common that may belong to one owner.

    That is a network with `WIDE_BITS` of prefix, or this machine with all for whom a proxy on it asks.
    """
    address = ipaddress.ip_address(host_of(request.peer).strip("[]").partition("%")[0] or "::1")
    if address.is_loopback:
        return "127.0.0.1"
    wide = ipaddress.ip_network((address, WIDE_BITS[address.version]), strict=False)
    return str(wide.network_address)


def pass_of(request: Request) -> Pass:
    """Return what `Access.check` has found out about who asks."""
    given = request.context["pass"]
    assert isinstance(given, Pass)  # noqa: S101  (for mypy: `check` puts nothing else there)
    return given


def _unauthorized(detail: str) -> HTTPError:
    # Bearer, not Basic: with Basic a browser would show a dialogue of its own in front of the panel's.
    return HTTPError(401, detail, [("WWW-Authenticate", 'Bearer realm="gnar"')])


def _credentials_of(request: Request) -> str | None:
    """Return the secret that is given by Bearer or Basic; None if there is none."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1").decode(errors="replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, or no UTF-8
            return ""
    return None


def _page_key_of(request: Request) -> str:
    """Return the key of the page that asks; empty for a program, which has none."""
    return request.headers.get(PAGE_KEY) or request.query.get(PAGE_PARAMETER, "")


def _cookie_name(request: Request) -> str:
    """Return the name of the cookie: one host may have several admin ports, and cookies know no ports."""
    port = request.headers.get("host", "").rpartition(":")[2]
    return f"{COOKIE}-{port}" if port.isdigit() else COOKIE


def _cookies_of(request: Request) -> list[str]:
    """Return the values that may prove a session."""
    pairs = [each.strip().partition("=") for each in request.headers.get("cookie", "").split(";")]
    ours = _cookie_name(request)
    return [value for name, _, value in pairs if name == ours and value.isascii()][:MAX_COOKIES]


def _cookie(request: Request, value: str, max_age_s: int) -> tuple[str, str]:
    secure = "; Secure" if request.headers.get("x-forwarded-proto", "") == "https" else ""
    cookie = (
        f"{_cookie_name(request)}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"
    )
    return "Set-Cookie", cookie


def client_of(request: Request) -> Sockaddr:
    """Return the address of whoever asks, as a proxy on this machine, or that of fly.io, tells it."""
    told = ""
    if "FLY_APP_NAME" in os.environ:  # set on fly.io, whose proxy replaces what users send
        told = request.headers.get("fly-client-ip", "")
    elif _is_loopback(host_of(request.peer)):
        told = request.headers.get("x-forwarded-for", "").rpartition(",")[2]
    try:
        address = ipaddress.ip_address(told.strip())
    except ValueError:
        return request.peer
    return (str(getattr(address, "ipv4_mapped", None) or address), 0)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_this_machine(host: str) -> bool:
    """Tell whether the Host of a request names this machine, whatever the port."""
    name = host.lower() if host.endswith("]") else host.lower().rpartition(":")[0] or host.lower()
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
