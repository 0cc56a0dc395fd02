"""Renews the screenshots in docs/: `python -m tests.panel.screenshots [FOLDER]`.

They show made-up figures. The font is Inter if the system has it (Debian: fonts-inter).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.panel.browser import Browser
from tests.panel.samples import household
from tests.panel.standin import StandIn

DOCS = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
PAGES = (
    # file, width, height, scheme, what is behind # in the address
    ("panel-light.png", 1280, 1000, "light", ""),
    ("panel-dark.png", 1280, 860, "dark", "#/proxy/p1"),
    ("panel-phone.png", 360, 900, "light", ""),
)


def main(folder: Path) -> None:
    """Write every picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, StandIn(household()) as standin:
        browser = Browser(Path(profile))
        try:
            for name, width, height, scheme, fragment in PAGES:
                browser.resize(width, height)
                browser.prefer(color_scheme=scheme)
                browser.open(standin.url + fragment)
                browser.wait("document.querySelector('tbody tr')?.checkVisibility()")
                browser.wait("document.querySelector('#status-text').textContent === 'Live'")
                browser.run("document.activeElement.blur()")
                (folder / name).write_bytes(browser.screenshot())
        finally:
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
