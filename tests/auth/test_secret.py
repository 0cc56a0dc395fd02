"""Secrets do not show in any text, log or copy."""

from __future__ import annotations

import copy
import io
import logging
import pickle

import pytest

from gnar_lib import logger
from gnar_lib.auth import ClientLogin
from gnar_lib.config import Secret, ServerConfig
from tests.helpers.logins import NONE, TOKEN, log_in


def test_secret_is_in_no_text_made_of_it() -> None:
    config = ServerConfig(token=TOKEN)
    shown = [repr(TOKEN), str(TOKEN), f"{TOKEN}", f"{TOKEN!r:>20}", "%s %r" % (TOKEN, TOKEN)]  # noqa: UP031 (as logging does)
    shown += [repr(config), str(config), repr([TOKEN]), repr({TOKEN: TOKEN}), f"{TOKEN:}"]
    assert not [text for text in shown if "s3cret" in text]
    assert "***" in repr(TOKEN)
    assert repr(NONE) == "Secret()"


def test_session_does_not_show_its_key() -> None:
    session, _ = log_in(ClientLogin(TOKEN, "hmac"))
    assert session.key.hex() not in repr(session)
    assert repr(session.key) not in repr(session)


@pytest.mark.parametrize("write", [pickle.dumps, copy.deepcopy])
def test_secret_cannot_be_written_or_copied(write: object) -> None:
    assert callable(write)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        write(TOKEN)


def test_secret_is_in_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(logging.getLogger("gnar"), "handlers", [])
    for kind in logger.FORMATS:
        logger.setup(stream, kind, "debug")
        logger.get("test").info("config %s, token %r", ServerConfig(token=TOKEN), TOKEN)
    assert stream.getvalue().count("***") == 4
    assert "s3cret" not in stream.getvalue()


def test_secrets_are_compared_by_what_they_hold() -> None:
    assert Secret("é") == Secret("é")
    assert Secret("a") != Secret("b")
    assert Secret("a").__eq__("a") is NotImplemented
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
