"""Who may ask at the admin port, and for what: passwords, tokens, cookies, and pages of others in a browser.

Without a password and a token, whoever is on this machine may do everything: the port is on loopback then,
and only a page whose address is this machine's may ask. A cookie is proof of a login, made with the password,
so that it is good after a restart as well.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from gnar_lib import logger
from gnar_lib.admin.attempts import Attempts
from gnar_lib.config import AdminConfig
from gnar_lib.config.model import Secret
from gnar_lib.http import HTTPError, Request
from gnar_lib.net import Sockaddr, host_of

COOKIE = "gnar-admin"
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


class Access:
    """Decides about requests by the settings that `read` returns, which a reload may change."""

    def __init__(self, read: Callable[[], AdminConfig], clock: Callable[[], float] = time.time) -> None:
        self._read = read
        self._clock = clock
        self._attempts = Attempts()
        self._keys: dict[Secret, bytes] = {}  # of cookies, by the password that a key is made of
        self._over: dict[str, int] = {}  # sessions that were logged out, and when they would have ended

    def check(self, request: Request) -> None:
        """Raise `HTTPError` unless a request may be served; tell in its `context` what who asks may do."""
        self._check_page(request)
        if request.path in OPEN_PATHS or request.segments[0] == OPEN_FOLDER:
            return
        role = self._role_of(request)
        if role is Role.READER and request.method not in READING and request.path != LOGOUT_PATH:
            raise HTTPError(403, "this token may look, and change nothing")
        request.context["role"] = role

    # ---- pages of others -----------------------------------------------------------------------------------

    def _check_page(self, request: Request) -> None:
        """Refuse what a page of somebody else has a browser ask for."""
        host = request.headers.get("host", "")
        if not self._read().needs_secret and not _is_this_machine(host):
            raise HTTPError(
                403, "this port answers to the addresses of this machine alone, such as localhost"
            )
        if request.method in READING:
            return
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise HTTPError(403, "a page from elsewhere may not ask for this")
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPError(403, "a page from elsewhere may not ask for this")

    # ---- who asks ------------------------------------------------------------------------------------------

    def _role_of(self, request: Request) -> Role:
        if not self._read().needs_secret:
            return Role.ADMIN
        session = self._session_of(request)
        if session is not None:
            return session.role
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

    def _try(self, given: str, client: Sockaddr) -> Role:
        """Return what whoever knows this secret may do. Raises `HTTPError` 401, or 429 after many tries."""
        if wait_s := self._attempts.wait_s(client):
            detail = f"too many wrong passwords from there; try again in {wait_s:.0f} s"
            raise HTTPError(429, detail, [("Retry-After", f"{wait_s:.0f}")])
        found = [role for role, secret in self._secrets() if secret == Secret(given)]
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
        role = self._try(given, client_of(request))
        ends = int(self._clock()) + SESSION_S
        text = f"{role.value}.{secrets.token_urlsafe(16)}.{ends}"
        return _cookie(request, f"{text}.{self._sign(role, text)}", SESSION_S)

    def is_logged_in(self, request: Request) -> bool:
        """Tell whether a browser asks that has logged in, and can log out."""
        return self._session_of(request) is not None

    def log_out(self, request: Request) -> tuple[str, str]:
        """End the session of a browser, and return the header field that has it forget the session."""
        session = self._session_of(request)
        if session is not None:
            now = self._clock()
            self._over = {text: ends for text, ends in self._over.items() if ends > now}
            while len(self._over) >= MAX_OVER:
                del self._over[next(iter(self._over))]
            self._over[session.text] = session.ends
        return _cookie(request, "", 0)

    def _session_of(self, request: Request) -> _Session | None:
        """Return the session that a browser proves by its cookie; None if it has none that is good."""
        text, _, signature = _cookie_of(request).rpartition(".")
        parts = text.split(".")
        if len(parts) != 3 or text in self._over:  # noqa: PLR2004  (as `log_in` has made it)
            return None
        for role, _secret in self._secrets():
            if role.value == parts[0] and hmac.compare_digest(self._sign(role, text), signature):
                ends = int(parts[2])
                return _Session(role, text, ends) if ends > self._clock() else None
        return None

    def _sign(self, role: Role, text: str) -> str:
        """Return what only this process, or another one with the same settings, can make of `text`."""
        secret = next(secret for each, secret in self._secrets() if each is role)
        key = self._keys.get(secret)
        if key is None:
            self._keys.clear()  # the secret has changed
            key = hashlib.pbkdf2_hmac("sha256", secret.reveal().encode(), b"gnar cookie", KEY_ROUNDS)
            self._keys[secret] = key
        return hmac.digest(key, text.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True)
class _Session:
    """The login of a browser."""

    role: Role
    text: str  # that is signed
    ends: int  # in Unix seconds


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
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return None


def _cookie_of(request: Request) -> str:
    for each in request.headers.get("cookie", "").split(";"):
        name, _, value = each.strip().partition("=")
        if name == COOKIE and value.isascii():
            return value
    return ""


def _cookie(request: Request, value: str, max_age_s: int) -> tuple[str, str]:
    secure = "; Secure" if request.headers.get("x-forwarded-proto", "") == "https" else ""
    return "Set-Cookie", f"{COOKIE}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"


def client_of(request: Request) -> Sockaddr:
    """Return the address of whoever asks, as a proxy on this machine, or that of fly.io, tells it."""
    told = ""
    if "FLY_APP_NAME" in os.environ:  # set on fly.io, whose proxy replaces what users send
        told = request.headers.get("fly-client-ip", "")
    elif _is_loopback(host_of(request.peer)):
        told = request.headers.get("x-forwarded-for", "").rpartition(",")[2]
    try:
        return (str(ipaddress.ip_address(told.strip())), 0)
    except ValueError:
        return request.peer


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_this_machine(host: str) -> bool:
    """Tell whether the Host of a request names this machine, whatever the port."""
    name = host.lower() if host.endswith("]") else host.lower().rpartition(":")[0] or host.lower()
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
