"""Writes the TOML file of a client."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.harness import (
    Service,
)


def proxy_table(name: str, local_port: int, remote_port: int) -> str:
    return f'[[proxys]]\nproxy-name = "{name}"\nlocal-port = {local_port}\nremote-port = {remote_port}\n'


def write_proxies(config: Path, service: Service, ports: dict[str, int]) -> None:
    """Write a client's file with these proxies of one service."""
    config.write_text(
        "\n".join(
            f'[[proxys]]\nproxy-name = "{name}"\nlocal-port = {service.port}\nremote-port = {port}\n'
            for name, port in ports.items()
        )
    )
