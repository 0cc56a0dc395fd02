"""Certificates of a server: what is refused, which one a client gets, and how they are renewed."""

from __future__ import annotations

import logging
import os
import ssl
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path

import gevent
import pytest

from gnar_lib.errors import ConfigError
from gnar_lib.transport.certificates import Certificates
from gnar_lib.transport.identity import load_or_make
from gnar_lib.transport.tls import TlsConn
from gnar_lib.transport.x509 import first_certificate, is_among, names_of
from tests.helpers.certificates import make_certificate, openssl
from tests.helpers.conns import tcp_pair
from tests.helpers.tls import certificate, tls_pair


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make some certificates, and return their folder. No test may change a file there."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificate(folder / "a.pem", "a.example")
    make_certificate(folder / "wild.pem", "*.Example.com", "example.com")
    make_certificate(folder / "exact.pem", "blog.example.com", "a.example")
    openssl("pkey", "-in", folder / "a.pem", "-out", folder / "a.key")
    openssl("pkey", "-in", folder / "a.pem", "-out", folder / "locked.key", "-aes256", "-passout", "pass:x")
    openssl("genrsa", "-out", folder / "rsa.key", 2048)
    (folder / "empty").write_text("")
    (folder / "cut.crt").write_text((folder / "a.crt").read_text().replace("MII", "MIJ"))
    return folder


def presented(
    certificates: Certificates, name: str | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> str:
    """Return the first name of the certificate that a client gets which wants `name`."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = version
    ends = (ssl.MemoryBIO(), ssl.MemoryBIO())
    near = client.wrap_bio(*ends, server_hostname=name)
    far = certificates.context.wrap_bio(ends[1], ends[0], server_side=True)
    for tls in (near, far, near, far, near):
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
    assert near.version() == version.name.replace("v1_", "v1.")
    der = near.getpeercert(binary_form=True)
    assert der is not None
    certificate = first_certificate(ssl.DER_cert_to_PEM_cert(der).encode())
    assert certificate is not None
    return certificate.names[0]


@pytest.mark.parametrize(
    ("cert", "key", "error"),
    [
        ("none.pem", "", r"none\.pem: cannot read it: No such file or directory"),
        ("a.crt", "none.key", r"none\.key: cannot read it: No such file or directory"),
        ("", "", r"cannot read it: Is a directory"),
        ("empty", "", r"empty: there is no certificate in PEM form, .*-----BEGIN CERTIFICATE-----"),
        ("a.key", "", r"a\.key: there is no certificate in PEM form"),
        ("cut.crt", "a.key", r"cut\.crt: the first certificate is damaged"),
        ("a.crt", "", r"a\.crt: there is no private key in PEM form; name the key's file with tls-key"),
        ("a.crt", "a.crt", r"a\.crt: there is no private key"),
        ("a.crt", "empty", r"empty: there is no private key in PEM form$"),
        ("a.crt", "locked.key", r"locked\.key: a password protects the key.*openssl pkey -in .*locked\.key"),
        ("a.crt", "wild.pem", r"wild\.pem: the key does not fit the first certificate of .*a\.crt"),
        ("a.crt", "rsa.key", r"rsa\.key: the key does not fit the first certificate of .*a\.crt"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(made: Path, cert: str, key: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        Certificates.load([str(made / cert)], [str(made / key)] if key else [])
    assert "\n" not in str(caught.value)


def test_each_certificate_has_a_key(made: Path) -> None:
    with pytest.raises(ConfigError, match="tls-key: 1 for 2 of tls-cert"):
        Certificates.load([str(made / "a.pem"), str(made / "wild.pem")], [str(made / "a.key")])
    with pytest.raises(ConfigError, match="tls-cert: expected"):
        Certificates.load([], [])


def test_key_may_be_in_a_file_of_its_own(made: Path) -> None:
    certificates = Certificates.load([str(made / "a.crt")], [str(made / "a.key")])
    assert presented(certificates, "a.example") == "a.example"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_gets_the_certificate_for_the_host_that_it_names(made: Path, version: ssl.TLSVersion) -> None:
    certificates = Certificates.load([str(made / each) for each in ("a.pem", "wild.pem", "exact.pem")], [])
    got = {
        name: presented(certificates, name, version)
        for name in (
            *("a.example", "A.Example", "example.com", "www.example.com", "blog.example.com"),
            *("a.b.example.com", "other.example", None),
        )
    }
    assert got == {
        "a.example": "a.example",  # two have the name, and the first one is taken
        "A.Example": "a.example",
        "example.com": "*.example.com",
        "www.example.com": "*.example.com",
        "blog.example.com": "blog.example.com",  # rather than a wildcard
        "a.b.example.com": "a.example",  # a wildcard stands for one label
        "other.example": "a.example",
        None: "a.example",
    }


# ---- which one was shown -----------------------------------------------------------------------------------


def shown(
    certificates: Certificates, host: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> tuple[str, str]:
    """Return which certificate the client and the server say that it was, when the client wants `host`."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = version
    near, far = tcp_pair()
    accepting = gevent.spawn(TlsConn.accept, far, certificates.context)
    with closing(TlsConn.connect(near, client, host)) as one, closing(accepting.get()) as other:
        return one.certificate, other.certificate


def fingerprint(path: Path) -> str:
    said = openssl("x509", "-in", path, "-noout", "-fingerprint", "-sha256")
    return said.strip().partition("=")[2].replace(":", "").lower()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_ends_know_which_certificate_was_shown(made: Path, version: ssl.TLSVersion) -> None:
    certificates = Certificates.load([str(made / "a.pem"), str(made / "wild.pem")], [])
    assert shown(certificates, "a.example", version) == (fingerprint(made / "a.crt"),) * 2
    assert shown(certificates, "other.example", version) == (fingerprint(made / "a.crt"),) * 2
    assert shown(certificates, "127.0.0.1", version) == (fingerprint(made / "a.crt"),) * 2
    assert shown(certificates, "example.com", version) == (fingerprint(made / "wild.crt"),) * 2


def test_both_ends_know_which_certificate_was_shown_while_files_change(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    put(made / "a.pem", path)
    certificates = Certificates.load([str(path)], [])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    near, far = tcp_pair()
    accepting = gevent.spawn(TlsConn.accept, far, certificates.context)
    with closing(TlsConn.connect(near, client, "a.example")) as one, closing(accepting.get()) as other:
        put(made / "wild.pem", path)
        certificates.tend()
        certificates.tend()
        assert shown(certificates, "a.example") == (fingerprint(made / "wild.crt"),) * 2
        assert one.certificate == other.certificate == fingerprint(made / "a.crt")


def test_self_made_certificate_is_for_every_name() -> None:
    identity = load_or_make("")
    certificates = Certificates.self_made(identity)
    certificates.tend()
    for host in ("gnar", "other.example", "127.0.0.1"):
        assert shown(certificates, host) == (identity.fingerprint,) * 2
    assert presented(certificates, None) == "gnar"


def test_server_whose_certificate_nobody_has_named_does_not_guess() -> None:
    near, far = tls_pair()
    with closing(near), closing(far):
        assert far.certificate == ""
        assert near.certificate == fingerprint(certificate().with_suffix(".crt"))


# ---- new ones ----------------------------------------------------------------------------------------------


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Return what is logged."""
    monkeypatch.setattr(logging.getLogger("gnar"), "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "gnar")
    return caplog


def put(source: Path, path: Path) -> None:
    """Put a copy of a file in the place of another, as programs that renew certificates do."""
    new = path.with_suffix(".new")
    new.write_bytes(source.read_bytes())
    os.replace(new, path)


def test_new_certificate_is_used_once_its_files_have_come_to_rest(
    made: Path, tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cert.pem"
    put(made / "a.pem", path)
    certificates = Certificates.load([str(path)], [])
    context = certificates.context
    put(made / "wild.pem", path)
    certificates.tend()  # sees the change
    assert presented(certificates, "example.com") == "a.example"
    certificates.tend()
    assert presented(certificates, "example.com") == "*.example.com"
    assert certificates.context is context
    certificates.tend()
    (line,) = lines.messages
    assert line.startswith(f"{path}: new certificate for *.example.com, example.com, until 20")


def test_new_certificate_that_cannot_be_used_is_told_once_and_the_old_one_stays(
    made: Path, tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    put(made / "a.crt", cert)
    put(made / "a.key", key)
    certificates = Certificates.load([str(cert)], [str(key)])
    put(made / "wild.crt", cert)  # but not its key
    for _ in range(4):
        certificates.tend()
    key.unlink()
    for _ in range(4):
        certificates.tend()
    assert presented(certificates, None) == "a.example"
    assert [line.partition(": ")[0] for line in lines.messages] == [
        "the new certificate is not used, and the one before stays"
    ] * 2
    assert "does not fit" in lines.messages[0]
    assert "No such file" in lines.messages[1]
    put(made / "wild.pem", key)
    certificates.tend()
    certificates.tend()
    assert presented(certificates, None) == "*.example.com"


@pytest.mark.parametrize(
    ("changed", "time", "told"),
    [
        ("ends", b"200101000000Z", "the certificate has expired on 2020-01-01"),
        ("begins", b"490101000000Z", "the certificate is valid from 2049-01-01 on"),
    ],
)
def test_certificate_out_of_its_time_is_used_and_told_of_once(
    made: Path, tmp_path: Path, lines: pytest.LogCaptureFixture, *, changed: str, time: bytes, told: str
) -> None:
    path, pem = tmp_path / "cert.pem", (made / "a.crt").read_text()
    before = f"{getattr(first_certificate(pem.encode()), changed):%y%m%d%H%M%SZ}".encode()
    der = ssl.PEM_cert_to_DER_cert(pem).replace(
        before, time
    )  # its signature is wrong then, which nobody checks
    path.write_text((made / "a.key").read_text() + ssl.DER_cert_to_PEM_cert(der))
    certificates = Certificates.load([str(path)], [])
    certificates.tend()
    assert presented(certificates, None) == "a.example"
    assert lines.messages == [f"{path}: {told}"]


# ---- what certificates say of themselves -------------------------------------------------------------------


def test_name_is_the_subjects_if_no_other_is_given(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "20000"]
    openssl("req", *options, "-subj", "/O=Some/CN=Old.Example", "-out", path, "-keyout", tmp_path / "key")
    certificate = first_certificate(path.read_bytes())
    assert certificate is not None
    assert certificate.names == ("old.example",)
    assert certificate.begins <= datetime.now(timezone.utc) < certificate.ends
    assert certificate.ends.year > 2050  # which is written in another form


def test_first_of_several_certificates_counts(made: Path) -> None:
    pem = (made / "wild.crt").read_bytes() + (made / "a.crt").read_bytes()
    certificate = first_certificate(b"some text\n" + pem)
    assert certificate is not None
    assert certificate.names == ("*.example.com", "example.com")


@pytest.mark.parametrize(
    ("subject", "alternative", "names", "fits", "others"),
    [
        ("/CN=a.example", "", {"a.example"}, ["a.example", "A.Example."], ["b.example", "x.a.example", ""]),
        ("/O=A/CN=127.0.0.1", "", {"127.0.0.1"}, ["127.0.0.1"], ["127.0.0.2"]),
        (
            "/CN=One",
            "DNS:*.example.com,DNS:two,IP:10.0.0.1,IP:2001:db8::1,email:a@b",
            {"one", "*.example.com", "two", "10.0.0.1", "2001:db8::1"},
            ["one", "two", "www.example.com", "10.0.0.1", "2001:DB8:0::1", "[2001:db8::1]"],
            ["example.com", "a.b.example.com", "a@b", "10.0.0.2", "*.com", "com", "0.0.1"],
        ),
        ("/O=Nobody", "", set(), [], ["", "nobody", "."]),
    ],
)
def test_whom_a_certificate_is_for(
    tmp_path: Path, *, subject: str, alternative: str, names: set[str], fits: list[str], others: list[str]
) -> None:
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject]
    options += ["-addext", f"subjectAltName={alternative}"] if alternative else []
    openssl("req", *options, "-out", tmp_path / "cert.pem", "-keyout", tmp_path / "key")
    found = names_of(ssl.PEM_cert_to_DER_cert((tmp_path / "cert.pem").read_text()))
    assert set(found) == names
    assert [each for each in fits if not is_among(each, found)] == []
    assert [each for each in others if is_among(each, found)] == []


def test_damaged_certificate_is_a_value_error(made: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((made / "a.crt").read_text())
    for size in range(len(der)):
        with pytest.raises((ValueError, IndexError)):
            first_certificate(ssl.DER_cert_to_PEM_cert(der[:size]).encode())
