"""Finds the TCP ports on which this user's processes listen, in the way of the system; asks no port."""

from __future__ import annotations

import os
import sys

from gnar_lib.discover.listening import Listening

TIMEOUT_S = 3.0  # for each program that is asked, or for all of /proc

if sys.platform == "linux":
    from gnar_lib.discover import proc

    def find() -> list[Listening]:
        """Return the ports, in order; raises `DiscoveryError` if this system does not tell them."""
        return proc.find(os.getuid(), TIMEOUT_S)

elif sys.platform == "win32":
    from gnar_lib.discover import tools

    def find() -> list[Listening]:
        """Return the ports, in order; raises `DiscoveryError` if this system does not tell them."""
        return tools.find_by_netstat(TIMEOUT_S)

else:
    from gnar_lib.discover import tools

    def find() -> list[Listening]:
        """Return the ports, in order; raises `DiscoveryError` if this system does not tell them."""
        return tools.find_by_lsof(os.getuid(), TIMEOUT_S)
