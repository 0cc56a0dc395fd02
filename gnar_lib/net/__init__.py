"""Where sockets are touched: conns, dialling, listening, datagrams, deadlines, crews; knows no message."""

from gnar_lib.net.address import (
    Sockaddr,
    format_address,
    host_of,
    network_of,
    read_address,
    resolve,
    unix_family,
)
from gnar_lib.net.conn import SocketConn, recv_exactly
from gnar_lib.net.contract import Conn, EventedConn
from gnar_lib.net.datagram import Datagram, DatagramSocket, bind_udp
from gnar_lib.net.datagram_conn import DatagramConn
from gnar_lib.net.descriptors import descriptors
from gnar_lib.net.dialling import dial
from gnar_lib.net.endpoint import Listener, listen
from gnar_lib.net.greenlets import Crew, deadline, wait_for_room
from gnar_lib.net.options import set_keepalive
from gnar_lib.net.switching import LENT, LENT_BYTES, busy_greenlets, give_way, wait_for
from gnar_lib.net.unix import UnixListener, bind_unix_datagram, listen_unix

__all__ = [
    "LENT",
    "LENT_BYTES",
    "Conn",
    "Crew",
    "Datagram",
    "DatagramConn",
    "DatagramSocket",
    "EventedConn",
    "Listener",
    "Sockaddr",
    "SocketConn",
    "UnixListener",
    "bind_udp",
    "bind_unix_datagram",
    "busy_greenlets",
    "deadline",
    "descriptors",
    "dial",
    "format_address",
    "give_way",
    "host_of",
    "listen",
    "listen_unix",
    "network_of",
    "read_address",
    "recv_exactly",
    "resolve",
    "set_keepalive",
    "unix_family",
    "wait_for",
    "wait_for_room",
]
