"""Completion in the real shells: bash, zsh and fish are asked at many places of a command line."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from gnar_lib import cmd, completion, usage
from tests.helpers.harness import WAIT_S, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
OPTIONS = {
    name: set(", ".join(re.findall(r"^  +((?:-\w, )?--[a-z0-9-]+)", text, re.MULTILINE)).split(", "))
    for name, (text, _) in cmd._COMMANDS.items()
}
COMMANDS = set(OPTIONS)
FLAGS = {"--help", "--version"}
BEHIND_VERSION = set(re.findall(r"\[(--[a-z-]+)\]", usage.USAGE))
FILES = {"gnar.toml", "my file"}

# What can stand at the end of each line; every shell says the same.
PLACES = {
    "gnar ": COMMANDS,
    "gnar s": {"server"},
    "gnar.pyz cl": {"client"},
    "./gnar.pyz cl": {"client"},
    "/opt/bin/gnar re": {"relay"},
    "GNAR_TOKEN=s3cret gnar cl": {"client"},
    "gnar --": FLAGS,
    "gnar --version --": BEHIND_VERSION,
    "gnar nosuch ": set(),
    "gnar nosuch --": set(),
    **{f"gnar {name} -": options for name, options in OPTIONS.items()},
    "gnar server --allow": {"--allow-ports", "--allow-hosts"},
    "gnar server 7000 --auth ": {"any", "hmac"},
    "gnar server --auth=": {"any", "hmac"},
    "gnar server --auth=h": {"hmac"},
    "gnar server --config=gn": {"gnar.toml"},
    "gnar server -p ": set(),
    "gnar client -y ": {"tcp", "udp", "http", "https"},
    "gnar client --proxy-type u": {"udp"},
    "gnar client --auth ": {"hmac", "md5"},
    "gnar client --proxy": {"--proxy", "--proxy-name", "--proxy-protocol", "--proxy-type"},
    "gnar client --proxy-type udp --proxy": {"--proxy", "--proxy-name", "--proxy-protocol"},
    "gnar client --proxy-type=udp --proxy": {"--proxy", "--proxy-name", "--proxy-protocol"},
    "gnar client -y udp --proxy": {"--proxy", "--proxy-name", "--proxy-protocol"},
    "gnar client -m --mul": set(),
    "gnar client -c ": FILES,
    "gnar client --config gn": {"gnar.toml"},
    "gnar client --token ": set(),
    "gnar client --token=": set(),
    "gnar client gn": set(),
    "gnar client 3000:": set(),
    "gnar client example.com 3000:9000 g": set(),
    "gnar relay unix:g": set(),
    "gnar relay --g": {"--grace"},
    "gnar demo --": {"--help", "--log-format", "--log-level"},
    "gnar completion ": {"bash", "zsh", "fish"},
    "gnar completion z": {"zsh"},
    "gnar completion bash z": set(),
}

# Where only a person knows the next word a shell may show options, but neither files nor anything else.
ONLY_OPTIONS = {
    "gnar server ": OPTIONS["server"],
    "gnar client example.com ": OPTIONS["client"],
    "gnar client 3000:9000 ": OPTIONS["client"],
    "gnar relay tcp:9000 ": OPTIONS["relay"],
    "gnar completion bash ": OPTIONS["completion"],
}
LINES = [*PLACES, *ONLY_OPTIONS]

DESCRIPTIONS = {
    "client": "beside the service: makes it reachable at the server",
    "--token": "let in only clients that know it; better set as GNAR_TOKEN",
    "--config": "read settings and [[proxys]] from a TOML file; flags win",
}

Answers = dict[str, set[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a script for each shell, the lines, and two files that can be completed."""
    made = tmp_path_factory.mktemp("completion")
    for shell in completion.SHELLS:
        (made / shell).mkdir()
        script = completion.script(shell, cmd._program())
        (made / shell / ("_gnar" if shell == "zsh" else "script")).write_text(script)
    (made / "files").mkdir()
    for name in FILES:
        (made / "files" / name).touch()
    (made / "lines").write_text("".join(f"{line}\n" for line in LINES))
    return made


class Terminal:
    """A shell at a terminal of its own; a thread reads all that the shell shows."""

    def __init__(self, *argv: str, folder: Path, **variables: str) -> None:
        mine, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 200, 200, 0, 0))
        env = {
            "PATH": os.environ["PATH"],
            "TERM": "dumb",
            **{key: str(value) for key, value in variables.items()},
        }
        self._process = subprocess.Popen(
            argv, stdin=its, stdout=its, stderr=its, cwd=folder, env=env, start_new_session=True
        )
        os.close(its)
        self._fd = mine
        self.shown = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # Linux says EIO when nobody is left at the other side
            while data := os.read(self._fd, 65536):
                self.shown += data.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_shown(self, text: str) -> None:
        wait_until(lambda: text in self.shown, f"{text!r} in {self.shown!r}")

    def wait_end(self) -> None:
        try:
            assert self._process.wait(WAIT_S) == 0, self.shown
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(WAIT_S)
            os.close(self._fd)


def read_answers(path: Path) -> Answers:
    """Parse the answers of a shell: lines `? QUESTION`, each with its completions in the lines below."""
    answers: Answers = {}
    for part in f"\n{path.read_text()}".split("\n? ")[1:]:
        line, *words = part.splitlines()
        answers[line] = {word.replace("\\", "") for word in words}
    return answers


BASH_RC = """\
PS1='ready> '
source {folder}/bash/script
eval "$(declare -f _gnar | sed '1s/_gnar/_asked/')"
_gnar() {{
    _asked "$@"
    printf '? %s\\n' "$COMP_LINE" >>{folder}/bash/answers
    ((${{#COMPREPLY[@]}} == 0)) || printf '%s\\n' "${{COMPREPLY[@]}}" >>{folder}/bash/answers
}}
gnar() {{ printf '<%s>' "$@" end; }}
"""


@pytest.fixture(scope="module")
def bash(folder: Path) -> Answers:
    """Ask bash: type each line and a tab, then erase the line."""
    (folder / "bash" / "answers").write_text("")
    (folder / "bash" / "rc").write_text(BASH_RC.format(folder=folder))
    terminal = Terminal("bash", "--rcfile", str(folder / "bash" / "rc"), "-i", folder=folder / "files")
    terminal.wait_shown("ready> ")
    terminal.type("".join(f"{line}\t\x15" for line in LINES))
    terminal.type("exit\n")
    terminal.wait_end()
    found = read_answers(folder / "bash" / "answers")  # without what stands in front of gnar
    answers = dict(zip(LINES, found.values(), strict=True))
    for line in LINES:  # files are readline's own matter: test_bash_completes_words_and_files
        if re.search(r"(-c|--config)[ =]\w*$", line):
            assert answers[line] == set()
            answers[line] = PLACES[line]
    return answers


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        ("gnar client -c gn\t", "<client><-c><gnar.toml>"),
        ("gnar client --config=my\t", "<client><--config=my file>"),
        ("gnar server --auth=h\t", "<server><--auth=hmac>"),
        ("gnar rel\ttcp:9000 gn\t", "<relay><tcp:9000><gn>"),
    ],
)
def test_bash_completes_words_and_files(folder: Path, typed: str, run: str) -> None:
    (folder / "bash" / "rc").write_text(BASH_RC.format(folder=folder))
    terminal = Terminal("bash", "--rcfile", str(folder / "bash" / "rc"), "-i", folder=folder / "files")
    terminal.wait_shown("ready> ")
    terminal.type(f"{typed}\nexit\n")
    terminal.wait_end()
    assert f"{run}<end>" in terminal.shown


ZSH_RC = """\
LISTMAX=1000
autoload -Uz compinit
compinit -u -d {folder}/zsh/dump
{load}
ask() {{
    while IFS= read -r line; do
        print -r -- "? $line" >>{folder}/zsh/answers
        BUFFER=$line CURSOR=$#line
        zle list-choices
        zle -R
    done <{folder}/lines
    exit
}}
zle -N zle-line-init ask
"""

# What is really added, and not only looked up, is an answer. The list that is shown is another one then.
ZSH_RECORDS = """
compadd() {{
    local -a __found
    if (( ! ${{argv[(I)-[OAD]]}} )); then
        builtin compadd -O __found "$@"
        (( ! $#__found )) || print -rl -- $__found >>{folder}/zsh/answers
    fi
    builtin compadd "$@"
}}
"""


def ask_zsh(folder: Path, load: str) -> tuple[Answers, str]:
    """Ask zsh, in which `load` loads the script; return the answers, and what zsh showed besides."""
    (folder / "zsh" / "answers").write_text("")
    (folder / "zsh" / ".zshrc").write_text(ZSH_RC.format(folder=folder, load=load))
    terminal = Terminal("zsh", "-d", "-i", folder=folder / "files", ZDOTDIR=str(folder / "zsh"))
    terminal.wait_end()
    return read_answers(folder / "zsh" / "answers"), terminal.shown


@pytest.fixture(scope="module")
def zsh(folder: Path) -> Answers:
    """Ask zsh, which reads the script in .zshrc."""
    return ask_zsh(folder, f"source {folder}/zsh/_gnar\n{ZSH_RECORDS.format(folder=folder)}")[0]


FISH = """\
source {folder}/fish/script
while read -d \\n line
    printf '? %s\\n' $line
    complete -C $line
end <{folder}/lines
"""


@pytest.fixture(scope="module")
def fish(folder: Path) -> Answers:
    """Ask fish; return the words without their descriptions and without the option before them."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder / "fish")}
    done = subprocess.run(
        ["fish", "--no-config", "-c", FISH.format(folder=folder)],
        cwd=folder / "files",
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    )
    assert done.stderr == ""
    (folder / "fish" / "answers").write_text(done.stdout)
    answers = read_answers(folder / "fish" / "answers")
    return {line: {word.split("\t")[0].split("=")[-1] for word in words} for line, words in answers.items()}


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_shell_offers_what_can_come_and_nothing_else(shell: str, request: pytest.FixtureRequest) -> None:
    answers: Answers = request.getfixturevalue(shell)
    assert [*answers] == LINES
    assert {line: answers[line] for line in PLACES} == PLACES
    for line, options in ONLY_OPTIONS.items():
        assert answers[line] <= options, line


def test_zsh_finds_the_script_by_itself_and_says_what_each_word_does(folder: Path) -> None:
    load = f"fpath=({folder}/zsh $fpath)\ncompinit -u -d {folder}/zsh/another-dump"
    shown = re.sub(r"\s+", " ", ask_zsh(folder, load)[1])
    for word, text in DESCRIPTIONS.items():
        assert re.search(rf"{word} (-\w )?-- {re.escape(text)}", shown), shown


@pytest.mark.usefixtures("fish")
def test_fish_says_what_each_word_does(folder: Path) -> None:
    answers = (folder / "fish" / "answers").read_text()
    for word, text in DESCRIPTIONS.items():
        assert f"\n{word}\t{text}\n" in answers


@pytest.mark.parametrize("shell", completion.SHELLS)
@pytest.mark.usefixtures("unmeasured")
def test_script_is_printed_without_loading_gevent(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "gnar.py", "completion", shell],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == completion.script(shell, cmd._program())
    assert "gnar_lib.completion" in done.stderr  # the list of imports is there
    assert "gevent" not in done.stderr
