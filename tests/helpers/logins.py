"""Logins in this process, without a server."""

from __future__ import annotations

from gnar_lib.auth import ClientLogin, ServerLogin, Session, md5_token
from gnar_lib.config import Secret
from gnar_lib.proto import (
    Login,
)

TOKEN = Secret("s3cret")
OTHER = Secret("0ther")
NONE = Secret()
NOW = 1_795_333_499


def go_login(timestamp: int = NOW, token: Secret = TOKEN) -> Login:
    """Return the Login of a Go client at a time, in seconds."""
    return Login(token=md5_token(token, timestamp), version="v0.0.1-", timestamp=timestamp)


def log_in(
    client: ClientLogin, token: Secret = TOKEN, policy: str = "any", shown: str = ""
) -> tuple[Session, Session]:
    """Run a login of our own ends; return the client's and the server's session. Raises AuthError.

    `shown` is the certificate that the server has shown.
    """
    server = ServerLogin(token, policy, client.message(), clock=lambda: NOW)
    server.certificate = shown
    server.check()
    if server.needs_proof:
        server.prove(client.answer(server.challenge()))
    theirs, welcome = server.welcome()
    return client.accept(welcome), theirs
