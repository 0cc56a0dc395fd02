"""Two multiplexed sessions whose streams may move: this end of a tunnel brings connections beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gnar_lib.net import Crew, SocketConn
from gnar_lib.yamux import Session, Stream
from tests.helpers.conns import tcp_pair

Pair = tuple[SocketConn, SocketConn]


@dataclass
class Moving:
    """The sessions of a server and of a client, and the pairs of conns that were brought: server's first."""

    server: Session
    client: Session
    besides: list[Pair] = field(default_factory=list)

    def close(self) -> None:
        for session in (self.server, self.client):
            session.close()
        for pair in self.besides:
            for conn in pair:
                conn.close()


def moving_pair(crew: Crew, before: Callable[[], bool] = lambda: True) -> Moving:
    """Return two sessions; connections are brought in `crew` if `before()`, which may wait, returns True."""
    near, far = tcp_pair()
    made = Moving(Session(near, is_client=False), Session(far, is_client=True))
    made.server.moves = made.client.moves = True

    def bring(stream: Stream) -> None:
        crew.spawn(attach, stream)

    def attach(stream: Stream) -> None:
        if not before() or stream.beside is not None:
            return
        theirs, ours = tcp_pair()
        made.besides.append((theirs, ours))
        other = made.server.stream(stream.id)
        if not (stream.attach(ours, is_ready=False) and other and other.attach(theirs, is_ready=True)):
            ours.close()
            theirs.close()

    made.client.bring = bring
    return made
