"""What Prometheus asks a server, a client or a relay for; knows neither of them, and no HTTP.

`Metrics` reads the meters of the proxies when somebody asks, so that what carries bytes does nothing for it.
In between it counts events.
"""

from gnar_lib.metrics.exposition import Metrics
from gnar_lib.metrics.state import OpenProxy, State

__all__ = ["Metrics", "OpenProxy", "State"]
