"""The contestants that carry bytes encrypted, besides gnar, and how each is started; knows no loads."""

from __future__ import annotations

from bench.frp import FRP_PROGRAMS, frp
from bench.haproxys import start_two_haproxys
from bench.launch import Contestant, Kind, Launch
from bench.procs import free_port
from bench.rathole import RATHOLE_PROGRAMS, rathole


def start_haproxy_tls(launch: Launch) -> None:
    """Start two haproxys in a row with TLS between them, the yardstick for a tunnel that encrypts."""
    start_two_haproxys(launch, tls=True)


def start_chisel(launch: Launch) -> None:
    """Start chisel, a tunnel in Go that carries SSH in a WebSocket."""
    control, kind = free_port(), "/udp" if launch.proto == "udp" else ""
    server = launch.server("chisel", "server", "--host", launch.near.bind, "--port", control, "--reverse")
    server.wait_listening(control)
    remote = f"R:{launch.near.bind}:{launch.port}:127.0.0.1:{launch.target}{kind}"
    launch.client("chisel", "client", f"http://{launch.near.ip}:{control}", remote)


def encrypted_tunnels() -> list[Contestant]:
    """Return the contestants of this module in the order of the tables."""
    both = ("tcp", "udp")
    return [
        Contestant(
            "haproxy x2 tls", Kind.ENCRYPTED, start_haproxy_tls, ("haproxy", "openssl"), optional=True
        ),
        Contestant(
            "rathole noise", Kind.ENCRYPTED, rathole(noise=True), RATHOLE_PROGRAMS, both, optional=True
        ),
        Contestant("frp", Kind.ENCRYPTED, frp(plain=False), FRP_PROGRAMS, both, optional=True),
        Contestant("chisel", Kind.ENCRYPTED, start_chisel, ("chisel",), both, optional=True),
    ]
