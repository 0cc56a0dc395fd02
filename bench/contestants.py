"""The contestants: how each is started between a user's port and a local service; knows nothing of loads."""

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

MAX_CONNECTIONS = 20_000  # what haproxy makes room for, if it may have that many files
FILES_SPARE = 200  # of haproxy's own
SOCAT_BACKLOG = 1024
BULK_BUFFER_BYTES = 262_144  # what `socat -b` is given
FRP_POOL = 5  # what frp's own example file sets
BORE_CONTROL_PORT = 7835  # bore has no flag for it
RATHOLE_TOKEN = "bench"  # noqa: S105 (rathole demands one)

Command = tuple[str, ...]


class Kind(Enum):
    """What a contestant does, and so whom it is compared with."""

    DIRECT = "direct"
    RELAY = "relay"
    TUNNEL = "tunnel"


@dataclass(slots=True)
class Job:
    """One contestant's start: its hosts, the local service's port, and the port at which users come."""

    crew: Crew
    near: Host  # the user's and the server's
    far: Host  # the client's and the local service's
    proto: str  # "tcp" or "udp"
    target: int  # the local service's port on `far`
    port: int = field(default_factory=free_port)  # what users connect to, on `near`
    procs: list[Proc] = field(default_factory=list)

    def server(self, *argv: object, env: Mapping[str, str] | None = None) -> Proc:
        """Start the end with the public address."""
        return self._start(self.near, argv, "server", env)

    def client(self, *argv: object, env: Mapping[str, str] | None = None) -> Proc:
        """Start the end beside the local service."""
        return self._start(self.far, argv, "client", env)

    def _start(self, host: Host, argv: Sequence[object], role: str, env: Mapping[str, str] | None) -> Proc:
        proc = self.crew.start(host, argv, role=role, env=env)
        self.procs.append(proc)
        return proc

    def file(self, name: str, text: str) -> Path:
        """Write a configuration file for this start alone."""
        path = self.crew.folder / f"{secrets.token_hex(6)}-{name}"
        path.write_text(text)
        return path


Starter = Callable[[Job], None]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A name for the tables, and how to start what it stands for."""

    name: str
    kind: Kind
    start: Starter
    programs: Command = ()  # have to be on the PATH
    protos: Command = ("tcp",)
    optional: bool = False  # left out, not failed, where its programs are missing

    def missing(self) -> list[str]:
        """The programs that are not there."""
        return [program for program in self.programs if shutil.which(program) is None]


def start_direct(job: Job) -> None:
    """Nothing in between: the user dials the local service."""
    job.port = job.target
    job.near = job.far


def haproxy_config(bind: str, port: int, target_ip: str, target: int) -> str:
    """One haproxy thread that hands TCP connections on."""
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


def start_haproxy(job: Job) -> None:
    """One of them is what a relay can be."""
    config = job.file("haproxy.cfg", haproxy_config(job.near.bind, job.port, job.far.ip, job.target))
    job.server("haproxy", "-db", "-f", config)


def start_haproxy_x2(job: Job) -> None:
    """Two in a row are what a tunnel can be."""
    middle = free_port()
    first = job.file("haproxy.cfg", haproxy_config(job.near.bind, job.port, job.far.ip, middle))
    second = job.file("haproxy.cfg", haproxy_config(job.far.bind, middle, "127.0.0.1", job.target))
    job.client("haproxy", "-db", "-f", second).wait_listening(middle)
    job.server("haproxy", "-db", "-f", first)


def socat(*flags: object) -> Starter:
    """The relay that gnar's replaces."""

    def start(job: Job) -> None:
        listen = f"{job.proto.upper()}-LISTEN:{job.port},bind={job.near.ip},fork,reuseaddr"
        if job.proto == "tcp":
            listen += f",backlog={SOCAT_BACKLOG}"
        job.server("socat", *flags, listen, f"{job.proto.upper()}:{job.far.ip}:{job.target}")

    return start


def gnar_relay(gnar: Command) -> Starter:
    """The stand-alone forwarder."""

    def start(job: Job) -> None:
        listen, target = f"{job.near.ip}:{job.port}", f"{job.far.ip}:{job.target}"
        job.server(*gnar, "relay", f"{job.proto}:{listen}", f"{job.proto}:{target}")

    return start


def gnar_tunnel(server: Command, client: Command, *, multiplex: bool = False, go: bool = False) -> Starter:
    """Server and client. A Go server has no --bind, and has to be told of multiplexing."""

    def start(job: Job) -> None:
        control = free_port()
        flags = ["--bind", job.near.bind] if not go else ["-m"] if multiplex else []
        job.server(*server, "server", "-p", control, *flags).wait_listening(control)
        flags = (["-m"] if multiplex else []) + (["-y", "udp"] if job.proto == "udp" else [])
        ports = ["-l", job.target, "-r", job.port]
        job.client(*client, "client", "-s", f"{job.near.ip}:{control}", *ports, *flags)

    return start


def start_rathole(job: Job) -> None:
    """A tunnel in Rust: plain TCP between its ends, as gnar's."""
    control, quiet = free_port(), {"RUST_LOG": "error"}
    service = f'type = "{job.proto}"\ntoken = "{RATHOLE_TOKEN}"\n'
    server = (
        f'[server]\nbind_addr = "{job.near.bind}:{control}"\n'
        f'[server.services.bench]\n{service}bind_addr = "{job.near.bind}:{job.port}"\n'
    )
    client = (
        f'[client]\nremote_addr = "{job.near.ip}:{control}"\n'
        f'[client.services.bench]\n{service}local_addr = "127.0.0.1:{job.target}"\n'
    )
    job.server("rathole", "--server", job.file("server.toml", server), env=quiet).wait_listening(control)
    job.client("rathole", "--client", job.file("client.toml", client), env=quiet)


def start_bore(job: Job) -> None:
    """A tunnel in Rust whose control port is fixed: on loopback it gets an address of its own instead."""
    quiet = {"RUST_LOG": "error"}
    address = job.near.ip
    if job.near == LOOPBACK:
        address = f"127.{1 + secrets.randbelow(250)}.{secrets.randbelow(250)}.{1 + secrets.randbelow(250)}"
    server = job.server("bore", "server", "--bind-addr", address, "--bind-tunnels", job.near.bind, env=quiet)
    server.wait_listening(BORE_CONTROL_PORT)
    job.client("bore", "local", job.target, "-l", "127.0.0.1", "--to", address, "-p", job.port, env=quiet)


def frp(*, plain: bool) -> Starter:
    """A tunnel in Go: as it comes (multiplexed, TLS), or plain with a pool, which is its fastest."""

    def start(job: Job) -> None:
        control = free_port()
        quiet = 'log.to = "console"\nlog.level = "warn"\n'
        both = "transport.tcpMux = false\n" if plain else ""
        pool = f"transport.poolCount = {FRP_POOL}\ntransport.tls.enable = false\n" if plain else ""
        server = f'bindAddr = "{job.near.bind}"\nbindPort = {control}\n{quiet}{both}'
        client = (
            f'serverAddr = "{job.near.ip}"\nserverPort = {control}\n{quiet}{both}{pool}'
            f'[[proxies]]\nname = "bench"\ntype = "{job.proto}"\n'
            f'localIP = "127.0.0.1"\nlocalPort = {job.target}\nremotePort = {job.port}\n'
        )
        job.server("frps", "-c", job.file("frps.toml", server)).wait_listening(control)
        job.client("frpc", "-c", job.file("frpc.toml", client))

    return start


def parse_peer(text: str) -> tuple[str, Command, Command]:
    """NAME=COMMAND or NAME=SERVER_COMMAND,CLIENT_COMMAND. Raises BenchError."""
    name, _, commands = text.partition("=")
    server, _, client = commands.partition(",")
    if not name or not server:
        raise BenchError(f"--peer {text}: give it as NAME=COMMAND or NAME=SERVER_COMMAND,CLIENT_COMMAND")
    return name, tuple(shlex.split(server)), tuple(shlex.split(client or server))


def all_contestants(gnar: str, peers: Sequence[str]) -> list[Contestant]:
    """Everyone, in the order of the tables. Raises BenchError for a --peer that cannot be read."""
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
    for name, server, client in map(parse_peer, peers):
        programs = (server[0], client[0])
        for suffix, multiplex in (("", False), (" -m", True)):
            start = gnar_tunnel(server, client, multiplex=multiplex, go=True)
            found.append(Contestant(name + suffix, Kind.TUNNEL, start, programs, both))
    return found
