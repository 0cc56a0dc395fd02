"""The command line: what can be said, who does it, and with which status the process ends."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from docopt import DocoptExit, docopt

from gnar_lib import __version__, logger
from gnar_lib.errors import GnarError, UsageError

USAGE = """gnar: reach a service behind NAT through one small public host.

Usage:
  gnar server [<port>] [options]
  gnar client [<server-addr>] [<mapping>...] [options]
  gnar relay <listen> <target> [options]
  gnar demo [<port>]
  gnar --help | --version

Commands:
  server   on the host with the public address: takes clients and their users
  client   beside the service: makes it reachable at the server
  relay    forwards one address to another, instead of socat
  demo     shows the tunnel working, on this machine alone

`gnar COMMAND --help` tells more.
"""

SERVER = """gnar server: take clients, and the users of what they forward.

Usage: gnar server [<port>] [options]

Options:
  -p, --port PORT            control port, where clients come (default 8910)
  -t, --token TOKEN          let in only clients that know it; better set as GNAR_TOKEN
      --auth KIND            hmac: no md5 logins, so no Go clients; any (default)
      --bind ADDR            listen on this address alone (default: all, IPv4 and IPv6)
      --udp-bind ADDR        send and receive UDP on this address
      --allow-ports PORTS    ports that clients may open, such as 9000-9100,9200 (default: all)
      --max-speed RATE       limit of every proxy, such as 10mb (per second, each direction)
  -D, --domain DOMAIN        give proxies names under this domain (comes later)
  -d, --domain-tunnel        name the server itself under the domain (comes later)
  -s, --caddy-srv-name NAME  Caddy's name for its server (comes later)
  -a, --admin-port PORT      port of the admin panel (comes later)
  -m, --multiplex            accepted; the server recognises multiplexing by itself
      --grace SECONDS        how long users may finish when the server stops (default 10)
  -c, --config FILE          read settings from a TOML file; flags win
  -h, --help                 show this

Every setting can be a variable, too: GNAR_PORT, GNAR_ALLOW_PORTS and so on.

Examples:
  GNAR_TOKEN=s3cret gnar server
  gnar server 7000 --allow-ports 9000-9100 -c gnar.toml
"""

CLIENT = """gnar client: make services of this side reachable at a server.

Usage: gnar client [<server-addr>] [<mapping>...] [options]

A mapping is 3000:9000 (local port, port at the server), host:3000:9000, 3000 (the server
chooses) or a range such as 3000-3010:9000-9010.

Options:
  -s, --server-addr ADDR   the server (default localhost:8910)
  -l, --local-port PORT    port of the local service
  -r, --remote-port PORT   port at the server (default 0: the server chooses)
      --local-host HOST    where the local service is (default 127.0.0.1)
  -n, --proxy-name NAME    name in logs and listings (default: such as tcp-3000)
  -y, --proxy-type TYPE    tcp (default) or udp
  -d, --subdomain NAME     name under the server's domain (comes later)
  -t, --token TOKEN        the server's token; better set as GNAR_TOKEN
      --auth KIND          hmac (default), or md5 for a Go server
  -m, --multiplex          use one connection to the server for everything
      --speed-limit RATE   limit of the proxy, such as 100kb (per second, each direction)
      --udp-timeout SECS   end of a UDP session without datagrams (default 60)
      --grace SECONDS      how long users may finish when the client stops (default 10)
  -c, --config FILE        read settings and [[proxys]] from a TOML file; flags win
  -h, --help               show this

Every setting can be a variable, too: GNAR_SERVER_ADDR, GNAR_LOCAL_PORT and so on.

Examples:
  gnar client -s example.com:8910 -l 3000 -r 9000
  gnar client example.com 3000:9000 db.local:5432:9001
"""

RELAY = """gnar relay: forward every connection, or every datagram, of one address to another.

Usage: gnar relay <listen> <target> [options]

An address is tcp:PORT, tcp:HOST:PORT or unix:PATH, and for datagrams udp:PORT, udp:HOST:PORT or
unix-dgram:PATH; socat's spelling works, too, and means what it means there (one connection
without `fork`).

Options:
  --grace SECONDS  how long connections may finish when the relay stops (default 10)
  -h, --help       show this

Examples:
  gnar relay unix:/tmp/x.sock tcp:example.com:9299
  gnar relay TCP-LISTEN:9000,reuseaddr,fork UNIX-CONNECT:/run/x.sock
  gnar relay udp:53 udp:192.0.2.1:53
"""

DEMO = """gnar demo: a sample page, a server and a client on this machine, to see the tunnel work.

Usage: gnar demo [<port>] [options]

Options:
  -h, --help  show this

Example:
  gnar demo
"""


def _server(arguments: dict[str, Any]) -> int:
    from gnar_lib.config import load_server
    from gnar_lib.server.serve import run_server

    flags = _flags(arguments)
    if arguments["<port>"] is not None:
        if "port" in flags:
            raise UsageError("the port is given twice, as <port> and as --port")
        flags["port"] = arguments["<port>"]
    return run_server(lambda: load_server(flags, os.environ))


def _client(arguments: dict[str, Any]) -> int:
    from gnar_lib.client.serve import run_client
    from gnar_lib.config import load_client

    flags = _flags(arguments)
    positional = [arguments["<server-addr>"], *arguments["<mapping>"]]
    words = [word for word in positional if word is not None]
    if words and "server-addr" not in flags and not _is_mapping(words[0]):
        flags["server-addr"] = words.pop(0)
    flags["mappings"] = words
    return run_client(lambda: load_client(flags, os.environ))


def _is_mapping(word: str) -> bool:
    """Tell a mapping from a server's address: `host:8910` and `3000:9000` differ in what is in front."""
    return bool(re.fullmatch(r"[\d-]+(:[\d-]+)?|.+:[\d-]+:[\d-]+", word)) and not word.startswith("[")


def _relay(arguments: dict[str, Any]) -> int:
    from gnar_lib.config.model import DEFAULT_GRACE_S
    from gnar_lib.config.values import seconds
    from gnar_lib.relay import run_relay

    grace = arguments["--grace"]
    grace_s = DEFAULT_GRACE_S if grace is None else _read(seconds, grace, "--grace")
    return run_relay(arguments["<listen>"], arguments["<target>"], grace_s)


def _demo(arguments: dict[str, Any]) -> int:
    from gnar_lib.config.values import port_or_0
    from gnar_lib.demo import run_demo

    return run_demo(_read(port_or_0, arguments["<port>"] or 0, "port"))


def _read(reader: Callable[[Any], Any], value: object, where: str) -> Any:
    try:
        return reader(value)
    except UsageError as exc:
        raise UsageError(f"{where}: {exc}") from None


_COMMANDS: dict[str, tuple[str, Callable[[dict[str, Any]], int]]] = {
    "server": (SERVER, _server),
    "client": (CLIENT, _client),
    "relay": (RELAY, _relay),
    "demo": (DEMO, _demo),
}


def _flags(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, by their long names without the dashes."""
    given = {key: value for key, value in arguments.items() if key.startswith("--")}
    return {key[2:]: value for key, value in given.items() if value not in (None, False)}


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return the exit status: 0, 1 for a failure, 2 for a wrong call."""
    logger.have_streams()
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except UsageError as exc:
        return _complain(str(exc), 2)
    except GnarError as exc:
        return _complain(str(exc), 1)
    except KeyboardInterrupt:
        return 0


def _complain(text: str, status: int) -> int:
    with suppress(OSError):  # the status says it, too
        sys.stderr.write(f"gnar: {logger.printable(text)}\n")
    return status


def _show(text: str) -> int:
    return 0 if logger.show(text) else 1


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        return _show(USAGE) or (0 if argv else 2)
    if argv[0] in ("--version", "version"):
        return _show(f"gnar {__version__}\n")
    name = argv[0]
    if name not in _COMMANDS:
        raise UsageError(f"unknown command {name!r}{_meant(name, _COMMANDS)}; see gnar --help")
    text, run = _COMMANDS[name]
    if not {"-h", "--help"}.isdisjoint(argv[1:]):
        return _show(text)
    logger.setup()
    _raise_file_limit()
    return run(_parse(name, text, argv))


def _raise_file_limit() -> None:
    """Have as many descriptors as the system lets us: a user takes two, and the usual limit is 1,024."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (
        ImportError,
        OSError,
        ValueError,
    ):  # Windows has no such limit, macOS another
        return


def _parse(name: str, text: str, argv: list[str]) -> dict[str, Any]:
    """Let docopt read the arguments, and say in one line what it does not understand."""
    try:
        return dict(docopt(text, argv, default_help=False))
    except DocoptExit as exc:
        known = re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text)
        for word in (word.split("=")[0] for word in argv[1:]):
            if word.startswith("--") and word != "--" and not any(k.startswith(word) for k in known):
                reason = f"unknown option {word}{_meant(word, known)}"
                break
        else:
            reason = _given_twice(text, argv) or _first_line(exc) or _misfit(text)
        raise UsageError(f"{reason}; see gnar {name} --help") from None


def _first_line(exc: DocoptExit) -> str:
    """Return what docopt says in front of the usage, if it says anything."""
    line = str(exc).strip().splitlines()[0]
    return "" if line.startswith(("Usage", "Warning")) else line


def _misfit(text: str) -> str:
    found = re.search("^Usage: (.*)$", text, re.MULTILINE)
    return f"the arguments do not fit: {found[1]}" if found else "the arguments do not fit"


def _given_twice(text: str, argv: list[str]) -> str:
    """Say which option stands there twice, which docopt does not."""
    long_of = dict(re.findall(r"(-\w), (--[\w-]+)", text))
    words = [word for word in argv if re.match("--?[a-z]", word, re.IGNORECASE)]
    given = [word.split("=")[0] if word.startswith("--") else long_of.get(word[:2], "") for word in words]
    twice = next((option for option in given if option and given.count(option) > 1), "")
    return f"{twice} is given twice" if twice else ""


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
