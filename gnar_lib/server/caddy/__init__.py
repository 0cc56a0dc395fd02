"""Has a Caddy in front lead users' HTTPS requests to this server's web port, by Caddy's admin API.

Knows no proxies and no names: Caddy gets one route for all of them, and asks the web port whether a name is
in use before it gets a certificate.
"""

from gnar_lib.server.caddy.api import CaddyError
from gnar_lib.server.caddy.keeper import Caddy

__all__ = ["Caddy", "CaddyError"]
