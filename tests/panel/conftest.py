"""Fixtures of a browser, and of the page with made-up figures in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeAlias

import pytest

from tests.panel.browser import MISSING, Browser
from tests.panel.samples import household
from tests.panel.standin import StandIn, World

Show: TypeAlias = Callable[..., StandIn]


@pytest.fixture(scope="session")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if MISSING:
        pytest.skip(f"there is no {' and no '.join(MISSING)}; tests/run.sh installs them")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def browser(_browser: Browser) -> Iterator[Browser]:
    """Return a browser that knows nothing; behind the test it must not have complained of anything."""
    _browser.reset()
    yield _browser
    assert _browser.complaints() == []


@pytest.fixture
def show(browser: Browser) -> Iterator[Show]:
    """Return a function that opens the page with the figures of a world, of a household unless given."""
    with ExitStack() as stack:

        def open_page(world: World | None = None, fragment: str = "") -> StandIn:
            standin = stack.enter_context(StandIn(world or household()))
            browser.open(standin.url + fragment)
            return standin

        yield open_page
        browser.leave()
