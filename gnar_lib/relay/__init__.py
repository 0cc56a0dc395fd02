"""The socat replacement: listens on one address and joins each user with a target; knows no tunnel."""

from gnar_lib.relay.address import Address, Role, parse_address
from gnar_lib.relay.datagrams import DatagramRelay, UdpSettings
from gnar_lib.relay.serve import Relay, RelaySettings, run_relay
from gnar_lib.relay.socat import SocatOptions, take_options

__all__ = [
    "Address",
    "DatagramRelay",
    "Relay",
    "RelaySettings",
    "Role",
    "SocatOptions",
    "UdpSettings",
    "parse_address",
    "run_relay",
    "take_options",
]
