"""What hooks say: fields, texts, variables and signatures, as docs/hooks.md promises them."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import fields
from typing import Any

import pytest

from gnar_lib import events
from gnar_lib.config import HookConfig, Secret
from gnar_lib.config.hooks import _OF_CLIENT, _OF_SERVER, _READERS, DELAYED
from gnar_lib.events import CloseReason, Side
from gnar_lib.hooks.message import MAX_ITEMS, MAX_TEXT, Message, signature
from tests.helpers.docs import DOCS
from tests.test_events import EXAMPLES

PAGE = DOCS["docs/hooks.md"].read_text()
AT = 1790000000.25
GONE = events.ClientGone(
    ("::ffff:192.0.2.7", 5123),
    "it hung up",
    broke_protocol=False,
    id="5f0c",
    proxies=("nas", "web"),
    ports=(9, 10),
)
# Of each: secret, timestamp, body, signature. Reckoned by `openssl dgst -sha256 -hmac`.
VECTORS = [
    (
        "s3cret",
        "1790000000",
        b'{"event": "stopping"}',
        "3637eef4f7bb6750ca727f3fa03f304bd12d76cb597defdcef9c42c961bc856c",
    ),
    ("key", "0", b"", "85841b4efc3cd7776c3c8f9b7cca9e281c550e5d19889d78e9e669c6337f000d"),
    (
        "gr\u00fc\u00df Gott",
        "1",
        "caf\u00e9".encode(),
        "738dc61e5fee98fcbfdfa76341370bdc64b5747482ed2ce956476cedc9d2f4da",
    ),
]


def message(event: events.Event = GONE) -> Message:
    return Message.of(event, AT, "an-id", "server", "vps")


def openssl(secret: str, timestamp: str, body: bytes) -> str:
    """Return the signature as a receiver's shell script reckons it."""
    (script,) = re.findall(r"^(\{ printf .*openssl.*)$", PAGE, re.MULTILINE)
    done = subprocess.run(
        ["sh", "-c", script.replace("cat body", "cat")],
        input=body,
        capture_output=True,
        env={"TIMESTAMP": timestamp, "SECRET": secret, "PATH": "/usr/bin:/bin"},
        timeout=20,
        check=True,
    )
    return done.stdout.decode().strip()


# ---- signatures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "timestamp", "body", "expected"), VECTORS)
def test_signature_is_what_the_documented_ways_reckon(
    secret: str, timestamp: str, body: bytes, expected: str
) -> None:
    signed = signature(Secret(secret), timestamp, body)
    assert signed == f"sha256={expected}" == f"sha256={openssl(secret, timestamp, body)}"
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    receiver: dict[str, Any] = {}
    exec(source, receiver)  # noqa: S102  (the example of the documentation)
    is_genuine, now = receiver["is_genuine"], int(timestamp) + 300
    headers = {"X-Gnar-Timestamp": timestamp, "X-Gnar-Signature": signed}
    assert is_genuine(headers, body, secret, now)
    assert not is_genuine(headers, body, secret, now + 1)
    assert not is_genuine(headers, body + b" ", secret, now)
    assert not is_genuine(headers, body, secret + "x", now)
    assert not is_genuine({**headers, "X-Gnar-Timestamp": "1" + timestamp}, body, secret, now)
    assert not is_genuine({}, body, secret, now)


def test_the_page_shows_a_signature_that_is_right() -> None:
    assert f"`sha256={VECTORS[0][3]}`" in PAGE


# ---- bodies ------------------------------------------------------------------------------------------------


def test_json_has_the_fields_of_the_event_behind_those_of_every_event() -> None:
    kind, body = message().body(HookConfig(("client-gone",)))
    assert kind == "application/json"
    assert json.loads(body) == {
        "event": "client-gone",
        "at": AT,
        "delivery": "an-id",
        "host": "vps",
        "side": "server",
        "client": "192.0.2.7:5123",
        "reason": "it hung up",
        "broke_protocol": False,
        "id": "5f0c",
        "proxies": ["nas", "web"],
        "lasted_s": 0.0,
        "ports": [9, 10],
    }


@pytest.mark.parametrize("event", [event for event, _ in EXAMPLES], ids=lambda event: type(event).__name__)
def test_every_event_can_be_told_in_every_way(event: events.Event) -> None:
    told = message(event)
    for form in ("json", "text", "slack"):
        assert told.event.encode() in told.body(HookConfig((told.event,), format=form))[1]
    assert told.variables()["GNAR_EVENT"] == told.event


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{proxies} on {host}: {reason}", "nas,web on vps: it hung up"),
        ("{proxy}{broke_protocol} {lasted_s}", "false 0"),
        ("{0} {client.x} {client!r} {} {{id}}", "{0} {client.x} {client!r} {} {5f0c}"),
        (
            "",
            (
                "client-gone on vps: client 192.0.2.7:5123, reason it hung up, broke_protocol false, "
                "id 5f0c, proxies nas,web, lasted_s 0, ports 9,10"
            ),
        ),
    ],
)
def test_text_has_fields_in_place_of_their_names_and_nothing_else(template: str, text: str) -> None:
    config = HookConfig(("client-gone",), format="text", text=template)
    assert message().body(config) == ("text/plain; charset=utf-8", text.encode())


def test_peer_can_forge_no_line_of_a_text_and_no_mention_of_a_channel() -> None:
    event = events.ProxyClosed(Side.SERVER, "a\n<!channel> \u202e&", "tcp", 9, "", CloseReason.CLIENT_LEFT)
    config = HookConfig(("proxy-closed",), format="slack", text="{name}")
    told = json.loads(message(event).body(config)[1])
    assert told == {"text": "a\\n&lt;!channel&gt; \\u202e&amp;"}
    assert message(event).variables()["GNAR_EVENT_NAME"] == "a\\n<!channel> \\u202e&"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("@everyone @here", "@|everyone @|here"),
        ("<@U123> <!here>", "&lt;@|U123&gt; &lt;!here&gt;"),
        ("https://evil.example/x", "https:|/|/|evil.|example/|x"),
        ("evil.example www.evil.example", "evil.|example www.|evil.|example"),
        ("mailto:me", "mailto:|me"),
        ("[click](x)", "[|click]|(|x)|"),
        ("![](x)", "![|]|(|x)|"),
        ("*a* _b_ ~c~ `d`", "*|a*| _|b_| ~|c~| `|d`|"),
        (":skull: #town", ":|skull: #|town"),
        ("nas 192.0.2.7:5123", "nas 192.0.2.7:5123"),
        ("it hung up. bye.", "it hung up. bye."),
    ],
)
def test_peer_can_make_no_mention_link_or_image_in_a_chat(name: str, shown: str) -> None:
    event = events.ProxyClosed(Side.SERVER, name, "tcp", 9, "", CloseReason.CLIENT_LEFT)
    config = HookConfig(("proxy-closed",), format="slack", text="@here *{event}*: {name}")
    told = json.loads(message(event).body(config)[1])["text"].replace("\u200b", "|")
    assert told == f"@here *proxy-closed*: {shown}"
    config = HookConfig(("proxy-closed",), format="slack")
    assert f"name {shown}, " in json.loads(message(event).body(config)[1])["text"].replace("\u200b", "|")


def test_what_a_peer_says_is_shortened() -> None:
    event = events.ClientGone("", "x" * 100_000, broke_protocol=True, proxies=("y" * 100_000,) * 4000)
    found = message(event).fields
    assert len(found["reason"]) == len(found["proxies"][0]) == MAX_TEXT + 3
    assert len(found["proxies"]) == MAX_ITEMS


def test_text_that_is_no_unicode_and_has_zeros_can_be_told() -> None:
    event = events.ProxyClosed(Side.SERVER, "\udcff\0", "tcp", 9, "", CloseReason.CLIENT_LEFT)
    assert json.loads(message(event).json())["name"] == "\udcff\0"
    assert message(event).variables()["GNAR_EVENT_NAME"] == "\\udcff\\x00"
    assert b"\\udcff" in message(event).body(HookConfig(("proxy-closed",), format="text"))[1]


# ---- the page ----------------------------------------------------------------------------------------------


def test_the_page_has_every_key_and_every_event_with_its_fields_and_end() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \| [^|]*\| [^|]*\|$", PAGE, re.MULTILINE)) >= set(_READERS)
    rows = re.findall(r"^\| `([a-z-]+)` \| (server|client|both) \|([^|]*)\|", PAGE, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(events.BY_NAME)
    for name, side, listed in rows:
        has = [field.name for field in fields(events.BY_NAME[name]) if field.name != "side"]
        assert re.findall(r"`(\w+)`", listed) == has, name
        assert side == ("server" if name in _OF_SERVER else "client" if name in _OF_CLIENT else "both")
    assert {*_OF_SERVER, *_OF_CLIENT, *DELAYED} <= events.BY_NAME.keys()
