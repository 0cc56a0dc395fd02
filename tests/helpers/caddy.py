"""A real Caddy, a web port of gnar's for it to lead to, and users who come by HTTPS."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gnar_lib.net import Crew
from gnar_lib.server.caddy import Caddy
from gnar_lib.server.caddy.plan import Made
from tests.helpers.harness import LOOPBACK, WAIT_S, Service, free_port, is_open, read_until
from tests.helpers.harness import wait_until as wait_for_program
from tests.helpers.loop import wait_until

PROGRAM = os.environ.get("CADDY", "caddy")  # another Caddy than the one in PATH, to try gnar with it
IS_HERE = shutil.which(PROGRAM) is not None
DOMAIN = "gnar.localhost"  # Caddy certifies it itself
NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID of OpenSSL
ASK_PATH = "/.well-known/gnar/ask"
Json = Any


class WebPort:
    """Stands in for gnar's web port: says which names are in use, echoes requests, and upgrades."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)
        self.asked: list[str] = []
        self._service = Service(self._serve)
        self.port = self._service.port

    def __enter__(self) -> WebPort:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()

    def _serve(self, conn: socket.socket) -> None:
        while True:
            line, *fields = read_until(conn, b"\r\n\r\n").decode().split("\r\n")[:-2]
            headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
            url = urlsplit(line.split()[1])
            if url.path == ASK_PATH and headers["host"].startswith(LOOPBACK):
                name = parse_qs(url.query)["domain"][0]
                self.asked.append(name)
                _answer(conn, 200 if name in self.names else 404, {})
            elif "upgrade" in headers:
                conn.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"
                )
                while data := conn.recv(4096):
                    conn.sendall(data)
                return
            else:
                _answer(conn, 200, {"path": url.path, "headers": headers})


def _answer(conn: socket.socket, status: int, value: Json) -> None:
    body = json.dumps(value).encode()
    conn.sendall(f"HTTP/1.1 {status} so\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


class RealCaddy:
    """A process of Caddy, with its files in a folder; `stop` and `start` may alternate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.admin, self.https, self.http, self.plain = (free_port() for _ in range(4))
        self.api = f"http://{LOOPBACK}:{self.admin}"
        self._process: subprocess.Popen[bytes] | None = None
        self._dialled: list[ssl.SSLSocket] = []

    def __enter__(self) -> RealCaddy:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._dialled:
            sock.close()
        self.kill()

    def config(self, routes: list[Json] | None = None, **apps: Json) -> Json:
        """Return a configuration with a server that has these routes, beside these other apps."""
        server = {
            "listen": [f"{LOOPBACK}:{self.https}"],
            "automatic_https": {"disable_redirects": True},
            "routes": routes or [],
        }
        return {
            "admin": {"listen": f"{LOOPBACK}:{self.admin}"},
            "apps": {
                "http": {"http_port": self.http, "https_port": self.https, "servers": {"srv0": server}},
                "pki": {"certificate_authorities": {"local": {"install_trust": False}}},
                **apps,
            },
        }

    @property
    def empty(self) -> Json:
        """A configuration without servers, with what keeps a test to itself."""
        whole = self.config()
        return {**whole, "apps": {"pki": whole["apps"]["pki"]}}

    def start(self, config: Json, is_ready: Callable[[], bool] | None = None) -> None:
        """Start Caddy with a configuration, and wait until `is_ready`, or until its admin API listens."""
        file = self._folder / "caddy.json"
        file.write_text(json.dumps(config))
        env = {
            "HOME": str(self._folder),
            "PATH": str(self._folder),  # Caddy finds nothing there with which it could change what is trusted
        }
        program = shutil.which(PROGRAM) or PROGRAM
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "run", "--config", file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self._folder,
            )
        wait_for_program(is_ready or (lambda: is_open(self.admin)), "Caddy's admin API listens")

    def kill(self) -> None:
        """Kill Caddy."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(WAIT_S)
            self._process = None

    @property
    def log(self) -> list[Json]:
        """The lines of Caddy's log, but for one that is still being written."""
        lines = (self._folder / "log").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    @property
    def loads(self) -> int:
        """How many configurations Caddy has loaded, each of which ends WebSockets."""
        done = ("autosaved config", "serving initial configuration")
        return sum(line["msg"].startswith(done) for line in self.log)

    def ask(self, method: str, path: str, value: Json = None, status: int = 200) -> Json:
        """Return the answer of the admin API, which hangs up while a new configuration begins to hold."""
        for _ in range(10 if method == "GET" else 0):
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                return self._ask(method, path, value, status)
        return self._ask(method, path, value, status)

    def _ask(self, method: str, path: str, value: Json, status: int) -> Json:
        connection = http.client.HTTPConnection(LOOPBACK, self.admin, timeout=WAIT_S)
        with contextlib.closing(connection):
            body = None if value is None else json.dumps(value)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
            assert response.status == status, data
            return json.loads(data or b"null")

    @property
    def apps(self) -> Json:
        """The apps of the configuration."""
        return (self.ask("GET", "/config/") or {}).get("apps", {})

    @property
    def routes(self) -> list[Json]:
        """The routes of the server srv0."""
        return list(self.apps["http"]["servers"]["srv0"]["routes"])

    @property
    def root(self) -> Path:
        """The certificate of the authority that Caddy is by itself."""
        return next(self._folder.rglob("authorities/local/root.crt"))

    def dial(self, name: str) -> ssl.SSLSocket:
        """Return a TLS connection for a name, whose certificate is checked.

        One that Caddy has made just now may begin to be valid in a moment only: OpenSSL asks a clock that
        moves with the kernel's ticks (CLOCK_REALTIME_COARSE), and on a busy machine those come late.
        """
        dialled: list[ssl.SSLSocket] = []

        def is_valid() -> bool:
            try:
                dialled.append(self._dial(name))
            except ssl.SSLCertVerificationError as exc:
                if exc.verify_code != NOT_YET_VALID:
                    raise
            return bool(dialled)

        wait_for_program(is_valid, f"the certificate of {name} is valid")
        return dialled[0]

    def _dial(self, name: str) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.root))
        sock = socket.create_connection((LOOPBACK, self.https), WAIT_S)
        try:
            tls = context.wrap_socket(sock, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        self._dialled.append(tls)
        return tls

    def is_certified(self, name: str) -> bool:
        """Tell whether Caddy has a certificate of a name that it obtains by itself."""
        with contextlib.suppress(ssl.SSLError):
            self.dial(name)
            return True
        return False

    def get(self, name: str, path: str = "/") -> tuple[int, bytes]:
        """Return status and body of the answer to a user's request by HTTPS."""
        with self.dial(name) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            response = http.client.HTTPResponse(sock)
            response.begin()
            return response.status, response.read()


class Kept:
    """A keeper of gnar's in a greenlet of this process."""

    def __init__(self, caddy: RealCaddy, web: WebPort, **settings: Any) -> None:
        made = Made(LOOPBACK, caddy.https, caddy.http)
        wanted = {"srv_name": "srv0", "domain": DOMAIN, "allow_hosts": (), "removes": True, "made": made}
        self.caddy = Caddy(caddy.api, web_address=(LOOPBACK, web.port), **{**wanted, **settings})
        self._crew = Crew("caddy")

    def __enter__(self) -> Caddy:
        self._crew.spawn(self.caddy.run)
        return self.caddy

    def __exit__(self, *_: object) -> None:
        self._crew.kill()
        wait_until(lambda: not len(self._crew), "the keeper has ended")


def wait_ready(keeper: Caddy, caddy: RealCaddy) -> None:
    """Wait until gnar's route is there, and gnar knows that."""

    def is_there() -> bool:
        with contextlib.suppress(OSError, KeyError, http.client.HTTPException):
            return any(route.get("@id") == "gnar" for route in caddy.routes) and keeper.is_ready
        return False

    wait_until(is_there, f"gnar's route is in Caddy: {keeper.trouble}")


def respond(text: str, *hosts: str, **route: Json) -> Json:
    """Return a route that answers with a text, to everybody or to some hosts."""
    match = {"match": [{"host": [*hosts]}]} if hosts else {}
    return {**match, "handle": [{"handler": "static_response", "body": text}], **route}
