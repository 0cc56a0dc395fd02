"""Who may see what a proxy shows: HTTP basic authentication (RFC 7617); knows no connections.

Checking a password takes long, by intention. So what was right is remembered, few passwords are checked at
the same time, each in a thread, and whoever is often wrong has to wait.
"""

from __future__ import annotations

import base64
import functools
import hmac
import math
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gevent.lock import Semaphore
from gevent.threadpool import ThreadPool

from gnar_lib.auth import passwords
from gnar_lib.auth.attempts import Attempts
from gnar_lib.errors import AuthError, DeadlineError, ProxyRefusedError
from gnar_lib.http import HTTPError
from gnar_lib.net import deadline

CHALLENGE = ("WWW-Authenticate", 'Basic realm="gnar", charset="UTF-8"')  # the field of an answer 401
MAX_USERS = 100  # of a proxy
MAX_NAME_BYTES = 255
MAX_HEADER_BYTES = 4096  # what is longer is not looked at
MAX_AT_ONCE = 2  # passwords that are checked, in the whole process
MAX_IN_LINE = 32  # requests that wait for a check, for each proxy
MAX_IN_LINE_OF_NETWORK = 8  # of these from one network; a browser sends 6 requests at once
LINE_S = 10.0  # the longest wait in line
RETRY_S = 5  # what whoever finds the line too long is told
MAX_REMEMBERED = 4096  # right passwords, in the whole process; each takes about 200 bytes
REMEMBERED_S = 600.0  # from the last use


class BasicAuth:
    """The users of a proxy, each as "user:hash". Raises `ProxyRefusedError` for a user that cannot be."""

    def __init__(self, users: Sequence[str], checks: Checks | None = None) -> None:
        self._hashes = _hashes_of(users)
        self._checks = checks or _checks_of_process()
        self._name = self._checks.digest("\0".join(users).encode()).hex()  # the same after a reconnect
        self._turn = Semaphore()  # one check at a time, so that no proxy takes all the places of a process
        self._in_line: Counter[str] = Counter()  # how many wait, by network

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def check(self, authorization: bytes, network: str) -> bool:
        """Tell whether the value of an Authorization field names a user and the right password.

        Waits while the password is checked, unless it was right lately. `network` is whence the request
        comes. Raises `HTTPError` 429 after many wrong passwords from there, and 503 when too many wait.
        """
        given = credentials_of(authorization)
        if given is None or not self._hashes:
            return False
        user, password = given
        is_known = user in self._hashes
        hashed = self._hashes[user] if is_known else self._decoy_for(user)
        proof = self._checks.digest(b"\0".join((user, hashed.encode(), password)))
        if self._checks.knows(proof):
            return True
        whence = f"{self._name} {network}"
        self._checks.refuse_guesser(whence)
        with self._wait_in_line(network):
            # Meanwhile another request may have brought the same password, or wrong ones.
            if self._checks.knows(proof):
                return True
            self._checks.refuse_guesser(whence)
            is_right = self._checks.verify(password, hashed) and is_known
            if is_right:
                self._checks.remember(proof)
            else:
                self._checks.count_wrong(whence)
        return is_right

    def _decoy_for(self, user: bytes) -> str:
        """Return the hash with which an unknown user's password takes as long as that of one who exists.

        It is the same for a user each time, as a user's own hash would be.
        """
        hashes = [*self._hashes.values()]
        return hashes[int.from_bytes(self._checks.digest(user), "big") % len(hashes)]

    @contextmanager
    def _wait_in_line(self, network: str) -> Iterator[None]:
        """Wait until the block may check a password. Raises `HTTPError` 503 when that takes too long."""
        if self._in_line.total() >= MAX_IN_LINE or self._in_line[network] >= MAX_IN_LINE_OF_NETWORK:
            raise _busy()
        self._in_line[network] += 1
        try:
            if not self._turn.acquire(timeout=LINE_S):
                raise _busy()
        finally:
            self._in_line -= Counter((network,))  # drops a network of which none waits
        try:
            yield
        finally:
            self._turn.release()


class Checks:
    """The checks of passwords in this process: the threads, what was right lately, and who guesses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = secrets.token_bytes(32)
        self._threads = ThreadPool(MAX_AT_ONCE)
        self._right: OrderedDict[bytes, float] = OrderedDict()  # when each was used; the last one is last
        self._attempts = Attempts(clock=clock)
        self._clock = clock

    def digest(self, data: bytes) -> bytes:
        """Return what stands for some bytes in this process, and tells nobody what they are."""
        return hmac.digest(self._key, data, "sha256")

    def knows(self, proof: bytes) -> bool:
        """Tell whether what this is the digest of was right lately."""
        used = self._right.get(proof)
        if used is None:
            return False
        now = self._clock()
        if now - used > REMEMBERED_S:
            del self._right[proof]
            return False
        self._right[proof] = now
        self._right.move_to_end(proof)
        return True

    def remember(self, proof: bytes) -> None:
        """Note the digest of something that is right."""
        self._right[proof] = self._clock()
        if len(self._right) > MAX_REMEMBERED:
            self._right.popitem(last=False)

    def refuse_guesser(self, whence: str) -> None:
        """Raise `HTTPError` 429 if many wrong passwords have come from there."""
        wait_s = math.ceil(self._attempts.wait_s(whence))
        if wait_s:
            detail = f"too many wrong passwords from there; try again in {wait_s} s"
            raise HTTPError(429, detail, [("Retry-After", str(wait_s))])

    def count_wrong(self, whence: str) -> None:
        """Note a wrong password."""
        self._attempts.count(whence)

    def verify(self, password: bytes, hashed: str) -> bool:
        """Tell whether a password is right, while other greenlets go on. Raises `HTTPError` 503."""
        try:
            with deadline(LINE_S, "waiting for a thread"):
                asked = self._threads.spawn(_verify, password, hashed)
        except DeadlineError:
            raise _busy() from None
        is_right: bool | None = asked.get()
        if is_right is None:
            raise HTTPError(503, "this server cannot check passwords")
        return is_right


@functools.cache
def _checks_of_process() -> Checks:
    return Checks()


def _verify(password: bytes, hashed: str) -> bool | None:
    """Check a password, in a thread; None where that does not work. gevent would log an error."""
    try:
        return passwords.verify(password, hashed)
    except AuthError:
        return None


def _busy() -> HTTPError:
    detail = "too many passwords are being checked; try again in a moment"
    return HTTPError(503, detail, [("Retry-After", str(RETRY_S))])


def _hashes_of(users: Sequence[str]) -> dict[bytes, str]:
    """Return the hash of each user. Raises `ProxyRefusedError`, whose text holds no hash and no password."""
    if len(users) > MAX_USERS:
        raise ProxyRefusedError(f"basic-auth: {len(users)} users are more than the {MAX_USERS} of a proxy")
    found: dict[bytes, str] = {}
    for entry in users:
        name, colon, hashed = entry.partition(":")
        user = passwords.normalized(name.encode(errors="replace"))
        if not colon or not user:
            raise ProxyRefusedError('basic-auth: a user is given as "user:password" or "user:hash"')
        if not name.isprintable() or len(user) > MAX_NAME_BYTES:
            raise ProxyRefusedError(f"basic-auth: no user can be called {name[:MAX_NAME_BYTES]!r}")
        if user in found:
            raise ProxyRefusedError(f"basic-auth: the user {name!r} is given twice")
        if defect := passwords.find_defect(hashed):
            raise ProxyRefusedError(f"basic-auth: the hash of the user {name!r} cannot be used: {defect}")
        found[user] = hashed
    return found


def credentials_of(authorization: bytes) -> tuple[bytes, bytes] | None:
    """Return user and password of an Authorization field; None if it has none, or is malformed."""
    scheme, _, value = authorization[: MAX_HEADER_BYTES + 1].partition(b" ")
    if scheme.lower() != b"basic" or len(authorization) > MAX_HEADER_BYTES:
        return None
    try:
        name, colon, password = base64.b64decode(value.strip(b" \t"), validate=True).partition(b":")
    except ValueError:
        return None
    return (passwords.normalized(name), passwords.normalized(password)) if colon else None
