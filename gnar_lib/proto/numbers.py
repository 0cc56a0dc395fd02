"""The numbers and names on which both ends of the protocol rely; docs/protocol.md says how they are used."""

from __future__ import annotations

# ---- control connections -----------------------------------------------------------------------------------

HEARTBEAT_S = 1.0  # each end of gnar's own, and the Go server, sends a Heartbeat so often
SILENCE_S = 10.0  # a peer that has sent nothing for so long is given up
LOGIN_DEADLINE_S = 10.0  # for all that comes before a connection, or a stream, has said what it is for
MAX_LOGIN_BYTES = 4096  # of each of those messages
NONCE_BYTES = 32  # of the random number that each end contributes to a login

# ---- data connections that wait for a user -----------------------------------------------------------------

MAX_WAITING = 64  # of one control connection
WAITING_HEARTBEAT_S = 10.0  # the server writes to each so often; the client writes nothing
WAITING_SILENCE_S = 30.0  # a client gives up a waiting connection on which nothing came for so long
NO_CONN_ID = "-"  # in the Exchange on a connection that is there already: there is nothing to claim

# ---- features ----------------------------------------------------------------------------------------------

# What an end can do beyond the Go program's protocol. Both ends use the features that both have named.
FEATURE_WAIT = "wait"  # data connections that wait for their user
FEATURE_MUX = "mux"  # multiplexing, with streams that the server opens for its users
FEATURE_UDP = "udp"  # datagrams in binary
FEATURES = (FEATURE_WAIT, FEATURE_MUX, FEATURE_UDP)
