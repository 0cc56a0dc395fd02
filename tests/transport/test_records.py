"""Records of TLS that carry no data: how they are counted, and how few a peer may send."""

from __future__ import annotations

import hmac
import ssl
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gnar_lib.transport import engine
from gnar_lib.transport.engine import MAX_IDLE_RECORDS, Engine
from gnar_lib.transport.records import Place, records_in
from tests.helpers.tls import HOST, certificate, client_context, server_context

KIB = 1024
TOO_MANY = "TLS: too many records that carry nothing"
KEY_UPDATE = b"\x18\x00\x00\x01\x01\x16"  # which asks for another key of the peer, in a handshake's record


class Keys:
    """The keys with which a client encrypts, so that a test makes records of its own (RFC 8446, 7.2, 7.3)."""

    def __init__(self, secret: bytes) -> None:
        self._use(secret)

    def _use(self, secret: bytes) -> None:
        self._secret, self._count = secret, 0
        self._key, self._iv = self._expanded("key", 32), self._expanded("iv", 12)

    def _expanded(self, label: str, size: int) -> bytes:
        name = b"tls13 " + label.encode()
        info = size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\x00\x01"
        return hmac.digest(self._secret, info, "sha384")[:size]

    def record(self, inner: bytes) -> bytes:
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = int.from_bytes(self._iv, "big") ^ self._count
        self._count += 1
        return header + AESGCM(self._key).encrypt(nonce.to_bytes(12, "big"), inner, header)

    def data(self, data: bytes) -> bytes:
        return self.record(data + b"\x17")

    def update(self) -> bytes:
        made = self.record(KEY_UPDATE)
        self._use(self._expanded("traffic upd", 48))
        return made


def shaken(client_settings: ssl.SSLContext, server_settings: ssl.SSLContext) -> tuple[Engine, Engine]:
    """Return a client and a server behind the handshake."""
    client = Engine(client_settings, is_server=False, host=HOST)
    server = Engine(server_settings, is_server=True)
    while not client.shake_hands():
        server.receive(client.made.read())
        server.shake_hands()
        client.receive(server.made.read())
    server.receive(client.made.read())
    assert server.shake_hands()
    return client, server


@pytest.fixture
def attacked(tmp_path: Path) -> tuple[Keys, Engine]:
    """Return a server, and the keys of its client."""
    settings = ssl.create_default_context(cafile=str(certificate()))
    settings.keylog_filename = str(tmp_path / "keys")
    _, server = shaken(settings, server_context())
    lines = (tmp_path / "keys").read_text().splitlines()
    (secret,) = [each.split()[2] for each in lines if each.startswith("CLIENT_TRAFFIC_SECRET_0 ")]
    return Keys(bytes.fromhex(secret)), server


def read(reader: Engine) -> int:
    buffer, count = memoryview(bytearray(KIB)), 0
    while size := reader.read_into(buffer):
        count += size
    return count


def test_peer_that_changes_keys_without_end_is_cut_off_before_much_of_it_is_read(
    attacked: tuple[Keys, Engine],
) -> None:
    keys, server = attacked
    server.receive(b"".join(keys.update() for _ in range(1000)))
    assert read(server) == 0
    assert server.why_broken == TOO_MANY
    assert server.made.pending < 2 * MAX_IDLE_RECORDS * 27, "an answer to each of them"


def test_bytes_in_between_do_not_pay_for_new_keys(attacked: tuple[Keys, Engine]) -> None:
    keys, server = attacked
    server.receive(b"".join(keys.update() + keys.data(b"x") for _ in range(1000)))
    assert read(server) < 2 * MAX_IDLE_RECORDS
    assert server.why_broken == TOO_MANY


def test_records_that_are_read_in_pieces_do_not_pay_for_new_keys(attacked: tuple[Keys, Engine]) -> None:
    keys, server = attacked
    server.receive(b"".join(keys.data(bytes(16 * KIB)) for _ in range(3)))
    assert read(server) == 48 * KIB  # in reads of 1 KiB
    server.receive(b"".join(keys.update() for _ in range(2 * MAX_IDLE_RECORDS)))
    read(server)
    assert server.why_broken == TOO_MANY


def test_peer_may_change_its_keys_now_and_then(
    attacked: tuple[Keys, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, server = attacked
    now_s = time.monotonic()
    monkeypatch.setattr(engine, "monotonic", lambda: now_s)
    for _ in range(10):
        now_s += engine.PERIOD_S
        server.receive(b"".join(keys.update() for _ in range(MAX_IDLE_RECORDS // 2)) + keys.data(b"x"))
        assert read(server) == 1
    assert not server.why_broken


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_any_number_of_tiny_records_with_data_is_read(step: int) -> None:
    client, server = shaken(client_context(), server_context())
    for _ in range(2000):
        client.write(b"x")
    sent, count = client.made.read(), 0
    for at in range(0, len(sent), step):
        server.receive(sent[at : at + step])
        count += read(server)
    assert count == 2000
    assert not server.why_broken


def test_server_with_too_many_tickets_is_cut_off() -> None:
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    settings.load_cert_chain(certificate())
    settings.num_tickets = 2 * MAX_IDLE_RECORDS
    client, server = shaken(client_context(), settings)
    client.receive(server.made.read())
    read(client)
    assert client.why_broken == TOO_MANY


@pytest.mark.parametrize("step", [1, 4, 5, 6, 1000])
def test_records_are_counted_however_the_stream_is_cut(step: int) -> None:
    sizes = [1, 0, 5, 300, 16_000, 2]
    data = b"".join(b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size) for size in sizes)
    count, place = 0, Place()
    for at in range(0, len(data), step):
        more, place = records_in(memoryview(data)[at : at + step], place)
        count += more
    assert (count, place) == (len(sizes), Place())
