"""What the options behind an address say of TLS, by socat's names; reads no file, and loads no OpenSSL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gnar_lib.config.transport import fingerprints
from gnar_lib.errors import ConfigError, UsageError

_VERSIONS = {"ssl2": 0, "ssl3": 0, "tls1": 0, "tls1.0": 0, "tls1.1": 0, "tls1.2": 12, "tls1.3": 13}
_LEAST = 12  # the oldest version that gnar speaks, 1.2


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How one side of a relay shakes hands."""

    cert: str = ""  # the file of this end's certificate; empty for none, or for one that a listener makes
    key: str = ""  # the file of its key; empty if the key is in the file of the certificate
    cafile: str = ""  # a file of certificates that are trusted; empty for those of the system
    capath: str = ""  # a folder of them
    verifies: bool = True  # whether the peer has to have a certificate that is trusted
    peer_name: str = ""  # the host that the peer's certificate has to name; empty for any
    sni: str = ""  # the name that a server is asked for; empty for none
    fingerprints: tuple[str, ...] = ()  # SHA-256 of certificates, of which a server has to show one
    least: int = _LEAST  # the oldest version of TLS, without its point
    most: int = 0  # the newest one; 0 for the newest there is
    # OpenSSL compares the names: a common name counts only if there is no other. Else gnar does, and a common
    # name always counts, as for socat.
    by_openssl: bool = False


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise UsageError("is not the path of a file")
    return text


def _fingerprints(text: str) -> tuple[str, ...]:
    try:
        return fingerprints(text)
    except ConfigError:
        raise UsageError("is not the SHA-256 of a certificate, which are 64 hexadecimal digits") from None


def _version(text: str) -> int:
    try:
        return _VERSIONS[text.lower()]
    except KeyError:
        raise UsageError("is neither TLS1.2 nor TLS1.3") from None


def _newest(text: str) -> int:
    version = _version(text)
    if version < _LEAST:
        raise UsageError("is refused: it is broken, and so TLS1.2 is the oldest that gnar speaks")
    return version


def _nothing(text: str) -> bool:
    if text.lower() not in ("none", "0"):
        raise UsageError("is not supported: compression tells what is encrypted")
    return True


def _anything(text: str) -> str:
    return text


def readers(flag: Callable[[str], bool]) -> dict[str, Callable[[str], Any]]:
    """Return what reads the value of each option of TLS; `flag` reads a switch."""
    return {
        "cert": _path,
        "key": _path,
        "cafile": _path,
        "capath": _path,
        "verify": flag,
        "commonname": _anything,
        "snihost": _anything,
        "nosni": flag,
        "fingerprint": _fingerprints,
        "min-version": _version,
        "max-version": _newest,
        # These change nothing here: OpenSSL has long had better sources of random numbers, and the ciphers
        # of gnar need no parameters.
        "compress": _nothing,
        "dhparam": _anything,
        "pseudo": flag,
        "egd": _anything,
    }


ALIASES: Final = {
    "openssl-certificate": "cert",
    "certificate": "cert",
    "openssl-key": "key",
    "openssl-cafile": "cafile",
    "openssl-capath": "capath",
    "openssl-verify": "verify",
    "openssl-commonname": "commonname",
    "cn": "commonname",
    "openssl-snihost": "snihost",
    "openssl-no-sni": "nosni",
    "no-sni": "nosni",
    "openssl-min-proto-version": "min-version",
    "min-proto-version": "min-version",
    "openssl-max-proto-version": "max-version",
    "max-proto-version": "max-version",
    "openssl-compress": "compress",
    "openssl-dhparam": "dhparam",
    "openssl-dhparams": "dhparam",
    "dhparams": "dhparam",
    "dh": "dhparam",
    "openssl-pseudo": "pseudo",
    "openssl-egd": "egd",
}
_EITHER = {"cert", "key", "cafile", "capath", "verify", "commonname", "min-version", "max-version"}
_NO_EFFECT = {"compress", "dhparam", "pseudo", "egd"}
LISTENING: Final = _EITHER | _NO_EFFECT
TARGET: Final = _EITHER | _NO_EFFECT | {"snihost", "nosni", "fingerprint"}
# Options of socat that gnar does not take, and what to do without them.
REFUSED: Final = {
    **dict.fromkeys(
        ("cipher", "ciphers", "openssl-cipherlist"), "leave it out: gnar takes good ciphers alone"
    ),
    **dict.fromkeys(
        ("method", "openssl-method"), "min-version=TLS1.2 and max-version=TLS1.2 choose a version"
    ),
    **dict.fromkeys(("fips", "openssl-fips"), "leave it out: the system's OpenSSL may be set up for it"),
}
_TRUST = ("cafile", "capath", "commonname", "verify")  # which of them says that a certificate is wanted


def of_users(values: dict[str, Any], *, is_own: bool) -> TlsSettings:
    """Return how to shake hands with users; raises `UsageError`.

    As with socat, users need a certificate that is trusted, unless `verify=0` says otherwise. In gnar's own
    spelling (`is_own`) they need one if an option says so, and this end may go without a file for its own.
    """
    if "cert" not in values and not is_own:
        raise UsageError(
            "option 'cert' is missing: the file of a certificate with its key; tls-listen makes one itself"
        )
    is_wanted = not is_own or any(name in values for name in _TRUST)
    return TlsSettings(
        verifies=values.get("verify", is_wanted),
        peer_name=values.get("commonname", ""),
        **_of_either(values),
    )


def of_target(values: dict[str, Any], host: str, *, is_own: bool) -> TlsSettings:
    """Return how to shake hands with the target at `host`; raises `UsageError`.

    A fingerprint is enough to trust the target, unless another option says what else is to be checked.
    """
    pinned = values.get("fingerprint", ())
    is_wanted = not pinned or any(name in values for name in _TRUST)
    name = values.get("commonname", host)
    sni = "" if values.get("nosni") else values.get("snihost") or name or host
    return TlsSettings(
        verifies=values.get("verify", is_wanted),
        peer_name=name,
        sni=sni,
        fingerprints=pinned,
        by_openssl=is_own and bool(sni) and sni == name,
        **_of_either(values),
    )


def _of_either(values: dict[str, Any]) -> dict[str, Any]:
    if "key" in values and "cert" not in values:
        raise UsageError("option 'key' needs option 'cert', the file of the certificate")
    least, most = max(values.get("min-version", _LEAST), _LEAST), values.get("max-version", 0)
    if most and most < least:
        raise UsageError("option 'max-version' is older than option 'min-version'")
    names = ("cert", "key", "cafile", "capath")
    return {"least": least, "most": most} | {name: values[name] for name in names if name in values}
