"""Renews the screenshots in docs/: `python -m tests.panel.screenshots [FOLDER]`.

They show made-up figures. The script needs the browser of the tests, pngquant, and the font Inter to look as
they do now (Debian: pngquant, fonts-inter).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.panel.browser import Browser
from tests.panel.samples import household
from tests.panel.standin import StandIn

DOCS = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
PORT = 8911  # is seen in the pictures
PAGES = (
    # file, width, height, scheme, what is behind # in the address
    ("panel-light.png", 1280, 1046, "light", ""),
    ("panel-dark.png", 1280, 860, "dark", "#/proxy/p1"),
    ("panel-phone.png", 360, 900, "light", ""),
)


def main(folder: Path) -> None:
    """Write every picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, StandIn(household(), PORT) as standin:
        browser = Browser(Path(profile))
        try:
            for name, width, height, scheme, fragment in PAGES:
                browser.resize(width, height)
                browser.prefer(color_scheme=scheme)
                browser.open(standin.url + fragment)
                browser.wait_text("#status", "Live")
                browser.wait_text("tbody", "1")
                browser.run("document.activeElement.blur()")
                write(folder / name, browser.screenshot())
        finally:
            browser.close()


def write(path: Path, picture: bytes) -> None:
    """Write a picture with few colours, which takes a third of the room."""
    done = subprocess.run(["pngquant", "--strip", "-"], input=picture, capture_output=True, check=True)
    path.write_bytes(done.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
