"""The contestants, and how each is started between a user's port and a local service; knows no loads."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.configs import haproxy_config
from bench.encrypted import encrypted_tunnels
from bench.frp import FRP_PROGRAMS, frp
from bench.haproxys import start_two_haproxys
from bench.launch import NO_MULTIPLEX, Command, Contestant, Gnar, Kind, Launch, Starter, in_the_clear
from bench.procs import LOOPBACK, BenchError, free_port
from bench.rathole import RATHOLE_PROGRAMS, rathole
from bench.vhosts import by_host_name

SOCAT_BACKLOG = 1024
BULK_BUFFER_BYTES = 262_144  # for `socat -b`
BORE_CONTROL_PORT = 7835  # fixed: bore has no flag for the control port
# How data gets from server to client: as gnar chooses, over one connection, or over one for each user.
PEER_WAYS: dict[str, Command] = {"": (), " -m": ("-m",)}  # by what the name of a contestant ends with
WAYS: dict[str, Command] = {**PEER_WAYS, " plain": (NO_MULTIPLEX,)}


def start_direct(launch: Launch) -> None:
    """Start nothing: users connect to the local service."""
    launch.port = launch.target
    launch.near = launch.far


def start_haproxy(launch: Launch) -> None:
    """Start one haproxy, the yardstick for a relay."""
    config = haproxy_config(f"{launch.near.bind}:{launch.port}", f"{launch.far.ip}:{launch.target}")
    launch.server("haproxy", "-db", "-f", launch.file("haproxy.cfg", config))


def start_haproxy_x2(launch: Launch) -> None:
    """Start two haproxys in a row, the yardstick for a tunnel."""
    start_two_haproxys(launch)


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


def start_gnar_server(launch: Launch, gnar: Gnar) -> int:
    """Start `gnar server` alone; return its control port."""
    control = free_port()
    flags = ["--bind", launch.near.bind] if not gnar.go else [flag for flag in gnar.flags if flag == "-m"]
    launch.server(*gnar.server, "server", "-p", control, *flags).wait_listening(control)
    return control


def gnar_tunnel(gnar: Gnar) -> Starter:
    """Return how to start `gnar server` and `gnar client`."""

    def start(launch: Launch) -> None:
        control = start_gnar_server(launch, gnar)
        flags = [*gnar.client_flags(), *(["-y", "udp"] if launch.proto == "udp" else [])]
        ports = ["-l", launch.target, "-r", launch.port]
        launch.client(*gnar.client, "client", "-s", f"{launch.near.ip}:{control}", *ports, *flags)

    return start


def watched_tunnel(gnar: Command, *, multiplex: bool = False) -> Starter:
    """Return how to start a tunnel at whose panel somebody looks; curl stands in for the page."""

    def start(launch: Launch) -> None:
        control, admin = free_port(), free_port()
        watch = ["--bind", launch.near.bind, "-a", admin]
        launch.server(*gnar, "server", "-p", control, *watch).wait_listening(admin)
        flags = [*(["-m"] if multiplex else []), *in_the_clear(gnar)]
        ports = ["-l", launch.target, "-r", launch.port]
        launch.client(*gnar, "client", "-s", f"{launch.near.ip}:{control}", *ports, *flags)
        url = f"http://127.0.0.1:{admin}/api/v1/live"
        launch.crew.start(launch.near, ["curl", "-sN", "-o", "/dev/null", url], role="page")

    return start


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
    both, every = ("tcp", "udp"), ("tcp", "udp", "http")
    bulk = ("-b", BULK_BUFFER_BYTES)
    found = [
        Contestant("direct", Kind.DIRECT, start_direct, protos=every),
        Contestant("haproxy", Kind.RELAY, start_haproxy, ("haproxy",)),
        Contestant("socat", Kind.RELAY, socat(), ("socat",), both),
        Contestant("socat -b 262144", Kind.RELAY, socat(*bulk), ("socat",)),
        Contestant("gnar relay", Kind.RELAY, gnar_relay(ours), ours[:1], both),
        Contestant("haproxy x2", Kind.TUNNEL, start_haproxy_x2, ("haproxy",)),
        *_tunnels("gnar tunnel", Gnar(ours, ours), WAYS, every),
        Contestant("rathole", Kind.TUNNEL, rathole(noise=False), RATHOLE_PROGRAMS, both, optional=True),
        Contestant("bore", Kind.TUNNEL, start_bore, ("bore",), optional=True),
        Contestant("frp plain", Kind.TUNNEL, frp(plain=True), FRP_PROGRAMS, both, optional=True),
        *encrypted_tunnels(),
        *by_host_name(ours),
    ]
    for suffix, multiplex in (("", False), (" -m", True)):
        start = watched_tunnel(ours, multiplex=multiplex)
        found.append(Contestant(f"gnar watched{suffix}", Kind.TUNNEL, start, (ours[0], "curl"), extra=True))
    for name, server, client in map(parse_peer, peers):
        found += _tunnels(name, Gnar(server, client, go=True), PEER_WAYS, both)
    return found


def _tunnels(name: str, gnar: Gnar, ways: dict[str, Command], protos: Command) -> Iterator[Contestant]:
    """Yield the tunnels of a gnar, plain and encrypted; those that the gnar does not know are left out."""
    programs = tuple(dict.fromkeys((gnar.server[0], gnar.client[0])))
    for kind, of_kind in ((Kind.TUNNEL, ""), (Kind.ENCRYPTED, " tls")):
        encrypted = kind is Kind.ENCRYPTED
        for way, flags in ways.items():
            tunnel = replace(gnar, flags=flags, encrypted=encrypted)
            optional = encrypted or NO_MULTIPLEX in flags
            yield Contestant(
                name + of_kind + way,
                kind,
                gnar_tunnel(tunnel),
                programs,
                protos,
                optional=optional,
                gnar=tunnel,
            )
