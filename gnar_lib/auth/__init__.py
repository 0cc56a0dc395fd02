"""Who may log in, what both ends share afterwards, and what a client may do then; no I/O.

Go peers log in with md5(token, timestamp). Gnar's own ends prove that they know the token by HMAC-SHA256 over
a nonce of each end, which cannot be replayed. A session key made from the same nonces signs the data
connections.
"""

from gnar_lib.auth.login import (
    HMAC,
    MD5,
    MD5_WINDOW_S,
    VERSION,
    ClientLogin,
    Credential,
    ServerLogin,
    md5_token,
)
from gnar_lib.auth.rights import Rights
from gnar_lib.auth.session import ReplayWindow, Session, beside_id, carrier_id, waiting_id

__all__ = [
    "HMAC",
    "MD5",
    "MD5_WINDOW_S",
    "VERSION",
    "ClientLogin",
    "Credential",
    "ReplayWindow",
    "Rights",
    "ServerLogin",
    "Session",
    "beside_id",
    "carrier_id",
    "md5_token",
    "waiting_id",
]
