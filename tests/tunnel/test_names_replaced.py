"""A server with names is replaced by another process: no request fails, and who is there stays to the end."""

from __future__ import annotations

from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

from tests.helpers.certificates import make_certificate
from tests.helpers.harness import LOOPBACK, WAIT_S, Tunnels, free_port
from tests.helpers.local_web import (
    DOMAIN,
    HALF_BYTES,
    WebSocket,
    app,
    curl,
    get,
    host_of,
    users_of,
    websocket_echo,
)


def test_server_is_replaced_while_users_download_and_more_come(tunnels: Tunnels, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "wild.pem", f"*.{DOMAIN}")
    port, https = free_port(), free_port()
    settings = ("--http-port", str(port), "--https-port", str(https), "--tls-cert", str(certificate))
    with ExitStack() as stack:
        service, echo = stack.enter_context(app()), stack.enter_context(websocket_echo())
        old, control = tunnels.server("--domain", DOMAIN, *settings)
        client, _ = tunnels.client(control, f"app={service.port}", f"echo={echo}", wait=False)
        client.wait_log("open at", count=2)
        user = stack.enter_context(WebSocket(port, "echo"))
        downloading = stack.enter_context(closing(HTTPConnection(LOOPBACK, port, timeout=2 * WAIT_S)))
        downloading.request("GET", "/half/length", headers={"Host": host_of("app")})
        answer = downloading.getresponse()
        assert len(answer.read(HALF_BYTES)) == HALF_BYTES
        with users_of(port, "app") as users:
            tunnels.server("--domain", DOMAIN, *settings, "--replace", port=control)
            client.wait_log("open at", count=4)
            users.wait_served(20)
            assert old.process.poll() is None
            assert user.ask("still there?") == "still there?"
            service.go_on.release()
            assert len(answer.read()) == HALF_BYTES
        user.close()
        assert old.wait_exit() == 0
        url = f"https://{host_of('app')}:{https}/chunked"
        assert curl("--cacert", certificate.with_suffix(".crt"), url) == "one two three"
        assert get(port, "app").status == 200
