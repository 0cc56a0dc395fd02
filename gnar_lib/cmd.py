"""Reads the command line, runs the command, and returns the exit status of the process."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from docopt import DocoptExit, docopt

from gnar_lib import __version__, logger
from gnar_lib.errors import GnarError, UsageError
from gnar_lib.usage import (
    CLIENT,
    COMPLETION,
    DEMO,
    HEALTH,
    HTTP,
    MAN,
    RELAY,
    SERVER,
    SERVER_UNADVERTISED,
    TOP,
    USAGE,
)

if TYPE_CHECKING:
    from gnar_lib.config import ClientConfig, LogConfig
    from gnar_lib.synopsis import Program

MACOS_OPEN_MAX = 10_240  # descriptors that every macOS allows a process

AnyConfig = TypeVar("AnyConfig", bound="LogConfig")


def _server(arguments: dict[str, Any]) -> int:
    from gnar_lib.config import file_of, load_server
    from gnar_lib.config.values import port

    flags = _flags(arguments)
    if arguments["<port>"] is not None:
        if "port" in flags:
            raise UsageError("the port is given twice, as <port> and as --port")
        flags["port"] = _read(port, arguments["<port>"], "port")
    file = file_of(flags, os.environ)
    replaces = bool(flags.pop("replace", False))
    if flags.pop("check", False):
        from gnar_lib.checklist import run_check
        from gnar_lib.server.check import ServerCheck

        if replaces:
            raise UsageError("--check and --replace do not go together")
        return run_check(ServerCheck, _as_logged(load_server(flags, os.environ)), file)
    from gnar_lib.server.serve import run_server

    return run_server(lambda: _logged(load_server(flags, os.environ)), has_file=bool(file), replaces=replaces)


def _client(arguments: dict[str, Any]) -> int:
    from gnar_lib.config import file_of, load_client
    from gnar_lib.config.transport import server_address

    flags = _flags(arguments)
    positional = [arguments["<server-addr>"], *arguments["<mapping>"]]
    words = [word for word in positional if word is not None]
    if words and "server-addr" not in flags and not _is_mapping(words[0]):
        _read(server_address, words[0], "server-addr")  # an error names it as it was given
        flags["server-addr"] = words.pop(0)
    flags["mappings"] = words
    file = file_of(flags, os.environ)
    if flags.pop("check", False):
        return _check_client(load_client(flags, os.environ), file)
    from gnar_lib.client.serve import run_client

    return run_client(lambda: _logged(load_client(flags, os.environ)), has_file=bool(file))


def _check_client(config: ClientConfig, file: str) -> int:
    from gnar_lib.checklist import run_check
    from gnar_lib.client.check import ClientCheck

    return run_check(ClientCheck, _as_logged(config), file)


def _http(arguments: dict[str, Any]) -> int:
    from gnar_lib.config import file_of, load_client, variable_of
    from gnar_lib.config.keys import PROXY
    from gnar_lib.config.target import web_target

    flags = _flags(arguments)
    service = _read(web_target, arguments["<target>"], "target")
    flags["local-port"] = service.port
    if service.host:
        flags["local-host"] = service.host
    flags["proxy-type"] = "http"
    flags["subdomain"] = _read(
        PROXY["subdomain"], flags.pop("name", ""), "--name"
    )  # empty: the server chooses
    if not os.environ.get(variable_of("inspect")):
        flags.setdefault("inspect", "on")
    file = file_of(flags, os.environ)
    checks = flags.pop("check", False)

    def load() -> ClientConfig:
        return load_client(flags, os.environ, is_single=True)

    if checks:
        return _check_client(load(), file)
    from gnar_lib.client.serve import run_client

    return run_client(lambda: _logged(load()), has_file=bool(file))


def _is_mapping(word: str) -> bool:
    """Tell whether a word is a mapping, such as `3000:9000`, not a server's address, such as `host:8910`."""
    return bool(re.fullmatch(r"[\d-]+(:[\d-]+)?|(\[[^\]]+\]|[^\[:]+):[\d-]+:[\d-]+", word))


def _relay(arguments: dict[str, Any]) -> int:
    from gnar_lib.config import load_admin
    from gnar_lib.config.model import DEFAULT_GRACE_S
    from gnar_lib.config.values import dead_after, seconds, timeout
    from gnar_lib.net.options import set_dead_after, set_half_close_timeout
    from gnar_lib.relay import RelaySettings, UdpSettings, run_relay

    _log_events()
    if arguments["--dead-after"] is not None:
        set_dead_after(_read(dead_after, arguments["--dead-after"], "--dead-after"))
    if arguments["--half-close-timeout"] is not None:
        set_half_close_timeout(_read(timeout, arguments["--half-close-timeout"], "--half-close-timeout"))
    grace = arguments["--grace"]
    grace_s = DEFAULT_GRACE_S if grace is None else _read(seconds, grace, "--grace")
    udp = UdpSettings(any_source=arguments["--udp-any-source"])
    if (given := arguments["--udp-timeout"]) is not None:
        udp = replace(udp, timeout_s=_read(timeout, given, "--udp-timeout"))
    socat = arguments["socat"]
    if socat.half_close_timeout_s is not None and arguments["--half-close-timeout"] is None:
        set_half_close_timeout(socat.half_close_timeout_s)
    settings = RelaySettings(grace_s, udp, load_admin(_flags(arguments), os.environ))
    return run_relay(arguments["<listen>"], arguments["<target>"], settings, socat)


def _demo(arguments: dict[str, Any]) -> int:
    from gnar_lib.config.values import port_or_0
    from gnar_lib.demo import run_demo

    _log_events()
    return run_demo(_read(port_or_0, arguments["<port>"] or 0, "port"))


def _log_events() -> None:
    """Log events from now on. Loads gevent, which not every command needs."""
    from gnar_lib import eventlog

    eventlog.start()


def _as_logged(config: AnyConfig) -> AnyConfig:
    """Have the log be as a configuration says, which a reload may have changed; return the configuration."""
    logger.change(config.log_format, config.log_level)
    return config


def _logged(config: AnyConfig) -> AnyConfig:
    """Do the same, and log events from now on."""
    _as_logged(config)
    _log_events()
    return config


def _completion(arguments: dict[str, Any]) -> int:
    from gnar_lib.completion import SHELLS, script

    return _show(script(next(shell for shell in SHELLS if arguments[shell]), _program()))


def _man(_arguments: dict[str, Any]) -> int:
    from gnar_lib.manpage import page

    return _show(page(_program()))


def _program() -> Program:
    """Return all commands and options that `--help` shows."""
    from gnar_lib import synopsis

    return synopsis.read(USAGE, {name: text for name, (text, _) in _COMMANDS.items()})


def _health(arguments: dict[str, Any]) -> int:
    from gnar_lib import health
    from gnar_lib.config import load_server
    from gnar_lib.config.model import DEFAULT_PORT
    from gnar_lib.config.values import address, timeout

    flags = _flags(arguments)
    for key in ("log-format", "log-level"):  # those of this command, not of the server
        flags.pop(key, None)
    timeout_s = _read(timeout, flags.pop("timeout", health.DEFAULT_TIMEOUT_S), "--timeout")
    given = arguments["<server-addr>"]
    if given is None:
        where = health.own_address(load_server(flags, os.environ, with_token=False))
    elif flags:
        raise UsageError(f"<server-addr> and --{next(iter(flags))} do not go together")
    else:
        where = _read(address(DEFAULT_PORT), given, "server-addr")
    try:
        health.check(where, timeout_s)
    except KeyboardInterrupt:
        return 1  # no answer is known
    logger.show(f"gnar answers at {where}\n")
    return 0  # whether or not the line could be written: the status is the answer


def _top(arguments: dict[str, Any]) -> int:
    from gnar_lib.config import load_admin
    from gnar_lib.top.api import DEFAULT_URL, Api
    from gnar_lib.top.run import run_top

    if (path := arguments["--token-file"]) is not None:
        secret = load_admin({"admin-read-token-file": path}, {}).read_token
    else:
        admin = load_admin({}, os.environ)
        secret = admin.read_token or admin.password
    return run_top(Api(arguments["<url>"] or DEFAULT_URL, secret), once=arguments["--once"])


def _read(reader: Callable[[Any], Any], value: object, where: str) -> Any:
    """Return what a reader of `config.values` makes of a value; an error of the reader names `where`."""
    try:
        return reader(value)
    except UsageError as exc:
        raise UsageError(f"{where}: {exc}") from None


# The text of each command's --help, and the function that runs the command.
_COMMANDS: dict[str, tuple[str, Callable[[dict[str, Any]], int]]] = {
    "server": (SERVER, _server),
    "client": (CLIENT, _client),
    "http": (HTTP, _http),
    "relay": (RELAY, _relay),
    "demo": (DEMO, _demo),
    "health": (HEALTH, _health),
    "top": (TOP, _top),
    "completion": (COMPLETION, _completion),
    "man": (MAN, _man),
}


def _flags(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, by their long names without dashes."""
    given = {key: value for key, value in arguments.items() if key.startswith("--")}
    flags = {key[2:]: value for key, value in given.items() if value not in (None, False)}
    if flags.pop("no-multiplex", False):
        if "multiplex" in flags:
            raise UsageError(
                "--multiplex and --no-multiplex do not go together; leave both out to let gnar choose"
            )
        flags["multiplex"] = "off"
    return flags


def main(argv: list[str]) -> int:
    """Run a command line; return the exit status: 0, or 1 for a failure, or 2 for a wrong command line."""
    try:
        return _run(argv)
    except UsageError as exc:
        logger.complain(str(exc))
        return 2
    except GnarError as exc:
        logger.complain(str(exc))
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        with suppress(KeyboardInterrupt):
            logger.close()


def _show(text: str) -> int:
    """Write text to standard output; return the exit status."""
    return 0 if logger.show(text) else 1


def _run(argv: list[str]) -> int:
    """Run a command line; return the exit status. Raises `GnarError`."""
    if not argv and _is_at_terminal():
        return _publish_what_is_chosen()
    if not argv or argv[0] in ("-h", "--help", "help"):
        return _show(USAGE) or (0 if argv else 2)
    if argv in (["--version", "--verbose"], ["version", "--verbose"]):
        from gnar_lib import about

        return _show(about.text())
    if argv[0] in ("--version", "version"):
        return _show(f"gnar {__version__}\n")
    name = argv[0]
    if name not in _COMMANDS:
        raise UsageError(f"unknown command {name!r}{_did_you_mean(name, _COMMANDS)}; see gnar --help")
    text, run = _COMMANDS[name]
    if not {"-h", "--help"}.isdisjoint(argv[1:]):
        return _show(text)
    _raise_file_limit()
    arguments = _parse_relay(text, argv) if name == "relay" else _parse(name, text, argv)
    if "--log-level" in arguments:
        from gnar_lib.config import load_log

        log = load_log(_flags(arguments), os.environ)
        logger.setup(log_format=log.log_format, level=log.log_level)
    return run(arguments)


def _is_at_terminal() -> bool:
    """Tell whether a person can read what this process says, and answer."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _publish_what_is_chosen() -> int:
    """Have the person at the terminal choose a service, and run the command line that publishes it."""
    from gnar_lib.config import load_access, variable_of
    from gnar_lib.discover.dialogue import Dialogue

    choice = Dialogue(load_access(os.environ)).run()
    if choice is None:
        return 0
    if choice.token:
        os.environ[variable_of("token")] = choice.token.reveal()
    return _run([*choice.words])


def _parse_relay(text: str, argv: list[str]) -> dict[str, Any]:
    """Return the arguments of a relay, whose command line may have options of socat. Raises `UsageError`."""
    from gnar_lib.relay import take_options

    words, socat = take_options(argv)
    return _parse("relay", text, words) | {"socat": socat}


def _raise_file_limit() -> None:
    """Allow this process as many descriptors as the system does: each user takes two, and 1,024 are few."""
    if sys.platform != "win32":  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit in (hard, max(soft, MACOS_OPEN_MAX)):  # macOS says "unlimited", but takes a number only
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return


def _parse(name: str, text: str, argv: list[str]) -> dict[str, Any]:
    """Return the arguments as docopt reads them; raises `UsageError` with what is wrong, in one line."""
    from gnar_lib.config.values import name_of_odd

    for before, word in pairwise(argv):
        odd = name_of_odd(word[:1])  # such as the long dash that a web page has made of --
        if odd and before not in ("-t", "--token"):
            raise UsageError(f"a word begins with an odd character{odd}")  # it may be, or hold, a token
    all_options = text + (SERVER_UNADVERTISED if name == "server" else "")
    try:
        return dict(docopt(all_options, argv, default_help=False))
    except DocoptExit as exc:
        words = [word for word in argv[1:] if re.match("--?[a-z]", word, re.IGNORECASE)]
        options = (word.split("=")[0] if word.startswith("--") else word[:2] for word in words)
        wrong = (_wrong_option(name, option, text, all_options) for option in options)
        reason = next(filter(None, wrong), "") or _given_twice(all_options, argv)
        reason = reason or _first_line(exc) or _wrong_usage(text)
        raise UsageError(f"{reason}; see gnar {name} --help") from None


def _wrong_option(name: str, option: str, text: str, all_options: str) -> str:
    """Return an error about an option that is unknown, or the beginning of several; else an empty text."""
    meant = [known for known in dict.fromkeys(_options_in(all_options)) if known.startswith(option)]
    other = {"server": "client", "client": "server"}.get(name, "")
    if not meant and other and option in _options_in(_COMMANDS[other][0]):
        return f"unknown option {option}: it is one of gnar {other}"
    if not meant:
        return f"unknown option {option}{_did_you_mean(option, _options_in(text))}"
    return "" if len(meant) == 1 or option in meant else f"{option} could be {' or '.join(meant)}"


def _options_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text)


def _first_line(exc: DocoptExit) -> str:
    """Return the line of docopt's error in front of the usage; empty if there is none."""
    line = str(exc).strip().splitlines()[0]
    return "" if line.startswith(("Usage", "Warning")) else line


def _wrong_usage(text: str) -> str:
    """Return an error that shows the usage of the command."""
    found = re.search("^Usage: (.*)$", text, re.MULTILINE)
    return f"the arguments do not fit: {found[1]}" if found else "the arguments do not fit"


def _given_twice(text: str, argv: list[str]) -> str:
    """Return an error that names the option which is given twice; empty if there is none."""
    long_of = dict(re.findall(r"(-\w), (--[\w-]+)", text))
    words = [word for word in argv if re.match("--?[a-z]", word, re.IGNORECASE)]
    given = [word.split("=")[0] if word.startswith("--") else long_of.get(word[:2], "") for word in words]
    twice = next((option for option in given if option and given.count(option) > 1), "")
    return f"{twice} is given twice" if twice else ""


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the most similar known word; empty if none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
