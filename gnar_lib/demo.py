"""`gnar demo`: starts a sample web page, a server and a client on loopback, to show a tunnel that works."""

from __future__ import annotations

import secrets
import time
import urllib.request

import gevent

from gnar_lib import logger
from gnar_lib.client.serve import Client
from gnar_lib.config import Address, ClientConfig, ProxyConfig, Secret, ServerConfig
from gnar_lib.config.model import LOOPBACK
from gnar_lib.errors import ConnError
from gnar_lib.http import Request, Response, Routes, Service
from gnar_lib.lifecycle import Stopper
from gnar_lib.net import Crew, listen
from gnar_lib.server.serve import Server

OPEN_DEADLINE_S = 10.0  # for the tunnel to open, and for the page to arrive
POLL_S = 0.02  # how often the demo looks whether the tunnel is open

# Without the HTTP proxy that the environment may name: such a proxy cannot reach this loopback.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>gnar works</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 38rem; margin: 12vh auto; padding: 0 1rem;
        color: #222; background: #fdfdfb }
 h1 { font-size: 2.2rem; margin-bottom: .2em } code { background: #eee; padding: .1em .3em }
 @media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } code { background: #333 } }
</style></head><body>
<h1>It works.</h1>
<p>This page is served by a small web service that listens on loopback alone. You reached it through a gnar
server and a gnar client, as somebody on the internet would reach yours.</p>
<p>For your own service: <code>gnar.pyz server</code> on a public host, and beside the service
<code>gnar.pyz client -s HOST:8910 -l 3000 -r 9000</code>.</p>
</body></html>
"""


def _page(_request: Request, **_parameters: str) -> Response:
    return Response(200, PAGE, "text/html; charset=utf-8")


def _routes() -> Routes:
    """Return the routes of the sample service: the page is at every path of one part."""
    routes = Routes()
    for path in ("/", "/{path}"):
        routes.add("GET", path, _page)
    return routes


def run_demo(port: int = 0) -> int:
    """Start the demo, fetch the page through the tunnel, and run until a signal; returns the exit status.

    The page can be reached at `port`, or at a free port if that is 0. Raises `PortTakenError` for a port that
    is taken, and `ConnError` when the tunnel does not open or the page does not come through.
    """
    listen(LOOPBACK, port).close()  # raises now; the client would ask for a taken port again and again
    stopper = Stopper()
    crew, listener = Crew("demo"), listen(LOOPBACK, 0)
    listener.serve(crew, Service(_routes()).serve)
    token = Secret(secrets.token_hex(16))
    server = Server(ServerConfig(port=0, bind=LOOPBACK, token=token))
    address = Address(LOOPBACK, server.start())
    proxy = ProxyConfig(proxy_name="demo", local_port=listener.port, remote_port=port)
    tls = "off" if server.shared.certificates is None else "on"  # where this Python has none
    client = Client(ClientConfig(server=address, token=token, tls=tls, proxies=(proxy,)), stopper.stop)
    client.start()
    try:
        is_open = _open_in_time(client, stopper)
        if is_open:
            _fetch(client.location("demo"))
        elif not stopper.stopping:
            raise ConnError("the tunnel did not open; the lines above say why")
        stopper.wait()
        return 1 if client.failed else 0
    finally:
        client.close()
        server.close()
        listener.close()
        crew.kill()
        gevent.sleep(0)  # lets the greenlets that were killed close their sockets
        stopper.close()


def _open_in_time(client: Client, stopper: Stopper) -> bool:
    """Wait until the tunnel is open, a signal comes or the deadline passes; return whether it is open."""
    for _ in range(int(OPEN_DEADLINE_S / POLL_S)):
        if stopper.stopping or client.location("demo"):
            break
        gevent.sleep(POLL_S)
    return bool(client.location("demo"))


def _fetch(where: str) -> None:
    """Fetch the page through the tunnel and show how long that took; raises `ConnError`."""
    url = f"http://{where}/"
    began_s = time.perf_counter()
    try:
        with _opener.open(url, timeout=OPEN_DEADLINE_S) as answer:
            page = answer.read()
    except OSError as exc:
        raise ConnError(f"{url} did not answer: {exc}") from exc
    if page != PAGE:
        raise ConnError(f"{url} answered with something else than the sample page")
    took_ms = (time.perf_counter() - began_s) * 1000
    logger.announce(
        f"  fetched {url} through the tunnel: {len(page)} bytes in {took_ms:.0f} ms. It works.\n"
        f"  Open {url} in a browser; ^C ends the demo.\n"
    )
