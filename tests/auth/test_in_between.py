"""A login with somebody in between, in one process: whatever is forged, no proof fits at either end."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gevent.hub import get_hub

from gnar_lib import events
from gnar_lib.auth import ClientLogin, Session
from gnar_lib.client import way
from gnar_lib.client.connect import ControlConn
from gnar_lib.config import Address, ClientConfig
from gnar_lib.errors import (
    AuthError,
    CertificateError,
    ConnClosed,
    ConnError,
    DeadlineError,
    DialError,
    OtherServerError,
    ProtocolError,
)
from gnar_lib.events import LoginGivenUp, LoginRefused, Refusal
from gnar_lib.net import dial
from gnar_lib.proto import Challenge, Login, ProxyReq, ProxyResp, Welcome, send, to_frame
from gnar_lib.transport.certificates import Certificates
from gnar_lib.transport.identity import load_or_make
from gnar_lib.transport.tls import TlsConn, unverified_context
from gnar_lib.transport.x509 import fingerprint_of
from tests.helpers import tls
from tests.helpers.certificates import make_certificate
from tests.helpers.events import hear
from tests.helpers.logins import NONE, TOKEN
from tests.helpers.loop import wait_until
from tests.helpers.servers import LOOPBACK, Running, answer_of, exchange_of, is_closed_by_peer, serving
from tests.peers.mitm import Between, Met, Treatment, encrypted, ending_tls, hang_up, on_data, plain, saying

HELLO = b"\x16"  # a record of TLS that holds a handshake
REQUEST = ProxyReq(remote_port=0, proxy_name="blog", subdomain="", proxy_type="tcp")
SEEN = r"certificate \w{16}\.\.\."
TOLD_CLIENT = f"^somebody stands in between: the server shows {{}}, and this client has seen {SEEN}$"
TOLD_SERVER = f"^somebody stands in between: the client has seen {SEEN}, and this server shows {{}}$"
UNPROVEN = "^the server could not prove that it knows the token, or somebody stands in between$"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    return hear(monkeypatch, LoginRefused, LoginGivenUp)


@contextmanager
def between(treatment: Treatment | None = None, **settings: Any) -> Iterator[tuple[Running, Between]]:
    """Run a server, and somebody in front of it."""
    with serving(**settings) as running, Between(running.port, treatment) as met:
        yield running, met


def log_in(port: int, **settings: Any) -> ControlConn:
    """Log in by TLS, and return the control connection, which the caller closes."""
    given: dict[str, Any] = {"token": TOKEN, "multiplex": False, **settings}
    control = ControlConn.dial(ClientConfig(Address(LOOPBACK, port), (), **given), "a client")
    try:
        control.log_in(REQUEST)
    except BaseException:
        control.abort()
        raise
    return control


def test_login_through_somebody_who_changes_nothing_works() -> None:
    with between() as (_, met):
        control = log_in(met.port)
        assert answer_of(control.conn).status == "success"
        assert TOKEN.reveal().encode() not in met.recorded
        control.close()


@pytest.mark.parametrize("onward", [encrypted, plain], ids=["by TLS", "in plain"])
@pytest.mark.parametrize("multiplex", [None, False], ids=["default", "plain"])
def test_both_ends_say_that_they_see_different_certificates(
    onward: Callable[[Met], socket.socket], multiplex: bool | None, said: list[events.Event]
) -> None:
    shows = SEEN if onward is encrypted else "no certificate"
    with between(ending_tls(tls.certificate(), onward)) as (running, met):
        with pytest.raises(CertificateError, match=TOLD_CLIENT.replace("{}", shows)):
            log_in(met.port, multiplex=multiplex)
        wait_until(lambda: said, "the server has said something")
        assert not running.server.control_ingress.clients
    (refused,) = [each for each in said if isinstance(each, LoginRefused)]
    assert refused.cause is Refusal.CERTIFICATE
    assert re.search(TOLD_SERVER.replace("{}", shows), refused.reason)


@pytest.mark.parametrize("onward", [encrypted, plain], ids=["by TLS", "in plain"])
def test_no_proof_fits_although_both_ends_are_told_what_they_expect(
    onward: Callable[[Met], socket.socket], said: list[events.Event]
) -> None:
    with between(ending_tls(tls.certificate(), onward, forges="both")) as (running, met):
        with pytest.raises(AuthError, match=UNPROVEN):
            log_in(met.port)
        wait_until(lambda: said, "the server has said something")
        assert not running.server.control_ingress.clients
    (refused,) = said
    assert isinstance(refused, LoginRefused)
    assert (refused.cause, refused.reason) == (Refusal.TOKEN, "wrong token")


def test_end_that_is_told_the_truth_says_who_is_there(said: list[events.Event]) -> None:
    with between(ending_tls(tls.certificate(), forges="client")) as (_, met):
        with pytest.raises(AuthError, match=UNPROVEN):
            log_in(met.port)
        wait_until(lambda: said, "the server has said something")
    with between(ending_tls(tls.certificate(), forges="server")) as (_, met):
        with pytest.raises(CertificateError, match=r"^somebody stands in between: "):
            log_in(met.port)
        wait_until(lambda: said[1:], "the server has said something")
    refused, given_up = said
    assert isinstance(refused, LoginRefused)
    assert refused.cause is Refusal.CERTIFICATE
    assert isinstance(given_up, LoginGivenUp)  # all that this server knows is that the client has hung up


NO_TLS = r"no gnar server at \S+: this is an answer without TLS$"
ALERT = r"TLS with the server has failed: .*: TLS: alert handshake failure; is it up yet\?"
TOO_SLOW = r"TLS with the server \(a Go server needs --auth md5\) took longer than"
THE_END = r"the server ended the connection where TLS begins: .* may let no TLS through$"
ANSWERS = {
    "Welcome": (to_frame(Welcome(session="0" * 32, nonce="0" * 64)), ProtocolError, NO_TLS),
    "Challenge": (to_frame(Challenge("0" * 64)), ProtocolError, NO_TLS),
    "Go": (to_frame(ProxyResp(domain="", status="success")), ProtocolError, NO_TLS),
    "alert": (b"\x15\x03\x03\x00\x02\x02\x28", ConnError, ALERT),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, r"no gnar server at \S+: this is HTTP$"),
    "HTTP/0.9": (b"<!DOCTYPE HTML>\n<html>", ProtocolError, r"no gnar server at \S+: this is HTTP$"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, r"no gnar server at \S+: this is SSH$"),
    "nothing": (b"", DeadlineError, TOO_SLOW),
    "the end": (None, ConnClosed, THE_END),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_client_that_gets_no_tls_does_without_a_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, error, says = ANSWERS[name]
    monkeypatch.setattr(way, "LOGIN_DEADLINE_S", 0.2 if name == "nothing" else 10.0)
    with between(hang_up if answer is None else saying(answer)) as (_, met):
        with pytest.raises(error, match=f"^{says}"):
            log_in(met.port)
        (only,) = met.met
        assert only.up[:1] == HELLO
        assert b"nonce" not in only.up


# ---- old TLS -----------------------------------------------------------------------------------------------


def old(version: ssl.TLSVersion, ciphers: str) -> Callable[[ssl.SSLContext], None]:
    """Return what weakens settings of TLS to what was good enough once."""

    def weaken(context: ssl.SSLContext) -> None:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")

    return weaken


OLD = [
    pytest.param(old(ssl.TLSVersion.TLSv1, "ALL"), id="1.0"),
    pytest.param(old(ssl.TLSVersion.TLSv1_1, "ALL"), id="1.1"),
    pytest.param(old(ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256"), id="CBC"),
    pytest.param(old(ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-NULL-SHA"), id="no cipher"),
    pytest.param(old(ssl.TLSVersion.TLSv1_2, "AECDH-AES128-SHA"), id="no certificate"),
]
of_old = pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")


@of_old
@pytest.mark.parametrize("weaken", OLD)
def test_client_shakes_no_hands_in_an_old_way(weaken: Callable[[ssl.SSLContext], None]) -> None:
    with (
        between(ending_tls(tls.certificate(), prepare=weaken)) as (_, met),
        pytest.raises(ConnError, match=r"^(TLS with the server has failed|the server ended the connection)"),
    ):
        log_in(met.port)


@of_old
@pytest.mark.parametrize("weaken", OLD)
def test_server_shakes_no_hands_in_an_old_way(
    weaken: Callable[[ssl.SSLContext], None], said: list[events.Event]
) -> None:
    with serving() as running:
        assert "alert" in shake_hands(weaken, running.port)
        wait_until(lambda: said, "the server has said something")
    (given_up,) = said
    assert isinstance(given_up, LoginGivenUp)
    assert "TLS: " in given_up.reason


@of_old
@pytest.mark.parametrize("weaken", OLD)
def test_two_that_know_the_old_ways_would_shake_hands(weaken: Callable[[ssl.SSLContext], None]) -> None:
    """So that the tests above can fail."""
    with between(ending_tls(tls.certificate(), nobody, prepare=weaken)) as (_, met):
        assert shake_hands(weaken, met.port) == ""


def nobody(_met: Met) -> socket.socket:
    """Go on to no server: the client leaves at once, and then the test ends the server."""
    raise EOFError


def shake_hands(weaken: Callable[[ssl.SSLContext], None], port: int) -> str:
    """Shake hands with a server, in a thread, and return the error; empty for none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    weaken(context)

    def run() -> str:
        with socket.create_connection((LOOPBACK, port), 10) as conn:
            try:
                context.wrap_socket(conn).close()
            except ssl.SSLError as exc:
                return str(exc)
        return ""

    return str(get_hub().threadpool.apply(run))


def test_neither_end_compresses_or_negotiates_again() -> None:
    for context in (unverified_context(), Certificates.self_made(load_or_make("")).context):
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION


# ---- data connections --------------------------------------------------------------------------------------


LOGINS: dict[str, Callable[[Session], Login]] = {
    "data": ClientLogin.data_message,
    "waiting": lambda session: ClientLogin.waiting_message(session, 1),
    "carrier": lambda session: ClientLogin.carrier_message(session, 1),
    "beside": lambda session: ClientLogin.beside_message(session, "0:2"),
}


@pytest.mark.parametrize("kind", LOGINS)
def test_data_connection_of_a_login_by_tls_has_to_come_by_tls(kind: str, said: list[events.Event]) -> None:
    with serving() as running:
        ours = log_in(running.port)
        port = answer_of(ours.conn).remote_port
        assert ours.session is not None
        user = dial(socket.AF_INET, (LOOPBACK, port))
        told = exchange_of(ours.conn)
        thief = running.dial()
        send(thief, LOGINS[kind](ours.session))
        if kind == "data":
            send(thief, replace(told, proof=ours.session.sign(told.conn_id)))
        assert is_closed_by_peer(thief)
        data = ours.open_data(told)
        user.sendall(b"hello")
        assert data.recv(100) == b"hello"
        for conn in (user, data, ours):
            conn.close()
    (refused,) = said
    assert isinstance(refused, LoginRefused)
    assert refused.cause is Refusal.CERTIFICATE
    assert refused.reason == "a data connection without TLS, of a client that has logged in with TLS"


def test_data_connection_of_a_login_in_plain_may_come_by_tls() -> None:
    """Nothing is lost by that."""
    with serving() as running:
        ours, port = running.log_in("ours")
        assert ours.session is not None
        user = dial(socket.AF_INET, (LOOPBACK, port))
        told = exchange_of(ours.conn)
        data = TlsConn.connect(running.dial(), unverified_context(), "localhost")
        send(data, ClientLogin.data_message(ours.session))
        send(data, replace(told, proof=ours.session.sign(told.conn_id)))
        user.sendall(b"hello")
        assert data.recv(100) == b"hello"
        for conn in (user, data, ours):
            conn.close()


def test_further_connection_that_is_shown_another_certificate_is_ended_before_a_byte_is_sent() -> None:
    with between(on_data(ending_tls(tls.certificate()))) as (_, met):
        ours = log_in(met.port)
        with pytest.raises(OtherServerError, match=f"was shown {SEEN} in place of {SEEN}"):
            ours.open_waiting()
        assert ours.is_outdated
        wait_until(lambda: len(met.met) == 2, "somebody in between has met the second connection")
        assert met.met[1].up == b""
        ours.close()


@pytest.mark.parametrize("answer", [b"", to_frame(Welcome())], ids=["the end", "Welcome"])
def test_further_connection_without_tls_counts_as_one_that_cannot_be_opened(answer: bytes) -> None:
    with between(on_data(saying(answer) if answer else hang_up)) as (_, met):
        ours = log_in(met.port)
        with pytest.raises(DialError, match=r"let no TLS through$|: this is an answer without TLS$"):
            ours.open_waiting()
        assert not ours.is_outdated
        ours.close()


@pytest.mark.parametrize("resumes", [True, False], ids=["session that is resumed", "session anew"])
def test_certificate_that_the_server_has_renewed_is_seen_unless_a_session_is_resumed(
    resumes: bool, tmp_path: Path
) -> None:
    path = make_certificate(tmp_path / "server.pem", "localhost")
    with serving(tls_cert=(str(path),)) as running:
        certificates = running.server.shared.certificates
        assert certificates is not None
        if not resumes:
            certificates.context.num_tickets = 0
        ours = log_in(running.port)
        assert answer_of(ours.conn).status == "success"
        make_certificate(path, "localhost")
        for _ in range(3):  # looks at a file until it has not changed between two
            certificates.tend()
        assert certificates.fingerprint != ours.certificate
        if resumes:
            ours.open_waiting().close()
        else:
            with pytest.raises(OtherServerError, match=r"or the server has got another one$"):
                ours.open_waiting()
        assert ours.is_outdated is not resumes
        again = log_in(running.port)
        assert again.certificate == certificates.fingerprint
        again.close()
        ours.close()


# ---- who proves the server ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "is_unproven"),
    [({"token": TOKEN}, False), ({"token": NONE}, True), ({"auth": "md5", "tls": "on"}, True)],
    ids=["token", "none", "md5"],
)
def test_client_knows_whether_anything_proves_the_server(settings: dict[str, Any], is_unproven: bool) -> None:
    with serving(token=settings.get("token", TOKEN)) as running:
        ours = log_in(running.port, **settings)
        assert ours.is_unproven is is_unproven
        ours.close()
        pinned = log_in(running.port, **settings, fingerprint=(ours.certificate,))
        assert not pinned.is_unproven
        pinned.close()


def test_certificate_that_is_not_pinned_ends_the_client_before_the_login() -> None:
    with between() as (_, met):
        with pytest.raises(CertificateError, match="is not that of --fingerprint: somebody"):
            log_in(met.port, fingerprint=("0" * 64,))
        wait_until(lambda: met.met, "the client has come")


@pytest.mark.parametrize("onward", [encrypted, plain], ids=["by TLS", "in plain"])
@pytest.mark.parametrize("kind", ["valid", "pinned", "neither"])
def test_what_ends_tls_in_front_of_the_server_needs_a_certificate_that_the_client_knows(
    onward: Callable[[Met], socket.socket], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_certificate(tmp_path / "front.pem", LOOPBACK)
    if kind == "valid":
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    pins = (fingerprint_of(path.read_bytes()),) if kind == "pinned" else ()
    with between(ending_tls(path, onward)) as (_, met):
        if kind == "neither":
            with pytest.raises(CertificateError):
                log_in(met.port)
            return
        ours = log_in(met.port, fingerprint=pins)
        assert not ours.is_unproven
        assert ours.proof == ("its fingerprint" if pins else "an authority that this system trusts")
        user = dial(socket.AF_INET, (LOOPBACK, answer_of(ours.conn).remote_port))
        told = exchange_of(ours.conn)
        data = ours.open_data(told)
        user.sendall(b"hello")
        assert data.recv(100) == b"hello"
        for conn in (user, data, ours):
            conn.close()


def test_certificate_that_is_valid_for_another_name_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_certificate(tmp_path / "front.pem", "other.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with between(ending_tls(path)) as (_, met), pytest.raises(CertificateError):
        log_in(met.port)


def test_nobody_is_taken_for_somebody_in_between_when_it_cannot_be_found_out() -> None:
    """So the client comes back, in place of ending."""
    ends = ending_tls(tls.certificate())
    with (
        between(lambda met: hang_up(met) if met.number else ends(met)) as (_, met),
        pytest.raises(ConnClosed, match=f"^{THE_END}"),
    ):
        log_in(met.port)


def test_server_that_shows_no_certificate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the proofs would cover none, as without TLS."""
    monkeypatch.setattr(TlsConn, "certificate", "")
    with serving() as running, pytest.raises(ConnError, match="it has shown no certificate"):
        log_in(running.port)
