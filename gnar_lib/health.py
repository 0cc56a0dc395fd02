"""Checks whether a server answers; loads no gevent, since health checks run often."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from gnar_lib.config import Address, ServerConfig
from gnar_lib.config.model import LOOPBACK
from gnar_lib.errors import ConnError, DeadlineError, ProtocolError
from gnar_lib.proto import Login, Message, Welcome, to_frame
from gnar_lib.proto.msg import AUTH_NONE, from_frame
from gnar_lib.proto.numbers import NONCE_BYTES
from gnar_lib.proto.packet import frame_size

DEFAULT_TIMEOUT_S = 3.0  # a server that works answers within milliseconds
_EVERY_ADDRESS = ("", "0.0.0.0", "::")  # values of `bind` with which a server listens on loopback, too
_READ_BYTES = 4096


def own_address(config: ServerConfig) -> Address:
    """Return where a server with these settings is reached from its own machine."""
    return Address(LOOPBACK if config.bind in _EVERY_ADDRESS else config.bind, config.port)


def check(address: Address, timeout_s: float) -> None:
    """Log in as a health check, and return when a gnar server has answered.

    The look-up of a name is not part of `timeout_s`. Raises `ConnError` when there is no answer in time, and
    `ProtocolError` when something that is no gnar server answers.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        until_s = time.monotonic() + timeout_s
        with _connect([(family, where) for family, _, _, _, where in found], until_s) as sock:
            answer = _ask(sock, until_s)
    except TimeoutError as exc:
        raise DeadlineError(f"no answer from {address} within {timeout_s:g} s") from exc
    except (OSError, UnicodeError) as exc:  # UnicodeError is for a name that no host can have
        reason = (exc.strerror if isinstance(exc, OSError) else None) or exc
        raise ConnError(f"no answer from {address}: {reason}") from exc
    except ProtocolError as exc:
        raise ProtocolError(f"not a gnar server at {address}: {exc}") from exc
    if not isinstance(answer, Welcome):
        raise ProtocolError(f"not a gnar server at {address}: it answered {type(answer).__name__}")


def _connect(addresses: list[tuple[int, tuple[Any, ...]]], until_s: float) -> socket.socket:
    """Return a socket connected to the first address that accepts; raises the `OSError` of the last one.

    Each address is a family and what `getaddrinfo` returned. The caller closes the socket.
    """
    *others, last = addresses
    for family, address in others:
        try:
            return _dial(family, address, until_s)
        except OSError:
            continue  # such as for ::1 on a machine without IPv6
    return _dial(*last, until_s)


def _dial(family: int, address: tuple[Any, ...], until_s: float) -> socket.socket:
    """Return a socket connected to an address; the caller closes the socket. Raises `OSError`."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(_left_s(until_s))
        sock.connect(address)  # the whole address: that of a link-local one names the interface, too
    except BaseException:
        sock.close()
        raise
    return sock


def _left_s(until_s: float) -> float:
    """Return the seconds until a deadline; raises `TimeoutError` when the deadline has passed."""
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _ask(sock: socket.socket, until_s: float) -> Message:
    """Send the Login of a health check and return the answer.

    Raises `OSError` when there is none in time, and `ProtocolError` when the answer is no message of gnar.
    """
    nonce = os.urandom(NONCE_BYTES).hex()
    sock.sendall(to_frame(Login(token="", timestamp=0, auth=AUTH_NONE, nonce=nonce)))
    data = b""
    while (size := frame_size(data)) is None or len(data) < size:
        sock.settimeout(_left_s(until_s))
        more = sock.recv(_READ_BYTES)
        if not more:
            raise ConnectionError("it hung up instead")
        data += more
    return from_frame(data[:size])
