"""A server with one port for everything: all kinds of clients, users of names, TLS that is passed through."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from pathlib import Path

from tests.helpers.bystander import Bounds, uninvolved_user
from tests.helpers.certificates import make_certificate
from tests.helpers.harness import LOOPBACK, Service, Tunnels, ask, dial, echo
from tests.helpers.local_web import DOMAIN, app, curl, host_of

STATUS = ("-o", "/dev/null", "-w", "%{http_code}")
ATTACKER = "127.0.0.2"  # another network than that of everybody else here
HANDSHAKES = 12  # of the user, beside the attack
KEPT = 100  # connections of each attacker
BEGINNINGS = (b"", b"\x16", b"GET / HTTP/1.1\r\nHost: a", b"\x01\x00")  # of which the rest never comes


def test_clients_and_users_of_all_kinds_come_to_one_port(default_tunnels: Tunnels, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "secure.pem", host_of("secure"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def secure(conn: socket.socket) -> None:
        with context.wrap_socket(conn, server_side=True) as tls:
            tls.recv(4096)
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecure")

    _, port = default_tunnels.server("--domain", DOMAIN, "--http-port", "off")
    with app() as web, Service(secure) as service, Service(echo) as echoing:
        encrypted, _ = default_tunnels.client(port, f"web={web.port}", wait=False)
        passing, _ = default_tunnels.client(
            port, "-y", "https", "-d", "secure", "-l", str(service.port), "--tls", "off", wait=False
        )
        _, tcp_port = default_tunnels.client(port, "-l", str(echoing.port), "--auth", "md5")
        url = encrypted.wait_log(rf"open at (http://{host_of('web')}:{port})")[1]
        secure_url = passing.wait_log(rf"open at (https://{host_of('secure')}:{port})")[1]
        assert ask(tcp_port) == b"ping"
        assert json.loads(curl(f"{url}/show"))["headers"]["X-Forwarded-Proto"] == "http"
        by_tls = json.loads(curl("-k", f"https://{host_of('web')}:{port}/show"))
        assert by_tls["headers"]["X-Forwarded-Proto"] == "https"
        assert curl("--cacert", certificate.with_suffix(".crt"), secure_url) == "secure"
        for scheme in ("http", "https"):
            assert curl("-k", f"{scheme}://{LOOPBACK}:{port}/healthz") == "ok\n"
            assert curl("-k", *STATUS, f"{scheme}://{host_of('nobody')}:{port}/") == "404"
        assert json.loads(
            curl("--request-target", f"http://{host_of('web')}/show", f"http://{LOOPBACK}:{port}")
        )


def test_floods_of_handshakes_and_half_beginnings_hold_no_login_and_no_user_up(
    default_tunnels: Tunnels,
) -> None:
    server, port = default_tunnels.server("--domain", DOMAIN, "--http-port", "off")
    hello, is_over = _hello(), threading.Event()

    def attack(beginnings: tuple[bytes, ...]) -> None:
        kept: list[socket.socket] = []
        number = 0
        while not is_over.is_set():
            with contextlib.suppress(OSError):
                conn = socket.create_connection((LOOPBACK, port), 5, (ATTACKER, 0))
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                kept.append(conn)
                conn.sendall(beginnings[number % len(beginnings)])
            number += 1
            if len(kept) > KEPT:
                kept.pop(0).close()
        for conn in kept:
            conn.close()

    with Service(echo) as service:
        client, user_port = default_tunnels.client(port, "-l", str(service.port), "-r", "0")
        with uninvolved_user(user_port, server, client, bounds=Bounds(grown_fds=6 * KEPT)):
            attackers = [threading.Thread(target=attack, args=(each,)) for each in ((hello,), BEGINNINGS) * 2]
            for attacker in attackers:
                attacker.start()
            try:
                took_s = [_health_s(port) for _ in range(HANDSHAKES)]
            finally:
                is_over.set()
                for attacker in attackers:
                    attacker.join()
    assert min(took_s) < 0.5  # a handshake takes its turn, however many of another network wait


def _health_s(port: int) -> float:
    """Ask for the health by TLS, and return how many seconds that took."""
    began_s = time.monotonic()
    assert _shake_hands(port, b"GET /healthz HTTP/1.0\r\n\r\n").endswith(b"ok\n")
    return time.monotonic() - began_s


def _hello() -> bytes:
    """Return what a client of TLS begins with."""
    context = ssl.create_default_context()
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(received, sent, server_hostname=host_of("nobody")).do_handshake()
    return sent.read()


def _shake_hands(port: int, request: bytes) -> bytes:
    """Send a request by TLS, and return the answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with dial(port) as sock, context.wrap_socket(sock) as tls:
        tls.sendall(request)
        answer = b""
        while more := tls.recv(4096):
            answer += more
        return answer
