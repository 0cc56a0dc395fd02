"""Who may ask at the admin port, and for what: passwords, tokens, cookies, and pages of others in a browser.

Without a password and a token, whoever is on this machine may do everything: the port is on loopback then,
and only a page whose address is this machine's may ask.

A cookie is proof of a login, made with the password, so that it is good after a restart as well. A browser
sends a cookie to every port of a host, and other ports of this host belong to clients and their services. So
the panel keeps a key of its own, which browsers give to no other port, and sends it with each request: a
cookie is good only together with the key with which the browser has logged in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import math
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from gnar_lib import logger
from gnar_lib.admin.attempts import Attempts
from gnar_lib.config import AdminConfig
from gnar_lib.config.model import NO_SECRET, Secret
from gnar_lib.http import HTTPError, Request
from gnar_lib.net import Sockaddr, host_of

COOKIE = "gnar-admin"  # the port follows: servers on one host, or behind one SSH, have a login each
PAGE_KEY = "x-gnar-page"  # the field with the key of a page
PAGE_PARAMETER = "page"  # the same in a query, for event streams: a browser adds no fields to those
MAX_COOKIES = 4  # of that name: another port of the host can set one, too
SESSION_S = 7 * 86_400  # for which a login is good
KEY_ROUNDS = 50_000  # so that whoever has stolen a cookie cannot try many passwords
MAX_OVER = 1000  # sessions that are remembered as over
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/api/v1/login", "/api/openapi.json"})
OPEN_FOLDER = "static"
LOGOUT_PATH = "/api/v1/logout"
READING = frozenset({"GET", "HEAD", "OPTIONS"})

_log = logger.get("admin")


class Role(Enum):
    """What somebody may do who asks."""

    ADMIN = "admin"  # see and change everything
    READER = "reader"  # see everything


@dataclass(frozen=True, slots=True)
class _Session:
    """The login of a browser."""

    text: str  # that is signed
    ends: int  # in Unix seconds


@dataclass(frozen=True, slots=True)
class Pass:
    """What somebody may do who asks, and what that rests on."""

    role: Role
    secret: Secret = NO_SECRET  # that was given, or with which the session began; empty if none is needed
    session: _Session | None = None  # of a browser


class Access:
    """Decides about requests by the settings that `read` returns, which a reload may change."""

    def __init__(self, read: Callable[[], AdminConfig], clock: Callable[[], float] = time.time) -> None:
        self._read = read
        self._clock = clock
        self._attempts = Attempts()
        self._keys: dict[Role, tuple[Secret, bytes]] = {}  # of cookies, and what each is made of
        self._over: dict[str, int] = {}  # sessions that were logged out, and when they would have ended

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
        if given.session is not None and not self._is_good(given.session):
            return False
        if not given.secret:
            return not self._read().needs_secret
        return (given.role, given.secret) in self._secrets()

    # ---- pages of others -----------------------------------------------------------------------------------

    def _check_page(self, request: Request) -> None:
        """Refuse what a page of somebody else has a browser ask for."""
        host = request.headers.get("host", "")  # HTTP/1.0 may come without, which no browser does
        if host and not self._read().needs_secret and not _is_this_machine(host):
            raise HTTPError(
                403, "this port answers to the addresses of this machine alone, such as localhost"
            )
        if request.method in READING:
            return
        origin = request.headers.get("origin")
        if origin is not None and (not host or origin.partition("://")[2].lower() != host.lower()):
            raise HTTPError(403, "a page from elsewhere may not ask for this")
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPError(403, "a page from elsewhere may not ask for this")

    # ---- who asks ------------------------------------------------------------------------------------------

    def _pass_of(self, request: Request) -> Pass:
        if not self._read().needs_secret:
            return Pass(Role.ADMIN)
        by_cookie = self._by_cookie(request)
        if by_cookie is not None:
            return by_cookie
        given = _credentials_of(request)
        if given is None:
            raise _unauthorized("a password or a token is needed")
        return self._try(given, client_of(request))

    def _secrets(self) -> list[tuple[Role, Secret]]:
        config = self._read()
        return [
            (role, secret)
            for role, secret in ((Role.ADMIN, config.password), (Role.READER, config.read_token))
            if secret
        ]

    def _try(self, given: str, client: Sockaddr) -> Pass:
        """Return what whoever knows this secret may do. Raises `HTTPError` 401, or 429 after many tries."""
        if wait_s := math.ceil(self._attempts.wait_s(client)):
            detail = f"too many wrong passwords from there; try again in {wait_s} s"
            raise HTTPError(429, detail, [("Retry-After", str(wait_s))])
        text = Secret(given.encode(errors="replace").decode())  # JSON can hold what is no text
        found = [Pass(role, secret) for role, secret in self._secrets() if secret == text]
        if found:
            return found[0]
        self._attempts.count(client)
        _log.warning("a wrong password from %s", host_of(client) or "this machine")
        raise _unauthorized("the password or the token is wrong")

    # ---- logins of browsers --------------------------------------------------------------------------------

    def log_in(self, request: Request, given: str) -> tuple[str, str]:
        """Return the header field that logs a browser in. Raises `HTTPError` 401 or 429."""
        if not self._read().needs_secret:
            return _cookie(request, "", 0)  # nothing is needed
        role = self._try(given, client_of(request)).role
        ends = int(self._clock()) + SESSION_S
        text = f"{role.value}.{secrets.token_urlsafe(16)}.{ends}"
        return _cookie(request, f"{text}.{self._sign(role, text, _page_key_of(request))}", SESSION_S)

    def log_out(self, request: Request) -> tuple[str, str]:
        """End the session of a browser, and return the header field that has it forget the session."""
        by_cookie = self._by_cookie(request)
        if by_cookie is not None and by_cookie.session is not None:
            now = self._clock()
            self._over = {text: ends for text, ends in self._over.items() if ends > now}
            while len(self._over) >= MAX_OVER:
                del self._over[next(iter(self._over))]
            self._over[by_cookie.session.text] = by_cookie.session.ends
        return _cookie(request, "", 0)

    def _by_cookie(self, request: Request) -> Pass | None:
        """Return what a browser may do that proves a session; None if it proves none."""
        page_key = _page_key_of(request)
        for value in _cookies_of(request):
            text, _, signature = value.rpartition(".")
            word, _, rest = text.partition(".")
            for role, secret in self._secrets():
                if role.value != word or not hmac.compare_digest(self._sign(role, text, page_key), signature):
                    continue
                session = _Session(text, int(rest.rpartition(".")[2]))
                return Pass(role, secret, session) if self._is_good(session) else None
        return None

    def _is_good(self, session: _Session) -> bool:
        return session.ends > self._clock() and session.text not in self._over

    def _sign(self, role: Role, text: str, page_key: str) -> str:
        """Return what only this process, or another one with the same settings, can make of `text`."""
        secret = next(secret for each, secret in self._secrets() if each is role)
        made_of, key = self._keys.get(role, (NO_SECRET, b""))
        if made_of != secret:
            key = hashlib.pbkdf2_hmac("sha256", secret.reveal().encode(), b"gnar cookie", KEY_ROUNDS)
            self._keys[role] = secret, key
        return hmac.digest(key, f"{text} {page_key}".encode(), "sha256").hex()


def pass_of(request: Request) -> Pass:
    """Return what `Access.check` has found out about who asks."""
    given = request.context["pass"]
    assert isinstance(given, Pass)  # noqa: S101
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


def _is_this_machine(host: str) -> bool:
    """Tell whether the Host of a request names this machine, whatever the port."""
    name = host.lower() if host.endswith("]") else host.lower().rpartition(":")[0] or host.lower()
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
