"""Hashes of passwords: makes them with scrypt, checks scrypt and bcrypt; knows neither users nor requests.

A hash comes from a client, and the server computes what the hash asks for. So there are limits on what a
hash may cost.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from gnar_lib.errors import AuthError

LOG_N, R, P = 14, 8, 1  # of hashes that are made here: 16 MiB and about 50 ms each
SALT_BYTES = 16
KEY_BYTES = 32

# What checking one password may cost on a slow core: two seconds, and 64 MiB of memory.
MIN_BCRYPT_COST, MAX_BCRYPT_COST = 4, 15  # `htpasswd -B` takes 5, `caddy hash-password` 14
MAX_MEMORY_BYTES = 64 << 20
MAX_SCRYPT_WORK = 8 * ((R * P) << LOG_N)  # N * r * p, eight times that of a hash that is made here
SPARE_BYTES = 1 << 20  # that OpenSSL may use beside the memory of scrypt

BCRYPT_BYTES = 72  # of a password; bcrypt knows no more of it

_ANY_HASH = re.compile(r"\$(?:scrypt|2[abxy]?|apr1|1|5|6|7|y|gy|argon2(?:i|d|id))\$[!-~]{20,}")
_4, _REST = "[A-Za-z0-9+/]{4}", "(?:[A-Za-z0-9+/]{2,3})?"  # of base64 without "="
_SCRYPT = re.compile(
    r"\$scrypt\$ln=(?P<ln>\d{1,2}),r=(?P<r>\d{1,3}),p=(?P<p>\d{1,3})"
    rf"\$(?P<salt>(?:{_4}){{2,21}}{_REST})\$(?P<key>(?:{_4}){{5,21}}{_REST})",
    re.ASCII,
)
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}", re.ASCII)


def hash_password(password: str) -> str:
    """Return the scrypt hash of a password; takes about 50 ms.

    The form is that of passlib. Raises `AuthError` where OpenSSL has no scrypt.
    """
    salt = secrets.token_bytes(SALT_BYTES)
    given = normalized(password.encode(errors="surrogateescape"))
    key = _Scrypt(LOG_N, R, P).key_of(given, salt, KEY_BYTES)
    return f"$scrypt$ln={LOG_N},r={R},p={P}${_unpadded(salt)}${_unpadded(key)}"


def is_hash(text: str) -> bool:
    """Tell whether a text is a hash of any kind, also of one that `find_defect` refuses, and no password."""
    return _ANY_HASH.fullmatch(text) is not None


def find_defect(hashed: str) -> str:
    """Say in a few words why a hash cannot be used here; "" if it can be used."""
    if found := _BCRYPT.fullmatch(hashed):
        cost = int(found[1])
        if not MIN_BCRYPT_COST <= cost <= MAX_BCRYPT_COST:
            costs = f"from {MIN_BCRYPT_COST} to {MAX_BCRYPT_COST}"
            return f"its cost is {cost}, and bcrypt is taken with a cost {costs}"
        try:
            import bcrypt  # noqa: F401  (whether it is there is all that is asked)
        except ImportError as exc:  # the package is missing, or a library that it needs
            return f"this machine cannot check bcrypt hashes ({exc}): take a plain password or a scrypt hash"
        return ""
    found = _SCRYPT.fullmatch(hashed)
    if found is None:
        return "it is neither a bcrypt hash ($2y$...) nor a scrypt hash ($scrypt$ln=...)"
    return _Scrypt.of(found).find_defect()


def verify(password: bytes, hashed: str) -> bool:
    """Tell whether a password is the right one; False for a hash that cannot be used here.

    Takes up to two seconds, in which other threads can run. Raises `AuthError` where OpenSSL has no scrypt.
    """
    if find_defect(hashed):
        return False
    given = normalized(password)
    found = _SCRYPT.fullmatch(hashed)
    if found is None:
        import bcrypt

        return bcrypt.checkpw(given[:BCRYPT_BYTES], hashed.encode())
    key = _from_unpadded(found["key"])
    return hmac.compare_digest(_Scrypt.of(found).key_of(given, _from_unpadded(found["salt"]), len(key)), key)


def normalized(text: bytes) -> bytes:
    """Return a name or a password as UTF-8, composed (NFC), whatever the browser has made of it.

    Bytes that are no UTF-8 are taken for Latin-1, in which some programs send what they can.
    """
    if text.isascii():
        return text
    from unicodedata import normalize

    try:
        told = text.decode()
    except UnicodeDecodeError:
        told = text.decode("latin-1")
    return normalize("NFC", told).encode()


@dataclass(frozen=True, slots=True)
class _Scrypt:
    """What a hash costs: the parameters of RFC 7914, N as its logarithm."""

    ln: int
    r: int
    p: int

    @classmethod
    def of(cls, found: re.Match[str]) -> _Scrypt:
        return cls(int(found["ln"]), int(found["r"]), int(found["p"]))

    @property
    def memory_bytes(self) -> int:
        return 128 * self.r * ((1 << self.ln) + self.p)

    def find_defect(self) -> str:
        """Say in a few words why this cannot be computed here; "" if it can."""
        if min(self.ln, self.r, self.p) < 1 or self.ln >= 16 * self.r:
            return "scrypt has no such ln, r and p"
        is_large = self.memory_bytes > MAX_MEMORY_BYTES + SPARE_BYTES
        if is_large or (self.r * self.p) << self.ln > MAX_SCRYPT_WORK:
            return f"its ln, r and p would cost too much here: ln={LOG_N},r={R},p={P} is good"
        return ""

    def key_of(self, password: bytes, salt: bytes, size: int) -> bytes:
        """Return the key of a password, so many bytes. Raises `AuthError` where OpenSSL has no scrypt."""
        memory = self.memory_bytes + SPARE_BYTES
        try:
            return hashlib.scrypt(
                password, salt=salt, n=1 << self.ln, r=self.r, p=self.p, maxmem=memory, dklen=size
            )
        except (AttributeError, ValueError, MemoryError) as exc:  # no OpenSSL, or one that is kept to FIPS
            raise AuthError(f"scrypt does not work on this machine: {exc}") from exc


def _unpadded(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _from_unpadded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
