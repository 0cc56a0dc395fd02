"""What all rooms of the server need at the same time; decides nothing."""

from __future__ import annotations

from gnar_lib.config import ServerConfig
from gnar_lib.net import Crew
from gnar_lib.pio.meter import Meter
from gnar_lib.server import certificates
from gnar_lib.server.balancers import Balancers
from gnar_lib.server.connmap import ConnMap
from gnar_lib.server.dismissed import Dismissed
from gnar_lib.server.names.check import Name, url_of
from gnar_lib.server.names.table import Names
from gnar_lib.server.places import Places, UserLimits
from gnar_lib.server.ports import Ports
from gnar_lib.server.room import Room


class Shared:
    """The settings, counts, ports, names and greenlets that the parts of one server have in common.

    Raises `UsageError` for certificates that cannot be used.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config  # replaced by a reload
        self.control_port = config.port  # another one, if a service manager has opened it
        self.certificates = certificates.load(config)  # of the control port, and of names; None without TLS
        self.stopping = False  # True from `Server.stop_listening` on: no further proxies are opened
        self.ports = Ports(config.bind, config.udp_bind)
        self.names = Names()
        self.balancers = Balancers(config.accept_proxy_protocol)  # who tell users' addresses
        self.room = Room(config.max_memory)  # for what clients want done with users and requests
        self.conn_map = ConnMap()
        self.places = Places("this server", UserLimits(config.max_users, config.max_users_per_address))
        self.dismissed = Dismissed()  # clients that an administrator has ended
        self.meter = Meter()  # of all proxies together; the meter of each proxy lists its live connections
        self.answers = [0] * 6  # to requests by name, by the hundreds of their statuses
        self.crew = Crew("server")  # logins, control connections, data connections of UDP
        self.users = Crew("user")  # one greenlet for each user of TCP

    def url_of(self, name: Name) -> str:
        """Return where users find a proxy with this name."""
        return url_of(name, self.config, self.control_port)

    @property
    def proxies(self) -> int:
        """How many proxies there are."""
        return len(self.ports) + self.names.without_port
