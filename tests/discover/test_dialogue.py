"""`gnar` alone at a real terminal, on a machine with known services, up to what others reach by then."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gnar_lib.config import Access, Address
from gnar_lib.discover import dialogue
from gnar_lib.discover.asking import Kind, Service
from gnar_lib.discover.dialogue import Dialogue, offered_name
from gnar_lib.discover.listening import Listening, Process
from gnar_lib.discover.listing import hidden, short_folder, table
from gnar_lib.errors import UsageError
from tests.discover import world
from tests.helpers.terminals import CTRL_C, Terminal

ROOT = Path(__file__).resolve().parent.parent.parent
GNAR = [sys.executable, str(ROOT / "gnar.py")]
CTRL_D = "\x04"
IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]
QUESTION = "q leaves."


def at_terminal(
    folder: Path, *server: str, columns: int = 100, term: str = "xterm-256color", **variables: str
) -> Terminal:
    """Run `gnar` at a terminal of a machine with the services of `world`, and with a server if asked for."""
    words = [*GNAR, *server] if server else []
    argv = [*IN_NAMESPACE, sys.executable, "-m", world.__name__, str(folder), *words, "--", *GNAR]
    return Terminal(*argv, columns=columns, term=term, env={"HOME": str(folder), **variables})


def test_services_are_listed_and_one_without_http_is_published_at_a_port(tmp_path: Path) -> None:
    server = ("server", "--token", "s3cret", "--heartbeat", "1")
    with at_terminal(tmp_path, *server, GNAR_TOKEN="s3cret", GNAR_SERVER_ADDR="localhost") as terminal:
        text = terminal.wait_shown(QUESTION)
        rows = [line.split() for line in text.splitlines() if line[:1].isdigit()]
        assert [row[:2] for row in rows] == [["1", "3000"], ["2", "2200"]]
        assert "My \\x1b[31mblog" in text
        assert rows[0][-1] == "~/blog"
        assert "SSH (SSH-2.0-world)" in text
        assert "9229 (a debugger of Node.js)" in text
        assert "8910 (gnar)" in text
        terminal.type("2\n")
        terminal.wait_shown("The server is localhost:8910 (GNAR_SERVER_ADDR).", "does not speak HTTP")
        terminal.wait_shown("connected for", "127.0.0.1:2200")  # the live view of the client
        terminal.type(CTRL_C)
        assert terminal.wait_exit() == 0
        assert f"    {GNAR[1]} client 2200" in terminal.text
    assert (tmp_path / "requests").read_text() == "GET / HTTP/1.1\n"


def test_what_is_typed_wrong_is_said_and_asked_again(tmp_path: Path) -> None:
    with at_terminal(tmp_path, WORLD_HAS_A_SILENT_SERVICE="1") as terminal:
        assert "does not answer" in terminal.wait_shown(QUESTION)
        for typed, said in (
            ("0", "'0': expected a port from 1 to 65535"),
            ("", "'': expected a port such as 3000"),
            ("blog", "'blog': expected a port such as 3000"),
            ("7", "cannot connect to 127.0.0.1:7"),
        ):
            terminal.type(f"{typed}\n")
            terminal.wait_shown(said)
        terminal.type("4000\n")
        terminal.wait_shown("Port 4000 does not say what it is.")
        terminal.type("perhaps\n")
        terminal.wait_shown("'perhaps': expected y or n")
        terminal.type("y\n")
        terminal.wait_shown("At which server?")
        terminal.type("exa mple\n")
        terminal.wait_shown("'exa mple': expected an address")
        terminal.type("example.test\n")
        terminal.wait_shown("What is its token?")
        terminal.type("s3cret\n")
        terminal.wait_shown("Under which name?")
        terminal.type("a..b\n")
        terminal.wait_shown("'a..b': expected")
        terminal.type("mine\n")
        terminal.wait_shown("This does the same the next time:")
        line = f"    GNAR_TOKEN=... {GNAR[1]} http 4000 --name mine --server-addr example.test:8910"
        assert line.encode() in terminal.raw
        assert b"s3cret" not in terminal.raw


@pytest.mark.parametrize("key", ["q\n", CTRL_C, CTRL_D])
def test_terminal_that_is_dumb_and_narrow_will_do_and_one_can_leave(tmp_path: Path, key: str) -> None:
    with at_terminal(tmp_path, columns=30, term="dumb") as terminal:
        text = terminal.wait_shown(QUESTION)
        assert "3000" in text
        terminal.type(key)
        assert terminal.wait_exit() == 0
        terminal.wait_shown("Nothing is published.")
        assert b"\x1b" not in terminal.raw


def test_one_can_leave_while_services_are_asked(tmp_path: Path) -> None:
    with at_terminal(tmp_path, WORLD_HAS_A_SILENT_SERVICE="1") as terminal:
        terminal.wait_shown("Looking for services")
        terminal.type(CTRL_C)
        assert terminal.wait_exit() == 0
        terminal.wait_shown("Nothing is published.")
        assert b"Traceback" not in terminal.raw


def test_machine_without_services_says_so_and_asks_all_the_same() -> None:
    with Terminal(*IN_NAMESPACE, *GNAR, columns=60) as terminal:
        terminal.wait_shown("No service is found that you have started.", "web.local:8080; q leaves.")
        terminal.type(CTRL_D)
        assert terminal.wait_exit() == 0


# ---- parts of it -------------------------------------------------------------------------------------------


def service(port: int, kind: Kind, name: str = "", folder: str = "", host: str = "") -> Service:
    return Service(Listening(port, host, Process("prog", (), folder)), kind, name)


class Talk:
    """A dialogue with a person who types these lines, about one service."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def words(self, chosen: Service, access: Access, *typed: str) -> str:
        """Return the command line that is the result, once everything typed has been read."""
        lines = iter(typed)
        self._monkeypatch.setattr(dialogue, "find", lambda: [chosen.listening])
        self._monkeypatch.setattr(dialogue, "ask_all", lambda _ports: [chosen])
        self._monkeypatch.setattr(dialogue, "_read_line", lambda: next(lines))
        choice = Dialogue(access).run()
        assert choice is not None
        assert next(lines, None) is None
        return " ".join(choice.words)


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(monkeypatch)


KNOWN = Access(server=Address("example.com", 7000), place="GNAR_SERVER_ADDR")
WITH_FILE = Access(
    server=Address("example.com", 7000), place="c.toml", file="c.toml", others=2, has_token=True
)


@pytest.mark.parametrize(
    ("chosen", "access", "typed", "expected"),
    [
        (service(3000, Kind.WEB), KNOWN, ["1", ""], "http 3000"),
        (service(3000, Kind.WEB, folder="/src/My Blog_2"), KNOWN, ["1", ""], "http 3000 --name my-blog-2"),
        (service(3000, Kind.WEB, "Wiki"), KNOWN, ["3000", ""], "http 3000 --name wiki"),
        (service(3000, Kind.WEB, "Wiki"), KNOWN, ["1", "-"], "http 3000"),
        (service(3000, Kind.WEB), KNOWN, ["1", "Blog"], "http 3000 --name blog"),
        (service(80, Kind.WEB, host="192.0.2.1"), KNOWN, ["1", ""], "http 192.0.2.1:80"),
        (service(80, Kind.WEB, host="2001:db8::1"), KNOWN, ["1", ""], "http [2001:db8::1]:80"),
        (service(22, Kind.OTHER, "SSH"), WITH_FILE, ["1"], "client 22"),
        (service(22, Kind.OTHER, "SSH", host="192.0.2.1"), KNOWN, ["1"], "client 192.0.2.1:22:0"),
        (service(22, Kind.SILENT), KNOWN, ["1", "n"], "client 22"),
        (service(22, Kind.SILENT), Access(has_token=True), ["1", "NO", ""], "client 22"),
        (
            *(service(22, Kind.OTHER), Access(has_token=True), ["1", "example.com:7000"]),
            "client 22 --server-addr example.com:7000",
        ),
    ],
)
def test_command_line_is_what_was_chosen(
    chosen: Service, access: Access, typed: list[str], expected: str, talk: Talk
) -> None:
    assert talk.words(chosen, access, *typed) == expected


def test_other_proxies_of_the_file_are_not_kept_secret(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    for access in (KNOWN, WITH_FILE):
        talk.words(service(22, Kind.OTHER), access, "1")
        said = capsys.readouterr().out
        assert ("The 2 proxies of c.toml are opened, too." in said) is (access is WITH_FILE)


@pytest.mark.parametrize(
    ("folder", "title", "name"),
    [
        ("/home/mary/blog", "Any title", "blog"),
        (os.path.expanduser("~"), "Wiki", "wiki"),
        ("/", "", ""),
        ("", "A page with a title that is far too long for a name", ""),
        ("C:\\work\\Shop", "", "shop"),
        ("/srv/-", "\u96ea", ""),
    ],
)
def test_name_that_is_offered(folder: str, title: str, name: str) -> None:
    assert offered_name(service(1, Kind.WEB, title, folder)) == name


def test_folder_below_home_is_short() -> None:
    for folder, short in (("/home/mary/x", "~/x"), ("/home/mary", "~"), ("/home/maryann", "/home/maryann")):
        assert short_folder(folder, "/home/mary") == short


@pytest.mark.parametrize("room", [1, 10, 30, 60, 200])
def test_table_is_no_wider_than_the_terminal(room: int) -> None:
    services = [
        service(3000, Kind.WEB, "\u96ea" * 100, "/" + "x" * 100),
        service(65535, Kind.SILENT, host="192.0.2.255"),
    ]
    lines = table(services, room, in_colour=False, is_plain=True).splitlines()
    assert len(lines) == 3
    assert max(sum(2 if each == "\u96ea" else 1 for each in line) for line in lines) <= room


def test_ports_that_are_left_out_are_named_or_counted() -> None:
    assert hidden([]) == ""
    assert hidden([(Listening(631), "printing")]) == "Left out: 631 (printing).\n"
    many = hidden([(Listening(port), "x") for port in range(1, 10)])
    assert many == "Left out: 1 (x), 2 (x), 3 (x), 4 (x), 5 (x), 6 (x) and 3 more.\n"


def test_system_that_tells_no_ports_is_no_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gnar_lib.discover.proc._PROC", Path("/nowhere"))
    monkeypatch.setattr("gnar_lib.discover.proc.find.__defaults__", (Path("/nowhere"),))
    monkeypatch.setattr(dialogue, "_read_line", lambda: "q")
    assert Dialogue(KNOWN).run() is None
    said = " ".join(capsys.readouterr().out.split())
    assert "/proc/net/tcp cannot be read" in said
    assert said.endswith("Nothing is published.")


def test_wrong_service_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="expected a port such as 3000"):
        Dialogue(KNOWN)._read_service("x")
