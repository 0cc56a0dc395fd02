"""A relay whose target speaks TLS: whom it trusts, what it shows, and one that is cut off."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from pathlib import Path

import pytest

from gnar_lib import net
from gnar_lib.errors import ConnError
from gnar_lib.relay import secure
from gnar_lib.transport.tls import TlsConn
from gnar_lib.transport.x509 import fingerprint_of
from tests.helpers.relays import ask, dial, read_all, relaying, serving
from tests.helpers.tls_relays import (
    LOOPBACK,
    answering,
    relaying_by_tls,
    server_context,
    warnings,
)

SELF_SIGNED = (
    "TLS: certificate verify failed: self-signed certificate; "
    "name whom to trust by cafile=FILE, or the certificate by fingerprint=SHA256"
)
MISMATCH = (
    "TLS: certificate verify failed: Hostname mismatch, certificate is not valid for 'localhost'; "
    "name for whom the certificate is by commonname=NAME"
)


@pytest.mark.parametrize(
    ("target", "cert", "said"),
    [
        ("tls:localhost:{port},cafile={made}/server.crt", "server.pem", ""),
        ("tls:localhost:{port}", "server.pem", SELF_SIGNED),
        ("OPENSSL:localhost:{port}", "server.pem", SELF_SIGNED),
        ("tls:localhost:{port},verify=0", "server.pem", ""),
        ("SSL:localhost:{port},verify=0,commonname=x", "server.pem", ""),
        (
            "tls:localhost:{port},cafile={made}/other.crt",
            "other.pem",
            MISMATCH,
        ),
        (
            "OPENSSL-CONNECT:localhost:{port},cafile={made}/other.crt",
            "other.pem",
            "the certificate is for other.example, not for localhost",
        ),
        ("tls:localhost:{port},cafile={made}/other.crt,commonname=other.example", "other.pem", ""),
        (
            "tls:localhost:{port},cafile={made}/other.crt,cn=x,snihost=localhost",
            "other.pem",
            "the certificate is for other.example, not for x",
        ),
        ("tls:localhost:{port},cafile={made}/other.crt,commonname=", "other.pem", ""),
        ("tls:localhost:{port},fingerprint={pin}", "server.pem", ""),
        (
            "tls:localhost:{port},fingerprint={pin}",
            "other.pem",
            "the certificate has the SHA-256 {other}, not that of fingerprint=",
        ),
        (
            "tls:localhost:{port},fingerprint={pin},verify",
            "server.pem",
            SELF_SIGNED,
        ),
    ],
)
def test_certificates_of_a_target(
    made: Path, caplog: pytest.LogCaptureFixture, *, target: str, cert: str, said: str
) -> None:
    pins = {
        "pin": fingerprint_of((made / "server.crt").read_bytes()),
        "other": fingerprint_of((made / "other.crt").read_bytes()),
    }
    heard: list[TlsConn] = []
    with serving(answering(server_context(made, cert), heard)) as service:
        address = target.format(port=service.listener.port, made=made, **pins)
        with relaying(f"tcp:{LOOPBACK}:0", address) as running:
            if said:
                with pytest.raises(ConnError):
                    ask(running)
                (line,) = warnings(caplog)
                expected = f"{LOOPBACK}:{service.listener.port}: {said.format(**pins)}; users are turned away"
                assert line == expected
            else:
                assert ask(running) == b"answer to question"
                assert ask(running, b"x" * 1_000_000) == b"answer to " + b"x" * 1_000_000


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("", "localhost"),
        ("nosni", ""),
        ("snihost=a.example", "a.example"),
        ("commonname=b.example", "b.example"),
        ("commonname=b.example,openssl-snihost=a.example", "a.example"),
        ("commonname=", "localhost"),
    ],
)
def test_name_that_a_target_is_asked_for(made: Path, options: str, name: str) -> None:
    seen: list[TlsConn] = []
    with relaying_by_tls(
        answering(server_context(made), seen), f"OPENSSL:localhost:{{port}},verify=0,{options}".rstrip(",")
    ) as (running, _):
        assert ask(running) == b"answer to question"
    assert [each.server_name for each in seen] == [name]


def test_target_gets_a_certificate_of_this_end(made: Path) -> None:
    context = server_context(made)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(made / "user.crt")
    seen: list[TlsConn] = []
    with relaying_by_tls(
        answering(context, seen), f"tls:localhost:{{port}},verify=0,cert={made}/user.pem"
    ) as (running, _):
        assert ask(running) == b"answer to question"
        (tls,) = seen
        assert tls.peer_certificate == ssl.PEM_cert_to_DER_cert((made / "user.crt").read_text())


def test_target_that_misses_a_certificate_behind_the_handshake_is_one_line(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = server_context(made)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(made / "user.crt")
    with relaying_by_tls(answering(context), "tls:localhost:{port},verify=0") as (running, port):
        for _ in range(2):
            with pytest.raises(ConnError):
                ask(running)
    (line,) = warnings(caplog)
    assert line == f"{LOOPBACK}:{port}: TLS: tlsv13 alert certificate required"


def test_target_that_is_tried_again_is_tried_again_when_the_handshake_fails(made: Path) -> None:
    contexts = [server_context(made, "other.pem"), server_context(made)]

    def handle(conn: net.SocketConn) -> None:
        answering(contexts.pop(0))(conn)

    with relaying_by_tls(
        handle, f"OPENSSL:localhost:{{port}},cafile={made}/server.crt,retry=1,interval=0.1"
    ) as (running, _):
        assert ask(running) == b"answer to question"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "the other end has gone in the handshake of TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "TLS: this is SSH"),
    ],
)
def test_target_that_speaks_no_tls_is_one_line(
    caplog: pytest.LogCaptureFixture, answer: bytes, said: str
) -> None:
    def handle(conn: net.SocketConn) -> None:
        conn.recv(2000)
        conn.sendall(answer)

    with relaying_by_tls(handle, "tls:localhost:{port},verify=0") as (running, port):
        for _ in range(3):
            with pytest.raises(ConnError):
                ask(running)
    (line,) = warnings(caplog)
    assert line == f"{LOOPBACK}:{port}: {said}; users are turned away"


def test_target_that_never_answers_the_handshake_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(secure, "HANDSHAKE_S", 0.05)
    with (
        relaying_by_tls(lambda conn: conn.sendall(read_all(conn)), "tls:localhost:{port}") as (running, _),
        pytest.raises(ConnError),
    ):
        ask(running)
    (line,) = warnings(caplog)
    assert line.endswith(": the TLS handshake took longer than 0.05 s; users are turned away")


def test_target_that_is_cut_off_is_no_end_for_the_user(made: Path) -> None:
    def handle(conn: net.SocketConn) -> None:
        tls = TlsConn.accept(conn, server_context(made))
        tls.sendall(b"a part")
        conn.shutdown(socket.SHUT_WR)
        tls.recv(1)

    with (
        relaying_by_tls(handle, "tls:localhost:{port},verify=0") as (running, _),
        closing(dial(running)) as user,
        pytest.raises(ConnError),
    ):
        read_all(user)
