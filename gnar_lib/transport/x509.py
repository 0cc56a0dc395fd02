"""Reads whom a certificate is for, and until when; does no I/O, and checks no signature.

OpenSSL has accepted the certificates before: those of whoever runs the server, or of a peer that it trusts.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from ipaddress import ip_address

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([^-]+)-----END CERTIFICATE-----")

# Of X.690 (DER): the types of values. Those of a certificate are in RFC 5280, sections 4.1 and 4.2.1.6.
_GENERALIZED_TIME = 0x18
_VERSION = 0xA0
_EXTENSIONS = 0xA3
_DNS_NAME = 0x82
_IP_ADDRESS = 0x87
_LONG = 0x80
_FIELDS_BEFORE_VALIDITY = 3  # serial number, algorithm, issuer
_SUBJECT_ALT_NAME = bytes.fromhex("551d11")
_COMMON_NAME = bytes.fromhex("550403")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says of itself."""

    names: tuple[str, ...]  # host names in lower case; a wildcard begins with `*.`
    begins: datetime
    ends: datetime


def first_certificate(pem: bytes) -> Certificate | None:
    """Return the first certificate in a file of PEM; None if there is none.

    Raises `ValueError` or `IndexError` if it is damaged.
    """
    der = _first_der(pem)
    if der is None:
        return None
    validity, subject, extensions = _parts(der)
    begins, ends = (_time(kind, text) for kind, text in _values(validity))
    names = [*_alternative_names(extensions)] or [*_common_names(subject)]
    return Certificate(tuple(name.decode("latin-1").lower() for name in names), begins, ends)


def names_of(der: bytes) -> tuple[str, ...]:
    """Return all host names and IP addresses of a certificate, its common name among them, in lower case.

    Raises `ValueError` or `IndexError` if it is damaged.
    """
    _, subject, extensions = _parts(der)
    texts = [*_alternative_names(extensions), *_common_names(subject)]
    found = [each.decode("latin-1").lower() for each in texts]
    found += [str(ip_address(each)) for each in _alternative_names(extensions, _IP_ADDRESS)]
    return tuple(dict.fromkeys(found))


def is_among(name: str, names: Collection[str]) -> bool:
    """Tell whether a host name or an IP address is one of those of a certificate (RFC 9525, section 6.3).

    A wildcard stands for one label, and is the first one.
    """
    name = name.lower().removesuffix(".")
    try:
        return str(ip_address(name.strip("[]"))) in names
    except ValueError:
        return name in names or f"*.{name.partition('.')[2]}" in names


def fingerprint_of(pem: bytes) -> str:
    """Return the SHA-256 of the first certificate in a file of PEM, in hex.

    Raises `ValueError` if there is none.
    """
    der = _first_der(pem)
    if der is None:
        raise ValueError("there is no certificate in PEM form")
    return hashlib.sha256(der).hexdigest()


def _first_der(pem: bytes) -> bytes | None:
    found = _PEM.search(pem)
    return None if found is None else base64.b64decode(found[1])


def _parts(der: bytes) -> tuple[bytes, bytes, bytes]:
    """Return when a certificate is valid, whose it is, and its extensions."""
    ((_, certificate),) = _values(der)
    ((_, signed), *_) = _values(certificate)
    fields = [*_values(signed)]
    if fields[0][0] == _VERSION:
        del fields[0]
    (_, validity), (_, subject) = fields[_FIELDS_BEFORE_VALIDITY : _FIELDS_BEFORE_VALIDITY + 2]
    return validity, subject, b"".join(value for kind, value in fields if kind == _EXTENSIONS)


def _alternative_names(extensions: bytes, kind: int = _DNS_NAME) -> Iterator[bytes]:
    for _, listed in _values(extensions):
        for _, extension in _values(listed):
            (_, number), *_, (_, content) = _values(extension)
            if number == _SUBJECT_ALT_NAME:
                for _, names in _values(content):
                    yield from (name for each, name in _values(names) if each == kind)


def _common_names(subject: bytes) -> Iterator[bytes]:
    """Yield the names of certificates that are older than the extension for names."""
    for _, attributes in _values(subject):
        for _, attribute in _values(attributes):
            (_, number), (_, value) = _values(attribute)
            if number == _COMMON_NAME:
                yield value


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each value in `data`."""
    place = 0
    while place < len(data):
        kind, size, place = data[place], data[place + 1], place + 2
        if size >= _LONG:
            digits = size - _LONG
            size, place = int.from_bytes(data[place : place + digits], "big"), place + digits
        if place + size > len(data):
            raise ValueError("a certificate that is cut off")
        yield kind, data[place : place + size]
        place += size


def _time(kind: int, text: bytes) -> datetime:
    """Return a time; one with two digits for the year is between 1950 and 2049 (RFC 5280, 4.1.2.5.1)."""
    digits = text.decode("ascii")
    if kind != _GENERALIZED_TIME:
        digits = f"{19 if digits >= '50' else 20}{digits}"
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
