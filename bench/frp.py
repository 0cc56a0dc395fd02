"""Starts frp, a tunnel in Go, with one proxy; knows no loads."""

from __future__ import annotations

from bench.launch import Launch, Starter
from bench.procs import free_port

FRP_PROGRAMS = ("frps", "frpc")
FRP_POOL = 5  # as in frp's own example file
QUIET = 'log.to = "console"\nlog.level = "warn"\n'


def frp(*, plain: bool) -> Starter:
    """Return how to start frp with a port for users; `plain` is frp's fastest way."""

    def start(launch: Launch) -> None:
        proxy = f'type = "{launch.proto}"\nremotePort = {launch.port}\n'
        start_frp(launch, proxy, plain=plain)

    return start


def start_frp(launch: Launch, proxy: str, server: str = "", *, plain: bool) -> None:
    """Start frp's server and client with further lines for the proxy and for the server.

    By default frp multiplexes and uses TLS. `plain`, without both and with a pool, is frp's fastest way.
    """
    control = free_port()
    both = QUIET + ("transport.tcpMux = false\n" if plain else "")
    pool = f"transport.poolCount = {FRP_POOL}\ntransport.tls.enable = false\n" if plain else ""
    server = f'bindAddr = "{launch.near.bind}"\nbindPort = {control}\n{both}{server}'
    client = (
        f'serverAddr = "{launch.near.ip}"\nserverPort = {control}\n{both}{pool}'
        f'[[proxies]]\nname = "bench"\n{proxy}localIP = "127.0.0.1"\nlocalPort = {launch.target}\n'
    )
    launch.server("frps", "-c", launch.file("frps.toml", server)).wait_listening(control)
    launch.client("frpc", "-c", launch.file("frpc.toml", client))
