"""The first messages of clients of TLS: real ones, and ones that are made to measure."""

from __future__ import annotations

import ssl

HEADER_BYTES = 5  # of a record
HANDSHAKE = b"\x16\x03\x01"


def real_hello(name: str | None) -> bytes:
    """Return what Python's client sends first; None is for no name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    made = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), made, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return made.read()
    raise AssertionError("a handshake without a peer")


def hello_with(*extensions: bytes, rest: bytes = b"") -> bytes:
    """Return a ClientHello with these extensions, and `rest` behind them."""
    fields = b"\x03\x03" + bytes(32) + b"\x00" + sized(b"\x13\x01", 2) + b"\x01\x00"
    return cut_into_records(b"\x01" + sized(fields + sized(b"".join(extensions), 2) + rest, 3))


def sni(*names: bytes, kind: int = 0) -> bytes:
    """Return the extension that names hosts."""
    listed = b"".join(bytes((kind,)) + sized(name, 2) for name in names)
    return b"\x00\x00" + sized(sized(listed, 2), 2)


def sized(data: bytes, size: int) -> bytes:
    """Return data behind their length, which is a number of `size` bytes."""
    return len(data).to_bytes(size, "big") + data


def cut_into_records(message: bytes, most: int = 1 << 14) -> bytes:
    """Return records of a handshake that carry a message, at most `most` bytes each."""
    pieces = (message[at : at + most] for at in range(0, len(message), most))
    return b"".join(HANDSHAKE + sized(piece, 2) for piece in pieces)


def handshake_of(records: bytes) -> bytes:
    """Return the message that some records carry, the last of which may be cut off."""
    message = b""
    while records:
        end = HEADER_BYTES + int.from_bytes(records[3:HEADER_BYTES], "big")
        message, records = message + records[HEADER_BYTES:end], records[end:]
    return message
