"""Hashes of passwords: which are made, which are taken, and what one may cost."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from gnar_lib.auth.passwords import find_defect, hash_password, is_hash, normalized, verify
from gnar_lib.errors import AuthError

SESAME_BCRYPT = "04$5dSeL6InYVzkh8Lcqn7iJuJHviixOmWPybMRcNdGfSnRkO1zVT/Xa"
# The third vector of RFC 7914, with its salt and the key of 64 bytes in base64.
RFC_SCRYPT = (
    "$scrypt$ln=14,r=8,p=1$U29kaXVtQ2hsb3JpZGU"
    "$cCO9yzr9c0hGHAbNgf046/2o+7qQT44+qbVD9lRdofLVQylVYT8Pz2LUlwUkKpr55h6F3A1lHkDfzwF7RVdYhw"
)


def scrypt_of(ln: int, r: int, p: int) -> str:
    return f"$scrypt$ln={ln},r={r},p={p}$AAECAwQFBgcICQoLDA0ODw$w87eYKiXrj5bwnkw4/Q5AcnbYrRzmsHCSpwUI7Wd9AA"


@pytest.mark.parametrize("password", ["a:b:c", "", "ünïcode ☃" * 100])
def test_a_hash_is_right_for_its_password_alone(password: str) -> None:
    hashed = hash_password(password)
    assert hashed.startswith("$scrypt$ln=14,r=8,p=1$")
    assert (is_hash(hashed), find_defect(hashed)) == (True, "")
    assert verify(password.encode(), hashed)
    assert not verify(password.encode() + b"x", hashed)


def test_two_hashes_of_one_password_differ() -> None:
    assert hash_password("sesame") != hash_password("sesame")


def test_scrypt_is_that_of_the_specification() -> None:
    assert verify(b"pleaseletmein", RFC_SCRYPT)
    assert not verify(b"pleaseletmeout", RFC_SCRYPT)


@pytest.mark.parametrize("kind", ["$2a$", "$2b$", "$2y$"])
def test_each_kind_of_bcrypt_is_taken(kind: str) -> None:
    hashed = kind + SESAME_BCRYPT
    assert (is_hash(hashed), find_defect(hashed)) == (True, "")
    assert verify(b"sesame", hashed)
    assert not verify(b"Sesame", hashed)


def test_bcrypt_takes_as_much_of_a_long_password_as_it_can() -> None:
    import bcrypt

    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert verify(b"x" * 72 + b"y", hashed)
    assert not verify(b"x" * 71, hashed)


def test_what_htpasswd_prints_is_taken() -> None:
    if not shutil.which("htpasswd"):
        pytest.skip("htpasswd is missing")
    done = subprocess.run(["htpasswd", "-nbB", "ann", "grün:☃"], capture_output=True, text=True, check=True)
    name, _, hashed = done.stdout.strip().partition(":")
    assert (name, find_defect(hashed)) == ("ann", "")
    assert verify("grün:☃".encode(), hashed)


def test_what_caddy_prints_is_taken() -> None:
    hashed = "$2a$14$.G4PP4lEX6QXGVx71wR52exjTFfSa.xTGbV1R.SXBhwsnzC.4N/NO"  # takes a second to check
    assert (is_hash(hashed), find_defect(hashed)) == (True, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sesame",
        "$2b$",
        "$scrypt$",
        "$2b$04$short",
        "pa$$word",
        "$apr1$",
        "2b" + SESAME_BCRYPT,
        "$9$" * 30,
    ],
)
def test_a_plain_password_is_no_hash(text: str) -> None:
    assert not is_hash(text)
    assert not verify(text.encode(), text)


@pytest.mark.parametrize(
    ("hashed", "text"),
    [
        ("$apr1$PRLmlwpw$ZJ6TbtmLH.QzpxQp14G0l/", "neither a bcrypt hash"),
        ("$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$RdescudvJCsgt3ub", "neither a bcrypt hash"),
        ("$2x$" + SESAME_BCRYPT, "neither a bcrypt hash"),
        ("$2b$04$5dSeL6InYVzkh8Lcqn7iJ9JHviixOmWPybMRcNdGfSnRkO1zVT/Xa", "neither a bcrypt hash"),
        ("$2b$03" + SESAME_BCRYPT[2:], "its cost is 3, and bcrypt is taken with a cost from 4 to 15"),
        ("$2b$16" + SESAME_BCRYPT[2:], "its cost is 16"),
        ("$2b$31" + SESAME_BCRYPT[2:], "its cost is 31"),
        (scrypt_of(20, 8, 1), "would cost too much"),
        (scrypt_of(17, 8, 1), "would cost too much"),  # 128 MiB
        (scrypt_of(14, 8, 9), "would cost too much"),  # nine times the time
        (scrypt_of(1, 999, 999), "would cost too much"),
        (scrypt_of(99, 999, 999), "would cost too much"),
        (scrypt_of(0, 8, 1), "no such ln, r and p"),
        (scrypt_of(14, 0, 1), "no such ln, r and p"),
        (scrypt_of(14, 8, 0), "no such ln, r and p"),
        (scrypt_of(16, 1, 1), "no such ln, r and p"),
        ("$scrypt$ln=14,r=8,p=1$AAECAwQFBgcIC$AAECAwQFBgcICQoLDA0ODwAA", "neither a bcrypt hash"),
    ],
)
def test_a_hash_that_cannot_be_used_is_told_from_a_password_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, hashed: str, text: str
) -> None:
    monkeypatch.setattr(hashlib, "scrypt", lambda *_, **__: pytest.fail("it was computed"))
    assert is_hash(hashed)
    assert text in find_defect(hashed)
    assert not verify(b"sesame", hashed)


@pytest.mark.parametrize(("ln", "r", "p"), [(16, 8, 1), (14, 8, 8), (1, 8, 1)])
def test_the_dearest_hashes_that_are_taken_can_be_computed(ln: int, r: int, p: int) -> None:
    assert find_defect(scrypt_of(ln, r, p)) == ""
    assert not verify(b"sesame", scrypt_of(ln, r, p))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"plain", "plain"),
        ("grün".encode(), "grün"),
        ("grün".encode("latin-1"), "grün"),
        ("gru\u0308n".encode(), "grün"),  # as macOS writes it
        ("☃".encode(), "☃"),
        (b"\xff\xfe", "ÿþ"),
    ],
)
def test_what_browsers_make_of_a_text_becomes_one(typed: bytes, expected: str) -> None:
    assert normalized(typed) == expected.encode()


def test_without_scrypt_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> bytes:
        raise ValueError("disabled for FIPS")

    monkeypatch.setattr(hashlib, "scrypt", refuse)
    with pytest.raises(AuthError, match="scrypt does not work on this machine: disabled for FIPS"):
        hash_password("sesame")
    monkeypatch.delattr(hashlib, "scrypt")
    with pytest.raises(AuthError, match="scrypt does not work on this machine"):
        verify(b"sesame", RFC_SCRYPT)


def test_without_the_package_bcrypt_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    assert "this machine cannot check bcrypt hashes (import of bcrypt" in find_defect("$2b$" + SESAME_BCRYPT)
    assert not verify(b"sesame", "$2b$" + SESAME_BCRYPT)


def test_a_start_loads_bcrypt_only_for_its_hashes() -> None:
    code = "import sys; from gnar_lib.auth import passwords; print('bcrypt' in sys.modules, end=' ');"
    code += f"passwords.find_defect('$2b${SESAME_BCRYPT}'); print('bcrypt' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
