"""Load balancers in front of the server, which tell users' addresses (PROXY protocol); knows no proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Final

from gnar_lib import logger
from gnar_lib.errors import ConnClosed, ConnError, ProtocolError
from gnar_lib.net import Sockaddr, SocketConn, deadline
from gnar_lib.server.admission import ip_of, plain_network
from gnar_lib.transport.proxy_protocol import receive

HEADER_S: Final = 5.0  # for a header; the specification wants 3 at least, for a packet that is lost
MAX_WAITING: Final = 1024  # connections whose header has not come; further ones reset the oldest

_log = logger.get("server")


class Balancers:
    """Takes the header off connections that come from certain networks, where a header has to be.

    The specification forbids a receiver to guess whether there is one. So the bytes of others are not looked
    at.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self.use(networks)
        self._waiting: dict[SocketConn, None] = {}  # connections whose header has not come, the oldest first
        self._refused = logger.Burst()  # warnings about connections without a proper header

    def use(self, networks: Iterable[str]) -> None:
        """Take a header from these networks, and from no others, from now on."""
        self._networks = tuple(plain_network(ipaddress.ip_network(each)) for each in networks)

    def includes(self, address: Sockaddr) -> bool:
        """Tell whether whoever comes from an address has to begin with a header."""
        if not self._networks:
            return False
        ip = ip_of(address)
        return ip is not None and any(ip in network for network in self._networks)

    def serve(self, conn: SocketConn, serve: Callable[[SocketConn], None]) -> None:
        """Have `serve` serve a user; a conn of a load balancer has the address of the user from then on.

        `serve` closes the conn. A conn of a load balancer without a proper header is closed here.
        """
        if not self.includes(conn.getpeername()) or self._take_header(conn):
            serve(conn)

    def _take_header(self, conn: SocketConn) -> bool:
        """Take the header off a conn; without a proper header, close the conn, and return False."""
        if len(self._waiting) >= MAX_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.abort()
        self._waiting[conn] = None
        try:
            with deadline(HEADER_S, "the header of the PROXY protocol"):
                self.receive(conn)
        except ConnClosed as exc:  # so do health checks
            conn.close()
            _log.debug("%s", exc)
            return False
        except (ConnError, ProtocolError) as exc:
            conn.abort()
            self._refused.warning(_log, "refused a connection of the load balancer %s: %s", conn, exc)
            return False
        except BaseException:
            conn.abort()
            raise
        finally:
            self._waiting.pop(conn, None)
        return True

    def receive(self, conn: SocketConn) -> None:
        """Take the header off a conn, which then has the address of the user; the caller sets a deadline.

        Raises `ProtocolError`, also if this one may not send a header, or `ConnError`. The caller closes the
        conn then.
        """
        if not self.includes(conn.getpeername()):
            raise ProtocolError(
                "this is a header of the PROXY protocol, from an address that is not in accept-proxy-protocol"
            )
        source = receive(conn).source
        if source is not None:  # else the load balancer speaks for itself, or does not know
            conn.name_peer(source)
