"""The certificate that a server makes for itself, held against OpenSSL and the package cryptography."""

from __future__ import annotations

import secrets
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import gevent
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gnar_lib.net import SocketConn, listen
from gnar_lib.transport.certificates import Certificates
from gnar_lib.transport.identity import Identity
from gnar_lib.transport.selfmade import NAME, N, make_certificate, multiple
from gnar_lib.transport.tls import TlsConn
from tests.helpers.certificates import openssl
from tests.helpers.conns import LOOPBACK, accept

NOW = datetime(2026, 7, 1, 12, 30, 59, tzinfo=timezone.utc)
LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def parts_of(pem: bytes) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return the key and the certificate in a text of PEM, as cryptography reads them."""
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key, x509.load_pem_x509_certificate(pem)


def check(pem: bytes) -> None:
    """Check that the certificate is the key's, and that the key has signed it."""
    key, certificate = parts_of(pem)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(certificate)


# ---- the curve ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "x", "y"),
    [  # published by NIST
        (
            1,
            "6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296",
            "4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5",
        ),
        (
            2,
            "7CF27B188D034F7E8A52380304B51AC3C08969E277F21B35A60B48FC47669978",
            "07775510DB8ED040293D9AC69F7430DBBA7DADE63CE982299E04B79D227873D1",
        ),
        (
            3,
            "5ECBE4D1A6330A44C8F7EF951D4BF165E6C6B721EFADA985FB41661BC6E7FD6C",
            "8734640C4998FF7E374B06CE1A64A2ECD82AB036384FB83D9A79B127A27D5032",
        ),
        (
            112233445566778899,
            "339150844EC15234807FE862A86BE77977DBFB3AE3D96F4C22795513AEAAB82F",
            "B1C14DDFDC8EC1B2583F51E85A5EB3A155840F2034730E9B5ADA38B674336A21",
        ),
        (
            N - 1,
            "6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296",
            "B01CBD1C01E58065711814B583F061E9D431CCA994CEA1313449BF97C840AE0A",
        ),
    ],
)
def test_multiples_of_the_base_are_the_published_ones(number: int, x: str, y: str) -> None:
    assert multiple(number) == (int(x, 16), int(y, 16))


def test_multiples_of_the_base_are_those_of_openssl() -> None:
    for _ in range(50):
        number = 1 + secrets.randbelow(N - 1)
        other = ec.derive_private_key(number, ec.SECP256R1()).public_key().public_numbers()
        assert multiple(number) == (other.x, other.y)


# ---- what the certificate says -----------------------------------------------------------------------------


def test_certificate_says_what_rfc_5280_wants_of_a_server() -> None:
    _, certificate = parts_of(make_certificate(NOW))
    assert certificate.version is x509.Version.v3
    assert 0 < certificate.serial_number < 1 << 159
    assert certificate.subject == certificate.issuer
    assert [(each.oid, each.value) for each in certificate.subject] == [(NameOID.COMMON_NAME, NAME)]
    assert certificate.not_valid_before_utc == NOW - timedelta(days=7)
    assert certificate.not_valid_after_utc == LAST
    said = {type(each.value): (each.critical, each.value) for each in certificate.extensions}
    assert said == {
        x509.SubjectAlternativeName: (False, x509.SubjectAlternativeName([x509.DNSName(NAME)])),
        x509.BasicConstraints: (True, x509.BasicConstraints(ca=False, path_length=None)),
        x509.KeyUsage: (True, x509.KeyUsage(True, *[False] * 8)),  # for signatures alone
        x509.ExtendedKeyUsage: (False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
        x509.SubjectKeyIdentifier: (
            False,
            certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value,
        ),
    }


@pytest.mark.parametrize("year", [1970, 2049, 2050, 2051, 2400])
def test_time_is_read_as_it_was_written_in_either_form(year: int) -> None:
    now = NOW.replace(year=year, month=1, day=1)
    pem = make_certificate(now)
    _, certificate = parts_of(pem)
    assert certificate.not_valid_before_utc == now - timedelta(days=7)
    assert certificate.not_valid_after_utc == LAST
    check(pem)


def test_openssl_takes_the_certificate_and_its_key(tmp_path: Path) -> None:
    path = tmp_path / "made.pem"
    path.write_bytes(make_certificate(datetime.now(timezone.utc)))
    openssl("verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslserver", "-CAfile", path, path)
    assert openssl("pkey", "-in", path, "-noout", "-check") == "Key is valid\n"
    text = openssl("x509", "-in", path, "-noout", "-text")
    for line in (
        "Version: 3 (0x2)",
        "Signature Algorithm: ecdsa-with-SHA256",
        "Issuer: CN = gnar",
        "Not After : Dec 31 23:59:59 9999 GMT",
        "Subject: CN = gnar",
        "NIST CURVE: P-256",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "X509v3 Subject Alternative Name: \n                DNS:gnar\n",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
        "X509v3 Extended Key Usage: \n                TLS Web Server Authentication\n",
    ):
        assert line in text


def test_two_hundred_certificates_are_all_good_and_no_two_are_alike() -> None:
    made = [make_certificate(NOW) for _ in range(200)]
    for pem in made:
        check(pem)
    certificates = [parts_of(pem)[1] for pem in made]
    assert len({each.serial_number for each in certificates}) == len(made)
    assert len({parts_of(pem)[0].private_numbers().private_value for pem in made}) == len(made)
    # The first half of a signature tells which secret number it was made with.
    assert len({each.signature[:36] for each in certificates}) == len(made)


@pytest.mark.parametrize(("drawn", "number"), [(0, 1), (N - 2, N - 1)])
def test_smallest_and_largest_secret_numbers_are_good(
    monkeypatch: pytest.MonkeyPatch, drawn: int, number: int
) -> None:
    limits: list[int] = []

    def draw(limit: int) -> int:
        limits.append(limit)
        return drawn

    monkeypatch.setattr(secrets, "randbelow", draw)
    pem = make_certificate(NOW)
    assert limits == [N - 1] * 2  # for the key, and for the signature
    assert parts_of(pem)[0].private_numbers().private_value == number
    check(pem)


# ---- handshakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_client_that_trusts_the_certificate_shakes_hands(tmp_path: Path, version: ssl.TLSVersion) -> None:
    pem = make_certificate(datetime.now(timezone.utc))
    path = tmp_path / "made.pem"
    path.write_bytes(pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cafile=str(path))
    client.minimum_version = client.maximum_version = version
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as of Python 3.13 by itself
    ends = (ssl.MemoryBIO(), ssl.MemoryBIO())
    near = client.wrap_bio(*ends, server_hostname=NAME)
    far = server.wrap_bio(ends[1], ends[0], server_side=True)
    for tls in (near, far, near, far, near):
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
    assert near.version() == version.name.replace("v1_", "v1.")
    assert near.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(certificate_in(pem))


def certificate_in(pem: bytes) -> str:
    return pem[pem.index(b"-----BEGIN CERTIFICATE") :].decode()


@pytest.fixture
def port() -> Iterator[int]:
    """Serve one client with a self-made certificate, which gets a greeting; return the port."""
    certificates = Certificates.self_made(Identity(make_certificate(datetime.now(timezone.utc))))

    def serve() -> None:
        conn: SocketConn = accept(listener)
        with closing(TlsConn.accept(conn, certificates.context)) as tls:
            tls.sendall(b"hello\n")

    with closing(listen(LOOPBACK, 0)) as listener:
        serving = gevent.spawn(serve)
        yield listener.port
        serving.get(timeout=5)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_of_openssl_shakes_hands(port: int, version: str) -> None:
    arguments = ["-connect", f"{LOOPBACK}:{port}", version, "-servername", "some.host", "-ign_eof"]
    client = subprocess.Popen(
        ["openssl", "s_client", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with client:
        said, _ = gevent.get_hub().threadpool.apply(client.communicate, kwds={"timeout": 20})
    assert client.returncode == 0, said
    assert "Peer signature type: ECDSA" in said
    assert "subject=CN = gnar" in said
    assert "hello\n" in said
