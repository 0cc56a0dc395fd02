"""The page with a real server behind it, with clients, users, and a foreign page in the same browser."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.helpers.admin import Asker
from tests.helpers.crowd import Crowd
from tests.helpers.harness import (
    LOOPBACK,
    WAIT_S,
    Gnar,
    Service,
    Tunnels,
    ask,
    dial,
    echo,
    free_port,
    is_open,
    tunnels_of_test,
    wait_until,
)
from tests.panel.browser import Browser

PASSWORD = "an open sesame"
CROWD = 5000  # connections
ROW = "#proxies tbody tr"
KEY = "{ 'X-Gnar-Page': localStorage['gnar-page-key'] }"
STATUS = f"return fetch('api/v1/proxies', {{ headers: {KEY} }}).then(({{ status }}) => status)"
ONE_CONNECTION = "document.querySelectorAll('#connections tbody tr').length === 1"


class Panel:
    """A server with its page open in the browser, and a client with one proxy."""

    def __init__(self, tunnels: Tunnels, browser: Browser, password: str = "") -> None:
        self.tunnels = tunnels
        self.browser = browser
        self.password = ("--admin-password", password) if password else ()
        self.admin_port = free_port()
        self.url = f"http://{LOOPBACK}:{self.admin_port}/"
        self.server, self.port = tunnels.server("-a", str(self.admin_port), *self.password)

    def client(self, service: Service | Crowd, name: str = "echo") -> tuple[Gnar, int]:
        """Start a client with one proxy to a service."""
        return self.tunnels.client(self.port, "-l", str(service.port), "-r", "0", "-n", name)

    def open_proxy(self, name: str = "echo") -> None:
        """Go to the proxy's own page as a person does, once it is listed."""
        self.browser.wait_text(f"{ROW} td.name a", name)
        self.browser.click(f"{ROW} td.name a")
        self.browser.wait_text("#proxy-name", name)


@pytest.fixture
def tunnels(gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Start servers and clients; how a client carries its users makes no difference here."""
    yield from tunnels_of_test(gnar_pyz, tmp_path, request, ("-m",))


@pytest.fixture
def panel(tunnels: Tunnels, browser: Browser) -> Iterator[Panel]:
    """Return a server without a password, whose page is open."""
    panel = Panel(tunnels, browser)
    browser.open(panel.url)
    browser.wait_text("#status", "Live")
    yield panel
    browser.leave()


def drink(conn: socket.socket) -> None:
    """Read all that comes until the conn is closed, here or there, and keep nothing."""
    with suppress(OSError):
        while conn.recv(65536):
            pass


def pour(conn: socket.socket) -> None:
    """Send 10 kB fifty times a second until the user has gone."""
    while True:
        conn.sendall(bytes(10_000))
        time.sleep(0.02)


def test_a_proxy_that_was_just_opened_appears_and_its_figures_grow_during_a_download(panel: Panel) -> None:
    browser = panel.browser
    assert browser.text("#proxies .nothing").startswith("No proxy yet.")
    with Service(pour) as service:
        _, port = panel.client(service, "download")
        browser.wait_text(ROW, f"port {port}")
        assert browser.text(f"{ROW} td.down .first") == "0 B/s"
        with dial(port) as user:
            threading.Thread(target=drink, args=(user,), daemon=True).start()
            browser.wait_text(f"{ROW} td.down .first", "kB/s")
            browser.wait_text(f"{ROW} td.users .first", "1")
            before = browser.text(f"{ROW} td.down .second")
            grown = f"document.querySelector('{ROW} td.down .second').innerText !== arguments[0]"
            browser.wait(grown, before)
            browser.wait(f"document.querySelector('{ROW} svg .down.line').getAttribute('d')")
            panel.open_proxy("download")
            address = "{}:{}".format(*user.getsockname())
            browser.wait_text("#connections td.user", address)
            browser.wait_text("#connections td.rate_down", "kB/s")
            assert "active" in browser.text("#connections td.idle")
            user.shutdown(socket.SHUT_RDWR)


def test_ending_a_connection_ends_that_one_alone(panel: Panel) -> None:
    with Service(echo) as service, ExitStack() as stack:
        _, port = panel.client(service)
        first, second = (stack.enter_context(dial(port)) for _ in range(2))
        for user in (first, second):
            user.sendall(b"hello")
            assert user.recv(5) == b"hello"
        panel.open_proxy()
        address = "{}:{}".format(*first.getsockname())
        panel.browser.click(f"[aria-label='End the connection of {address}']")
        panel.browser.wait(ONE_CONNECTION)
        with suppress(ConnectionError):  # a reset is an end, too
            assert first.recv(1) == b""
        second.sendall(b"still")
        assert second.recv(5) == b"still"
        assert ask(port, b"and new ones") == b"and new ones"


def test_a_proxy_that_is_ended_closes_its_port_and_the_client_leaves_it_closed(panel: Panel) -> None:
    with Service(echo) as service:
        client, port = panel.client(service)
        panel.browser.click(f"{ROW} td.action button")
        panel.browser.wait_text("#question-text", f"Port {port} closes at once")
        panel.browser.click("#question-yes")
        panel.browser.wait_text(ROW, "gone")
        wait_until(lambda: not is_open(port), "the port is closed")
        client.wait_exit()  # it had no other proxy


def test_a_client_that_is_disconnected_says_so_and_stays_away(panel: Panel) -> None:
    with Service(echo) as service:
        client, port = panel.client(service)
        panel.browser.click("#clients td.action button")
        panel.browser.wait_text("#question-text", "does not come back by itself")
        panel.browser.click("#question-yes")
        panel.browser.wait_text("#clients tbody tr", "gone")
        wait_until(lambda: not is_open(port), "the port is closed")
        client.wait_exit()


def test_the_page_goes_on_by_itself_after_the_server_was_restarted(panel: Panel) -> None:
    with Service(echo) as service:
        panel.client(service)
        panel.browser.wait_text(ROW, "echo")
        panel.server.stop()
        panel.browser.wait_text("#status", "Connection lost")
        panel.tunnels.server("-a", str(panel.admin_port), port=panel.port)
        panel.browser.wait_text("#status", "Live")
        panel.browser.wait_text(f"{ROW}:not([data-state=gone])", "echo")


# ---- who may -----------------------------------------------------------------------------------------------


@pytest.fixture
def locked(tunnels: Tunnels, browser: Browser) -> Iterator[Panel]:
    """Return a server with a password, whose login form is open."""
    panel = Panel(tunnels, browser, PASSWORD)
    browser.open(panel.url)
    browser.wait("document.activeElement.id === 'password'")
    yield panel
    browser.leave()


def test_a_wrong_password_does_not_get_in_and_the_right_one_does(locked: Panel) -> None:
    browser = locked.browser
    browser.type("#password", "a shut sesame\n")
    browser.wait_text("#login-problem", "That password is wrong.")
    assert browser.cookies() == []
    assert browser.run(STATUS) == 401
    browser.type("#password", f"{PASSWORD}\n")
    browser.wait_text("#status", "Live")
    [cookie] = browser.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert browser.run("return document.cookie") == ""
    assert browser.run(STATUS) == 200
    assert browser.run("return fetch('api/v1/proxies').then(({ status }) => status)") == 401  # a cookie alone
    browser.click("#logout")
    browser.wait_text("#login", "Log in")
    assert browser.run(STATUS) == 401


class Foreign(BaseHTTPRequestHandler):
    """A page of somebody else, on another port of the same host: to cookies that is the same site."""

    html = ""
    cookies: ClassVar[list[str]] = []  # that it was sent

    def do_GET(self) -> None:
        """Send the page."""
        Foreign.cookies.extend(self.headers.get_all("Cookie", []))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.html.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def foreign() -> Iterator[str]:
    """Serve a foreign page, and return its address."""
    with ThreadingHTTPServer((LOOPBACK, 0), Foreign) as server:  # a browser opens connections ahead
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_port}/"
        server.shutdown()


def test_a_foreign_page_ends_nothing_and_shows_nothing(locked: Panel, foreign: str) -> None:
    browser = locked.browser
    browser.type("#password", f"{PASSWORD}\n")
    with Service(echo) as service:
        _, port = locked.client(service)
        browser.wait_text(ROW, "echo")
        Foreign.html = f"""
            <form method="post" enctype="text/plain" action="{locked.url}admin/tunnel/close">
            <input name='{{"port":{port},"x":"' value='"}}'><button>Win a prize</button></form>
            <form method="post" action="{locked.url}api/v1/logout"><button id="leave">Win more</button></form>
            <iframe src="{locked.url}"></iframe>"""
        for button in ("button", "#leave"):
            browser.open(foreign)
            assert [each["httpOnly"] for each in browser.cookies()] == [True]  # the browser would send it
            browser.click(button)
            refused = "location.href !== arguments[0] && document.body.innerText.includes('403')"
            browser.wait(refused, foreign)
        browser.open(foreign)
        tries = f"""
            const options = {{ credentials: "include", mode: "cors" }};
            const send = (path, options) =>
                fetch("{locked.url}" + path, options).then(() => "sent", () => "refused");
            return Promise.all([
                send("api/v1/proxies", options),
                send("api/v1/proxies/p1", {{ ...options, method: "DELETE" }}),
                send("api/v1/logout", {{ ...options, method: "POST" }}),
            ])"""
        assert browser.run(tries) == ["refused"] * 3
        browser.complaints()  # of the frame and of what a foreign page must not fetch
        assert browser.run("return localStorage.length") == 0
        assert browser.run("return document.cookie") == ""
        # To cookies all ports of a host are one, so the foreign server has got the cookie: it opens nothing.
        asker = Asker(locked.admin_port)
        assert {asker("GET", "/api/v1/server", Cookie=each).status for each in set(Foreign.cookies)} == {401}
        browser.open(locked.url)
        browser.wait_text(ROW, "echo")
        assert ask(port, b"open as before") == b"open as before"


# ---- many --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_5000_connections_the_page_and_the_server_stay_usable(panel: Panel) -> None:
    browser, crowd = panel.browser, Crowd()
    try:
        _, port = panel.client(crowd, "crowd")
        crowd.come(port, CROWD)
        panel.open_proxy("crowd")
        browser.wait_text("#connections .counter", "5,000 connections")
        with Service(echo) as service:
            _, other = panel.client(service, "other")
            started = time.monotonic()
            for _ in range(20):
                assert ask(other) == b"ping"
            assert time.monotonic() - started < WAIT_S / 4
        address = "{}:{}".format(*crowd.users[-1].getsockname())
        browser.type("#connections .filter", address)
        browser.wait_text("#connections .counter", "1 of 5,000 connections")
        browser.click("#connections tbody button")
        browser.wait_text("#connections .counter", "4,999 connections")
        with suppress(ConnectionError):
            assert crowd.users[-1].recv(1) == b""
    finally:
        crowd.close()
