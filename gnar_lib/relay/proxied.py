"""Dials the target of a relay through a proxy; knows not how a proxy is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gnar_lib.config.model import ProxyServer, Secret
from gnar_lib.errors import UsageError
from gnar_lib.net import EventedConn
from gnar_lib.relay.address import Address
from gnar_lib.relay.proxy_options import Through
from gnar_lib.transport.through import ProxyDialler

MAX_LOGIN_BYTES: Final = 4096  # of a file


class ProxyTarget:
    """A target that is dialled through a proxy, for one user after the other.

    The constructor reads the file with the user and the password of the proxy, if there is one; raises
    `UsageError` if the file cannot be used.
    """

    def __init__(self, address: Address, through: Through) -> None:
        self._host, self._port = address.host, address.port
        self._dialler = ProxyDialler(
            _with_login(through), address.how_to_dial, address.family, looks_up_here=through.looks_up_here
        )

    def look_up(self) -> None:
        """Look the proxy's name up, which `dial` does otherwise; raises `DialError` if that fails."""
        self._dialler.look_up()

    def dial(self) -> EventedConn:
        """Return a conn to the target, which the caller closes; raises `DialError`."""
        return self._dialler.dial(self._host, self._port)


def _with_login(through: Through) -> ProxyServer:
    """Return a proxy with the user and the password of its file."""
    if not (path := through.login_file):
        return through.server
    try:
        with open(path, "rb") as file:
            line = file.readline(MAX_LOGIN_BYTES).decode().rstrip("\r\n")
    except OSError as exc:
        raise UsageError(f"{path}: cannot read it: {exc.strerror}") from exc
    except UnicodeDecodeError:
        line = ""
    user, colon, password = line.partition(":")
    if not (user and colon):
        raise UsageError(f"{path}: its first line is not of the form user:password")
    return replace(through.server, user=user, password=Secret(password))
