"""A flood of messages from many clients; a program, so that it takes no turns from the threads of a test."""

from __future__ import annotations

import contextlib
import sys

from gnar_lib.proto import Heartbeat, ProxyReq, ProxyResp, to_frame
from tests.peers.plain import own_client, recv_message


def main(server_port: int, clients: int, heartbeats: int) -> None:
    """Once a line has come, send heartbeats from each client between two requests, and wait for answers."""
    request = to_frame(ProxyReq(0, "flood", "", "tcp"))
    flood = request + to_frame(Heartbeat()) * heartbeats + request
    print("ready", flush=True)
    sys.stdin.readline()
    with contextlib.ExitStack() as stack:
        attackers = [stack.enter_context(own_client(server_port)) for _ in range(clients)]
        for attacker in attackers:
            attacker.sendall(flood)
        for attacker in attackers:
            for _ in range(2):
                assert isinstance(recv_message(attacker), ProxyResp)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
