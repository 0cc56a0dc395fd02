"""Users who come to a relay by TLS: the handshake, certificates of both ends, and one who is cut off."""

from __future__ import annotations

import shutil
import socket
import ssl
from contextlib import closing, suppress
from pathlib import Path

import pytest

from gnar_lib import net
from gnar_lib.errors import ConnClosed, ConnError
from gnar_lib.relay import secure
from gnar_lib.transport.tls import TlsConn
from gnar_lib.transport.x509 import fingerprint_of
from tests.helpers.loop import turn, wait_until
from tests.helpers.relays import ask, dial, read_all, relaying, serving
from tests.helpers.tls_relays import (
    LISTEN,
    LOOPBACK,
    ask_by_tls,
    by_tls,
    user_context,
    warnings,
)


def test_users_by_tls_reach_a_service_without_and_both_directions_end_by_themselves(made: Path) -> None:
    for listen in (f"tls-listen:0,cert={made}/server.crt,key={made}/server.key", "tls-listen:0"):
        with serving() as service, relaying(listen, service.address) as running:
            assert ask_by_tls(running) == b"answer to question"
            assert ask_by_tls(running, question=b"x" * 1_000_000) == b"answer to " + b"x" * 1_000_000


def test_certificate_that_a_relay_makes_is_logged_and_can_be_pinned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gnar")
    with serving() as service, relaying(LISTEN, service.address) as running:
        (line,) = [each for each in caplog.messages if "SHA-256" in each]
        fingerprint = line.partition("SHA-256 ")[2][:64]
        with by_tls(running) as user:
            assert user.certificate == fingerprint
        colons = ":".join(fingerprint[place : place + 2] for place in range(0, 64, 2)).upper()
        for pin in (fingerprint, colons):
            target = f"tls:localhost:{running.listener.port},fingerprint={pin}"
            with relaying(f"tcp:{LOOPBACK}:0", target) as in_front:
                assert ask(in_front) == b"answer to question"


def test_target_is_not_dialled_before_the_handshake_and_one_who_is_slow_holds_nobody_up() -> None:
    with serving() as service, relaying(LISTEN, service.address) as running:
        silent, slow = dial(running), dial(running)
        slow.sendall(b"\x16\x03\x01")
        wait_until(lambda: len(running.users) == 2, "both are waited for")
        turn()
        assert not service.conns
        assert ask_by_tls(running) == b"answer to question"
        assert len(service.conns) == 1
        silent.close()
        slow.close()


def test_handshake_has_a_deadline(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(secure, "HANDSHAKE_S", 0.05)
    with serving() as service, relaying(LISTEN, service.address) as running:
        for sent in (b"", b"\x16\x03\x01"):
            with closing(dial(running)) as user, suppress(ConnClosed):
                user.sendall(sent)
                assert user.recv(1) == b""
        assert not service.conns
    (line,) = warnings(caplog)
    assert line.endswith(": the TLS handshake took longer than 0.05 s; the user is turned away")


def test_user_who_says_nothing_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as service, relaying(LISTEN, service.address) as running:
        dial(running).close()
        wait_until(lambda: not len(running.users), "the user is forgotten")
        assert not service.conns
    assert warnings(caplog) == []


def test_users_who_speak_no_tls_are_told_and_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as service, relaying(LISTEN, service.address) as running:
        for _ in range(3):
            with closing(dial(running)) as user:
                user.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert user.recv(12) == b"HTTP/1.1 400"
        assert not service.conns
    (line,) = warnings(caplog)
    assert line.endswith(": this is no TLS; the user is turned away")


@pytest.mark.parametrize(
    ("options", "cert", "said"),
    [
        ("cafile={made}/user.crt", "user.pem", ""),
        ("cafile={made}/user.crt", None, "TLS: peer did not return a certificate"),
        ("cafile={made}/user.crt", "other.pem", "TLS: certificate verify failed: self-signed certificate"),
        ("cafile={made}/user.crt,commonname=some.user", "user.pem", ""),
        (
            "cafile={made}/user.crt,commonname=x",
            "user.pem",
            "the certificate is for some.user, not for x",
        ),
        ("cafile={made}/user.crt,commonname=x,verify=0", None, ""),
        ("verify", "user.pem", "TLS: certificate verify failed: self-signed certificate"),
        ("cn=some.user", None, "TLS: peer did not return a certificate"),
    ],
)
def test_certificates_of_users(
    made: Path, caplog: pytest.LogCaptureFixture, *, options: str, cert: str | None, said: str
) -> None:
    context = user_context(None if cert is None else made / cert)
    listen = f"{LISTEN},{options.format(made=made)}"
    with serving() as service, relaying(listen, service.address) as running:
        if said:
            with pytest.raises(ConnError):
                ask_by_tls(running, context)
            wait_until(lambda: not len(running.users), "the user is forgotten")
            assert not service.conns
            (line,) = warnings(caplog)
            assert line.endswith(f": {said}; the user is turned away")
        else:
            assert ask_by_tls(running, context) == b"answer to question"


def test_openssl_listen_asks_for_a_certificate_unless_told_otherwise(made: Path) -> None:
    listen = f"OPENSSL-LISTEN:0,cert={made}/server.pem,fork"
    with serving() as service:
        with relaying(listen, service.address) as running, pytest.raises(ConnError):
            ask_by_tls(running)
        with relaying(f"{listen},verify=0", service.address) as running:
            assert ask_by_tls(running) == b"answer to question"


def test_user_of_a_relay_without_fork_is_the_only_one(made: Path) -> None:
    listen = f"SSL-L:0,cert={made}/server.pem,verify=0,bind={LOOPBACK}"
    with serving() as service:
        with relaying(listen, service.address) as running:
            assert ask_by_tls(running) == b"answer to question"
            assert running.error is None
            assert running.listener.sock.fileno() < 0
        with relaying(f"{listen},min-version=TLS1.3", service.address) as running:
            old = user_context()
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(ConnError):
                ask_by_tls(running, old)
            wait_until(lambda: running.error, "the relay has failed")
            assert "TLS: unsupported protocol" in str(running.error)


def test_newest_version_can_be_limited() -> None:
    with serving() as service, relaying(f"{LISTEN},max-version=TLS1.2", service.address) as running:
        new = user_context()
        new.minimum_version = ssl.TLSVersion.TLSv1_3
        with pytest.raises(ConnError, match="TLS: tlsv1 alert protocol version"):
            ask_by_tls(running, new)
        assert ask_by_tls(running) == b"answer to question"


def test_new_certificate_is_used_while_the_relay_runs(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure, "READ_CERTIFICATES_EVERY_S", 0.02)
    path = tmp_path / "cert.pem"
    shutil.copy(made / "server.pem", path)

    def is_shown(name: str) -> bool:
        with by_tls(running) as user:
            return user.certificate == fingerprint_of((made / name).read_bytes())

    with serving() as service, relaying(f"{LISTEN},cert={path}", service.address) as running:
        assert is_shown("server.pem")
        shutil.copy(made / "other.pem", tmp_path / "new")
        (tmp_path / "new").rename(path)
        wait_until(lambda: is_shown("other.pem"), "the new certificate is used")


def test_user_who_is_cut_off_is_no_end_for_the_service() -> None:
    errors: list[ConnError] = []

    def handle(conn: net.SocketConn) -> None:
        with pytest.raises(ConnError) as caught:
            read_all(conn)
        errors.append(caught.value)

    with serving(handle) as service, relaying(LISTEN, service.address) as running:
        conn = dial(running)
        user = TlsConn.connect(conn, user_context(), "localhost")
        user.sendall(b"a part")
        conn.shutdown(socket.SHUT_WR)  # of TCP, but not of TLS
        wait_until(lambda: errors, "the service has noticed")
        with pytest.raises(ConnError):
            user.recv(1)
        user.close()
