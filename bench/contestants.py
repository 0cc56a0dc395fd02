"""The contestants, and how each is started between a user's port and a local service; knows no loads."""

from __future__ import annotations

import resource
import secrets
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from bench.procs import LOOPBACK, BenchError, Crew, Host, Proc, free_port

MAX_CONNECTIONS = 20_000  # haproxy's limit, if haproxy may open enough files for them
FILES_SPARE = 200  # files that haproxy opens besides its connections
SOCAT_BACKLOG = 1024
BULK_BUFFER_BYTES = 262_144  # for `socat -b`
FRP_POOL = 5  # as in frp's own example file
BORE_CONTROL_PORT = 7835  # fixed: bore has no flag for the control port
RATHOLE_TOKEN = "bench"  # noqa: S105 (rathole demands one)

Command = tuple[str, ...]


class Kind(Enum):
    """What a contestant does; contestants are compared with others of the same kind."""

    DIRECT = "direct"
    RELAY = "relay"
    TUNNEL = "tunnel"


@dataclass(slots=True)
class Launch:
    """One start of a contestant: where its programs run, and which ports they use."""

    crew: Crew  # owns the programs that are started
    near: Host  # where users and the server are
    far: Host  # where the client and the local service are
    proto: str  # "tcp" or "udp"
    target: int  # port of the local service on `far`
    port: int = field(default_factory=free_port)  # port on `near` to which users connect
    procs: list[Proc] = field(default_factory=list)  # the programs that were started

    def server(self, *argv: object, env: Mapping[str, str] | None = None) -> Proc:
        """Start the server, or a relay; raises BenchError."""
        return self._start(self.near, argv, "server", env)

    def client(self, *argv: object, env: Mapping[str, str] | None = None) -> Proc:
        """Start the client, beside the local service; raises BenchError."""
        return self._start(self.far, argv, "client", env)

    def _start(self, host: Host, argv: Sequence[object], role: str, env: Mapping[str, str] | None) -> Proc:
        proc = self.crew.start(host, argv, role=role, env=env)
        self.procs.append(proc)
        return proc

    def file(self, name: str, text: str) -> Path:
        """Write a configuration file for this start and return its path."""
        path = self.crew.folder / f"{secrets.token_hex(6)}-{name}"
        path.write_text(text)
        return path


Starter = Callable[[Launch], None]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program, or several together, that carry users' bytes to a local service."""

    name: str  # in tables
    kind: Kind
    start: Starter
    programs: Command = ()  # programs that have to be on the PATH
    protos: Command = ("tcp",)  # "tcp", "udp" or both
    optional: bool = False  # whether the contestant is left out, and has not failed, if programs are missing
    extra: bool = False  # whether the contestant takes part only if it is named

    def missing(self) -> list[str]:
        """Return the programs that are not on the PATH."""
        return [program for program in self.programs if shutil.which(program) is None]


def start_direct(launch: Launch) -> None:
    """Start nothing: users connect to the local service."""
    launch.port = launch.target
    launch.near = launch.far


def haproxy_config(bind: str, port: int, target_ip: str, target: int) -> str:
    """Return the configuration of a haproxy with one thread that forwards TCP connections."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = min(MAX_CONNECTIONS, (files - FILES_SPARE) // 2)
    return f"""
global
  nbthread 1
  maxconn {connections}
defaults
  mode tcp
  maxconn {connections}
  timeout connect 10s
  timeout client 1h
  timeout server 1h
listen bench
  bind {bind}:{port} backlog 1024
  server service {target_ip}:{target}
"""


def start_haproxy(launch: Launch) -> None:
    """Start one haproxy, the yardstick for a relay."""
    config = launch.file(
        "haproxy.cfg", haproxy_config(launch.near.bind, launch.port, launch.far.ip, launch.target)
    )
    launch.server("haproxy", "-db", "-f", config)


def start_haproxy_x2(launch: Launch) -> None:
    """Start two haproxys in a row, the yardstick for a tunnel."""
    middle = free_port()
    first = launch.file("haproxy.cfg", haproxy_config(launch.near.bind, launch.port, launch.far.ip, middle))
    second = launch.file("haproxy.cfg", haproxy_config(launch.far.bind, middle, "127.0.0.1", launch.target))
    launch.client("haproxy", "-db", "-f", second).wait_listening(middle)
    launch.server("haproxy", "-db", "-f", first)


def socat(*flags: object) -> Starter:
    """Return how to start socat with these flags."""

    def start(launch: Launch) -> None:
        listen = f"{launch.proto.upper()}-LISTEN:{launch.port},bind={launch.near.ip},fork,reuseaddr"
        if launch.proto == "tcp":
            listen += f",backlog={SOCAT_BACKLOG}"
        launch.server("socat", *flags, listen, f"{launch.proto.upper()}:{launch.far.ip}:{launch.target}")

    return start


def gnar_relay(gnar: Command) -> Starter:
    """Return how to start `gnar relay`."""

    def start(launch: Launch) -> None:
        listen, target = f"{launch.near.ip}:{launch.port}", f"{launch.far.ip}:{launch.target}"
        launch.server(*gnar, "relay", f"{launch.proto}:{listen}", f"{launch.proto}:{target}")

    return start


def gnar_tunnel(server: Command, client: Command, *, multiplex: bool = False, go: bool = False) -> Starter:
    """Return how to start `gnar server` and `gnar client`.

    A Go server has no --bind, and needs -m to multiplex.
    """

    def start(launch: Launch) -> None:
        control = free_port()
        flags = ["--bind", launch.near.bind] if not go else ["-m"] if multiplex else []
        launch.server(*server, "server", "-p", control, *flags).wait_listening(control)
        flags = (["-m"] if multiplex else []) + (["-y", "udp"] if launch.proto == "udp" else [])
        ports = ["-l", launch.target, "-r", launch.port]
        launch.client(*client, "client", "-s", f"{launch.near.ip}:{control}", *ports, *flags)

    return start


def watched_tunnel(gnar: Command, *, multiplex: bool = False) -> Starter:
    """Return how to start a tunnel at whose panel somebody looks; curl stands in for the page."""

    def start(launch: Launch) -> None:
        control, admin = free_port(), free_port()
        watch = ["--bind", launch.near.bind, "-a", admin]
        launch.server(*gnar, "server", "-p", control, *watch).wait_listening(admin)
        flags = ["-m"] if multiplex else []
        ports = ["-l", launch.target, "-r", launch.port]
        launch.client(*gnar, "client", "-s", f"{launch.near.ip}:{control}", *ports, *flags)
        url = f"http://127.0.0.1:{admin}/api/v1/live"
        launch.crew.start(launch.near, ["curl", "-sN", "-o", "/dev/null", url], role="page")

    return start


def start_rathole(launch: Launch) -> None:
    """Start rathole, a tunnel in Rust, with plain TCP between server and client, as gnar has."""
    control, quiet = free_port(), {"RUST_LOG": "error"}
    service = f'type = "{launch.proto}"\ntoken = "{RATHOLE_TOKEN}"\n'
    server = (
        f'[server]\nbind_addr = "{launch.near.bind}:{control}"\n'
        f'[server.services.bench]\n{service}bind_addr = "{launch.near.bind}:{launch.port}"\n'
    )
    client = (
        f'[client]\nremote_addr = "{launch.near.ip}:{control}"\n'
        f'[client.services.bench]\n{service}local_addr = "127.0.0.1:{launch.target}"\n'
    )
    launch.server("rathole", "--server", launch.file("server.toml", server), env=quiet).wait_listening(
        control
    )
    launch.client("rathole", "--client", launch.file("client.toml", client), env=quiet)


def start_bore(launch: Launch) -> None:
    """Start bore, a tunnel in Rust. Its control port is fixed, so each start on loopback has an address."""
    quiet = {"RUST_LOG": "error"}
    address = launch.near.ip
    if launch.near == LOOPBACK:
        address = f"127.{1 + secrets.randbelow(250)}.{secrets.randbelow(250)}.{1 + secrets.randbelow(250)}"
    server = launch.server(
        "bore", "server", "--bind-addr", address, "--bind-tunnels", launch.near.bind, env=quiet
    )
    server.wait_listening(BORE_CONTROL_PORT)
    launch.client(
        "bore", "local", launch.target, "-l", "127.0.0.1", "--to", address, "-p", launch.port, env=quiet
    )


def frp(*, plain: bool) -> Starter:
    """Return how to start frp, a tunnel in Go.

    By default frp multiplexes and uses TLS. `plain`, without both and with a pool, is frp's fastest way.
    """

    def start(launch: Launch) -> None:
        control = free_port()
        quiet = 'log.to = "console"\nlog.level = "warn"\n'
        both = "transport.tcpMux = false\n" if plain else ""
        pool = f"transport.poolCount = {FRP_POOL}\ntransport.tls.enable = false\n" if plain else ""
        server = f'bindAddr = "{launch.near.bind}"\nbindPort = {control}\n{quiet}{both}'
        client = (
            f'serverAddr = "{launch.near.ip}"\nserverPort = {control}\n{quiet}{both}{pool}'
            f'[[proxies]]\nname = "bench"\ntype = "{launch.proto}"\n'
            f'localIP = "127.0.0.1"\nlocalPort = {launch.target}\nremotePort = {launch.port}\n'
        )
        launch.server("frps", "-c", launch.file("frps.toml", server)).wait_listening(control)
        launch.client("frpc", "-c", launch.file("frpc.toml", client))

    return start


def parse_peer(text: str) -> tuple[str, Command, Command]:
    """Return name, server's and client's command of NAME=COMMAND or NAME=SERVER_COMMAND,CLIENT_COMMAND.

    Raises BenchError.
    """
    name, _, commands = text.partition("=")
    server, _, client = commands.partition(",")
    if not name or not server:
        raise BenchError(f"--peer {text}: give it as NAME=COMMAND or NAME=SERVER_COMMAND,CLIENT_COMMAND")
    return name, tuple(shlex.split(server)), tuple(shlex.split(client or server))


def all_contestants(gnar: str, peers: Sequence[str]) -> list[Contestant]:
    """Return all contestants in the order of the tables; raises BenchError for a wrong --peer."""
    ours = tuple(shlex.split(gnar))
    both = ("tcp", "udp")
    bulk = ("-b", BULK_BUFFER_BYTES)
    frps = ("frps", "frpc")
    found = [
        Contestant("direct", Kind.DIRECT, start_direct, protos=both),
        Contestant("haproxy", Kind.RELAY, start_haproxy, ("haproxy",)),
        Contestant("socat", Kind.RELAY, socat(), ("socat",), both),
        Contestant("socat -b 262144", Kind.RELAY, socat(*bulk), ("socat",)),
        Contestant("gnar relay", Kind.RELAY, gnar_relay(ours), ours[:1], both),
        Contestant("haproxy x2", Kind.TUNNEL, start_haproxy_x2, ("haproxy",)),
        Contestant("gnar tunnel", Kind.TUNNEL, gnar_tunnel(ours, ours), ours[:1], both),
        Contestant("gnar tunnel -m", Kind.TUNNEL, gnar_tunnel(ours, ours, multiplex=True), ours[:1], both),
        Contestant("rathole", Kind.TUNNEL, start_rathole, ("rathole",), both, optional=True),
        Contestant("bore", Kind.TUNNEL, start_bore, ("bore",), optional=True),
        Contestant("frp", Kind.TUNNEL, frp(plain=False), frps, both, optional=True),
        Contestant("frp plain", Kind.TUNNEL, frp(plain=True), frps, both, optional=True),
    ]
    for suffix, multiplex in (("", False), (" -m", True)):
        start = watched_tunnel(ours, multiplex=multiplex)
        found.append(Contestant(f"gnar watched{suffix}", Kind.TUNNEL, start, (ours[0], "curl"), extra=True))
    for name, server, client in map(parse_peer, peers):
        programs = (server[0], client[0])
        for suffix, multiplex in (("", False), (" -m", True)):
            start = gnar_tunnel(server, client, multiplex=multiplex, go=True)
            found.append(Contestant(name + suffix, Kind.TUNNEL, start, programs, both))
    return found
