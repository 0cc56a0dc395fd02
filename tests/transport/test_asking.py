"""What is made of whatever a proxy answers, from bytes to words; no socket is opened."""

from __future__ import annotations

import re
from base64 import b64decode

import pytest

from gnar_lib.config.model import Address, ProxyServer, Secret
from gnar_lib.errors import DialError, ProxyLoginError, RefusedError, UnreachableError
from gnar_lib.transport import http_connect, socks
from gnar_lib.transport.dialogue import Dialogue
from tests.helpers.asking import hear

PASSWORD = "päss:wörd"
SERVER = Address("gnar.test", 8910)
HTTP, SOCKS = ProxyServer("http", "p", 3128), ProxyServer("socks5h", "p", 1080)


def with_login(proxy: ProxyServer) -> ProxyServer:
    return ProxyServer(proxy.kind, proxy.host, proxy.port, "üser", Secret(PASSWORD))


def error_of(ask: Dialogue, again: Dialogue, answer: bytes) -> DialError:
    """Return the error for an answer, which is the same if its bytes come one by one."""
    with pytest.raises(DialError) as caught:
        hear(ask, answer)
    with pytest.raises(DialError) as other:
        hear(again, answer, 1)
    assert (type(caught.value), str(caught.value)) == (type(other.value), str(other.value))
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


# ---- HTTP --------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.0 200 Connection established\n\n",
        b"HTTP/1.1 204 No Content\r\nVia: x\r\n\r\n",
        b"HTTP/1.1 299 Whatever\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("behind", [b"", b"\x01behind the head\r\n\r\n"])
def test_http_success_opens_a_tunnel_and_what_is_behind_the_head_belongs_to_it(
    answer: bytes, behind: bytes, size: int
) -> None:
    sent, rest = hear(http_connect.ask(HTTP, SERVER), answer + behind, size)
    assert sent == b"CONNECT gnar.test:8910 HTTP/1.1\r\nHost: gnar.test:8910\r\n\r\n"
    assert rest == behind


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("192.0.2.1", b"192.0.2.1:8910"),
        ("2001:db8::1", b"[2001:db8::1]:8910"),
        ("bücher.example", b"xn--bcher-kva.example:8910"),
        ("under_score.example.", b"under_score.example.:8910"),
    ],
)
def test_http_request_names_the_server_as_a_url_does(host: str, shown: bytes) -> None:
    sent, _ = hear(http_connect.ask(HTTP, Address(host, 8910)), OK)
    assert sent == b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (shown, shown)


def test_http_login_is_basic_in_utf_8() -> None:
    sent, _ = hear(http_connect.ask(with_login(HTTP), SERVER), OK)
    found = re.search(rb"\r\nProxy-Authorization: Basic (\S+)\r\n", sent)
    assert found
    assert b64decode(found[1]).decode() == f"üser:{PASSWORD}"


BASIC, NTLM = b'Proxy-Authenticate: Basic realm="NTLM, Digest x"\r\n', b"Proxy-Authenticate: NTLM\r\n"
NEGOTIATE = b'Proxy-Authenticate: Negotiate, Digest realm="a", nonce="Basic", qop=auth\r\n'
FORBIDDEN = (
    r"does not allow a connection to gnar\.test:8910 \({}\); perhaps it lets only port 443 through: .*-p 443"
)
CANNOT = r"the proxy http://p:3128 cannot reach gnar\.test:8910 \({}\); is the server running"
NO_HTTP = r"answers in something that is no HTTP; if it is a SOCKS proxy, write socks5h://p:3128"


def head(status: str, *fields: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\n".encode() + b"".join(fields) + b"Content-Length: 5\r\n\r\nwords"


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (
            head("407 X", BASIC),
            ProxyLoginError,
            r"wants a user and a password .*write http://user:password@p:3128",
        ),
        (head("407 X"), ProxyLoginError, r"wants a user and a password"),
        (head("407 X", NTLM, BASIC), ProxyLoginError, r"wants a user and a password"),
        (head("407 X", NTLM), ProxyLoginError, r"login by NTLM, which gnar does not know .*cntlm or px"),
        (head("407 X", NEGOTIATE, NTLM), ProxyLoginError, r"login by Negotiate or Digest or NTLM, which"),
        (head("403 Access \xff"), DialError, FORBIDDEN.format("403 Forbidden")),
        (
            head("405 X"),
            DialError,
            FORBIDDEN.format("405 Method Not Allowed") + r".*a web server, and no proxy",
        ),
        (head("400 X"), DialError, FORBIDDEN.format("400 Bad Request") + r".*a web server, and no proxy"),
        (head("429 X"), DialError, FORBIDDEN.format("429 Too Many Requests")),
        (head("499 X"), DialError, FORBIDDEN.format("499")),
        (
            head("302 X", b"Location: /\r\n"),
            DialError,
            r"points to a page \(302 Found\); .*log in there first",
        ),
        (head("511 X"), DialError, r"points to a page \(511 Network Authentication Required\)"),
        (head("500 X"), UnreachableError, CANNOT.format("500 Internal Server Error")),
        (head("502 X"), UnreachableError, CANNOT.format("502 Bad Gateway")),
        (head("503 X"), UnreachableError, CANNOT.format("503 Service Unavailable")),
        (head("504 X"), UnreachableError, CANNOT.format("504 Gateway Timeout")),
        (b"\x05\xff", DialError, NO_HTTP),
        (b"\x00\x5b\0\0\0\0\0\0", DialError, NO_HTTP),
        (b"SSH-2.0-OpenSSH_9.2\r\n", DialError, NO_HTTP),
        (b"HTTP/1.1 2000 OK\r\n\r\n", DialError, NO_HTTP),
        (b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", DialError, NO_HTTP),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", DialError, NO_HTTP),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, DialError, NO_HTTP),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, DialError, NO_HTTP),
        (b"", DialError, r"hung up without an answer; if it is a SOCKS proxy, write socks5h://p:3128"),
        (b"HTTP/1.1 200 Conn", DialError, r"hung up within its answer"),
    ],
)
def test_http_answer_that_opens_no_tunnel_is_one_line_that_says_what_to_do(
    answer: bytes, kind: type[DialError], text: str
) -> None:
    error = error_of(http_connect.ask(HTTP, SERVER), http_connect.ask(HTTP, SERVER), answer)
    assert type(error) is kind
    assert re.search(text, str(error)), error


@pytest.mark.parametrize("answer", [head("407 X", BASIC), head("407 X"), head("401 X")])
def test_http_login_that_is_refused_is_told_apart_from_none(answer: bytes) -> None:
    error = error_of(
        http_connect.ask(with_login(HTTP), SERVER), http_connect.ask(with_login(HTTP), SERVER), answer
    )
    assert type(error) is ProxyLoginError
    assert "does not take this user or password" in str(error)


def test_port_443_is_not_recommended_to_who_asks_for_it() -> None:
    with pytest.raises(DialError, match=r"allow a connection to a:443 .* whoever runs it has to allow that$"):
        hear(http_connect.ask(HTTP, Address("a", 443)), head("403 X"))


def test_proxy_with_tls_is_not_taken_for_a_socks_proxy() -> None:
    with pytest.raises(DialError, match=r"the proxy https://p:443 has hung up without an answer$"):
        hear(http_connect.ask(ProxyServer("https", "p", 443), SERVER), b"")


# ---- SOCKS -------------------------------------------------------------------------------------------------

BOUND = b"\0\1\0\0\0\0\0\0"
NO_LOGIN, GRANTED = b"\5\0", b"\5\0" + BOUND
ASKED = b"\5\1\0\3\x09gnar.test\x22\xce"


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize("behind", [b"", b"\x01behind the reply"])
@pytest.mark.parametrize(
    "granted",
    [GRANTED, b"\5\0\0\4" + bytes(18), b"\5\0\0\3\x04name\0\1", b"\5\0\0\3\0\0\1"],
)
def test_socks_success_opens_a_tunnel_and_what_is_behind_the_reply_belongs_to_it(
    granted: bytes, behind: bytes, size: int
) -> None:
    sent, rest = hear(socks.ask(SOCKS, SERVER), NO_LOGIN + granted + behind, size)
    assert (sent, rest) == (b"\5\1\0" + ASKED, behind)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_socks_login_is_sent_to_a_proxy_that_wants_it(size: int) -> None:
    user, password = "üser".encode(), PASSWORD.encode()
    sent, _ = hear(socks.ask(with_login(SOCKS), SERVER), b"\5\2\1\0" + GRANTED, size)
    login = bytes([1, len(user)]) + user + bytes([len(password)]) + password
    assert sent == b"\5\2\0\2" + login + ASKED


def test_socks_login_is_not_sent_to_a_proxy_that_wants_none() -> None:
    sent, _ = hear(socks.ask(with_login(SOCKS), SERVER), NO_LOGIN + GRANTED)
    assert sent == b"\5\2\0\2" + ASKED


@pytest.mark.parametrize(
    ("host", "encoded"),
    [
        ("192.0.2.1", b"\1\xc0\0\2\1"),
        ("2001:db8::1", b"\4\x20\1\r\xb8" + bytes(11) + b"\1"),
        ("bücher.example", b"\3\x15xn--bcher-kva.example"),
    ],
)
def test_socks_request_has_an_address_or_a_name(host: str, encoded: bytes) -> None:
    sent, _ = hear(socks.ask(SOCKS, Address(host, 443)), NO_LOGIN + GRANTED)
    assert sent == b"\5\1\0\5\1\0" + encoded + b"\1\xbb"


REACH = r"the proxy socks5h://p:1080 cannot reach gnar\.test:8910 \({}\)"
NO_SOCKS = r"answers in something that is no SOCKS5; if it is an HTTP proxy, write http://p:1080"


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (NO_LOGIN + b"\5\1" + BOUND, UnreachableError, REACH.format("it does not say why")),
        (NO_LOGIN + b"\5\1", UnreachableError, REACH.format("it does not say why")),
        (
            NO_LOGIN + b"\5\2" + BOUND,
            DialError,
            r"allow a connection to gnar\.test:8910 \(by its rules\); .*-p 443",
        ),
        (NO_LOGIN + b"\5\3" + BOUND, UnreachableError, REACH.format("network unreachable")),
        (NO_LOGIN + b"\5\4" + BOUND, UnreachableError, REACH.format("host unreachable")),
        (
            NO_LOGIN + b"\5\5" + BOUND,
            RefusedError,
            REACH.format("connection refused") + "; is the server running",
        ),
        (NO_LOGIN + b"\5\6" + BOUND, UnreachableError, REACH.format("no answer in time")),
        (NO_LOGIN + b"\5\7" + BOUND, DialError, r"opens no connections"),
        (
            NO_LOGIN + b"\5\x08" + BOUND,
            UnreachableError,
            r"no address such as gnar\.test; with socks5://p:1080 .* here",
        ),
        (NO_LOGIN + b"\5\x63" + BOUND, DialError, r"refuses a connection to gnar\.test:8910 \(reply 99\)"),
        (NO_LOGIN + b"\5\0\0\7", DialError, NO_SOCKS),
        (NO_LOGIN + b"\4\0\0\1", DialError, NO_SOCKS),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", DialError, NO_SOCKS),
        (b"\x00\x5b", DialError, NO_SOCKS),
        (b"\5\xff", ProxyLoginError, r"wants a user and a password; write socks5h://user:password@p:1080"),
        (b"\5\2", ProxyLoginError, r"wants a user and a password"),
        (b"\5\1", ProxyLoginError, r"wants a user and a password"),
        (b"", DialError, r"hung up without an answer; if it is an HTTP proxy, write http://p:1080"),
        (b"\5", DialError, r"hung up without an answer$"),
        (NO_LOGIN, DialError, r"hung up without an answer; perhaps it cannot reach gnar\.test:8910"),
        (NO_LOGIN + GRANTED[:-1], DialError, r"hung up without an answer; perhaps it cannot reach"),
    ],
)
def test_socks_answer_that_opens_no_tunnel_is_one_line_that_says_what_to_do(
    answer: bytes, kind: type[DialError], text: str
) -> None:
    error = error_of(socks.ask(SOCKS, SERVER), socks.ask(SOCKS, SERVER), answer)
    assert type(error) is kind
    assert re.search(text, str(error)), error


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"\5\2\1\1", ProxyLoginError, "does not take this user or password"),
        (b"\5\xff", ProxyLoginError, "does not take this user or password"),
        (b"\5\2", DialError, "perhaps it does not take this user or password"),
    ],
)
def test_socks_login_that_is_refused_is_told(answer: bytes, kind: type[DialError], text: str) -> None:
    error = error_of(socks.ask(with_login(SOCKS), SERVER), socks.ask(with_login(SOCKS), SERVER), answer)
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize(("user", "password"), [("u" * 256, "p"), ("u", "ä" * 128)])
def test_login_that_socks_cannot_carry_is_an_error_before_anything_is_sent(user: str, password: str) -> None:
    with pytest.raises(DialError, match="at most 255 bytes") as caught:
        next(socks.ask(ProxyServer("socks5", "p", 1080, user, Secret(password)), SERVER))
    assert password * 2 not in str(caught.value)


def test_socks_password_without_a_user_is_not_left_out_in_silence() -> None:
    with pytest.raises(DialError, match="SOCKS takes no password without a user"):
        hear(socks.ask(ProxyServer("socks5", "p", 1080, "", Secret("x")), SERVER), b"")


@pytest.mark.parametrize(
    "host", ["a b", "a\r\nX: y", "a..b", "", "x" * 64, "a" + ".abc" * 70, "fe80::1%eth0", "-a"]
)
def test_host_that_no_proxy_can_be_asked_for_is_an_error_before_anything_is_sent(host: str) -> None:
    for ask in (http_connect.ask(HTTP, Address(host, 1)), socks.ask(SOCKS, Address(host, 1))):
        with pytest.raises(DialError, match=r"no host can be called|no proxy knows") as caught:
            next(ask)
        assert str(caught.value).isprintable()
