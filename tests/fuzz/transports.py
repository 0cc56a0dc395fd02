"""What the parsers promise of what carries a tunnel: TLS, proxies, WebSockets, the PROXY protocol."""

from __future__ import annotations

import re
from random import Random

from gnar_lib.config.model import Address, ProxyServer, Secret
from gnar_lib.errors import DialError, ProtocolError
from gnar_lib.transport import http_connect, proxy_protocol, socks
from gnar_lib.transport.hello import MAX_HELLO_BYTES, server_name
from gnar_lib.transport.ws_engine import MAX_TINY_FRAMES, WebSocketEngine
from gnar_lib.transport.ws_handshake import Asking, RefusedError, answer_to
from tests.helpers.asking import hear as hear_proxy
from tests.helpers.hello import cut_into_records, handshake_of
from tests.helpers.websocket import accept_token, frames_in

# ---- TLS ---------------------------------------------------------------------------------------------------


def hello(data: bytes, random: Random) -> bool:
    """A ClientHello names the same host however it is cut into records; a part of it names none yet."""
    try:
        found = server_name(data)
    except ProtocolError:
        return False
    part = server_name(data[: random.randint(0, len(data))])
    assert part in (None, found)
    if found is None:
        return False
    again = cut_into_records(handshake_of(data), random.choice((50, 1000)))
    assert len(again) > MAX_HELLO_BYTES or server_name(again) == found
    assert found == found.lower()
    assert not found or re.fullmatch(r"[a-z0-9_.-]+", found)
    return True


# ---- proxies to dial through -------------------------------------------------------------------------------

_BEHIND = Address("gnar.test", 8910)


def _opens_tunnel(proxy: ProxyServer, data: bytes, random: Random) -> bool:
    """However an answer is cut, the same bytes belong to the tunnel, or one line says why there is none."""

    def ask(size: int) -> bytes | tuple[type[DialError], str]:
        module = http_connect if proxy.kind == "http" else socks
        try:
            return hear_proxy(module.ask(proxy, _BEHIND), data, size)[1]
        except DialError as exc:
            return type(exc), str(exc)

    found = ask(len(data) + 1)
    assert found == ask(random.choice((1, 2, 7, 100)))
    if isinstance(found, bytes):
        assert data.endswith(found)
        return True
    text = found[1]
    assert text.isprintable()
    assert proxy.password.reveal() not in text
    return False


def connect_answers(data: bytes, random: Random) -> bool:
    """What an HTTP proxy answers to CONNECT."""
    proxy = ProxyServer("http", "p", 3128, random.choice(("", "user")), Secret("opensesame"))
    return _opens_tunnel(proxy, data[: http_connect.MAX_ANSWER_BYTES], random)


def socks_answers(data: bytes, random: Random) -> bool:
    """What a SOCKS5 proxy answers."""
    return _opens_tunnel(ProxyServer("socks5h", "p", 1080, "user", Secret("opensesame")), data, random)


# ---- WebSockets --------------------------------------------------------------------------------------------


def _stream_in(data: bytes, size: int, buffer: memoryview, *, is_client: bool) -> tuple[bytes, bool, bool]:
    """Return the stream in frames that come in pieces of `size` bytes, and whether it ends, or is broken."""
    engine, stream = WebSocketEngine(is_client=is_client), bytearray()
    for at in range(0, len(data), size):
        engine.receive(data[at : at + size])
        while count := engine.read_into(buffer):
            stream += buffer[:count]
        if engine.made.pending:
            frames_in(bytes(engine.made.read()))
    assert engine.why_broken.isprintable()
    return bytes(stream), engine.peer_ended, bool(engine.why_broken)


def websocket_frames(data: bytes, random: Random) -> bool:
    """Frames carry the same stream and the same end however they are cut; the stream can be sent again."""
    data = data[:MAX_TINY_FRAMES]  # how many frames are too many depends on the cuts
    is_client, buffer = random.random() < 0.5, memoryview(bytearray(random.choice((1, 100, 65536))))
    found = _stream_in(data, len(data) or 1, buffer, is_client=is_client)
    assert found == _stream_in(data, random.choice((1, 7, 1000)), buffer, is_client=is_client)
    stream, _, is_broken = found
    peer = WebSocketEngine(is_client=not is_client)
    for at in range(0, len(stream), 1000):
        peer.write(stream[at : at + 1000])
    again = bytes(peer.made.read())
    assert _stream_in(again, 1000, buffer, is_client=is_client) == (stream, False, False)
    return bool(data) and not is_broken


def websocket_heads(data: bytes, random: Random) -> bool:
    """A request or an answer begins a WebSocket, or one line says why there is none."""
    asking = Asking("gnar.test", "/gnar", is_tls=True)
    try:
        if not data.startswith(b"HTTP"):
            answer = answer_to(data)
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert answer.endswith(b"\r\n\r\n")
            return True
        data = data.replace(b"<accept>", accept_token(asking.request))
        end = asking.head_size(data)
        assert asking.head_size(data[: random.randint(0, len(data))]) in (0, end)
        if end:
            asking.check(data[:end])
        return bool(end)
    except (RefusedError, DialError) as exc:
        reason = str(exc)
    assert reason.isprintable()
    assert len(reason) < 400
    return False


# ---- the PROXY protocol ------------------------------------------------------------------------------------


def proxy_headers(data: bytes, _random: Random) -> bool:
    """A header of the PROXY protocol is there with its last byte, and says the same when written anew."""
    try:
        header = proxy_protocol.parse(data)
    except ProtocolError:
        return False
    if header is None:
        return False
    assert 0 < header.size <= min(len(data), proxy_protocol.MAX_BYTES)
    assert proxy_protocol.parse(data[: header.size]) == header
    assert proxy_protocol.parse(data[: header.size - 1]) is None
    for version in (proxy_protocol.V1, proxy_protocol.V2):
        again = proxy_protocol.parse(proxy_protocol.encode(version, header.source, header.destination))
        assert again is not None
        assert again.source == header.source
    return True
