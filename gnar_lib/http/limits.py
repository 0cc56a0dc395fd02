"""How much and how long an HTTP peer may take, in one place; no code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of an HTTP service and of each of its connections. Sizes are in bytes, times in seconds."""

    head_bytes: int = 16 * 1024  # request line and fields together
    target_bytes: int = 8 * 1024  # the least that RFC 9112 recommends for a request line
    fields: int = 100  # of one head
    body_bytes: int = 64 * 1024  # of a request

    idle_s: float = 60.0  # until the first byte of a request
    head_s: float = 10.0  # from that byte until the head is whole
    body_s: float = 10.0  # for the body of a request
    send_s: float = 10.0  # until a peer has taken an answer, or an event
    send_bytes_per_s: int = 32 * 1024  # a long one has the time besides that it takes at this rate
    linger_s: float = 2.0  # until a peer that has got its last answer closes, too
    comment_s: float = 15.0  # between two signs of life of an event stream

    requests: int = 1000  # of one connection
    connections: int = 1200
    connections_of_network: int = 1200  # an IPv4 address, or the first 64 bits of an IPv6 address
    streams: int = 1000  # event streams; the other connections stay free for requests
    unsent_bytes: int = 64 * 1024  # of one connection, in the kernel
