"""A service and a client of gRPC, each a process of its own: gRPC's threads and gevent do not mix.

python -m tests.peers.grpc_peer serve                 prints its port, and ends with its standard input
python -m tests.peers.grpc_peer call PORT AUTHORITY   prints as JSON what it gets
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]

SERVICE = "gnar.Echo"
LONG = 200_000  # bytes: more than the window with which a stream begins
CALL_S = 20.0


def _say(request: bytes, _context: Any) -> bytes:
    return request[::-1]


def _talk(requests: Iterable[bytes], _context: Any) -> Iterator[bytes]:
    for request in requests:
        yield request.upper()


def serve() -> None:
    """Serve until standard input ends."""
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(_say),
        "Talk": grpc.stream_stream_rpc_method_handler(_talk),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


def call(port: str, authority: str) -> None:
    """Call each method, and print what comes back; of an error, its code and words."""
    options = [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        try:
            answer = channel.unary_unary(f"/{SERVICE}/Say")(b"ab" * LONG, timeout=CALL_S)
            turns = channel.stream_stream(f"/{SERVICE}/Talk")(iter([b"a", b"b"]), timeout=CALL_S)
            shown: Any = [answer == b"ba" * LONG, [turn.decode() for turn in turns]]
        except grpc.RpcError as exc:
            shown = [exc.code().name, exc.details()]
    print(json.dumps(shown))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        call(*sys.argv[2:])
