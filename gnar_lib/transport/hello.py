"""Reads the first message of TLS, in which a client names the host that it wants; does no I/O."""

from __future__ import annotations

import re
from typing import Final

from gnar_lib.errors import ProtocolError

MAX_HELLO_BYTES: Final = 16 * 1024  # with the headers of its records; browsers send 2 KiB
# Of one ClientHello, which usually comes in one. Whoever waits for the rest asks again with each byte that
# comes, and all records are looked at each time.
MAX_RECORDS: Final = 64
MAX_NAME_BYTES: Final = 253  # RFC 1035, section 2.3.4, without the dot at the end

# RFC 8446: the first two numbers are in section 5.1, the others in sections 4, 4.2 and B.3.1.
_HANDSHAKE = 22
_MAX_RECORD_BYTES = 1 << 14
_RECORD_HEADER_BYTES = 5
_CLIENT_HELLO = 1
_MESSAGE_HEADER_BYTES = 4
_RANDOM_BYTES = 32
_SERVER_NAME = 0  # the extension, and in it the type of name that is a host (RFC 6066, section 3)
_HOST_NAME = 0

_NAME = re.compile(rb"(?!.*\.\.)[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_MAX_LABEL_BYTES = 63


def server_name(data: bytes) -> str | None:
    """Return the host that the ClientHello at the beginning of `data` names, in lower case.

    Empty if the client names none; None if `data` ends before the ClientHello does. What follows the
    ClientHello is not looked at. Raises `ProtocolError` if this is no ClientHello, or one that is too long.
    """
    message = _message(data[:MAX_HELLO_BYTES])
    if message is None:
        if len(data) >= MAX_HELLO_BYTES:
            raise ProtocolError(f"TLS: no ClientHello within {MAX_HELLO_BYTES} bytes")
        return None
    fields = _Fields(message)
    fields.next_bytes(2 + _RANDOM_BYTES)  # the version that the client claims, and its random number
    fields.take(1)  # a session to resume
    fields.take(2)  # ciphers
    fields.take(1)  # compressions
    if not fields:
        return ""
    extensions = _Fields(fields.take(2))
    fields.refuse_rest()
    return _name_in(extensions)


def _message(data: bytes) -> bytes | None:
    """Return the body of the ClientHello, put together from its records; None if more bytes are needed."""
    message, size, place = bytearray(), -1, 0
    for _ in range(MAX_RECORDS):
        header = data[place : place + _RECORD_HEADER_BYTES]
        _check_record(header)
        if len(header) < _RECORD_HEADER_BYTES:
            return None
        length = int.from_bytes(header[3:], "big")
        place += _RECORD_HEADER_BYTES
        message += data[place : place + length]
        if size < 0 and message:
            if message[0] != _CLIENT_HELLO:
                raise ProtocolError("TLS: the first message is no ClientHello")
            if len(message) >= _MESSAGE_HEADER_BYTES:
                size = _MESSAGE_HEADER_BYTES + int.from_bytes(message[1:_MESSAGE_HEADER_BYTES], "big")
                if size > MAX_HELLO_BYTES:
                    raise ProtocolError(
                        f"TLS: a ClientHello of {size} bytes; at most {MAX_HELLO_BYTES} are read"
                    )
        if 0 <= size <= len(message):
            return bytes(message[_MESSAGE_HEADER_BYTES:size])
        if len(data) < place + length:
            return None
        place += length
    raise ProtocolError(f"TLS: a ClientHello in more than {MAX_RECORDS} records")


def _check_record(header: bytes) -> None:
    """Raise `ProtocolError` if a record's header, of which the end may be missing, is none of a handshake."""
    if header and header[0] != _HANDSHAKE:
        raise ProtocolError("this is no TLS")
    if len(header) > 1 and header[1] != 3:  # noqa: PLR2004  (SSL 3.0, and whatever has come after it)
        raise ProtocolError("this is no TLS")
    if len(header) == _RECORD_HEADER_BYTES and not 0 < int.from_bytes(header[3:], "big") <= _MAX_RECORD_BYTES:
        raise ProtocolError("TLS: a record that is empty or too long")


def _name_in(extensions: _Fields) -> str:
    """Return the host that the extensions name. Raises `ProtocolError`, also for two of them."""
    found: str | None = None
    while extensions:
        kind, content = extensions.number(2), extensions.take(2)
        if kind != _SERVER_NAME:
            continue
        if found is not None:
            raise ProtocolError("TLS: a ClientHello that names two hosts")
        names = _Fields(content)
        names = _Fields(names.take(2))
        if names.number(1) != _HOST_NAME:
            raise ProtocolError("TLS: a name that is no host's")
        found = _checked(names.take(2))
        names.refuse_rest()
    return found or ""


def _checked(name: bytes) -> str:
    """Return a host name in lower case, without a dot at the end."""
    name = name.lower().removesuffix(b".")
    if len(name) > MAX_NAME_BYTES or not _NAME.fullmatch(name):
        raise ProtocolError(f"TLS: {name[:MAX_NAME_BYTES]!r} is no host name")
    if max(map(len, name.split(b"."))) > _MAX_LABEL_BYTES:
        raise ProtocolError(f"TLS: {name!r} is no host name: a label of more than {_MAX_LABEL_BYTES} bytes")
    return name.decode("ascii")


class _Fields:
    """The fields of a message, one after the other. Raises `ProtocolError` if there is no such field."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def __bool__(self) -> bool:
        return self._place < len(self._data)

    def next_bytes(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        end = self._place + size
        if end > len(self._data):
            raise ProtocolError("TLS: a ClientHello with a field that is longer than what holds it")
        data, self._place = self._data[self._place : end], end
        return data

    def number(self, size: int) -> int:
        """Return the number in the next `size` bytes."""
        return int.from_bytes(self.next_bytes(size), "big")

    def take(self, size: int) -> bytes:
        """Return the next field, whose length is the number in the `size` bytes before it."""
        return self.next_bytes(self.number(size))

    def refuse_rest(self) -> None:
        """Raise `ProtocolError` unless this is the end."""
        if self:
            raise ProtocolError("TLS: a ClientHello with bytes behind its last field")
