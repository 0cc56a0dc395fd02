"""The contestants, and how each is started between a user's port and a local service; knows no loads."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence

from bench.configs import haproxy_config
from bench.frp import FRP_PROGRAMS, start_frp
from bench.launch import NO_MULTIPLEX, Command, Contestant, Gnar, Kind, Launch, Starter
from bench.procs import LOOPBACK, BenchError, free_port
from bench.vhosts import by_host_name

SOCAT_BACKLOG = 1024
BULK_BUFFER_BYTES = 262_144  # for `socat -b`
BORE_CONTROL_PORT = 7835  # fixed: bore has no flag for the control port
# How data gets from server to client: as gnar chooses, over one connection, or over one for each user.
PEER_WAYS: dict[str, Command] = {"": (), " -m": ("-m",)}  # by what the name of a contestant ends with
WAYS: dict[str, Command] = {**PEER_WAYS, " plain": (NO_MULTIPLEX,)}
RATHOLE_TOKEN = "bench"  # noqa: S105 (rathole demands one)


def start_direct(launch: Launch) -> None:
    """Start nothing: users connect to the local service."""
    launch.port = launch.target
    launch.near = launch.far


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
        flags = [*gnar.flags, *(["-y", "udp"] if launch.proto == "udp" else [])]
        ports = ["-l", launch.target, "-r", launch.port]
        launch.client(*gnar.client, "client", "-s", f"{launch.near.ip}:{control}", *ports, *flags)

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
    """Return how to start frp, a tunnel in Go; `plain` is frp's fastest way."""

    def start(launch: Launch) -> None:
        proxy = f'type = "{launch.proto}"\nremotePort = {launch.port}\n'
        start_frp(launch, proxy, plain=plain)

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
    both, every = ("tcp", "udp"), ("tcp", "udp", "http")
    bulk = ("-b", BULK_BUFFER_BYTES)
    found = [
        Contestant("direct", Kind.DIRECT, start_direct, protos=every),
        Contestant("haproxy", Kind.RELAY, start_haproxy, ("haproxy",)),
        Contestant("socat", Kind.RELAY, socat(), ("socat",), both),
        Contestant("socat -b 262144", Kind.RELAY, socat(*bulk), ("socat",)),
        Contestant("gnar relay", Kind.RELAY, gnar_relay(ours), ours[:1], both),
        Contestant("haproxy x2", Kind.TUNNEL, start_haproxy_x2, ("haproxy",)),
        *(_tunnel(f"gnar tunnel{suffix}", Gnar(ours, ours, flags), every) for suffix, flags in WAYS.items()),
        Contestant("rathole", Kind.TUNNEL, start_rathole, ("rathole",), both, optional=True),
        Contestant("bore", Kind.TUNNEL, start_bore, ("bore",), optional=True),
        Contestant("frp", Kind.TUNNEL, frp(plain=False), FRP_PROGRAMS, both, optional=True),
        Contestant("frp plain", Kind.TUNNEL, frp(plain=True), FRP_PROGRAMS, both, optional=True),
        *by_host_name(ours),
    ]
    for suffix, multiplex in (("", False), (" -m", True)):
        start = watched_tunnel(ours, multiplex=multiplex)
        found.append(Contestant(f"gnar watched{suffix}", Kind.TUNNEL, start, (ours[0], "curl"), extra=True))
    for name, server, client in map(parse_peer, peers):
        for suffix, flags in PEER_WAYS.items():
            found.append(_tunnel(name + suffix, Gnar(server, client, flags, go=True), both))
    return found


def _tunnel(name: str, gnar: Gnar, protos: Command) -> Contestant:
    """Return a tunnel of gnar's; one that the file at hand does not know is left out."""
    programs = tuple(dict.fromkeys((gnar.server[0], gnar.client[0])))
    optional = NO_MULTIPLEX in gnar.flags
    return Contestant(name, Kind.TUNNEL, gnar_tunnel(gnar), programs, protos, optional=optional, gnar=gnar)
