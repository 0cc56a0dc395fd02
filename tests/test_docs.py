"""The documents are true: links lead somewhere, every option and field is documented, commands parse."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gnar_lib import auth, cmd
from gnar_lib.auth import session
from gnar_lib.client import serve as client_serve
from gnar_lib.config import Secret, keys, load_client, load_server
from gnar_lib.proto import msg, numbers, packet
from gnar_lib.server import serve as server_serve
from gnar_lib.usage import SERVER_UNADVERTISED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
from tests.helpers.docs import DOCS, blocks

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL, CONFIGURATION = DOCS["docs/protocol.md"].read_text(), DOCS["docs/configuration.md"].read_text()


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", DOCS[name].read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (DOCS[name].parent / path).resolve() if path else DOCS[name]
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_options_of_the_commands_and_of_the_page_about_them_are_the_same() -> None:
    options = {word for text, _ in cmd._COMMANDS.values() for word in re.findall(r"--[a-z][a-z0-9-]+", text)}
    unadvertised = set(re.findall(r"--[a-z][a-z0-9-]+", SERVER_UNADVERTISED)) - options
    assert set(re.findall(r"--[a-z][a-z0-9-]+", CONFIGURATION)) - unadvertised | {"--help"} == options


def test_every_setting_of_a_proxy_and_of_both_ends_has_its_row() -> None:
    rows = set(re.findall(r"^\| (?:`-\w`, )?`--([a-z0-9-]+)` \|", CONFIGURATION, re.MULTILINE))
    assert rows - {"config", "replace", "check"} == {*keys.SERVER, *keys.CLIENT, *keys.PROXY}


def test_packet_types_and_their_fields_are_in_the_protocol() -> None:
    for packet_type in packet.PacketType:
        assert f"0x{packet_type:02x}" in PROTOCOL
    for message in msg._CLASSES:
        assert re.search(rf"\b{message.__name__}\b", PROTOCOL)
        for field in dataclasses.fields(message):
            assert f"`{field.name}`" in PROTOCOL, f"{message.__name__}.{field.name}"
    for feature in numbers.FEATURES:
        assert f"`{feature}`" in PROTOCOL


def test_the_examples_of_proofs_are_right() -> None:
    token, nonces = Secret("s3cret"), ("c" * 64, "d" * 64)
    assert auth.md5_token(token, 1795333499) in PROTOCOL
    for role in ("client", "server", "session"):
        assert session.mac(token, role, *nonces) in PROTOCOL
        assert session.mac(token, role, *nonces, "e" * 64) in PROTOCOL
    assert auth.Session.of(token, "id", nonces, ()).sign(auth.waiting_id(1)) in PROTOCOL
    assert auth.Session.of(token, "id", (*nonces, "e" * 64), ()).sign(auth.waiting_id(1)) in PROTOCOL


def test_methods_that_the_internals_name_exist() -> None:
    source = {path: path.read_text() for path in (ROOT / "gnar_lib").rglob("*.py")}
    named = set(re.findall(r"`([A-Z]\w+)\.(\w+)`", DOCS["docs/internals.md"].read_text()))
    for cls, member in sorted(named):
        homes = [text for text in source.values() if re.search(rf"^class {cls}\b", text, re.MULTILINE)]
        member_of = rf"\bdef {member}\(|\b{member}\b.*[:=] "
        assert not homes or any(re.search(member_of, text) for text in homes), f"{cls}.{member}"


@pytest.mark.parametrize("text", [*blocks("toml")], ids=lambda text: text.splitlines()[0])
def test_files_shown_load(text: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.toml"
    file.write_text(text)
    write_files(text, tmp_path)
    load_it = load_client if "[[proxys]]" in text else load_server
    load_it({"config": str(file)}, {})


@pytest.fixture
def shown_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder with the files that the documents show; the first line of each is its name."""
    monkeypatch.chdir(tmp_path)
    for text in blocks("toml"):
        file = tmp_path / text.splitlines()[0].removeprefix("# ")
        if not file.exists():  # a document may show what is to be added to a file
            file.write_text(text)
        write_files(text, tmp_path)


def write_files(text: str, folder: Path) -> None:
    """Write the files that hold a secret or a page each, as a configuration file names them."""
    for key, name in re.findall(r'^([a-z-]+)-(?:file|page) = "([^"]+)"', text, re.MULTILINE):
        (folder / name).write_text(f"{key} of the test\n")


def gnar_commands() -> Iterator[list[str]]:
    """Yield the arguments of every gnar command in a block marked as shell."""
    for text in blocks("sh"):
        for line in text.splitlines():
            words = shlex.split(line.split("&&")[-1])
            if words[:2] == ["docker", "run"]:
                behind_image = words[words.index("gnar") + 1 :]
                yield behind_image if "--entrypoint" in words else ["server", *behind_image]
                continue
            for at, word in enumerate(words):
                if word.endswith("gnar.pyz") and words[at + 1 :]:
                    yield [*itertools.takewhile(lambda word: word not in {"|", ">"}, words[at + 1 :])]


@pytest.mark.usefixtures("shown_files")
@pytest.mark.parametrize("argv", [*gnar_commands()], ids=shlex.join)
def test_commands_shown_are_understood(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def only_load(load: Callable[[], object], **_: bool) -> int:
        assert load()
        return 0

    if "--admin-bind" in argv:  # the variables stand in front of such a command
        monkeypatch.setenv("GNAR_ADMIN_PASSWORD", "a password of the test")
    monkeypatch.setattr(server_serve, "run_server", only_load)
    monkeypatch.setattr(client_serve, "run_client", only_load)
    monkeypatch.setattr("gnar_lib.checklist.run_check", lambda *_: 0)
    monkeypatch.setattr("gnar_lib.relay.run_relay", lambda *_: 0)
    monkeypatch.setattr("gnar_lib.demo.run_demo", lambda _: 0)
    monkeypatch.setattr("gnar_lib.top.run.run_top", lambda *_, **__: 0)
    monkeypatch.setattr("gnar_lib.health.check", lambda *_: None)
    assert cmd.main(argv) == 0
