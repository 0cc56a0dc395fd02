"""The numbers and names on which both ends of the protocol rely; docs/protocol.md says how they are used."""

from __future__ import annotations

# ---- control connections -----------------------------------------------------------------------------------

HEARTBEAT_S = 1.0  # each end but a Go client sends a Heartbeat so often, unless both have agreed otherwise
DEFAULT_HEARTBEAT_S = 5  # on which gnar's own ends agree if nobody asks for another pace
MIN_HEARTBEAT_S, MAX_HEARTBEAT_S = 1, 60
MIN_SILENCE_S = 15.0  # after that, or three heartbeats that did not come, a client tries another connection
GO_SILENCE_S = 10.0  # a Go server that has sent nothing for so long is given up
LOGIN_DEADLINE_S = 10.0  # for all that comes before a connection, or a stream, has said what it is for
MAX_LOGIN_BYTES = 4096  # of each of those messages but a ProxyReq
MAX_REQUEST_BYTES = 16384  # of a ProxyReq there: it may have an error page, and headers
NONCE_BYTES = 32  # of the random number that each end contributes to a login

# ---- data connections that wait for a user -----------------------------------------------------------------

MAX_WAITING = 64  # of one control connection
# The server writes to each so often, the client writes nothing. A client that has not agreed on a pace gives
# up a waiting connection on which nothing came for 30 s.
WAITING_HEARTBEAT_S = 10.0
MAX_WAITING_HEARTBEAT_S = 20.0
NO_CONN_ID = "-"  # in the Exchange on a connection that is there already: there is nothing to claim

# ---- features ----------------------------------------------------------------------------------------------

# What an end can do beyond the Go program's protocol. Both ends use the features that both have named.
FEATURE_WAIT = "wait"  # data connections that wait for their user
FEATURE_MUX = "mux"  # multiplexing, with streams that the server opens for its users
FEATURE_UDP = "udp"  # datagrams in binary
FEATURE_USERS = "users"  # limits on the users of a proxy
FEATURE_LEAVE = "leave"  # Heartbeats that say that their sender leaves
FEATURE_NAMES = "names"  # proxies that have a name and no port; rules for users' addresses
FEATURE_MOVE = "move"  # multiplexing without being told to; bulk goes on over data connections of its own
FEATURES = (FEATURE_WAIT, FEATURE_MUX, FEATURE_UDP, FEATURE_USERS, FEATURE_LEAVE, FEATURE_NAMES, FEATURE_MOVE)


# ---- what follows from the pace of the heartbeats ----------------------------------------------------------


def slower_heartbeat(one: int, other: int) -> int:
    """Return the pace on which two ends agree: the slower of those for which they ask, within the bounds."""
    return min(max(one, other, MIN_HEARTBEAT_S), MAX_HEARTBEAT_S)


def silence_s(heartbeat_s: float) -> float:
    """Return after how many seconds without a sign of life a client tries another control connection."""
    return max(MIN_SILENCE_S, 3 * heartbeat_s)


def waiting_heartbeat_s(heartbeat_s: float) -> float:
    """Return how often the server writes to a data connection that waits."""
    return min(max(WAITING_HEARTBEAT_S, 4 * heartbeat_s), MAX_WAITING_HEARTBEAT_S)


def waiting_silence_s(heartbeat_s: float) -> float:
    """Return after how many seconds without a heartbeat a client gives a waiting data connection up."""
    return 3 * waiting_heartbeat_s(heartbeat_s)
