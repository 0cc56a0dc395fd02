"""The health check: whether a server answers; it is run all the time, so it does without gevent."""

from __future__ import annotations

import os
import socket
import time

from gnar_lib.config import Address, ServerConfig
from gnar_lib.config.model import LOOPBACK
from gnar_lib.errors import ConnError, DeadlineError, ProtocolError
from gnar_lib.proto import Login, Message, Welcome, to_frame
from gnar_lib.proto.msg import AUTH_NONE, from_frame
from gnar_lib.proto.packet import frame_size

DEFAULT_TIMEOUT_S = 3.0  # a server that works answers within milliseconds
_EVERY_ADDRESS = ("", "0.0.0.0", "::")  # as the `bind` of a server; loopback is one of them
_NONCE_BYTES = 32
_READ_BYTES = 4096


def own_address(config: ServerConfig) -> Address:
    """Return where a server with these settings is reached from its own machine."""
    return Address(LOOPBACK if config.bind in _EVERY_ADDRESS else config.bind, config.port)


def check(address: Address, timeout_s: float) -> None:
    """Return when a gnar server has answered; the time does not include looking up a name.

    The answer comes from the server's own loop, not from the kernel alone. Raises `ConnError` when nothing
    answers in time, `ProtocolError` when something else answers.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        until_s = time.monotonic() + timeout_s
        with _connect([(str(where[0]), int(where[1])) for *_, where in found], until_s) as sock:
            answer = _ask(sock, until_s)
    except TimeoutError as exc:
        raise DeadlineError(f"no answer from {address} within {timeout_s:g} s") from exc
    except (OSError, UnicodeError) as exc:  # no host can have a name that raises the second
        reason = (exc.strerror if isinstance(exc, OSError) else None) or exc
        raise ConnError(f"no answer from {address}: {reason}") from exc
    except ProtocolError as exc:
        raise ProtocolError(f"not a gnar server at {address}: {exc}") from exc
    if not isinstance(answer, Welcome):
        raise ProtocolError(f"not a gnar server at {address}: it answered {type(answer).__name__}")


def _connect(addresses: list[tuple[str, int]], until_s: float) -> socket.socket:
    """Connect to the first address that accepts; raises the `OSError` of the last one."""
    *others, last = addresses
    for each in others:
        try:
            return socket.create_connection(each, _left_s(until_s))
        except OSError:
            continue  # such as ::1 where there is no IPv6
    return socket.create_connection(last, _left_s(until_s))


def _left_s(until_s: float) -> float:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _ask(sock: socket.socket, until_s: float) -> Message:
    """Send the Login of a health check and return what is answered."""
    nonce = os.urandom(_NONCE_BYTES).hex()
    sock.sendall(to_frame(Login(token="", timestamp=0, auth=AUTH_NONE, nonce=nonce)))
    data = b""
    while (size := frame_size(data)) is None or len(data) < size:
        sock.settimeout(_left_s(until_s))
        more = sock.recv(_READ_BYTES)
        if not more:
            raise ConnectionError("it hung up instead")
        data += more
    return from_frame(data[:size])
