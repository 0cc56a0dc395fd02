"""Makes the manual page gnar(1), in the language of man(7), from the texts of `--help` and the settings.

The page contains no date and nothing of the machine, so that the same sources make the same page.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from gnar_lib import __version__
from gnar_lib.config import variables
from gnar_lib.synopsis import Option, Program

_DESCRIPTION = r"""
.B gnar server
runs on a host with a public address,
.B gnar client
beside a service that this host cannot reach.
Whoever connects to a port that the client has opened at the server reaches the
service, by TCP or UDP.
.PP
.B gnar http
publishes a web service of this machine under a name of the server, and shows
its requests.
.B gnar
alone, on a terminal, looks for local services and offers to publish one.
.PP
.B gnar relay
forwards one address of this host to another, in the place of
.BR socat (1).
.PP
Nothing is encrypted on the way between client and server.
Where others can listen there, let
.BR ssh (1)
or WireGuard carry it, or forward services that speak TLS themselves.
"""

_ENVIRONMENT = r"""
.TP
.B DEBUG
1: the same as GNAR_LOG_LEVEL=debug, which wins.
.TP
.B GNAR_LOG
json: the same as GNAR_LOG_FORMAT=json, which wins.
.TP
.B NO_COLOR
1: no colours.
.TP
.B TERM
dumb: a terminal on which nothing is drawn.
.TP
.B XDG_RUNTIME_DIR
where servers find each other for \-\-replace; /run or /tmp otherwise.
.TP
.B XDG_CACHE_HOME
the folder in which gnar.pyz, the one file, unpacks itself; ~/.cache otherwise.
"""

_FILES = r"""
.TP
.I FILE
The TOML file of
.BR \-\-config .
Its keys are the names of the options without dashes; a client's proxies stand
in tables named [[proxys]].
Flags win over variables, variables over the file.
.TP
.I ~/.cache/gnar
What gnar.pyz, the one file, has unpacked.
It can be deleted at any time.
"""

_EXIT_STATUS = r"""
.TP
.B 0
Ended by a signal, or did what was asked.
.TP
.B 1
The work failed: the login was refused, no proxy is left, or an address cannot
be listened on.
.TP
.B 2
Wrong command line or configuration.
"""

_SIGNALS = r"""
.TP
.BR SIGINT ", " SIGTERM
Take nobody new, let users finish for the seconds of
.BR \-\-grace ,
then end.
A second signal ends at once.
.TP
.B SIGHUP
Server and client read their file again.
Proxies whose settings are unchanged go on.
A relay ends, and so does a server or client that was started on a terminal
without a file: the terminal has gone.
.TP
.B SIGUSR1
Log how many users, connections and greenlets there are.
"""

_SEE_ALSO = r"""
.BR socat (1),
.BR ssh (1),
.BR systemd.service (5)
"""


def page(program: Program) -> str:
    """Return the manual page."""
    sections = {
        "NAME": [f"gnar \\- {_text(program.title.rstrip('.'))}"],
        "SYNOPSIS": _synopsis(program),
        "DESCRIPTION": [_DESCRIPTION],
        "COMMANDS": _commands(program),
        "OPTIONS": _options(program),
        "ENVIRONMENT": [*_variables(), _ENVIRONMENT],
        "FILES": [_FILES],
        "EXIT STATUS": [_EXIT_STATUS],
        "SIGNALS": [_SIGNALS],
        "EXAMPLES": _examples(program),
        "SEE ALSO": [_SEE_ALSO],
    }
    lines = ['.\\" Made by: gnar man', f'.TH GNAR 1 "" "gnar {__version__}" "User Commands"']
    for heading, body in sections.items():
        lines += [f".SH {heading}", *(part.strip("\n") for part in body)]
    return "\n".join(lines) + "\n"


def _synopsis(program: Program) -> Iterator[str]:
    for number, usage in enumerate(program.usage):
        if number:
            yield ".br"
        yield _usage(usage)


def _commands(program: Program) -> Iterator[str]:
    for command in program.commands:
        yield from (".TP", f".B {command.name}", _sentence(command.title))


def _options(program: Program) -> Iterator[str]:
    for command in program.commands:
        yield from (f".SS gnar {command.name}", _usage(command.usage))
        for paragraph in command.paragraphs:
            yield from (".PP", _prose(paragraph))
        for option in command.options:
            yield from (".TP", _names(option), _prose(option.text))


def _variables() -> Iterator[str]:
    yield "Every setting can be given as a variable; the option of the same meaning wins."
    read_by: dict[tuple[str, str], list[str]] = {}
    for command, own in variables().items():
        for variable in own.items():
            read_by.setdefault(variable, []).append(f"\\fBgnar {command}\\fP")
    for (name, option), commands in sorted(read_by.items()):
        yield from (".TP", f".B {name}", f"\\fB{_text(option)}\\fP of {' and '.join(commands)}.")


def _examples(program: Program) -> Iterator[str]:
    for number, command in enumerate(program.commands):
        if number:
            yield ".PP"
        yield from (_sentence(command.title), ".PP", ".RS", ".nf")
        yield from map(_text, command.examples)
        yield from (".fi", ".RE")


def _usage(usage: str) -> str:
    """Return a line of usage in which words that are typed as they stand are bold."""
    typed = r"(?<![<\[\w-])(-{0,2}[a-z][a-z0-9-]*)(?![\w>-])"
    return _hyphens(re.sub(typed, r"\\fB\1\\fP", usage))


def _names(option: Option) -> str:
    names = ", ".join(f"\\fB{_hyphens(name)}\\fP" for name in option.names)
    return f"{names} \\fI{option.value}\\fP" if option.value else names


def _sentence(text: str) -> str:
    """Return a text that begins with a capital letter, as `_prose` does."""
    return _prose(text[0].upper() + text[1:])


def _prose(text: str) -> str:
    """Return a text in short lines, which roff joins."""
    return "\n".join(map(_text, textwrap.wrap(text, 70, break_long_words=False, break_on_hyphens=False)))


def _text(line: str) -> str:
    """Return a line in which no character has a meaning for roff, and `code` is bold."""
    escaped = _hyphens(line.replace("\\", "\\e"))
    bold = re.sub(r"`([^`]+)`", r"\\fB\1\\fP", escaped)
    return re.sub(r"^([.'])", r"\\&\1", bold)


def _hyphens(text: str) -> str:
    return text.replace("-", "\\-")
