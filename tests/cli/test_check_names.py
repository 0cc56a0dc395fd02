"""`--check` where there are names: ports, certificates, DNS and Caddy of a server; URLs of a client."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from gnar_lib.checklist import Budget, Checklist
from gnar_lib.client import check_names as client_names
from gnar_lib.client.trial import Trial
from gnar_lib.config import Address, ClientConfig, ProxyConfig, Secret, ServerConfig
from gnar_lib.errors import ConnError, DialError, UnreachableError
from gnar_lib.proto import ProxyResp
from gnar_lib.proto.msg import STATUS_SUCCESS
from gnar_lib.server import check_names as server_names
from gnar_lib.server.caddy.plan import Made, plan
from gnar_lib.server.caddy.wish import Wish
from gnar_lib.server.check_tls import TlsCheck
from gnar_lib.transport.x509 import Certificate
from gnar_lib.visit import Seen, visit
from tests.helpers.certificates import make_certificate
from tests.helpers.harness import LOOPBACK, WAIT_S, Service, free_port, read_until
from tests.helpers.tls import client_context, server_context

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n{}"
OF_NGINX = b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nContent-Length: 2\r\n\r\nhi"
NAMES = ServerConfig(bind=LOOPBACK, http_bind=LOOPBACK, domain="localhost")


class Web:
    """A web server that gives every request the same answer."""

    def __init__(self, answer: bytes) -> None:
        self.heads: list[str] = []
        self._answer = answer
        self._service = Service(self._serve)
        self.port = self._service.port

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()

    def _serve(self, conn: socket.socket) -> None:
        self.heads.append(read_until(conn, b"\r\n\r\n").decode())
        conn.sendall(self._answer)


# ---- a server ----------------------------------------------------------------------------------------------


def told(
    capsys: pytest.CaptureFixture[str], config: ServerConfig, *, is_running: bool = False
) -> dict[str, list[str]]:
    """Return what the check says of each thing."""
    checklist = Checklist()
    TlsCheck(config, checklist).run()
    server_names.NamesCheck(config, checklist, Budget(WAIT_S), is_running=is_running).run()
    said: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        verdict, what, text = re.split(r" {1,}", line, maxsplit=2)
        said.setdefault(what, []).append(f"{verdict} {text.strip()}")
    return said


def test_server_without_names_is_not_asked_about_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, ServerConfig(bind=LOOPBACK)).keys() == {"tls", "certificate"}


def test_ports_of_names_are_free_or_somebody_has_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = free_port()
    with (
        Web(OF_NGINX) as nginx,
        Web(NOBODY) as gnar,
        Web(OF_NGINX.replace(b"nginx/1.22.1", b"Caddy")) as caddy,
    ):
        nothing = told(capsys, replace(NAMES, http_port=free))
        assert nothing["http-port"] == [f"ok {free} is free for users of names"]
        assert nothing["names"] == [f"ok NAME of a client is http://NAME.localhost:{free}"]
        for port, who in (
            (nginx.port, "nginx: stop"),
            (caddy.port, "Caddy: have Caddy lead users to gnar by --caddy-api"),
        ):
            (line,) = told(capsys, replace(NAMES, http_port=port), is_running=True)["http-port"]
            assert line.startswith(f"wrong {port} is taken by {who}")
        own = told(capsys, replace(NAMES, http_port=gnar.port), is_running=True)["http-port"]
        assert own == [f"ok {gnar.port} is open: the gnar server that is running has it"]
        (other,) = told(capsys, replace(NAMES, http_port=gnar.port))["http-port"]
        assert other.startswith(f"wrong {gnar.port} is taken by another gnar server")
        monkeypatch.setattr(server_names, "WHO_S", 0.2)  # for a server without TLS, which says nothing
        (silent,) = told(capsys, replace(NAMES, https_port=nginx.port))["https-port"]
        assert silent.startswith(f"wrong {nginx.port} is taken by another program: stop that, or choose")


def test_web_server_is_visited_by_tls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(conn: socket.socket) -> None:
        with suppress(OSError), server_context().wrap_socket(conn, server_side=True) as tls:
            read_until(tls, b"\r\n\r\n")
            tls.sendall(NOBODY)

    with Service(serve) as gnar:
        own = told(capsys, replace(NAMES, https_port=gnar.port), is_running=True)["https-port"]
        assert own == [f"ok {gnar.port} is open: the gnar server that is running has it"]
        url = f"https://localhost:{gnar.port}/"
        with pytest.raises(ConnError, match="certificate verify failed"):
            visit(url, WAIT_S)
        monkeypatch.setattr("gnar_lib.transport.tls.client_context", client_context)
        assert visit(url, WAIT_S) == Seen(404, "", "application/problem+json", b"{}")
        with pytest.raises(ConnError, match=r"certificate verify failed.*mismatch"):
            visit(url.replace("localhost", "other.localhost"), WAIT_S)


def test_port_that_this_user_may_not_have_is_told_with_a_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        from gnar_lib.net.endpoint import listen_error

        raise listen_error((LOOPBACK, 80), PermissionError(13, "Permission denied")) from PermissionError(
            13, "no"
        )

    monkeypatch.setattr(server_names, "listen", refuse)
    (line,) = told(capsys, replace(NAMES, http_port=80))["http-port"]
    assert line.startswith(
        "wrong 80 needs a right that this user lacks: choose another --http-port, or let systemd"
    )


def test_certificates_are_told_with_their_names_and_their_end(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pem = str(make_certificate(tmp_path / "a.pem", "localhost", "a.localhost"))
    said = told(capsys, replace(NAMES, tls_cert=(pem, str(tmp_path / "none")), allow_hosts=("a.localhost",)))
    assert len(said["certificate"]) == 3
    soon, missing, uncovered = said["certificate"]
    assert soon.startswith(f"warn {pem}: for localhost, a.localhost; expires on ")
    assert missing == f"wrong {tmp_path / 'none'}: cannot read it: No such file or directory"
    assert uncovered.startswith("warn none is for *.localhost: ")


@pytest.mark.parametrize(
    ("begins", "ends", "expected"),
    [
        (-3, -1, "wrong .*; expired on .*: renew it"),
        (1, 90, "wrong .*; not valid before .*"),
        (-3, 13, "warn .*; expires on .*: is it renewed by itself.*"),
        (-3, 90, r"ok .*: for \*\.localhost; until \d{4}-\d\d-\d\d"),
    ],
)
def test_certificate_is_of_use_in_its_time_alone(
    begins: int, ends: int, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = (datetime.now(timezone.utc) + timedelta(days=days) for days in (begins, ends))
    found = Certificate(("*.localhost",), first, last)
    monkeypatch.setattr("gnar_lib.transport.certificates.read_certificate", lambda *_: found)
    (line,) = told(capsys, replace(NAMES, tls_cert=("a.pem",)))["certificate"]
    assert re.fullmatch(expected, line)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([LOOPBACK], rf"ok names below x\.test lead to {LOOPBACK}"),
        (
            ["192.0.2.1"],
            r"ok .* lead to 192\.0\.2\.1, which is no address of this machine: right behind NAT.*",
        ),
        ([LOOPBACK, "192.0.2.1"], r"ok .*, of which 192\.0\.2\.1 is none of this machine.*"),
        (
            DialError("unknown"),
            r"wrong names below x\.test lead nowhere: its DNS needs a record `\*\.x\.test` .*",
        ),
        (UnreachableError("DNS is away"), r"skip nobody can tell where names lead: DNS is away"),
    ],
)
def test_where_names_lead_is_looked_up(
    answer: list[str] | DialError,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def addresses_of(host: str) -> list[str]:
        asked.append(host)
        if isinstance(answer, DialError):
            raise answer
        return answer

    monkeypatch.setattr(server_names, "addresses_of", addresses_of)
    (line,) = told(capsys, replace(NAMES, domain="x.test"))["dns"]
    assert re.fullmatch(expected, line)
    assert re.fullmatch(r"gnar-check-[0-9a-f]{8}\.x\.test", asked[0])


def test_caddy_is_read_and_never_written(capsys: pytest.CaptureFixture[str]) -> None:
    def at(config: object) -> bytes:
        body = json.dumps(config).encode()
        fields = f"Content-Type: application/json\r\nETag: x\r\nContent-Length: {len(body)}"
        return f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode() + body

    port = free_port()
    wish = Wish.of("localhost", (), (LOOPBACK, port))
    done = {"apps": plan(None, "srv0", wish, Made(), is_old=False).apps}
    other = {"apps": {"http": {"servers": {"web": {"listen": [":443"]}}}}}
    for config, expected in (
        (None, "ok server 'srv0' gets gnar's route when gnar starts"),
        (done, "ok leads users of names to gnar already"),
        (other, "wrong Caddy has no server 'srv0': give --caddy-srv-name one that it has"),
    ):
        with Web(at(config)) as caddy:
            api = f"http://{LOOPBACK}:{caddy.port}"
            (line,) = told(capsys, replace(NAMES, caddy_api=api, http_port=port))["caddy"]
            assert line.startswith(expected)
            assert [head.partition(" HTTP")[0] for head in caddy.heads] == ["GET /config/"]
    (line,) = told(capsys, replace(NAMES, caddy_api=f"http://{LOOPBACK}:{free_port()}"))["caddy"]
    assert re.match("wrong Caddy's admin API at .* cannot be reached", line)


# ---- a client ----------------------------------------------------------------------------------------------


@pytest.fixture
def trial() -> Iterator[Trial]:
    made = Trial(ClientConfig(Address(LOOPBACK, 1), ()))
    yield made
    made.close()


def line_of(trial: Trial, proxy: ProxyConfig, url: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the check of a client says of a name for which the server has given a URL."""
    port = trial.port(proxy)
    port.answer = ProxyResp("", STATUS_SUCCESS, "", url=url)
    client_names.NamesCheck(trial.config, Checklist(), Budget(WAIT_S)).run(trial, [port])
    (line,) = capsys.readouterr().out.splitlines()
    return " ".join(line.split())


BLOG = ProxyConfig("blog", 1, proxy_type="http", subdomain="blog", path="/api/")
LOCKED = replace(BLOG, basic_auth=(Secret("a:b"),), allow_from=("192.0.2.0/24",), redirect_https=True)


@pytest.mark.parametrize(
    ("proxy", "answer", "expected"),
    [
        (BLOG, OF_NGINX, "wrong, but nginx answers there, with 200: it has to pass requests on .*"),
        (BLOG, NOBODY, "wrong, but a server that does not know it answers there: is DNS right.*"),
        (
            BLOG,
            b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
            "wrong, but another web server answers there, with 401: .*",
        ),
        (LOCKED, b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "ok, and asks users for a password, .*"),
        (LOCKED, b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "ok; this machine may not come there, .*"),
        (LOCKED, b"HTTP/1.1 308 Go\r\nContent-Length: 0\r\n\r\n", "ok, and leads users to HTTPS, .*"),
        (BLOG, b"SSH-2.0-x\r\n\r\n", "wrong, but users do not get there: .*no HTTP response"),
    ],
)
def test_what_answers_at_a_url_is_told(
    proxy: ProxyConfig, answer: bytes, expected: str, trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    with Web(answer) as web:
        line = line_of(trial, proxy, f"http://blog.localhost:{web.port}/api", capsys)
    verdict = re.split(r"\W", expected)[0]
    rest = expected.removeprefix(verdict)
    url = re.escape(f"http://blog.localhost:{web.port}")
    assert re.fullmatch(f"{verdict} url blog: {url} is allowed and free{rest}", line)
    (head,) = web.heads
    assert head.startswith(f"GET /api/{trial.page_name} HTTP/1.1\r\nHost: blog.localhost:{web.port}\r\n")
    assert "uthorization" not in head


@pytest.mark.parametrize(
    ("proxy", "url", "reason"),
    [
        (BLOG, "ftp://x.test", "the name is allowed and free; not tried: the server does not say where"),
        (BLOG, "http://192.0.2.1/", "the name is allowed and free; not tried: the server does not say where"),
        (replace(BLOG, subdomain=""), "https://a-b-1.x.test", "certificate might be got"),
        (replace(BLOG, subdomain="*.dev"), "https://*.dev.x.test", "certificate might be got"),
        (replace(BLOG, proxy_type="https"), "https://blog.x.test", "TLS is for the service itself"),
    ],
)
def test_name_that_is_not_visited_is_told_with_the_reason(
    proxy: ProxyConfig, url: str, reason: str, trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(trial, proxy, url, capsys)
    assert line.startswith("ok url blog: ")
    assert reason in line


def test_name_that_dns_does_not_lead_to_the_server_is_wrong(
    trial: Trial, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"secret.x.test": ["10.0.0.1"], LOOPBACK: ["192.88.99.1"]}

    def addresses_of(host: str) -> list[str]:
        if host not in known:
            raise DialError(f"cannot resolve {host}")
        return known[host]

    monkeypatch.setattr(client_names, "addresses_of", addresses_of)
    page = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(trial.page), trial.page)
    with Web(page) as web:
        line = line_of(trial, BLOG, f"http://blog.x.test:{web.port}", capsys)
        assert line.endswith("the server passes requests on, but DNS has no address for blog.x.test")
    line = line_of(trial, BLOG, "https://blog.x.test", capsys)
    assert line.endswith("DNS has no address for blog.x.test: is there a record for *.x.test?")
    line = line_of(trial, BLOG, "http://secret.x.test", capsys)
    assert "10.0.0.1, which is no public address" in line
