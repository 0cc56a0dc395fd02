"""Fixtures that every test may use, and what a skip means; the end-to-end harness is elsewhere."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from gevent.hub import get_hub
from hypothesis import HealthCheck, configuration, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.helpers.harness import SharedTunnels, Tunnel, Tunnels, first_of_workers, tunnels_of_test
from tests.helpers.spinning import spinning_threads

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"

# Tests by the beginnings of their names that share what takes seconds to make: a browser, a build, services.
GROUPS = (
    "tests/panel/",
    "tests/tunnel/names/",
    "tests/tunnel/test_mitm.py",
    "tests/tunnel/test_names_caddy.py",
    "tests/tunnel/test_proxy_protocol.py",
    "tests/tunnel/test_websocket.py",
    "tests/pyz/test_build.py",
    "tests/ship/test_install.py",
    "tests/yamux/test_interop.py",
)
STARTING = frozenset({"gnar_pyz", "browser"})  # the fixtures of tests that start programs
LEFT_OUT = pytest.StashKey[int]()  # slow tests

configuration.set_hypothesis_home_dir(BUILD / "cache" / "hypothesis")


@pytest.fixture(scope="session")
def gnar_pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of gnar.pyz, built now from the present sources for every host."""
    with first_of_workers(tmp_path_factory, "gnar.pyz") as is_first:
        if is_first:
            _build()
    return ROOT / "gnar.pyz"


def _build() -> None:
    env = os.environ | {"PYTHON": sys.executable}
    build = subprocess.run(
        [ROOT / "build_zipapp.sh"], env=env, capture_output=True, text=True, check=False, timeout=600
    )
    if build.returncode != 0:
        pytest.fail(f"build_zipapp.sh failed:\n{build.stdout}{build.stderr}", pytrace=False)


@pytest.fixture(params=[(), ("--no-multiplex",)], ids=["default", "plain"])
def tunnels(gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Start servers and clients; what is said of a tunnel holds either way."""
    yield from tunnels_of_test(gnar_pyz, tmp_path, request, request.param)


@pytest.fixture
def plain_tunnels(gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Start servers and clients without multiplexing."""
    yield from tunnels_of_test(gnar_pyz, tmp_path, request, ("--no-multiplex",))


@pytest.fixture
def default_tunnels(gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Start servers and clients that nobody has told how to carry users."""
    yield from tunnels_of_test(gnar_pyz, tmp_path, request)


@pytest.fixture
def multiplexed_tunnels(gnar_pyz: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tunnels]:
    """Start servers and clients that use one connection and never another."""
    yield from tunnels_of_test(gnar_pyz, tmp_path, request, ("-m",))


@pytest.fixture(scope="session")
def _tunnels_of_worker(gnar_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedTunnels]:
    shared = SharedTunnels(gnar_pyz, tmp_path_factory.mktemp("shared"))
    yield shared
    shared.close()


@pytest.fixture(params=[(), ("--no-multiplex",)], ids=["default", "plain"])
def shared_tunnel(_tunnels_of_worker: SharedTunnels, request: pytest.FixtureRequest) -> Iterator[Tunnel]:
    """Return a tunnel to an echo service, for tests that end none of its processes and leave nothing."""
    failures = request.session.testsfailed
    tunnel = _tunnels_of_worker.get(request.param)
    yield tunnel
    try:
        tunnel.assert_nothing_left()
    except BaseException:
        _tunnels_of_worker.drop(request.param, failed=True)
        raise
    if request.session.testsfailed > failures:
        _tunnels_of_worker.drop(request.param, failed=True)


@pytest.fixture(autouse=True)
def _lines_know_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `logger.setup` changes in `logging` from the tests behind the one that calls it."""
    monkeypatch.setattr(logging, "_srcfile", logging._srcfile)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep coverage out of the programs that the test starts: it loads gevent, opens files and takes time."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


def pytest_configure() -> None:
    """Make `gnar.pyz` start with the Python that runs the tests, and unpack into build/."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.environ.setdefault("SHIV_ROOT", str(BUILD / "cache" / "unpacked"))
    os.environ["XDG_RUNTIME_DIR"] = str(BUILD / "run")  # where servers can be asked to be replaced
    (BUILD / "run").mkdir(parents=True, exist_ok=True)
    # How long an example takes says how busy the machine is.
    settings.register_profile("gnar", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("gnar")
    _give_children_default_signals()


def _give_children_default_signals() -> None:
    """Have programs that tests start react to SIGINT and SIGHUP, also where this process ignores them.

    A shell starts programs in the background with SIGINT ignored, and nohup ignores SIGHUP. Programs inherit
    that. They do not inherit a handler, so a handler that does nothing takes its place here.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Has one worker run all tests that share what takes long to make; the others are dealt one by one."""

    def _split_scope(self, nodeid: str) -> str:
        return next((group for group in GROUPS if nodeid.startswith(group)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Share the tests out in groups, in the order of the first worker."""
    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several workers share the tests, sort the tests so that no core and no worker is ever idle.

    Groups come first, since each is one worker's. Tests that wait for seconds are spread evenly among those
    that start programs: while one worker waits, the others keep the cores busy. What is short comes at the
    end, so that all workers finish together.
    """
    if not hasattr(config, "workerinput"):
        return
    grouped: list[pytest.Item] = []
    waiting: list[pytest.Item] = []
    starting: list[pytest.Item] = []
    short: list[pytest.Item] = []
    for item in items:
        if item.nodeid.startswith(GROUPS):
            grouped.append(item)
        elif item.get_closest_marker("waits"):
            waiting.append(item)
        else:
            (short if STARTING.isdisjoint(getattr(item, "fixturenames", ())) else starting).append(item)
    gap = len(starting) // max(len(waiting), 1)
    items[:] = grouped
    for number, item in enumerate(waiting):
        items += [item, *starting[number * gap : (number + 1) * gap]]
    items += [*starting[len(waiting) * gap :], *short]


def pytest_collection_finish() -> None:
    """Take what stays to the end, such as all tests, from what is looked through again and again.

    The garbage collector does that, and so does whoever counts what a test has left.
    """
    gc.collect()
    gc.freeze()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Note how many of the slow tests are left out."""
    if items:
        slow = sum(item.get_closest_marker("slow") is not None for item in items)
        items[0].config.stash[LEFT_OUT] = slow + items[0].config.stash.get(LEFT_OUT, 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say under which Pythons gnar worked, how many of the slow tests were left out, and how to run them."""
    reports: list[pytest.TestReport] = terminalreporter.getreports("passed")
    properties = [each for report in reports for each in report.user_properties]
    if pythons := sorted({str(value) for name, value in properties if name == "gnar worked under"}):
        terminalreporter.write_line(f"gnar worked under {', '.join(pythons)}")
    if count := terminalreporter.config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} slow tests were left out; tests/run.sh --all runs them")


@pytest.fixture(scope="session", autouse=True)
def _no_thread_that_spins() -> Iterator[None]:
    """Fail at the end if a test has left a thread behind that keeps a core busy."""
    yield
    stacks = spinning_threads()
    assert not stacks, f"a thread keeps a core busy:\n{stacks}"


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """Restore the level of the log: at debug level, records keep the conns that they are about alive."""
    root = logging.getLogger("gnar")
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _loop_that_knows_the_time() -> None:
    """Wind the clock of gevent's loop: it stands still while no test uses it, and deadlines start from it."""
    get_hub().loop.update_now()


# With CI=true a skipped test is a failed one: a machine that lacks a tool must not look green.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of one test into a failure."""
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole module into a failure."""
    return _without_skip((yield))


def _without_skip(report: Report) -> Report:
    expected_failure = hasattr(report, "wasxfail")
    if os.environ.get("CI") == "true" and report.skipped and not expected_failure:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"CI=true, and this was skipped: {reason}"
    return report
