"""axe-core finds nothing on the page that keeps a person from using it (WCAG 2.2 AA and good practice)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.panel.browser import Browser
from tests.panel.conftest import Show
from tests.panel.samples import household

AXE = Path(__file__).resolve().parents[2] / "build/axe-core/node_modules/axe-core/axe.min.js"
RUN = "return axe.run({}).then(({{ violations }}) => violations.map(v => [v.help, v.nodes.map(n => n.html)]))"
CONTRAST = "document, { runOnly: ['color-contrast'] }"  # nothing else differs between the themes


def violations(browser: Browser) -> list[object]:
    """Return what axe finds in the light theme, and what is hard to read in the dark one."""
    browser.prefer(color_scheme="light", reduced_motion="reduce")
    found: list[object] = browser.run(RUN.format(""))
    browser.prefer(color_scheme="dark", reduced_motion="reduce")
    return found + [["dark", each] for each in browser.run(RUN.format(CONTRAST))]


@pytest.mark.parametrize("width", [1360, 360], ids=["desktop", "phone"])
def test_axe_finds_no_violation_in_either_theme(browser: Browser, show: Show, width: int) -> None:
    if not AXE.exists():
        pytest.skip("there is no axe-core; tests/run.sh installs it")
    world = household()
    world.password = "right"
    browser.resize(width, 800)
    standin = show(world)
    browser.run(AXE.read_text())
    browser.type("#password", "wrong\n")
    browser.wait_text("#login-problem", "wrong")
    assert violations(browser) == []
    browser.type("#password", "right\n")
    browser.wait_text("#proxies tbody", "nas")
    browser.wait_text("#clients tbody", "gone")
    assert violations(browser) == []
    browser.click("#proxies td.action button")
    browser.wait_text("#question", "End the proxy")
    assert violations(browser) == []
    browser.press("escape")
    browser.click("#proxies td.name a")
    browser.wait_text("#connections tbody", "198.51.100.1")
    browser.click("#connections tbody button")
    browser.wait_text("#message", "has ended")
    assert violations(browser) == []
    standin.__exit__()
    browser.wait_text("#status", "Connection lost")
    assert violations(browser) == []
