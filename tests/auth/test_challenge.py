"""The login between our own ends: a challenge that cannot be replayed, and the session that comes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnar_lib import auth
from gnar_lib.auth import ClientLogin, ReplayWindow, ServerLogin
from gnar_lib.auth.session import mac
from gnar_lib.errors import AuthError, CertificateError, ProtocolError
from gnar_lib.proto import (
    Challenge,
    Proof,
    Welcome,
)
from gnar_lib.proto.numbers import FEATURE_MOVE, FEATURES
from tests.helpers.logins import NONE, NOW, OTHER, TOKEN, go_login, log_in

OURS, THEIRS = "0f" * 32, "f0" * 32  # what certificates have as their SHA-256


@pytest.mark.parametrize("policy", ["any", "hmac"])
def test_both_ends_with_the_token_come_to_one_session(policy: str) -> None:
    client, server = log_in(ClientLogin(TOKEN, "hmac"), policy=policy)
    assert client == server
    assert client.is_signed("a conn_id", server.sign("a conn_id"))
    assert client.features == {*FEATURES} - {FEATURE_MOVE}


def test_ends_without_a_token_come_to_one_session() -> None:
    client, server = log_in(ClientLogin(NONE, "hmac"), token=NONE)
    assert client == server


def test_our_client_with_md5_comes_to_one_session_unless_the_policy_is_hmac() -> None:
    client, server = log_in(ClientLogin(TOKEN, "md5", clock=lambda: NOW))
    assert client == server
    with pytest.raises(AuthError, match="takes no md5 login"):
        log_in(ClientLogin(TOKEN, "md5", clock=lambda: NOW), policy="hmac")


def test_wrong_token_is_refused() -> None:
    with pytest.raises(AuthError, match=r"^wrong token$"):
        log_in(ClientLogin(OTHER, "hmac"))


@pytest.mark.parametrize("policy", ["any", "hmac"])
def test_client_without_a_token_is_told_by_a_server_with_one_that_it_needs_one(policy: str) -> None:
    client = ClientLogin(NONE, "hmac", clock=lambda: NOW)
    with pytest.raises(AuthError, match=r"^a token is needed$"):
        log_in(client, policy=policy)
    said = r"^the server refused the login: a token is needed \(this client has no token: set GNAR_TOKEN\)$"
    with pytest.raises(AuthError, match=said):
        client.accept(Welcome(error="a token is needed"))


def test_client_with_a_token_is_told_that_the_server_has_none() -> None:
    with pytest.raises(AuthError, match="this server has no token"):
        log_in(ClientLogin(TOKEN, "hmac"), token=NONE)


def test_server_that_cannot_prove_itself_is_refused() -> None:
    client = ClientLogin(TOKEN, "hmac")
    client.answer(Challenge("ab" * 32))
    with pytest.raises(AuthError, match="server could not prove"):
        client.accept(Welcome(session="x", nonce="ab" * 32, proof="00" * 32))


def test_server_that_skips_the_challenge_is_refused() -> None:
    with pytest.raises(AuthError, match="server could not prove"):
        ClientLogin(TOKEN, "hmac").accept(Welcome(session="x", nonce="ab" * 32, proof=""))


def test_server_that_sends_the_clients_own_proof_back_is_refused() -> None:
    client = ClientLogin(TOKEN, "hmac")
    proof = client.answer(Challenge("ab" * 32)).proof
    with pytest.raises(AuthError, match="server could not prove"):
        client.accept(Welcome(session="x", nonce="ab" * 32, proof=proof))


def test_refusal_is_told_with_its_reason() -> None:
    with pytest.raises(AuthError, match="refused the login: wrong token"):
        ClientLogin(TOKEN, "hmac").accept(Welcome(error="wrong token"))


def test_recorded_login_sent_again_is_refused() -> None:
    client = ClientLogin(TOKEN, "hmac")
    login = client.message()
    first = ServerLogin(TOKEN, "any", login)
    proof = client.answer(first.challenge())
    first.prove(proof)
    again = ServerLogin(TOKEN, "any", login)
    again.check()
    assert again.challenge() != first.challenge()
    with pytest.raises(AuthError, match="wrong token"):
        again.prove(proof)


def test_recorded_answers_of_a_server_are_worth_nothing_to_another_login() -> None:
    first = ClientLogin(TOKEN, "hmac")
    server = ServerLogin(TOKEN, "any", first.message())
    server.prove(first.answer(server.challenge()))
    _, welcome = server.welcome()
    second = ClientLogin(TOKEN, "hmac")
    second.answer(server.challenge())
    with pytest.raises(AuthError, match="server could not prove"):
        second.accept(welcome)


def test_signature_is_worth_nothing_in_another_session_or_for_another_conn_id() -> None:
    one, _ = log_in(ClientLogin(TOKEN, "hmac"))
    other, _ = log_in(ClientLogin(TOKEN, "hmac"))
    assert not other.is_signed("conn_id", one.sign("conn_id"))
    assert not one.is_signed("another", one.sign("conn_id"))
    assert not one.is_signed("conn_id", "")
    assert not one.is_signed("conn_id", "é")
    assert one.sign(auth.waiting_id(1)) != one.sign(auth.waiting_id(11))


def test_a_welcome_tells_the_time_of_the_server() -> None:
    server = ServerLogin(NONE, "any", ClientLogin(NONE, "hmac").message(), clock=lambda: NOW + 0.9)
    _, welcome = server.welcome()
    assert welcome.time == NOW


def test_session_is_not_given_to_a_go_client() -> None:
    with pytest.raises(ProtocolError, match="did not ask for one"):
        ServerLogin(TOKEN, "any", go_login()).welcome()


# ---- certificates ------------------------------------------------------------------------------------------


def client_that_has_seen(certificate: str, kind: str = "hmac") -> ClientLogin:
    client = ClientLogin(TOKEN, kind, clock=lambda: NOW)
    client.certificate = client.covered = certificate
    return client


@pytest.mark.parametrize("kind", ["hmac", "md5"])
def test_ends_that_see_one_certificate_come_to_one_session(kind: str) -> None:
    client, server = log_in(client_that_has_seen(OURS, kind), shown=OURS)
    assert client == server


@pytest.mark.parametrize(("seen", "shown"), [(THEIRS, OURS), (THEIRS, ""), ("", OURS)])
def test_proof_fits_no_other_certificate(seen: str, shown: str) -> None:
    client = client_that_has_seen(seen)
    server = ServerLogin(TOKEN, "any", client.message())
    server.certificate = shown
    with pytest.raises(CertificateError, match=r"^somebody stands in between: the client has seen "):
        server.prove(client.answer(server.challenge()))
    told = replace(client.message(), certificate=shown)
    server = ServerLogin(TOKEN, "any", told)
    server.certificate = shown
    with pytest.raises(AuthError, match=r"^wrong token$"):
        server.prove(client.answer(server.challenge()))
    _, welcome = server.welcome()  # as a server that lets everybody in
    with pytest.raises(AuthError, match="could not prove that it knows the token"):
        client.accept(welcome)


def test_client_may_cover_another_certificate_than_the_one_that_it_has_seen() -> None:
    client = client_that_has_seen(THEIRS)
    client.covered = OURS
    mine, server = log_in(client, shown=OURS)
    assert mine == server


@pytest.mark.parametrize("role", ["client", "server", "session"])
def test_nothing_that_an_end_computes_without_tls_is_of_use_with_it(role: str) -> None:
    """Whatever the other end chooses as its nonce."""
    nonces = {OURS, THEIRS, f"{OURS}\0{THEIRS}", f"tls-{role}\0{OURS}", ""}
    plain = {mac(TOKEN, role, one, other) for one in nonces for other in nonces}
    covered = {mac(TOKEN, role, one, other, OURS) for one in nonces for other in nonces}
    assert not plain & covered


@pytest.mark.parametrize("certificate", ["\n\x1b[31m" * 40, "é" * 64, "A" * 64])
def test_certificate_of_which_a_client_tells_is_no_text_for_the_log(certificate: str) -> None:
    server = ServerLogin(TOKEN, "any", replace(ClientLogin(TOKEN, "hmac").message(), certificate=certificate))
    server.certificate = OURS
    with pytest.raises(CertificateError, match=r"has seen (no certificate|certificate (31)+\.\.\.), and"):
        server.prove(Proof(""))


@given(st.lists(st.integers(-3, 2 * ReplayWindow.SIZE) | st.integers(1, 1 << 62), max_size=60))
def test_replay_window_takes_each_number_once_and_none_that_is_too_old(numbers: list[int]) -> None:
    window, seen, highest = ReplayWindow(), set[int](), 0
    for number in numbers:
        fresh = number >= 1 and number not in seen and number > highest - ReplayWindow.SIZE
        assert window.accept(number) is fresh
        if fresh:
            seen.add(number)
            highest = max(highest, number)


def test_replay_window_holds_no_more_than_its_size() -> None:
    window = ReplayWindow()
    for number in range(1, 3 * ReplayWindow.SIZE, 2):
        assert window.accept(number)
    assert len(window._seen) == ReplayWindow.SIZE
