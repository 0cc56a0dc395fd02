"""The benchmark's own sums, and that it starts, fails and ends things as it says; judges no figure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from xml.etree import ElementTree as ET

import pytest

from bench import plot, report
from bench.__main__ import choose, parser
from bench.contestants import all_contestants, parse_peer
from bench.launch import Contestant, Gnar, Kind
from bench.metrics import METRICS, TARGETS
from bench.procs import LOOPBACK, BenchError, Crew, compile_c
from bench.results import Results, show
from bench.services import SOURCE
from bench.usage import Calls, Usage, has_strace
from bench.wan import LongPath, WanError, wan
from bench.work import Wrk, parse_wrk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Found = TypeVar("Found")

ROOT = Path(__file__).resolve().parent.parent.parent
DELAY_MS = 100  # one way

CONNECT_MS = """
import socket, sys, time
start = time.perf_counter()
socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
print((time.perf_counter() - start) * 1e3)
"""
ACCEPT = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("up", flush=True)
while True:
    server.accept()[0].close()
"""
REASON = "server ended: no <luck> & no 'words'"


@pytest.fixture
def results() -> Results:
    """Return a run in which everything that the report knows happens once."""
    made = Results(notes=["a note"])
    made.expect("haproxy", Kind.RELAY)
    made.expect("bore", Kind.TUNNEL)
    for up, cpu in ((40.0, 0.2), (44.0, 0.21), (20.0, 0.25)):
        made.add("haproxy", Kind.RELAY, {"up": up, "cpu_up": cpu})
    for up, cpu, peak in ((60.0, 0.05, 30), (58.0, 0.06, 35), (50.0, 0.05, 31)):
        made.add("gnar relay", Kind.RELAY, {"up": up, "cpu_up": cpu, "peak": peak})
    made.add("rathole", Kind.TUNNEL, {"up": 30.0})
    made.add("gnar tunnel", Kind.TUNNEL, {"up": 33.0})
    made.fail("bore", Kind.TUNNEL, ("up", "cpu_up"), REASON)
    return made


def test_quoted_figure_is_median_or_worst(results: Results) -> None:
    row = results.rows["gnar relay"]
    assert row.figure("up") == 58.0
    assert row.figure("peak") == 35
    assert row.figure("down") is None


def test_spread_is_half_the_range_over_the_median(results: Results) -> None:
    assert results.rows["haproxy"].spread("up") == pytest.approx(0.3)
    assert results.rows["rathole"].spread("up") is None


def test_ratio_is_to_the_better_yardstick_that_has_a_figure(results: Results) -> None:
    against = ("rathole", "bore")
    assert report.ratio(results, "gnar tunnel", against, METRICS["up"]) == pytest.approx(1.1)
    results.add("bore", Kind.TUNNEL, {"up": 66.0})
    assert report.ratio(results, "gnar tunnel", against, METRICS["up"]) == pytest.approx(0.5)
    assert report.ratio(results, "gnar tunnel", ("frp",), METRICS["up"]) is None


def test_targets_are_met_upwards_or_downwards(results: Results) -> None:
    judged = {
        (verdict.target.contestant, verdict.target.metric, verdict.target.against): verdict.is_met
        for verdict in report.verdicts(results)
    }
    assert judged == {
        ("gnar relay", "up", ("haproxy",)): True,  # 58 over 40, at least 1.3
        ("gnar relay", "cpu_up", ("haproxy",)): True,  # 0.05 over 0.21, at most 0.5
        ("gnar tunnel", "up", ("rathole", "bore")): False,  # 33 over 30, at least 1.2
    }


def test_targets_name_contestants_that_exist() -> None:
    names = {contestant.name for contestant in all_contestants("./gnar.pyz", [])} | {"gnar"}
    for target in TARGETS:
        assert target.metric in METRICS
        assert {target.contestant, *target.against} <= names


def test_report_shows_failure_with_its_reason_and_never_as_zero(results: Results) -> None:
    shown = report.text(results)
    (line,) = [line for line in shown.splitlines() if line.startswith("| bore")]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["bore", "failed", "failed", ""]
    assert f"bore: bulk up, CPU up: {REASON}" in shown


def test_figure_that_lacks_rounds_is_marked(results: Results) -> None:
    results.fail("rathole", Kind.TUNNEL, ("up",), "iperf3: gone")
    assert report.cell(results.rows["rathole"], METRICS["up"]) == "30!"


def test_json_holds_rounds_ratios_and_targets(results: Results) -> None:
    whole = json.loads(report.as_json(results, {"rounds": 3}))
    assert whole["contestants"]["haproxy"]["figures"]["up"]["rounds"] == [40.0, 44.0, 20.0]
    assert whole["contestants"]["bore"] == {
        "kind": "tunnel",
        "figures": {},
        "failures": {"up": [REASON], "cpu_up": [REASON]},
    }
    ratio = next(ratio for ratio in whole["ratios"] if ratio["name"] == "gnar relay")
    assert ratio["against"] == ["haproxy"]
    assert ratio["figures"]["up"] == pytest.approx(1.45)
    assert {target["met"] for target in whole["targets"]} == {True, False}
    assert whole["settings"] == {"rounds": 3}
    assert whole["machine"]["cores"] >= 1
    assert socket.gethostname() not in json.dumps(whole["machine"])


def test_plot_is_well_formed_and_has_no_bar_for_a_failure(results: Results) -> None:
    chart = ET.fromstring(plot.draw(results))  # noqa: S314 (our own)
    space = "{http://www.w3.org/2000/svg}"
    words = ["".join(text.itertext()) for text in chart.iter(f"{space}text")]
    bars = list(chart.iter(f"{space}rect"))
    assert words.count("failed") == 2
    assert len(bars) == 4 + 2 + 1  # bulk up, CPU up, peak memory
    assert all(float(bar.attrib["width"]) > 0 for bar in bars)


def test_plot_of_zeros_is_drawn() -> None:
    results = Results()
    results.add("direct", Kind.DIRECT, {"udp_wrong": 0.0})
    ET.fromstring(plot.draw(results))  # noqa: S314 (our own)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.0512, "0.05"), (9.5, "9.50"), (44.04, "44.0"), (99.0, "99"), (23456.7, "23,457")],
)
def test_numbers_show_the_digits_that_count(value: float, shown: str) -> None:
    assert show(value) == shown


def test_wrk_report_is_read() -> None:
    text = "     50%    1.50ms\n     75%    2.00s\n  900 requests in 1.00s\nRequests/sec: 899.5\n"
    told = Wrk(per_second=899.5, median_us=1500.0, requests=900)
    assert parse_wrk(text) == told
    assert parse_wrk(text + "  Socket errors: connect 0, read 0, write 0, timeout 0\n") == told


@pytest.mark.parametrize(
    "line",
    ["  Socket errors: connect 0, read 20, write 0, timeout 0", "  Non-2xx or 3xx responses: 900"],
)
def test_wrk_report_full_of_errors_is_a_failure(line: str) -> None:
    text = f"     50%   10us\n  900 requests in 1.00s\n{line}\nRequests/sec: 899.5\n"
    with pytest.raises(BenchError, match="of 900 requests failed"):
        parse_wrk(text)


def test_group_of_works_stands_for_its_members() -> None:
    chosen = parser().parse_args(["--work", "udp,http"]).work
    assert chosen == ["udp", "hka32", "hka1", "hshort", "hbulk"]
    everything = parser().parse_args([]).work
    assert set(chosen) < set(everything)


@pytest.mark.parametrize("text", ["2", "1,5", "many"])
def test_loss_without_a_table_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--loss", text])
    assert "there are: 1, 3" in capsys.readouterr().err
    assert parser().parse_args(["--loss"]).loss == [1, 3]


def test_peer_is_one_command_or_two() -> None:
    assert parse_peer("go=./go-gnar -v") == ("go", ("./go-gnar", "-v"), ("./go-gnar", "-v"))
    assert parse_peer("mix=./go-gnar,python3 gnar.pyz") == ("mix", ("./go-gnar",), ("python3", "gnar.pyz"))
    with pytest.raises(BenchError, match="NAME=COMMAND"):
        parse_peer("./go-gnar")


def test_optional_contestant_is_left_out_with_a_note_unless_asked_for() -> None:
    def start(_: object) -> None: ...

    gone = Contestant("gone", Kind.TUNNEL, start, ("no-such-program",), optional=True)
    notes: list[str] = []
    assert choose([gone], None, notes) == []
    assert notes == ["gone took no part; not on the PATH: no-such-program"]
    assert choose([gone], ["gone"], notes) == [gone]
    with pytest.raises(BenchError, match="no contestant 'other'; there are: gone"):
        choose([gone], ["other"], notes)


def test_way_that_a_gnar_does_not_know_takes_no_part_and_says_so(tmp_path: Path) -> None:
    for name, flags in (("newer", "--no-multiplex --tls"), ("older", "-m")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho ' {flags}  flags'\n")
        program.chmod(0o755)
    notes: list[str] = []
    newer = [each.name for each in choose(all_contestants(f"{tmp_path}/newer", []), None, notes)]
    assert newer.count("gnar tunnel plain") == 1
    assert not any(note.startswith("gnar") for note in notes)
    older = [each.name for each in choose(all_contestants(f"{tmp_path}/older", []), None, notes)]
    left_out = ["gnar tunnel plain", "gnar tunnel tls", "gnar tunnel tls -m", "gnar tunnel tls plain"]
    assert [name for name in newer if name not in older] == left_out
    assert [note for note in notes if note.startswith("gnar")] == [
        f"gnar tunnel plain took no part; {tmp_path}/older client does not know --no-multiplex",
        f"gnar tunnel tls took no part; {tmp_path}/older server does not know --tls",
        f"gnar tunnel tls -m took no part; {tmp_path}/older server does not know --tls",
        f"gnar tunnel tls plain took no part; {tmp_path}/older client does not know --no-multiplex",
    ]


def test_gnar_that_encrypts_unless_told_is_told_for_a_plain_tunnel_alone(tmp_path: Path) -> None:
    for name in ("--tls", "-m"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho ' {name}  a flag'\n")
        (tmp_path / name).chmod(0o755)
    newer, older = (f"{tmp_path}/--tls",), (f"{tmp_path}/-m",)
    assert Gnar(newer, newer, ("-m",)).client_flags() == ("-m", "--tls", "off")
    assert Gnar(newer, newer, ("-m",), encrypted=True).client_flags() == ("-m",)
    assert Gnar(older, newer).client_flags() == ("--tls", "off")
    assert Gnar(newer, older).client_flags() == ()


def _wait_for(look: Callable[[], Found], seconds: float = 15) -> Found:
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def test_usage_counts_processor_time_of_children_that_ended(tmp_path: Path) -> None:
    burn = "import time; [0 for _ in iter(lambda: time.process_time() < 0.3, False)]"
    run = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {burn!r}])"
    with Crew(tmp_path) as crew:
        proc = crew.start(
            LOOPBACK, [sys.executable, "-c", run + "; print('done', flush=True); time.sleep(60)"]
        )
        with Usage([proc]) as usage:
            assert _wait_for(proc.log.read_text)
    assert usage.cpu_seconds >= 0.25
    assert min(usage.user_seconds, usage.system_seconds) > 0  # the clock is asked by a system call
    assert usage.peak_mib > 1


def test_system_calls_of_each_role_are_counted_and_the_program_goes_on(tmp_path: Path) -> None:
    if not has_strace():
        pytest.skip("NO SYSTEM CALLS ARE COUNTED: no strace")
    called = tmp_path / "called"
    call = """
import os, sys, time
while True:
    for _ in range(100):
        os.getppid()
    open(sys.argv[1], "w").close()
    time.sleep(0.01)
"""
    with Crew(tmp_path) as crew:
        busy = crew.start(LOOPBACK, [sys.executable, "-c", call, called], role="server")
        idle = crew.start(LOOPBACK, ["sleep", "60"], role="client")
        assert _wait_for(called.exists)
        with Calls([busy, idle]) as calls:
            called.unlink(missing_ok=True)
            assert _wait_for(called.exists)
        called.unlink()
        assert _wait_for(called.exists)
    assert calls.by_role["server"] >= 50
    assert calls.by_role["client"] == 0


def test_crew_ends_children_too(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew:
        proc = crew.start(LOOPBACK, ["sh", "-c", "sleep 300 & echo $!; trap '' TERM; wait; wait"])
        said = _wait_for(proc.log.read_text)
    assert _has_ended(int(said))


def _has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"  # its new parent has yet to look


def _bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench", *arguments]


def test_contestant_that_fails_shows_as_failed_and_the_run_goes_on(tmp_path: Path) -> None:
    figures = tmp_path / "bench.json"
    quick = ["--work", "udp", "--rounds", "1", "--seconds", "0.1", "--json", str(figures)]
    command = _bench("--gnar", "false", "--only", "direct,gnar relay", *quick)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "gnar relay, start: FAILED: server ended: nothing said" in done.stderr
    contestants = json.loads(figures.read_text())["contestants"]
    assert contestants["direct"]["figures"]["udp1"]["figure"] > 0
    assert contestants["gnar relay"]["figures"] == {}
    assert contestants["gnar relay"]["failures"]["udp1"] == ["server ended: nothing said"]


@contextlib.contextmanager
def _ignored(*numbers: signal.Signals) -> Iterator[None]:
    """Ignore signals in this process, so that a program started meanwhile inherits that."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_run_reports_and_leaves_nothing_running(number: signal.Signals) -> None:
    # a shell starts a program in the background with SIGINT ignored; SIGHUP is ignored under nohup alone
    with _ignored(signal.SIGINT), _udp_run() as (run, started):
        run.send_signal(number)
        shown, errors = run.communicate(timeout=15)
    assert run.returncode == 128 + signal.SIGINT, errors
    assert "interrupted: not all was measured" in shown
    assert _wait_for(lambda: all(map(_has_ended, started)))


def test_run_under_nohup_outlives_its_terminal() -> None:
    with _ignored(signal.SIGHUP), _udp_run() as (run, started):
        assert "SIGHUP" in _ignored_signals(run.pid)
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=15)
    assert _wait_for(lambda: all(map(_has_ended, started)))


def _ignored_signals(pid: int) -> set[str]:
    """Return the names of the signals that a process ignores."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in status if line.startswith("SigIgn:")]
    return {each.name for each in signal.Signals if int(mask, 16) >> (each - 1) & 1}


@contextlib.contextmanager
def _udp_run() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start a run that would take a minute; yield it with the ids of the two programs it started."""
    command = _bench("--only", "direct", "--work", "udp", "--rounds", "1", "--seconds", "60")
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            started = _wait_for(lambda: _echo_programs(run.pid))
            assert started
            yield run, started
        finally:
            if run.poll() is None:  # asked first: killed, it would leave what it started
                run.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    run.wait(15)
                run.kill()


def _echo_programs(parent: int) -> list[int]:
    """Return the echo server and its load generator once both run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_text().rpartition(")")
            if "(udpecho" in name and int(rest.split()[1]) == parent:
                found.append(int(entry.name))
    return found if len(found) == 2 else []


def test_unknown_contestant_is_a_usage_error_that_names_them_all() -> None:
    done = subprocess.run(_bench("--only", "nobody"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no contestant 'nobody'; there are: direct, haproxy" in done.stderr


def test_datagram_that_reaches_the_wrong_user_is_counted(tmp_path: Path) -> None:
    program = compile_c(SOURCE, tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)

        def answer_the_one_before() -> None:
            last = None
            for _ in range(200):
                payload, user = server.recvfrom(2048)
                server.sendto(payload, last or user)
                last = user

        thread = threading.Thread(target=answer_the_one_before)
        thread.start()
        port = server.getsockname()[1]
        done = LOOPBACK.run([program, "rate", "127.0.0.1", port, 2, 1000, 0.2])
        thread.join(10)
    counted = dict(word.split("=") for word in done.stdout.split())
    assert int(counted["sent"]) == 200
    assert int(counted["wrong"]) >= 150
    assert int(counted["answered"]) <= 50


@pytest.fixture
def path() -> Iterator[LongPath]:
    """Yield two hosts with a long path between them."""
    with contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(wan(DELAY_MS))
        except WanError as exc:
            pytest.skip(f"THE LONG PATH IS NOT TESTED: {exc}")
        yield hosts


def test_long_path_delays_cuts_and_mends(path: LongPath) -> None:
    port = 4000
    server = path.b.popen([sys.executable, "-c", ACCEPT, port], stdout=subprocess.PIPE)
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        connect = [sys.executable, "-c", CONNECT_MS, path.b.ip, port]
        fastest_ms = min(float(path.a.run(connect).stdout) for _ in range(3))
        assert 1 <= fastest_ms / (2 * DELAY_MS) < 2  # round trips
        path.cut()
        with pytest.raises(BenchError, match=r"[Tt]ime(d )?out"):
            path.a.run(connect)
        path.mend()
        assert float(path.a.run(connect).stdout) >= 2 * DELAY_MS
        server.kill()


def test_hosts_and_what_runs_on_them_are_gone_afterwards() -> None:
    try:
        with wan(1) as (a, _):
            left = a.popen(["sleep", "300"])
            names = os.listdir("/run/netns")
            assert a.name in names
    except WanError as exc:
        pytest.skip(f"THE LONG PATH IS NOT TESTED: {exc}")
    assert left.wait(5) == -signal.SIGKILL
    assert a.name not in os.listdir("/run/netns")


def test_long_path_without_root_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(WanError, match="takes root"), wan():
        pass
