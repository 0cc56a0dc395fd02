"""The Caddyfiles of docs/caddy.md: Caddy takes them, and gnar adds to them what the page says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gnar_lib.server.caddy import policy, route
from gnar_lib.server.caddy.plan import SERVER_ID, Made, plan
from gnar_lib.server.caddy.wish import Wish
from tests.helpers.caddy import IS_HERE, PROGRAM
from tests.helpers.docs import DOCS, blocks

FILES = {text.splitlines()[0].removeprefix("# caddy/"): text for text in blocks("caddyfile")}
WISH = Wish.of("example.com", (), ("127.0.0.1", 8080))
needs_caddy = pytest.mark.skipif(not IS_HERE, reason="caddy is not installed")


def run(tmp_path: Path, command: str, text: str) -> str:
    """Return what Caddy prints of a Caddyfile."""
    file = tmp_path / "Caddyfile"
    file.write_text(text)
    program = shutil.which(PROGRAM) or PROGRAM
    argv = [program, command, "--config", str(file), "--adapter", "caddyfile"]
    env = {"HOME": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def adapted(tmp_path: Path, text: str) -> Any:
    return json.loads(run(tmp_path, "adapt", text))


def without_plugin(text: str) -> str:
    """Return a Caddyfile without the line for which Caddy needs a plugin."""
    return re.sub(r"^\t\tdns .*\n", "\t\tissuer acme\n", text, flags=re.MULTILINE)


@needs_caddy
@pytest.mark.parametrize("name", FILES)
def test_caddyfiles_shown_are_valid(name: str, tmp_path: Path) -> None:
    run(tmp_path, "validate", without_plugin(FILES[name]))


@needs_caddy
@pytest.mark.parametrize("name", ["by-hand", "dns", "existing"])
def test_caddyfiles_by_hand_lead_all_names_to_gnar(name: str, tmp_path: Path) -> None:
    server = adapted(tmp_path, without_plugin(FILES[name]))["apps"]["http"]["servers"]["srv0"]
    assert server["listen"] == [":443"]
    leading = [each for each in server["routes"] if route._leads_to_gnar(each, WISH)]
    assert [each.get("match") for each in leading] == (
        [None] if name == "by-hand" else [[{"host": ["*.example.com"]}]]
    )


@needs_caddy
def test_caddyfile_by_hand_asks_gnar(tmp_path: Path) -> None:
    automation = adapted(tmp_path, FILES["by-hand"])["apps"]["tls"]["automation"]
    assert policy._asked(automation["on_demand"]) == WISH.ask
    assert automation["policies"][-1]["on_demand"]


@needs_caddy
@pytest.mark.parametrize("name", FILES)
def test_gnar_adds_to_a_caddyfile_what_is_missing(name: str, tmp_path: Path) -> None:
    config = adapted(tmp_path, without_plugin(FILES[name]))
    found = plan(config, "srv0", WISH, Made(), is_old=True)
    assert (found.trouble, found.is_ready) == ("", True)
    routes = found.apps["http"]["servers"]["srv0"]["routes"]
    (ours,) = (each for each in routes if each.get("@id") == route.ROUTE_ID)
    (host, *_) = ours["match"][0]["not"][0]["not"][0]["host"]
    is_led_already = name in ("dns", "existing")
    assert host == ("*.*.example.com" if is_led_already else "*.example.com")


def test_ids_are_those_of_the_page() -> None:
    text = DOCS["docs/caddy.md"].read_text()
    ids = re.findall(r"^\| [^|]* \| `(gnar[a-z-]*)` \|", text, re.MULTILINE)
    assert ids == [route.ROUTE_ID, policy.POLICY_ID, policy.OTHERS_ID, policy.ASK_ID, SERVER_ID]
