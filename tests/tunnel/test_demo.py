"""`gnar demo` as a real process."""

from __future__ import annotations

import re
import signal
import urllib.request

from tests.helpers.harness import (
    LOOPBACK,
    SOON_S,
    WAIT_S,
    Tunnels,
    free_port,
    is_open,
    listening_ports,
    wait_until,
)


def test_demo_shows_the_tunnel_working_and_leaves_nothing(tunnels: Tunnels) -> None:
    env = {"http_proxy": f"http://{LOOPBACK}:1", "GNAR_TOKEN": "of another server"}
    demo = tunnels.run("demo", env=env)
    wait_until(lambda: "^C ends the demo" in demo.out or demo.process.poll() is not None, "the demo works")
    found = re.search(
        r"fetched http://127\.0\.0\.1:(\d+)/ through the tunnel: (\d+) bytes in \d+ ms", demo.out
    )
    assert found, demo.out + demo.log
    port, size = int(found[1]), int(found[2])
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/", timeout=WAIT_S) as answer:
        page = answer.read()
    assert len(page) == size
    assert b"It works." in page
    assert not {b"no token", b"WARN", b"ERROR"} & {*demo.log.encode().split()}
    listening = listening_ports(demo.pid)
    assert port in listening
    assert demo.stop() == 0
    assert not [port for port in listening if is_open(port)]


def test_demo_takes_the_port_it_is_given_and_says_when_that_is_taken(tunnels: Tunnels) -> None:
    port = free_port()
    demo = tunnels.run("demo", str(port))
    wait_until(lambda: f"Open http://{LOOPBACK}:{port}/ in a browser" in demo.out, "the demo works")
    other = tunnels.run("demo", str(port))
    assert other.wait_exit() == 1
    assert other.log == f"gnar: {LOOPBACK}:{port} is already in use\n"
    demo.signal(signal.SIGINT)
    assert demo.wait_exit(SOON_S) == 0
