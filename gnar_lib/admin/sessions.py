"""The logins of browsers, each proven by a signed value that the browser keeps; knows no HTTP.

The key of the signatures is made of the secret with which a browser logs in, and of something else that
strangers do not know, so that nobody can try passwords by making up values. A server makes the same key after
a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from gnar_lib.config.model import NO_SECRET, Secret

SESSION_S = 7 * 86_400  # for which a login is good
KEY_ROUNDS = 50_000  # so that whoever has stolen a value cannot try many passwords
MAX_REMEMBERED = 1000  # sessions that are over, and sessions that were good lately


class Role(Enum):
    """What somebody may do who asks."""

    ADMIN = "admin"  # see and change everything
    READER = "reader"  # see everything


@dataclass(frozen=True, slots=True)
class Session:
    """The login of a browser."""

    role: Role
    secret: Secret  # with which the browser has logged in
    text: str  # that is signed
    ends: int  # in Unix seconds


class Sessions:
    """Makes values for browsers, and says which of them are good.

    `read` returns the secrets of today by role, and `mixed_in` a secret that strangers do not know: without
    one, all sessions end with the process.
    """

    def __init__(
        self,
        read: Callable[[], list[tuple[Role, Secret]]],
        mixed_in: Callable[[], Secret],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read = read
        self._mixed_in = mixed_in
        self._clock = clock
        self._random = os.urandom(32)
        self._keys: dict[Role, tuple[tuple[Secret, Secret], bytes]] = {}  # and what each is made of
        self._over: OrderedDict[str, int] = OrderedDict()  # that were logged out, and when they would end
        self._known: OrderedDict[str, None] = OrderedDict()  # that were found good, the last one last

    def begin(self, role: Role, page_key: str) -> str:
        """Return the value for a browser that has logged in, good together with the key of its page."""
        text = f"{role.value}.{secrets.token_urlsafe(16)}.{int(self._clock()) + SESSION_S}"
        self._know(text)
        return f"{text}.{self._sign(role, text, page_key)}"

    def end(self, session: Session) -> None:
        """Take a session for over from now on."""
        self._over[session.text] = session.ends
        while len(self._over) > MAX_REMEMBERED:
            self._over.popitem(last=False)

    def find(self, values: Iterable[str], page_key: str, *, only_known: bool = False) -> Session | None:
        """Return the session that one of some values proves; None if none does.

        `only_known`: just one that was good before counts.
        """
        for value in values:
            text, _, signature = value.rpartition(".")
            if only_known and text not in self._known:
                continue
            word, _, rest = text.partition(".")
            for role, secret in self._read():
                if role.value == word and hmac.compare_digest(self._sign(role, text, page_key), signature):
                    session = Session(role, secret, text, int(rest.rpartition(".")[2]))
                    if self.is_good(session):
                        self._know(text)
                        return session
        return None

    def is_good(self, session: Session) -> bool:
        """Tell whether a session goes on: it is not over, and its secret is still the one of today."""
        is_over = session.ends <= self._clock() or session.text in self._over
        return not is_over and (session.role, session.secret) in self._read()

    def _know(self, text: str) -> None:
        self._known[text] = None
        self._known.move_to_end(text)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    def _sign(self, role: Role, text: str, page_key: str) -> str:
        """Return what only this process, or another one with the same settings, can make of `text`."""
        secret = next((secret for each, secret in self._read() if each is role), NO_SECRET)
        made_of, key = self._keys.get(role, ((NO_SECRET, NO_SECRET), b""))
        mixed_in = self._mixed_in()
        if not key or made_of != (secret, mixed_in):
            salt = b"gnar " + (mixed_in.reveal().encode() or self._random)
            key = hashlib.pbkdf2_hmac("sha256", secret.reveal().encode(), salt, KEY_ROUNDS)
            self._keys[role] = (secret, mixed_in), key
        return hmac.digest(key, f"{text} {page_key}".encode(), "sha256").hex()
