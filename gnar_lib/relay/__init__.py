"""The socat replacement: listens on one address and joins each user with a target; knows no tunnel."""

from gnar_lib.relay.address import Address, Role, parse_address
from gnar_lib.relay.datagrams import DatagramRelay, UdpSettings
from gnar_lib.relay.serve import Relay, run_relay

__all__ = ["Address", "DatagramRelay", "Relay", "Role", "UdpSettings", "parse_address", "run_relay"]
