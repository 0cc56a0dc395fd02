"""Writes the TOML file of a client."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.harness import Service


def proxy_table(name: str, local_port: int, remote_port: int, kind: str = "tcp") -> str:
    """Return the table of one proxy."""
    return (
        f'[[proxys]]\nproxy-name = "{name}"\nproxy-type = "{kind}"\n'
        f"local-port = {local_port}\nremote-port = {remote_port}\n"
    )


def write_proxies(config: Path, service: Service, ports: dict[str, int]) -> None:
    """Write a client's file in which each of these remote ports leads to one service."""
    config.write_text("\n".join(proxy_table(name, service.port, port) for name, port in ports.items()))
