"""gnar.pyz works in every place that this machine has or can make: Pythons, a bare system, musl, aarch64."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import places, seccomp
from tests.helpers.harness import LOOPBACK, Gnar, Service, dial, echo, free_port
from tests.helpers.places import STRANGER, TMP, VAR_TMP, Place, chroot, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHONS = places.find_pythons()

BARE_LIMIT_S = 120.0  # making the place takes 4 s, mostly for the network
EMULATED_LIMIT_S = 300.0
EMULATED_PATIENCE_S = 240.0  # a start takes 5 s there, and the first start 30 s
MUSL_LIMIT_S = 1500.0  # making the place takes 2 minutes, and 5 on a busy machine

# Locks of files, what is asked of a socket beyond moving bytes, and ways to move them or to wake the loop.
OPTIONAL_CALLS = (
    "flock", "setsockopt", "getsockopt:TCP_INFO", "ioctl:FIONREAD", "ioctl:TIOCOUTQ",
    "splice", "fcntl:F_SETPIPE_SZ", "eventfd2",
)  # fmt: skip

ENOUGH = "size=32m"  # room for the unpacked files


@pytest.fixture
def pyz(gnar_pyz: Path, tmp_path: Path) -> Path:
    """Return a copy of gnar.pyz in a folder of its own."""
    (tmp_path / "app").mkdir()
    return Path(shutil.copy(gnar_pyz, tmp_path / "app" / "gnar.pyz"))


@pytest.fixture(scope="session")
def newer() -> Path:
    """Return the folder of two systems with a newer Python and little else: `python3` and `libstdc++`."""
    return places.make("debian", places.this_debian_architecture(), limit_s=BARE_LIMIT_S)


@pytest.fixture
def bare(newer: Path) -> Path:
    """Return the root of a system without a shell, without /etc, /dev and /proc."""
    return newer / "libstdc++"


@pytest.fixture
def use(tmp_path: Path, record_property: Callable[[str, object], None]) -> Callable[[Place], None]:
    """Return a function that uses gnar in a place, and notes the Python for the summary of all tests."""

    def use_and_report(place: Place) -> None:
        places.use(place, tmp_path / "run")
        record_property("gnar worked under", places.python_of(place))

    return use_and_report


def test_this_machine_has_pythons_to_try() -> None:
    assert PYTHONS


def put_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_what_is_no_python_is_passed_over_and_no_python_hides_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "first/x/bin": '["cpython", [3, 12, 1], "/first/x/bin/python3"]',
        "second/x/bin": '["cpython", [3, 12, 1], "/second/x/bin/python3"]',
        "old": '["cpython", [3, 9, 1], "/old/python3"]',
        "pypy": '["pypy", [3, 12, 1], "/pypy/python3"]',
    }
    for folder, answer in answers.items():
        put_script(tmp_path / folder / "python3", f"#!/bin/sh\necho '{answer}'\n")
    put_script(tmp_path / "fails" / "python3", "#!/bin/sh\nexit 1\n")
    put_script(tmp_path / "no-program" / "python3", "\0")
    put_script(tmp_path / "no-program" / "python3.12", "#!/nonexistent/interpreter\n")
    put_script(tmp_path / "pyenv" / "pyenv", f"#!/bin/sh\necho {tmp_path}/no-such-folder\n")
    folders = [*answers, "fails", "no-program", "pyenv", "missing"]
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / folder) for folder in folders))
    found = places.find_pythons.__wrapped__()
    both = {Path("/first/x/bin/python3"), Path("/second/x/bin/python3")}
    assert both <= {*found.values()}
    assert {label for label, path in found.items() if path in both} == {
        f"3.12.1 in x ({path})" for path in both
    }
    assert not {Path("/old/python3"), Path("/pypy/python3")} & {*found.values()}


def test_python_that_does_not_answer_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_script(tmp_path / "python3", "#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(places, "PROBE_LIMIT_S", 0.1)
    assert places._probe(tmp_path / "python3") is None


# The oldest and the newest show most; with the one that runs the tests, everything else is tried.
@pytest.mark.parametrize(
    "version",
    [
        pytest.param(version, marks=[pytest.mark.slow] * (0 < at < len(PYTHONS) - 1))
        for at, version in enumerate(PYTHONS)
    ],
)
def test_gnar_works_under_every_python_of_this_machine(
    version: str, pyz: Path, tmp_path: Path, use: Callable[[Place], None]
) -> None:
    use(places.on_this_system(PYTHONS[version], pyz, tmp_path))


def test_gnar_works_on_a_kernel_that_refuses_every_call_that_is_optional(
    pyz: Path, tmp_path: Path, use: Callable[[Place], None]
) -> None:
    through = seccomp.command("EPERM", *OPTIONAL_CALLS)
    use(places.on_this_system(Path(sys.executable), pyz, tmp_path, through=through))


def test_gnar_works_for_a_nameless_user_of_a_bare_read_only_system(
    bare: Path, pyz: Path, tmp_path: Path, use: Callable[[Place], None]
) -> None:
    with chroot(bare, pyz, tmp_path, mounts={TMP: ENOUGH}) as place:
        use(place)
        (unpacked, *_) = (entry for entry in place.sockets_here.iterdir() if entry.is_dir())
        assert unpacked.stat().st_uid == STRANGER


@pytest.mark.slow
def test_gnar_works_on_musl(pyz: Path, tmp_path: Path, use: Callable[[Place], None]) -> None:
    python = places.make("musl", limit_s=MUSL_LIMIT_S) / "python"
    use(places.on_this_system(python, pyz, tmp_path))


@pytest.mark.slow
def test_gnar_works_on_another_processor(pyz: Path, tmp_path: Path, use: Callable[[Place], None]) -> None:
    if places.this_debian_architecture() == "arm64":
        pytest.skip("this machine is one of that processor")
    root = places.make("debian", "arm64", limit_s=EMULATED_LIMIT_S) / "libstdc++"
    with chroot(root, pyz, tmp_path, mounts={TMP: ENOUGH}, patience_s=EMULATED_PATIENCE_S) as place:
        use(place)


# ---- places that are not as they should be -----------------------------------------------------------------


def assert_serves(place: Place, folder: Path) -> None:
    """Check that gnar starts in a place and carries bytes there."""
    port = free_port()
    with (
        Service(echo) as service,
        Gnar(
            place.launcher, folder, "relay", f"tcp:{LOOPBACK}:{port}", f"tcp:{LOOPBACK}:{service.port}"
        ) as relay,
    ):
        relay.wait_log("relaying")
        with dial(port) as sock:
            places.assert_echoes(sock)
        assert relay.stop() == 0


def refusal(place: Place) -> str:
    """Return the one line with which gnar.pyz says that it cannot start."""
    done = place.run("--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr), done.stderr
    return done.stderr


def test_a_system_that_cannot_be_written_to_is_refused_in_one_line(
    bare: Path, pyz: Path, tmp_path: Path
) -> None:
    with chroot(bare, pyz, tmp_path, mounts={}) as place:
        line = refusal(place)
    assert "SHIV_ROOT" in line
    assert "Read-only" in line


def test_a_full_disk_is_refused_in_one_line_and_nothing_is_left_on_it(
    bare: Path, pyz: Path, tmp_path: Path
) -> None:
    with chroot(bare, pyz, tmp_path, mounts={TMP: "size=2m"}) as place:
        assert "No space left" in refusal(place)
        left = [entry for entry in place.sockets_here.rglob("*") if entry.is_file() and entry.stat().st_size]
        assert left == []


def test_a_folder_mounted_noexec_is_passed_over(bare: Path, pyz: Path, tmp_path: Path) -> None:
    with chroot(bare, pyz, tmp_path, mounts={TMP: f"noexec,{ENOUGH}", VAR_TMP: ENOUGH}) as place:
        assert_serves(place, tmp_path / "run")


def test_noexec_everywhere_is_refused_in_one_line(bare: Path, pyz: Path, tmp_path: Path) -> None:
    with chroot(bare, pyz, tmp_path, mounts={TMP: f"noexec,{ENOUGH}"}) as place:
        assert "noexec" in refusal(place)


def test_a_home_that_is_missing_is_passed_over(bare: Path, pyz: Path, tmp_path: Path) -> None:
    variables = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache"}
    with chroot(bare, pyz, tmp_path, mounts={TMP: ENOUGH}, variables=variables) as place:
        assert_serves(place, tmp_path / "run")


def test_spaces_in_the_name_and_another_gevent_do_not_matter(bare: Path, pyz: Path, tmp_path: Path) -> None:
    for name in ("gevent", "greenlet", "zope", "gnar_lib"):
        (pyz.parent / name).mkdir()
        (pyz.parent / name / "__init__.py").write_text("raise SystemExit('this is another one')\n")
    spaced = pyz.rename(pyz.with_name("my gnar (1).pyz"))
    with chroot(bare, spaced, tmp_path, mounts={TMP: ENOUGH}, variables={"PYTHONPATH": "/app"}) as place:
        assert_serves(place, tmp_path / "run")


def test_a_missing_libstdcxx_is_named_in_one_line(newer: Path, pyz: Path, tmp_path: Path) -> None:
    with chroot(newer / "python3", pyz, tmp_path, mounts={TMP: ENOUGH}) as place:
        done = place.run("relay", f"tcp:{LOOPBACK}:0", "tcp:1")
    assert done.returncode == 1
    assert one_line(done.stderr), done.stderr
    assert "libstdc++" in done.stderr
