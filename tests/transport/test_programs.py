"""Programs that everybody has, against a service over TLS."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from gnar_lib.errors import ConnError
from gnar_lib.http import Limits, ServerCodec
from gnar_lib.net import Crew, EventedConn, SocketConn, deadline, listen
from gnar_lib.transport.certificates import Certificates
from gnar_lib.transport.tls import TlsConn
from tests.helpers.certificates import make_certificate
from tests.helpers.conns import LOOPBACK, MIB
from tests.helpers.loop import wait_until

HANDSHAKE_S = 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two certificates, and return their folder."""
    folder = tmp_path_factory.mktemp("programs")
    make_certificate(folder / "localhost.pem", "localhost")
    make_certificate(folder / "wild.pem", "*.gnar.test")
    return folder


class Secure:
    """A service over TLS on a port of this process."""

    def __init__(self, folder: Path, serve: Callable[[EventedConn], None]) -> None:
        self._certificates = Certificates.load(
            [str(folder / each) for each in ("localhost.pem", "wild.pem")], []
        )
        self._serve, self._crew, self._listener = serve, Crew("secure"), listen(LOOPBACK, 0)
        self._listener.serve(self._crew, self._accept)
        self.errors: list[str] = []  # of handshakes
        self.names: list[str] = []  # that clients wanted
        self.at = f"localhost:{self._listener.port}"

    def _accept(self, conn: SocketConn) -> None:
        try:
            with deadline(HANDSHAKE_S, "a handshake"):
                tls = TlsConn.accept(conn, self._certificates.context)
        except ConnError as exc:
            self.errors.append(str(exc))
            conn.close()
        else:
            self.names.append(tls.server_name)
            self._serve(tls)

    def close(self) -> None:
        self._listener.close()
        self._crew.kill()


@pytest.fixture
def web(folder: Path) -> Iterator[Secure]:
    secure = Secure(folder, _serve_http)
    yield secure
    secure.close()


def _serve_http(conn: EventedConn) -> None:
    """Answer each request with its body, or with `home` if there is none."""
    codec = ServerCodec(conn, Limits())
    try:
        while codec.wait_for_head():
            codec.receive_head()
            body = b"".join(iter(codec.receive_body, b""))
            codec.send_whole(200, [], body or b"home")
            if not codec.start_next():
                break
    finally:
        conn.close()


@pytest.fixture
def echo(folder: Path) -> Iterator[Secure]:
    def serve(conn: EventedConn) -> None:
        try:
            while lent := conn.borrow():
                conn.sendall(bytes(lent))
        finally:
            conn.close()

    secure = Secure(folder, serve)
    yield secure
    secure.close()


def run(*command: object, given: str = "") -> tuple[int, str]:
    """Return the exit status of a program, and all that it writes."""
    if not shutil.which(str(command[0])):
        pytest.skip(f"there is no {command[0]}")
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as source:
        source.write(given)
        source.seek(0)
        running = subprocess.Popen(
            [*map(str, command)], stdin=source, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            wait_until(lambda: running.poll() is not None, f"{command[0]} has ended")
        finally:
            running.kill()
            running.wait()
        output.seek(0)
        return running.returncode, output.read()


def curl(folder: Path, *arguments: object) -> str:
    status, shown = run("curl", "-sS", "--noproxy", "*", "--cacert", folder / "localhost.crt", *arguments)
    assert status == 0, shown
    return shown


def s_client(secure: Secure, *arguments: object, given: str = "") -> str:
    return run("openssl", "s_client", "-connect", secure.at, *arguments, given=given)[1]


# ---- curl --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [("--tls-max", "1.2"), ("--tlsv1.3",)])
def test_curl_asks_several_times_on_one_connection(
    web: Secure, folder: Path, version: tuple[str, ...]
) -> None:
    told = ["-w", " %{http_code} %{http_version} %{num_connects}\n", *version]
    at, body = f"https://{web.at}", folder / "body"
    body.write_text("x" * 50_000)
    again = ["--next", "-sS", "--cacert", folder / "localhost.crt", *told]
    shown = curl(folder, *told, at, *again, "-T", body, "-X", "POST", at, *again, at)
    assert shown.splitlines() == ["home 200 1.1 1", "x" * 50_000 + " 200 1.1 0", "home 200 1.1 0"]
    assert web.names == ["localhost"]


def test_curl_learns_that_the_port_speaks_https(web: Secure, folder: Path) -> None:
    assert curl(folder, "-w", "%{http_code}", f"http://{web.at}") == (
        "This port speaks HTTPS. Write https:// in front of the address.\n400"
    )


def test_curl_that_speaks_http_2_as_well_gets_http_1_1(web: Secure, folder: Path) -> None:
    shown = curl(folder, "-v", "--http2", f"https://{web.at}")
    assert "server accepted http/1.1" in shown
    assert "TLSv1.3" in shown


def test_curl_gets_the_certificate_of_the_name_that_it_wants(web: Secure, folder: Path) -> None:
    port = web.at.partition(":")[2]
    there = ["--resolve", f"a.gnar.test:{port}:{LOOPBACK}", "--cacert", folder / "wild.crt"]
    assert curl(folder, *there, f"https://a.gnar.test:{port}") == "home"
    assert web.names == ["a.gnar.test"]


# ---- openssl s_client --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "is_taken"),
    [
        ("-tls1_3", True),
        ("-tls1_2", True),
        ("-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", True),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", False),
        ("-tls1_1 -cipher DEFAULT@SECLEVEL=0", False),
        ("-tls1 -cipher DEFAULT@SECLEVEL=0", False),
    ],
)
def test_openssl_shakes_hands_in_a_way_that_is_safe_or_not_at_all(
    echo: Secure, arguments: str, *, is_taken: bool
) -> None:
    shown = s_client(echo, *arguments.split())
    assert ("subject=CN = localhost" in shown or "subject=CN=localhost" in shown) == is_taken, shown
    wait_until(lambda: echo.names if is_taken else echo.errors, "the end of the handshake")
    assert is_taken or "TLS: " in echo.errors[0]


def test_openssl_cannot_negotiate_again(echo: Secure) -> None:
    shown = s_client(echo, "-tls1_2", given="R\n")
    assert "RENEGOTIATING" in shown
    assert "no renegotiation" in shown


# What is typed, and what is to be seen before the next. A K asks for new keys of the other end, too.
DIALOGUE = [
    ("first\n", "first"),
    ("k\n", "KEYUPDATE"),
    ("second\n", "second"),
    ("K\n", "KEYUPDATE"),
    ("third\n", "third"),
]


def test_openssl_changes_its_keys(echo: Secure, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    command = ["openssl", "s_client", "-connect", echo.at, "-tls1_3"]
    with shown.open("w") as output:
        running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
    try:
        assert running.stdin is not None
        seen = 0
        for typed, expected in DIALOGUE:
            running.stdin.write(typed.encode())
            running.stdin.flush()
            wait_until(partial(lambda words, at: words in shown.read_text()[at:], expected, seen), expected)
            seen = shown.read_text().rindex(expected) + len(expected)
    finally:
        running.kill()
        running.communicate()


# ---- Python ------------------------------------------------------------------------------------------------

CLIENT = """
import contextlib, hashlib, select, socket, ssl, sys
folder, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
context = ssl.create_default_context(cafile=folder + "/localhost.crt")
sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
sent, received, count = hashlib.sha256(), hashlib.sha256(), 0
sock.setblocking(False)  # one thread does both: OpenSSL does not allow two on one connection
piece, rest, left = bytes(range(256)) * 256, b"", size
while count < size:
    if not rest and left:
        rest, left = memoryview(piece), left - len(piece)
        sent.update(piece)
    select.select([sock], [sock] if rest else [], [])
    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
        if rest:
            rest = rest[sock.send(rest):]
    with contextlib.suppress(ssl.SSLWantReadError):
        received.update(data := sock.recv(65536))
        count += len(data) or sys.exit("ended too early")
sock.setblocking(True)
sock.unwrap()  # sends the end, and raises an error unless the other end says so, too
print(sent.hexdigest() == received.hexdigest())
"""


RESUMING = """
import socket, ssl, sys
folder, port, version = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.create_default_context(cafile=folder + "/localhost.crt")
context.maximum_version = ssl.TLSVersion[version]
session, reused = None, []
for _ in range(3):
    sock = socket.create_connection(("127.0.0.1", port))
    sock = context.wrap_socket(sock, server_hostname="localhost", session=session)
    sock.sendall(b"x")
    sock.recv(1)
    session, reused = sock.session, [*reused, sock.session_reused]
    sock.unwrap()
    sock.close()
print(reused)
"""


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_python_resumes_a_session(echo: Secure, folder: Path, version: str) -> None:
    port = echo.at.partition(":")[2]
    assert run(sys.executable, "-c", RESUMING, folder, port, version) == (0, "[False, True, True]\n")


def test_python_gets_back_what_it_sends_and_an_orderly_end(echo: Secure, folder: Path) -> None:
    port = echo.at.partition(":")[2]
    assert run(sys.executable, "-c", CLIENT, folder, port, 4 * MIB) == (0, "True\n")
