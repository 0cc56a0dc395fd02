"""axe-core finds nothing on the page that keeps a person from using it (WCAG 2.2 AA and good practice)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.panel.browser import Browser
from tests.panel.conftest import Show
from tests.panel.samples import household
from tests.panel.standin import World

AXE = Path(__file__).resolve().parents[2] / "build/axe-core/node_modules/axe-core/axe.min.js"
RUN = "return axe.run({}).then(({{ violations }}) => violations.map(v => [v.help, v.nodes.map(n => n.html)]))"
CONTRAST = "document, { runOnly: ['color-contrast'] }"  # nothing else differs between the themes


def violations(browser: Browser) -> list[object]:
    """Return what axe finds in the light theme."""
    browser.prefer(color_scheme="light", reduced_motion="reduce")
    found: list[object] = browser.run(RUN.format(""))
    return found


def hard_to_read_in_the_dark(browser: Browser) -> list[object]:
    """Return what has too little contrast in the dark theme."""
    browser.prefer(color_scheme="dark", reduced_motion="reduce")
    found: list[object] = browser.run(RUN.format(CONTRAST))
    return found


@pytest.fixture
def world() -> World:
    """Return the figures of a household whose password is "right"; without axe-core, skip the test."""
    if not AXE.exists():
        pytest.skip("there is no axe-core; tests/run.sh installs it")
    world = household()
    world.password = "right"
    return world


def log_in(browser: Browser) -> None:
    browser.type("#password", "right\n")
    browser.wait_text("#proxies tbody", "nas")
    browser.wait_text("#clients tbody", "gone")


def test_axe_finds_no_violation_from_the_login_to_the_loss_of_the_server(
    browser: Browser, show: Show, world: World
) -> None:
    browser.resize(1360, 800)
    standin = show(world)
    browser.run(AXE.read_text())
    browser.type("#password", "wrong\n")
    browser.wait_text("#login-problem", "wrong")
    assert violations(browser) == []
    log_in(browser)
    assert violations(browser) == []
    browser.click("#proxies td.action button")
    browser.wait_text("#question", "End the proxy")
    assert violations(browser) == []
    assert hard_to_read_in_the_dark(browser) == []
    browser.press("escape")
    assert hard_to_read_in_the_dark(browser) == []
    browser.click("#proxies td.name a")
    browser.wait_text("#connections tbody", "198.51.100.1")
    browser.click("#connections tbody button")
    browser.wait_text("#message", "has ended")
    assert violations(browser) == []
    assert hard_to_read_in_the_dark(browser) == []
    standin.__exit__()
    browser.wait_text("#status", "Connection lost")
    assert violations(browser) == []
    assert hard_to_read_in_the_dark(browser) == []


def test_axe_finds_no_violation_on_a_phone(browser: Browser, show: Show, world: World) -> None:
    browser.resize(360, 800)
    show(world)
    browser.run(AXE.read_text())
    log_in(browser)
    assert violations(browser) == []
    browser.click("#proxies td.name a")
    browser.wait_text("#connections tbody", "198.51.100.1")
    assert violations(browser) == []
