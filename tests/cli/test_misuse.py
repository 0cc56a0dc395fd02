"""Wrong calls and odd surroundings: a person sees one line, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gnar_lib import cmd, logger
from gnar_lib.config import load_server
from gnar_lib.errors import DialError
from gnar_lib.net import resolve
from gnar_lib.relay import Role, parse_address
from gnar_lib.relay.serve import is_loop
from tests.helpers.harness import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
GNAR = [sys.executable, str(ROOT / "gnar.py")]
DEADLINE_S = 30


def run(redirections: str, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run gnar with a shell's redirections."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *GNAR, *argv],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.parametrize("redirections", [">&-", "<&- >&-", "2>&-"])
@pytest.mark.parametrize("word", ["--help", "--version"])
def test_texts_with_closed_streams_are_no_error(redirections: str, word: str) -> None:
    done = run(redirections, word)
    assert (done.returncode, done.stderr) == (0, "")


def what_is_open(pid: int) -> dict[str, str]:
    """Return what each open descriptor of a process leads to, without those that are closed meanwhile."""
    found = {}
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[file.name] = str(file.readlink())
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows what a descriptor is")
def test_streams_that_were_closed_do_not_become_sockets() -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *GNAR, "relay", "tcp:0", "tcp:1"]
    with subprocess.Popen(command) as gnar:
        wait_until(lambda: "socket:" in "".join(what_is_open(gnar.pid).values()), "it listens")
        is_open = what_is_open(gnar.pid)
        gnar.terminate()
    assert [is_open[number] for number in "012"] == ["/dev/null"] * 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has /dev/full")
@pytest.mark.parametrize("words", [["--version"], ["--version", "--verbose"], ["man"], ["server", "--help"]])
def test_text_that_cannot_be_written_is_one_line_of_error(words: list[str]) -> None:
    done = run(">/dev/full", *words)
    said = "gnar: cannot write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_reader_that_has_gone_ends_a_text_without_a_word_more() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*GNAR, "man"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("redirections", [">&- 2>&-", "2>&-", "2>/dev/null >&-"])
def test_wrong_call_exits_2_with_closed_streams(redirections: str) -> None:
    done = run(redirections, "server", "--port", "x")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_demo_works_when_nobody_reads_its_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([*GNAR, "demo"], stdout=writer, stderr=subprocess.PIPE, text=True) as demo:
        os.close(writer)
        assert demo.stderr is not None
        lines: list[str] = []
        while "open at" not in (line := demo.stderr.readline()):
            assert line, lines
            lines.append(line)
        demo.send_signal(signal.SIGINT)
        lines.append(demo.stderr.read())
        assert demo.wait(DEADLINE_S) == 0, lines
    assert "Traceback" not in "".join(lines)


def test_name_that_the_terminal_cannot_show_is_shown_as_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert logger.show("☃\n")
    assert raw.getvalue() == b"\\u2603\n"


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "ü..☃"])
def test_impossible_host_name_is_one_error(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DialError, match="no host can have such a name"):
        resolve(host, 1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("server -c a.toml -c b.toml", "--config is given twice; see gnar server --help"),
        ("server --port=1 -p2", "--port is given twice; see gnar server --help"),
        ("demo 1 2", "the arguments do not fit: gnar demo [<port>] [options]; see gnar demo --help"),
    ],
)
def test_arguments_that_do_not_fit_say_why(capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    assert cmd.main(line.split()) == 2
    assert capsys.readouterr() == ("", f"gnar: {said}\n")


def test_address_to_listen_on_may_have_brackets() -> None:
    config = load_server({"bind": "[::1]", "udp-bind": "[::1]"}, {})
    assert (config.bind, config.udp_bind) == ("::1", "::1")


@pytest.mark.parametrize(
    ("listen", "target", "loops"),
    [
        ("tcp:9000", "tcp:9000", True),
        ("tcp:9000", "tcp:127.0.0.1:9000", True),
        ("tcp:[::1]:9000", "tcp:[::1]:9000", True),
        ("TCP4-LISTEN:9000,fork", "TCP:localhost:9000", True),
        ("udp:9000", "udp:9000", True),
        ("unix:/tmp/a", "unix:/tmp/../tmp/a", True),
        ("TCP4-LISTEN:9000,fork", "TCP:[::1]:9000", False),
        ("tcp:9000", "tcp:9001", False),
        ("tcp:9000", "tcp:example.com:9000", False),
        ("tcp:127.0.0.1:9000", "tcp:127.0.0.2:9000", False),
        ("unix:/tmp/a", "unix:/tmp/b", False),
        ("tcp:9000", "unix:/tmp/b", False),
    ],
)
def test_relay_to_itself_is_seen(listen: str, target: str, loops: bool) -> None:
    assert is_loop(parse_address(listen, Role.LISTEN), parse_address(target, Role.TARGET)) is loops


def test_relay_to_itself_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cmd.main(["relay", "tcp:1", "tcp:1"]) == 2
    assert capsys.readouterr().err == "gnar: tcp:1 to tcp:1 would be a relay to itself\n"


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("GEVENT_RESOLVER=nonsense", "Cannot import 'nonsense'"),
        ("GEVENT_RESOLVER=gevent.resolver.missing.Resolver", "No module named 'gevent.resolver.missing'"),
        ("GEVENT_BACKEND=nonsense", "Invalid backend or flag: 'nonsense'"),
        ("GEVENT_MONITOR_THREAD_ENABLE=maybe", "Invalid boolean string: 'maybe'"),
        ("GEVENT_THREADPOOL_IDLE_TASK_TIMEOUT=x", "could not convert string to float: 'x'"),
    ],
)
def test_variable_that_gevent_refuses_is_named_in_one_line(variable: str, reason: str) -> None:
    name, _, value = variable.partition("=")
    done = run("", "relay", "tcp:0", "tcp:127.0.0.1:1", **{name: value})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"gnar: gevent does not start with '{variable}': {reason}")


def test_variable_that_gevent_takes_is_no_error() -> None:
    done = run("", "relay", "tcp:0", "tcp:a..b:1", GEVENT_RESOLVER="block", GEVENT_THREADPOOL_SIZE="3")
    assert done.stderr == "gnar: cannot resolve 'a..b': no host can have such a name\n"


def test_process_that_may_open_too_few_files_says_so_in_one_line() -> None:
    # An import fails in the middle of the start, as with a limit between what Python and what gnar needs.
    code = (
        "import errno, os, sys, gnar\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'gevent.monkey':\n"
        "            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.exit(gnar.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "demo"], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    said = "gnar: Too many open files: raise the limit of this process (ulimit -n)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize("left", range(4))
@pytest.mark.usefixtures("unmeasured")
def test_loop_for_which_no_file_is_left_is_one_line_of_error(left: int) -> None:
    code = (
        "import os, resource, sys\n"
        "import gevent.hub, gevent.monkey, gevent.libev.corecext, gnar, gnar_lib.patch\n"
        f"limit = os.dup(0) + {left}\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "sys.exit(gnar.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "relay", "tcp:a..b:1", "tcp:127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("gnar: ")


@pytest.mark.usefixtures("unmeasured")
def test_interrupt_while_it_starts_leaves_no_traceback(gnar_pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def interrupt(event, args):\n"
        "    if event == 'import' and args[0] == 'gevent':\n"
        "        raise KeyboardInterrupt\n"
        "sys.addaudithook(interrupt)\n"
    )
    done = subprocess.run(
        [gnar_pyz, "server"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
