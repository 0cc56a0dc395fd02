"""How a user gets from the server to a client: `Upstream.take`; knows messages, but no proxy and no port."""

from gnar_lib.server.upstream.carriers import Carriers
from gnar_lib.server.upstream.upstream import Upstream

__all__ = ["Carriers", "Upstream"]
