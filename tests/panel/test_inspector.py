"""The inspector's page with a real client behind it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.helpers.harness import LOOPBACK, WAIT_S, Tunnels, free_port, tunnels_of_test
from tests.panel.browser import Browser
from tests.panel.test_accessible import AXE, hard_to_read_in_the_dark, violations

ROW = "#requests tbody tr"
EVIL = "<img/src=x/onerror=document.title='owned'>"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VALUES: tuple[object, ...] = (
    {
        "a": [1, 2.50, {"b": None}],
        "empty": {},
        "none": [],
        "text": 'a "quoted" \\ {brace}, [x]: y',
        "ä": True,
    },
    [],
    [[1], [[]], {"a": {}}],
    "just text",
    12345678901234567890,
)


class Site(BaseHTTPRequestHandler):
    """A picture, a page of markup, and what was posted."""

    def do_GET(self) -> None:
        if self.path == "/picture":
            self._answer(PIXEL, "image/png")
        else:
            self._answer(f"<script>document.title='owned'</script>{EVIL}".encode(), "text/html")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])), "application/json")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("X-Evil", EVIL)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Inspected:
    """A site behind a tunnel, whose inspector is open in the browser."""

    def __init__(self, tunnels: Tunnels, browser: Browser, site_port: int) -> None:
        self.browser = browser
        page_port = free_port()
        _, server_port = tunnels.server()
        options = ("-l", str(site_port), "--inspect", str(page_port))
        _, self.port = tunnels.client(server_port, *options)
        browser.open(f"http://{LOOPBACK}:{page_port}/")
        browser.wait_text("#status", "Live")

    def ask(self, method: str, path: str, body: str | None = None, **fields: str) -> None:
        """Ask the site as a user does."""
        conn = HTTPConnection(LOOPBACK, self.port, timeout=WAIT_S)
        conn.request(method, path, body, fields)
        conn.getresponse().read()
        conn.close()
        self.browser.wait_text(ROW, path)

    def open(self, path: str) -> None:
        """Press the youngest request with this path."""
        links = f"[...document.querySelectorAll('{ROW} a')]"
        number = self.browser.run(f"return {links}.findIndex((link) => link.text === arguments[0])", path)
        self.browser.click(f"{ROW}:nth-child({number + 1}) a")
        self.browser.wait_text("#opened-title", path)


@pytest.fixture
def inspected(
    gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest, browser: Browser
) -> Iterator[Inspected]:
    with ThreadingHTTPServer((LOOPBACK, 0), Site) as site:
        Thread(target=site.serve_forever, args=(0.05,), daemon=True).start()
        for tunnels in tunnels_of_test(gnar_pyz, tmp_path, request, ("-m",)):
            yield Inspected(tunnels, browser, site.server_port)
            browser.leave()
        site.shutdown()


def test_requests_appear_and_are_opened_sent_again_compared_and_forgotten(inspected: Inspected) -> None:
    browser = inspected.browser
    assert browser.text("#requests .nothing").startswith("No request yet.")
    inspected.ask("GET", f"/page?{EVIL}", Cookie="sid=s3cret")
    inspected.ask("GET", "/picture")
    inspected.ask("POST", "/echo?a=b+c", '{"a":[1,{"b":2}]}')

    inspected.open(f"/page?{EVIL}")  # markup is shown as text, wherever it stands
    browser.wait_text("#response pre", "<script>document.title='owned'</script>")
    browser.wait_text("#response .pairs td", EVIL)
    inspected.open("/picture")
    browser.wait("document.querySelector('#response img')?.naturalWidth === 1")
    inspected.open("/echo?a=b+c")
    browser.wait_text("#request .pairs td", "b c")
    assert browser.text("#response pre") == json.dumps({"a": [1, {"b": 2}]}, indent=2)
    assert browser.run("return document.title") == "gnar: requests"

    browser.click("#edit")
    browser.run("document.getElementById('edit-body').value = arguments[0]", '{"a":[1,{"b":3}]}')
    browser.click("#edit-form .main")
    browser.wait_text(ROW, "replay of #3")
    browser.wait("document.querySelector('#response pre')?.textContent.includes('\"b\": 3')")
    browser.click("#facts a:nth-of-type(2)")  # compare
    browser.wait_text("#differences .line[data-differs]", '"b": 2')
    browser.wait_text("#differences .line[data-differs]", '"b": 3')
    differing = "[...document.querySelectorAll('#differences .line[data-differs]')]"
    assert (
        browser.run(f"return {differing}.map((line) => line.textContent.trim())") == ['"b": 2', '"b": 3'] * 2
    )

    check_accessible(browser)

    inspected.open(f"/page?{EVIL}")
    browser.click("#curl")
    browser.wait_text("#curl-notes", "left out, since it may hold a secret: Cookie")
    assert "s3cret" not in browser.text("#curl-text")
    browser.click("#curl-secrets")
    browser.wait_text("#curl-text", "s3cret")
    browser.press("escape")

    browser.type("#requests .filter", "picture")
    browser.wait_text("#requests .counter", "1 of 4")
    browser.click("#clear")
    browser.click("#question-yes")
    browser.wait_text("#requests .nothing", "No request yet.")
    check_json(browser)


def check_accessible(browser: Browser) -> None:
    """See that axe finds nothing that keeps a person from using the page, where axe is installed."""
    if AXE.exists():
        browser.run(AXE.read_text())
        assert violations(browser) == hard_to_read_in_the_dark(browser) == []


def check_json(browser: Browser) -> None:
    """See that JSON gets line breaks, and is changed in nothing else."""
    pretty = "return import('./static/bodies.js').then((bodies) => arguments[0].map(bodies.prettyJson))"
    texts = [json.dumps(value, ensure_ascii=False) for value in VALUES]
    expected = [json.dumps(value, ensure_ascii=False, indent=2) for value in VALUES]
    assert browser.run(pretty, texts) == expected
    for text in ('{"a": [1, "cut', '{"a" 1 ]}}', '"\\'):
        (found,) = browser.run(pretty, [text])
        assert "".join(found.split()) == "".join(text.split())
