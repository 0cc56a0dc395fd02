"""Makes a key and a certificate that the key itself has signed; does no I/O, and knows not who uses them.

OpenSSL could do that, but Python's ssl cannot have OpenSSL do it. The key is one of the curve P-256 (SEC 2,
section 2.4.2), the signature is ECDSA with SHA-256 (FIPS 186-5, section 6.4.1), and the certificate is one of
X.509 (RFC 5280). Python's integers take a time that depends on the key, so this is for a key that is made
once, in a process that nobody else can time; TLS itself signs by OpenSSL.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Final

NAME: Final = "gnar"  # in the certificate, which needs a name; nobody accepts the certificate for this name
EARLIER: Final = timedelta(days=7)  # the certificate is valid from so long ago on, for clocks that are behind
NEVER: Final = "99991231235959Z"  # the end of a certificate that has none (RFC 5280, section 4.1.2.5)

# The curve y^2 = x^3 - 3x + b modulo P, and the point G, of which all N points of the curve are multiples.
P: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
N: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G: Final = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_SIZE = 32  # bytes of a number below P or N

_LINE = 64  # characters, of PEM (RFC 7468, section 2)
_LAST_UTC_YEAR = 2049  # whose century two digits tell (RFC 5280, section 4.1.2.5)
_LONG = 0x80  # from this length on, DER says first how many bytes the length has (X.690, section 8.1.3)

# Types of values (X.690), and identifiers of what certificates say (RFC 5280, RFC 5480, RFC 5758).
_INTEGER, _BITS, _OCTETS, _IDENTIFIER, _TEXT, _UTC_TIME, _TIME = 0x02, 0x03, 0x04, 0x06, 0x0C, 0x17, 0x18
_SEQUENCE, _SET, _DNS_NAME = 0x30, 0x31, 0x82
_IN_0, _IN_1, _IN_3 = 0xA0, 0xA1, 0xA3  # within a mark that says which of several fields this is
_EC_KEY, _P_256, _ECDSA_SHA256 = "2a8648ce3d0201", "2a8648ce3d030107", "2a8648ce3d040302"
_COMMON_NAME = "550403"
_KEY_IDENTIFIER, _KEY_USAGE, _ALTERNATIVE_NAME, _CONSTRAINTS = "551d0e", "551d0f", "551d11", "551d13"
_PURPOSES, _SERVER = "551d25", "2b06010505070301"
_TRUE = b"\x01\x01\xff"
_FOR_SIGNATURES = b"\x03\x02\x07\x80"  # the first of the bits, of which 7 of the byte are unused


def make_certificate(now: datetime) -> bytes:
    """Return a new key, as RFC 5915 and RFC 5208 have it, and its certificate for the name `gnar`, in PEM.

    `now` is in UTC. The certificate is valid from a week earlier on, without an end.
    """
    key = _random_number()
    point = b"\x04" + b"".join(_bytes(each) for each in multiple(key))  # uncompressed (SEC 1, section 2.3.3)
    algorithm = _der(_SEQUENCE, _identifier(_EC_KEY), _identifier(_P_256))
    pair = _der(_SEQUENCE, _integer(1), _der(_OCTETS, _bytes(key)), _der(_IN_1, _bits(point)))
    private = _der(_SEQUENCE, _integer(0), algorithm, _der(_OCTETS, pair))
    certificate = _certificate(key, point, _der(_SEQUENCE, algorithm, _bits(point)), now)
    return _pem("PRIVATE KEY", private) + _pem("CERTIFICATE", certificate)


def _certificate(key: int, point: bytes, public: bytes, now: datetime) -> bytes:
    name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _identifier(_COMMON_NAME), _der(_TEXT, NAME.encode()))))
    algorithm = _der(_SEQUENCE, _identifier(_ECDSA_SHA256))
    # By RFC 7093 instead of SHA-1, which some systems refuse to calculate.
    key_identifier = hashlib.sha256(point).digest()[:20]
    extensions = (
        _extension(_KEY_IDENTIFIER, _der(_OCTETS, key_identifier)),
        _extension(_KEY_USAGE, _FOR_SIGNATURES, is_critical=True),
        _extension(_ALTERNATIVE_NAME, _der(_SEQUENCE, _der(_DNS_NAME, NAME.encode()))),
        _extension(_CONSTRAINTS, _der(_SEQUENCE), is_critical=True),  # no authority: it signs no others
        _extension(_PURPOSES, _der(_SEQUENCE, _identifier(_SERVER))),
    )
    signed = _der(
        _SEQUENCE,
        _der(_IN_0, _integer(2)),  # version 3
        _integer(1 + secrets.randbits(127)),
        algorithm,
        name,  # who has signed
        _der(_SEQUENCE, _time(now - EARLIER), _der(_TIME, NEVER.encode())),
        name,  # whose certificate this is
        public,
        _der(_IN_3, _der(_SEQUENCE, *extensions)),
    )
    return _der(_SEQUENCE, signed, algorithm, _bits(_signature(key, signed)))


# ---- the curve ---------------------------------------------------------------------------------------------


def multiple(number: int) -> tuple[int, int]:
    """Return x and y of `number` times G, where `number` is from 1 to N - 1.

    Calculates with (X, Y, Z) for x = X/Z^2 and y = Y/Z^3, so that nothing but the end is divided.
    """
    x, y, z = *G, 1
    for digit in f"{number:b}"[1:]:
        x, y, z = _doubled(x, y, z)
        if digit == "1":
            x, y, z = _plus_g(x, y, z)
    inverse = pow(z, -1, P)
    return x * inverse**2 % P, y * inverse**3 % P


def _doubled(x: int, y: int, z: int) -> tuple[int, int, int]:
    y_squared = y * y % P
    s = 4 * x * y_squared % P
    slope = 3 * (x - z * z) * (x + z * z) % P  # since the curve has -3x
    new_x = (slope * slope - 2 * s) % P
    return new_x, (slope * (s - new_x) - 8 * y_squared * y_squared) % P, 2 * y * z % P


def _plus_g(x: int, y: int, z: int) -> tuple[int, int, int]:
    """Return the sum with G, for any point but G and its opposite."""
    z_squared = z * z % P
    across, up = G[0] * z_squared - x, (G[1] * z_squared * z - y) % P
    across_squared = across * across % P
    across_cubed, v = across_squared * across % P, x * across_squared % P
    new_x = (up * up - across_cubed - 2 * v) % P
    return new_x, (up * (v - new_x) - y * across_cubed) % P, across * z % P


def _signature(key: int, signed: bytes) -> bytes:
    digest = int.from_bytes(hashlib.sha256(signed).digest(), "big")
    r = s = 0
    while not r or not s:  # one of them is 0 for 2 of 2^256 numbers
        once = _random_number()  # known or used twice, it would tell the key
        r = multiple(once)[0] % N
        s = pow(once, -1, N) * (digest + r * key) % N
    return _der(_SEQUENCE, _integer(r), _integer(s))


def _random_number() -> int:
    """Return a secret number from 1 to N - 1, each as likely as any other."""
    return 1 + secrets.randbelow(N - 1)


# ---- as bytes ----------------------------------------------------------------------------------------------


def _der(kind: int, *contents: bytes) -> bytes:
    """Return a value of DER."""
    content = b"".join(contents)
    size = len(content)
    if size < _LONG:
        return bytes((kind, size)) + content
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((kind, _LONG | len(digits))) + digits + content


def _integer(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))  # with a bit for the sign


def _bits(data: bytes) -> bytes:
    return _der(_BITS, b"\x00", data)  # no bit of the last byte is unused


def _identifier(digits: str) -> bytes:
    return _der(_IDENTIFIER, bytes.fromhex(digits))


def _extension(identifier: str, content: bytes, *, is_critical: bool = False) -> bytes:
    return _der(_SEQUENCE, _identifier(identifier), _TRUE if is_critical else b"", _der(_OCTETS, content))


def _time(time: datetime) -> bytes:
    if time.year > _LAST_UTC_YEAR:
        return _der(_TIME, f"{time:%Y%m%d%H%M%SZ}".encode())
    return _der(_UTC_TIME, f"{time:%y%m%d%H%M%SZ}".encode())


def _bytes(number: int) -> bytes:
    return number.to_bytes(_SIZE, "big")


def _pem(label: str, data: bytes) -> bytes:
    text = base64.b64encode(data).decode()
    lines = [text[place : place + _LINE] for place in range(0, len(text), _LINE)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")).encode()
