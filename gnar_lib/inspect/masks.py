"""Which header fields hold secrets, and what stands in their place; knows no exchange."""

from __future__ import annotations

import re

from gnar_lib.inspect.exchange import Field

MASK = b"***"
_NAMES = frozenset(
    {
        b"authorization",
        b"authentication-info",
        b"cookie",
        b"cookie2",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"set-cookie",
        b"set-cookie2",
        b"x-amz-security-token",
        b"x-csrftoken",
        b"x-forwarded-access-token",
        b"x-hub-signature",
        b"x-hub-signature-256",
        b"x-xsrf-token",
    }
)
# Words of names such as X-Api-Key, X-Auth-Token, Client-Secret, X-Vault-Token, X-Shopify-Hmac-Sha256.
_WORDS = re.compile(
    rb"(?:^|[-_.])(?:api[-_.]?key|apikey|auth|token|secret|passw(?:or)?d|credentials?|session(?:id)?|"
    rb"jwt|hmac|csrf|signature|access[-_.]?key|private[-_.]?key)(?:$|[-_.])"
)
# Names that have such a word and no secret.
_PLAIN = frozenset({b"sec-websocket-accept", b"sec-websocket-key", b"www-authenticate"})


def is_secret(name: bytes) -> bool:
    """Tell whether a field of that name may hold a secret."""
    name = name.lower()
    return name in _NAMES or (name not in _PLAIN and _WORDS.search(name) is not None)


def masked(fields: list[Field]) -> list[Field]:
    """Return fields without their secrets. Of Authorization the scheme stays, of cookies the names."""
    return [(name, _masked(name.lower(), value) if is_secret(name) else value) for name, value in fields]


def _masked(name: bytes, value: bytes) -> bytes:
    if name in (b"authorization", b"proxy-authorization"):
        scheme, space, _ = value.partition(b" ")
        return scheme + b" " + MASK if space else MASK
    if name == b"cookie":
        return b"; ".join(each.strip().partition(b"=")[0] + b"=" + MASK for each in value.split(b";"))
    if name == b"set-cookie":
        first, semicolon, rest = value.partition(b";")
        return first.partition(b"=")[0] + b"=" + MASK + semicolon + rest
    return MASK
