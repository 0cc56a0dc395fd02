"""The unit files: systemd understands them, they are hardened, and gnar knows all that they name."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gnar_lib import cmd, lifecycle
from gnar_lib.client.serve import STATUS_DISMISSED
from gnar_lib.config import keys
from gnar_lib.config.model import DEFAULT_GRACE_S, DEFAULT_PORT
from tests.helpers.docs import blocks
from tests.helpers.harness import LOOPBACK, Gnar

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = {path.name: path.read_text() for path in sorted((ROOT / "systemd").glob("*.service"))}
INSTALLED_AT = "/usr/local/bin/gnar.pyz"
MOST_EXPOSURE = 2.0  # of 10; a service without any limits has 9.6


def shown_files() -> dict[str, str]:
    """Return by path the text of the files for systemd that the page about systemd shows."""
    shown = {}
    for text in blocks("ini"):
        first, _, rest = text.partition("\n")
        if first.startswith("# /etc/systemd/system/"):
            shown[first[2:]] = rest
    return shown


SHOWN = shown_files()
DROP_INS = {path: text for path, text in SHOWN.items() if ".service.d/" in path}


def with_drop_ins(path: str) -> tuple[str, str]:
    """Return name and text of a unit with a drop-in at its end, as systemd reads the two."""
    unit = re.sub(r"@\w+\.", "@.", Path(path).parent.name.removesuffix(".d"))
    return unit, f"{UNITS[unit]}\n{DROP_INS[path]}"


def values_of(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def analyze(folder: Path, name: str, text: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on a unit."""
    file = folder / name
    file.write_text(text)
    return subprocess.run(
        ["systemd-analyze", *args, file],
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C.UTF-8"},
    )


@pytest.mark.parametrize(("name", "text"), [*UNITS.items(), *map(with_drop_ins, DROP_INS)])
def test_systemd_finds_nothing_wrong(name: str, text: str, gnar_pyz: Path, tmp_path: Path) -> None:
    if "notify-reload" in text:
        text = text.replace("notify-reload", "notify")  # an older systemd than 253 does not know the former
    text = text.replace(INSTALLED_AT, str(gnar_pyz))
    verified = analyze(tmp_path, name, text, "verify", "--man=no")
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_systemd_finds_nothing_wrong_with_the_sockets(gnar_pyz: Path, tmp_path: Path) -> None:
    service = UNITS["gnar-server.service"].replace(INSTALLED_AT, str(gnar_pyz))
    (tmp_path / "gnar-server.service").write_text(service)
    text = (ROOT / "systemd" / "gnar-server.socket").read_text()
    text += SHOWN["/etc/systemd/system/gnar-server.socket.d/names.conf"]
    verified = analyze(tmp_path, "gnar-server.socket", text, "verify", "--man=no")
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    assert values_of(text, "ListenStream")[0] == str(DEFAULT_PORT)


@pytest.mark.parametrize(("name", "text"), [*UNITS.items(), *map(with_drop_ins, DROP_INS)])
def test_exposure_is_low(name: str, text: str, tmp_path: Path) -> None:
    threshold = f"--threshold={MOST_EXPOSURE * 10:.0f}"
    judged = analyze(tmp_path, name, text, "security", "--offline=yes", "--no-pager", threshold)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    found = re.search(r"exposure level for .*: ([\d.]+)", judged.stdout)
    assert found
    assert float(found[1]) < MOST_EXPOSURE


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_command_that_gnar_knows(name: str) -> None:
    [line] = values_of(UNITS[name], "ExecStart")
    program, command, *arguments = shlex.split(line)
    assert program == INSTALLED_AT
    assert name.startswith(f"gnar-{command}")
    text, _ = cmd._COMMANDS[command]
    parsed = cmd._parse(command, text, [command, *arguments])
    assert command == "relay" or parsed["--config"].startswith("/etc/gnar/")


@pytest.mark.parametrize("name", UNITS)
def test_variables_are_those_that_something_reads(name: str) -> None:
    unpacks = "".join(path.read_text() for path in [ROOT / "build_zipapp.sh", *ROOT.glob("pyz/**/*.py")])
    set_here = dict(value.split("=") for value in values_of(UNITS[name], "Environment"))
    assert set_here.pop("PYTHONFAULTHANDLER") == "1"
    assert set_here == {"SHIV_ROOT": f"%C/{values_of(UNITS[name], 'CacheDirectory')[0]}"}
    assert "SHIV_ROOT" in unpacks
    for variable in re.findall(r"\bGNAR_[A-Z_]+", UNITS[name]):
        assert variable in map(keys.variable_of, [*keys.SERVER, *keys.CLIENT])
    for variable in re.findall(r"\$\{(\w+)\}", UNITS[name]):
        assert re.search(rf"^{variable}=", "".join(blocks("ini")), re.MULTILINE)


def test_units_differ_in_nothing_but_their_job() -> None:
    def hardening(text: str) -> str:
        return text[text.index("# What gnar does not need") :]

    assert {hardening(text) for text in UNITS.values()} == {hardening(UNITS["gnar-server.service"])}
    for key in ("Type", "Restart", "RestartSec", "StartLimitIntervalSec"):
        assert {tuple(values_of(text, key)) for text in UNITS.values()} == {
            tuple(values_of(UNITS["gnar-server.service"], key))
        }


@pytest.mark.parametrize("name", UNITS)
def test_no_unit_starts_again_what_a_start_does_not_help(name: str) -> None:
    (statuses,) = values_of(UNITS[name], "RestartPreventExitStatus")
    assert statuses == (f"2 {STATUS_DISMISSED}" if "client" in name else "2")


@pytest.mark.parametrize("text", UNITS.values(), ids=UNITS)
def test_systemd_waits_for_longer_than_gnar_takes(text: str) -> None:
    [timeout_s] = values_of(text, "TimeoutStopSec")
    assert float(timeout_s) > DEFAULT_GRACE_S + lifecycle.KILL_TIMEOUT_S
    assert not values_of(text, "TimeoutStartSec")  # so the limit is 90 s, which is the default
    assert lifecycle.READY_WAIT_S < 60
    # SIGHUP reloads a server or a client, and ends a relay
    assert bool(values_of(text, "ExecReload")) == ("gnar.pyz relay" not in text)


@pytest.mark.parametrize("name", UNITS)
def test_the_page_about_it_tells_of_every_file_and_setting(name: str) -> None:
    page = (ROOT / "docs" / "systemd.md").read_text()
    assert f"systemd/{name}" in page
    used = " ".join(values_of(UNITS[name], "ExecStart") + values_of(UNITS[name], "EnvironmentFile"))
    for path in re.findall(r"/etc/gnar/[\w%.-]+", used):
        instance = "web" if "relay" in path else "home"
        assert path.replace("%i", instance) in page
    for setting in set(re.findall(r"`([A-Z]\w*[a-z]\w*)`", page)):
        assert setting in UNITS[name] or setting in ("Status", "SupplementaryGroups"), setting


@pytest.mark.usefixtures("unmeasured")
def test_it_unpacks_into_the_folder_that_systemd_gives_it(gnar_pyz: Path, tmp_path: Path) -> None:
    """For a dynamic user that folder is a link, whose target only root can enter from outside."""
    private = tmp_path / "private" / "gnar" / "server"
    private.mkdir(parents=True)
    (tmp_path / "gnar").mkdir()
    given = tmp_path / "gnar" / "server"
    given.symlink_to("../private/gnar/server")
    args = ("relay", f"tcp:{LOOPBACK}:0", f"tcp:{LOOPBACK}:1")
    with Gnar(gnar_pyz, tmp_path / "run", *args, env={"SHIV_ROOT": str(given)}) as relay:
        relay.wait_log("relaying")
        assert [*private.iterdir()]
        assert f"{private}/" in Path(f"/proc/{relay.pid}/maps").read_text()
        assert "gnar.pyz:" not in relay.log
