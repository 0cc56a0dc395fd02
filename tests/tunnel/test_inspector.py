"""The inspector of a real client: what passes through a tunnel is recorded, and passes on as it came."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.helpers.exchanges import frame
from tests.helpers.harness import LOOPBACK, WAIT_S, Service, Tunnels, dial, free_port, read_until, wait_until

SECRET = "s3cret of the test"
LAST_CHUNK = b"0\r\n\r\n"
LARGE = bytes(range(256)) * 40_000


def serve(conn: socket.socket) -> None:
    """Answer requests one after the other: by a greeting, something large, an echo, or a WebSocket."""
    while head := read_until(conn, b"\r\n\r\n"):
        if b"Upgrade: websocket" in head:
            conn.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
            )
            conn.sendall(frame(1, conn.recv(100)[6:]))  # as it is: the mask of the test is zero
        elif head.startswith(b"GET /large"):
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE)
        elif head.startswith(b"POST"):
            body = head.partition(b"\r\n\r\n")[2]  # which may have come with the head
            body = body if body.endswith(LAST_CHUNK) else body + read_until(conn, LAST_CHUNK)
            conn.sendall(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        else:
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


def ask(port: int, method: str, path: str, body: object = None, **fields: str) -> Any:
    """Return what comes back, as JSON where it is that."""
    conn = HTTPConnection(LOOPBACK, port, timeout=WAIT_S)
    conn.request(method, path, body, fields)  # type: ignore[arg-type]
    data = conn.getresponse().read()
    conn.close()
    return json.loads(data) if path.startswith("/api/") else data


def test_what_passes_is_recorded_and_passes_on_as_it_came(
    multiplexed_tunnels: Tunnels, tmp_path: Path
) -> None:
    page_port, log = free_port(), tmp_path / "requests.log"
    with Service(serve) as service:
        _, server_port = multiplexed_tunnels.server()
        options = ("--inspect", str(page_port), "--inspect-log", str(log), "--inspect-bodies", "1kb")
        client, port = multiplexed_tunnels.client(server_port, "-l", str(service.port), *options)
        assert client.wait_log(r"shown at (\S+)")[1] == f"http://{LOOPBACK}:{page_port}/"

        assert ask(port, "GET", "/first?a=b", Authorization=f"Bearer {SECRET}") == b"hello"
        assert ask(port, "GET", "/large") == LARGE
        assert ask(port, "POST", "/form", iter([b"abc", b"def"])) == b"abcdef"
        with dial(port) as user:
            user.sendall(b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            read_until(user, b"\r\n\r\n")
            user.sendall(frame(1, b"hi there", mask=bytes(4)))
            assert user.recv(100) == frame(1, b"hi there")
        with dial(port) as user:
            user.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            assert user.recv(100).endswith(b"hello")

        def told() -> list[Any]:
            found: list[Any] = ask(page_port, "GET", "/api/exchanges")["exchanges"]
            return found

        wait_until(lambda: [each["state"] for each in told()].count("done") == 4, f"four exchanges: {told()}")
        shown = [
            (each["method"], each["target"], each["status"], each["response_bytes"]) for each in told()[:3]
        ]
        expected = [
            ("GET", "/first?a=b", 200, 5),
            ("GET", "/large", 200, len(LARGE)),
            ("POST", "/form", 201, 6),
        ]
        assert shown == expected
        assert {each["user"].rpartition(":")[0] for each in told()} == {LOOPBACK}
        large, posted, websocket = (ask(page_port, "GET", f"/api/exchanges/{number}") for number in (2, 3, 4))
        assert (large["response"]["body"]["kept"], large["response"]["body"]["is_cut"]) == (1024, True)
        assert posted["request"]["body"]["text"] == posted["response"]["body"]["text"] == "abcdef"
        messages = [(each["is_of_user"], each["text"]) for each in websocket["kept_messages"]]
        assert messages == [(True, "hi there"), (False, "hi there")]
        assert client.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(each["target"] for each in lines) == ["/first?a=b", "/form", "/large", "/ws"]
    assert SECRET not in log.read_text()


def test_users_of_a_name_are_told_apart_on_one_connection(multiplexed_tunnels: Tunnels) -> None:
    page_port, web_port = free_port(), free_port()
    with Service(serve) as service:
        _, server_port = multiplexed_tunnels.server("-D", "example.test", "--http-port", str(web_port))
        options = (f"blog={service.port}", "--host-header", "inside", "--inspect", str(page_port))
        multiplexed_tunnels.client(server_port, *options, wait=False)[0].wait_log("open at")
        conn = HTTPConnection(LOOPBACK, web_port, timeout=WAIT_S)
        for user in ("198.51.100.7", "198.51.100.8"):  # as a proxy on this machine tells it
            conn.request("GET", "/", headers={"Host": "blog.example.test", "X-Forwarded-For": user})
            assert conn.getresponse().read() == b"hello"
        conn.close()
        found = ask(page_port, "GET", "/api/exchanges")["exchanges"]
        assert [each["user"] for each in found] == ["198.51.100.7", "198.51.100.8"]
        assert {each["host"] for each in found} == {"blog.example.test"}


def test_an_address_that_others_reach_is_refused(multiplexed_tunnels: Tunnels) -> None:
    client = multiplexed_tunnels.run("client", "localhost", "3000", "--inspect", "0.0.0.0:4040")
    assert client.wait_exit() == 2
    assert "its address has to be one of this machine" in client.log
