"""The Exchange that announces a user: as any other message, though mostly made and read without JSON."""

from __future__ import annotations

import pytest

from gnar_lib.errors import MessageTooLongError, ProtocolError
from gnar_lib.proto import Exchange, announcement, announcing, to_frame
from gnar_lib.proto.announcing import MAX_KNOWN, exchange_of
from gnar_lib.proto.msg import from_frame
from gnar_lib.proto.numbers import NO_CONN_ID
from gnar_lib.proto.packet import HEADER, PacketType

USERS = ["192.0.2.1:4000", "[2001:db8::1]:80", "[fe80::1%eth0]:80", '/run/a "quoted" \\ path', "?", "", "é"]


def frame_of(body: str) -> bytes:
    data = body.encode()
    return HEADER.pack(PacketType.EXCHANGE, len(data)) + data


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcing, "_known", {})


@pytest.mark.parametrize("proxy", ["blog", 'a "quoted" näme', 'x","user":"y'])
@pytest.mark.parametrize("user", USERS)
def test_announcement_is_the_frame_of_its_message_and_is_read_again(proxy: str, user: str) -> None:
    message = Exchange(conn_id=NO_CONN_ID, proxy_type="tcp", proxy_name=proxy, user=user)
    frame = announcement(proxy, user)
    assert from_frame(frame) == message
    if user:  # an empty text would not be sent otherwise
        assert frame == to_frame(message)
    for _ in range(2):  # the second time, the proxy may be known
        assert exchange_of(frame) == message


def test_address_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(MessageTooLongError):
        announcement("blog", "\udcff")


@pytest.mark.parametrize(
    "body",
    [
        '{"conn_id":"-","proxy_type":"tcp","x\\"user":"1.2.3.4:5"}',
        '{"conn_id":"-","proxy_type":"tcp","user":7,"user":"1.2.3.4:5"}',
        '{"conn_id":"-","proxy_type":"tcp","user":"a","x":{"user":"1.2.3.4:5"}}',
        '{"conn_id":"-","proxy_type":"tcp","user":"1.2.3.4\\u0030:5"}',
        '{"conn_id":"1","proxy_type":"tcp","user":"1.2.3.4:5"}',
    ],
)
def test_odd_frames_are_read_as_any_message_whatever_was_read_before(body: str) -> None:
    for user in ("1.2.3.4:5", "5.6.7.8:9"):
        frame = frame_of(body.replace("1.2.3.4:5", user))
        assert exchange_of(frame) == from_frame(frame)


@pytest.mark.parametrize("body", ['{"user":"1.2.3.4:5"}', '"user":"1.2.3.4:5"}', '{"conn_id":"-","user":"1"'])
def test_what_is_no_exchange_is_refused_each_time(body: str) -> None:
    for _ in range(2):
        with pytest.raises(ProtocolError):
            exchange_of(frame_of(body))


def test_no_more_proxies_are_known_than_the_limit_says() -> None:
    for number in range(MAX_KNOWN + 10):
        exchange_of(announcement(f"p{number}", "192.0.2.1:1"))
    assert len(announcing._known) == MAX_KNOWN
