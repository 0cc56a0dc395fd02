"""Starts rathole, a tunnel in Rust; knows no loads."""

from __future__ import annotations

from bench.launch import Launch, Starter
from bench.procs import LOOPBACK, BenchError, free_port

RATHOLE_PROGRAMS = ("rathole",)
RATHOLE_TOKEN = "bench"  # noqa: S105 (rathole demands one)
QUIET = {"RUST_LOG": "error"}
KEYS = 2  # of a pair: each stands on a line of its own, below its title


def rathole(*, noise: bool) -> Starter:
    """Return how to start rathole, with the Noise protocol or with plain TCP between server and client."""

    def start(launch: Launch) -> None:
        control = free_port()
        of_server, of_client = _noise() if noise else ("", "")
        service = f'type = "{launch.proto}"\ntoken = "{RATHOLE_TOKEN}"\n'
        server = (
            f'[server]\nbind_addr = "{launch.near.bind}:{control}"\n{of_server}'
            f'[server.services.bench]\n{service}bind_addr = "{launch.near.bind}:{launch.port}"\n'
        )
        client = (
            f'[client]\nremote_addr = "{launch.near.ip}:{control}"\n{of_client}'
            f'[client.services.bench]\n{service}local_addr = "127.0.0.1:{launch.target}"\n'
        )
        started = launch.server("rathole", "--server", launch.file("server.toml", server), env=QUIET)
        started.wait_listening(control)
        launch.client("rathole", "--client", launch.file("client.toml", client), env=QUIET)

    return start


def _noise() -> tuple[str, str]:
    """Return what server and client need to know of a new pair of keys; raises BenchError."""
    told = LOOPBACK.run(["rathole", "--genkey"], check=False)
    keys = [line for line in told.stdout.splitlines() if line.endswith("=")]
    if len(keys) != KEYS:  # one that was built without its feature `noise` has no such flag
        raise BenchError("rathole --genkey gives no keys: it was built without noise")
    private, public = keys
    return (
        _table("server", f'local_private_key = "{private}"'),
        _table("client", f'remote_public_key = "{public}"'),
    )


def _table(role: str, key: str) -> str:
    return f'[{role}.transport]\ntype = "noise"\n[{role}.transport.noise]\n{key}\n'
