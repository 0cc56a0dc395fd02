"""The login of Go peers: the md5 of the token and the time."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from gnar_lib import auth
from gnar_lib.auth import MD5_WINDOW_S, ClientLogin, ServerLogin, md5_token
from gnar_lib.config import Secret
from gnar_lib.errors import AuthError
from gnar_lib.proto import (
    Login,
)
from tests.helpers.logins import NONE, NOW, OTHER, TOKEN, go_login


def check(login: Login, token: Secret = TOKEN, policy: str = "any", now: float = NOW) -> None:
    ServerLogin(token, policy, login, clock=lambda: now).check()


def test_md5_token_is_that_of_the_recordings() -> None:
    assert md5_token(TOKEN, 1795333499) == "472711bc3858f90f4c476d4f71641830"
    assert md5_token(TOKEN, 1795333499) == hashlib.md5(b"s3cret1795333499", usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("offset_s", [0, 1, -1, MD5_WINDOW_S, -MD5_WINDOW_S])
def test_md5_login_is_taken_within_15_minutes_either_way(offset_s: int) -> None:
    check(go_login(NOW + offset_s))


@pytest.mark.parametrize("offset_s", [MD5_WINDOW_S + 1, -MD5_WINDOW_S - 1, 1 << 40, -NOW, -(1 << 50)])
def test_md5_login_past_15_minutes_either_way_is_refused(offset_s: int) -> None:
    with pytest.raises(AuthError, match=r"clocks of client and server are \d+ minutes apart"):
        check(go_login(NOW + offset_s))


def test_window_is_15_minutes() -> None:
    assert MD5_WINDOW_S == 900


@pytest.mark.parametrize(
    "login",
    [
        go_login(token=OTHER),
        replace(go_login(), token=""),
        replace(go_login(), token=md5_token(TOKEN, NOW).upper()),
        replace(go_login(), timestamp=NOW + 1),
        replace(go_login(), token="é" * 32),
    ],
)
def test_md5_login_with_another_token_or_time_is_refused(login: Login) -> None:
    with pytest.raises(AuthError, match=r"^wrong token$"):
        check(login)


def test_go_login_without_a_token_is_refused_as_such() -> None:
    with pytest.raises(AuthError, match=r"^a token is needed$"):
        check(go_login(token=NONE))


def test_server_without_a_token_takes_any_go_login() -> None:
    check(go_login(token=OTHER), token=NONE)
    check(go_login(timestamp=0), token=NONE)


def test_policy_hmac_takes_no_md5_login() -> None:
    with pytest.raises(AuthError, match="takes no md5 login"):
        check(go_login(), policy="hmac")


def test_go_server_gets_the_md5_of_the_token_and_the_time() -> None:
    client = ClientLogin(TOKEN, "md5", clock=lambda: NOW + 0.9)
    assert client.go_message() == Login(token=md5_token(TOKEN, NOW), version=auth.VERSION, timestamp=NOW)
    assert client.message().token == md5_token(TOKEN, NOW)


def test_a_client_that_proves_never_sends_the_md5() -> None:
    client = ClientLogin(TOKEN, "hmac", clock=lambda: NOW)
    assert client.message().token == ""
    assert client.message().auth == "hmac"
