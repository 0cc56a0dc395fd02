"""The contestants that encrypt, besides gnar: what travels between their two ends, and what they are told."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import pytest

from bench.contestants import all_contestants
from bench.launch import Contestant, Kind, Launch
from bench.procs import LOOPBACK, BenchError, Crew, Proc
from bench.rathole import rathole
from bench.rounds import Site, start_contestant
from bench.services import TcpEcho

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE, PUBLIC = "cHJpdmF0ZQ==", "cHVibGlj="


def _contestant(name: str) -> Contestant:
    (found,) = [each for each in all_contestants("gnar", []) if each.name == name]
    return found


def test_tunnels_that_encrypt_are_compared_with_each_other() -> None:
    encrypted = [each.name for each in all_contestants("gnar", []) if each.kind is Kind.ENCRYPTED]
    ours = ["gnar tunnel tls", "gnar tunnel tls -m", "gnar tunnel tls plain"]
    assert encrypted == [*ours, "haproxy x2 tls", "rathole noise", "frp", "chisel"]


def test_two_haproxys_have_tls_between_them(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew:
        site = Site(crew, LOOPBACK, LOOPBACK, TcpEcho(crew, LOOPBACK))
        start_contestant(_contestant("haproxy x2 tls"), site)  # which has used the service
        told = "".join(path.read_text() for path in tmp_path.glob("*haproxy.cfg"))
        (port,) = re.findall(r"server service \S+:(\d+) ssl", told)
        assert ssl.get_server_certificate(("127.0.0.1", int(port)), timeout=10)


class _Told(Launch):
    """A start of which only the configuration is kept."""

    def _start(self, *_: object) -> Proc:
        return _Listening()


class _Listening(Proc):
    """A program that listens from the beginning on."""

    def __init__(self) -> None: ...

    def wait_listening(self, port: int) -> None: ...


@pytest.mark.parametrize("keys", [f"Private Key:\n{PRIVATE}\n\nPublic Key:\n{PUBLIC}\n", ""])
def test_rathole_has_a_new_key_for_noise(keys: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "rathole"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{keys}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    start, launch = rathole(noise=True), _Told(Crew(tmp_path), LOOPBACK, LOOPBACK, "tcp", 9)
    if not keys:
        with pytest.raises(BenchError, match="built without noise"):
            start(launch)
        return
    start(launch)
    server, client = (next(tmp_path.glob(f"*-{role}.toml")).read_text() for role in ("server", "client"))
    assert f'[server.transport.noise]\nlocal_private_key = "{PRIVATE}"\n' in server
    assert f'[client.transport.noise]\nremote_public_key = "{PUBLIC}"\n' in client
    assert 'type = "noise"' in server
    assert 'type = "noise"' in client
    assert PRIVATE not in client
