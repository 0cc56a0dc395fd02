"""What all links of a client have in common, and what they say once together; knows no link."""

from __future__ import annotations

from gnar_lib import logger
from gnar_lib.client.connect import ControlConn
from gnar_lib.client.turns import Turns
from gnar_lib.client.way import Way
from gnar_lib.config import ClientConfig
from gnar_lib.net import Crew
from gnar_lib.pio.meter import Meter

_log = logger.get("client")

MAX_UNANSWERED = 256  # requests on their way: more would only queue, and fill memory at both ends


class Shared:
    """The settings, counts and greenlets that the parts of one client have in common."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config  # a reload changes all of them but the server
        self.was_let_in = False  # a server has let this client in: the settings are right, or were so once
        self.way = Way(config)  # to the server, for the next login; a reload may bring another
        self.turns = Turns()  # to open data connections
        self.meter = Meter()  # of all proxies together
        self.crew = Crew("client")  # links, and data connections of UDP
        self.users = Crew("user")  # users of TCP, and data connections that wait for one
        self._has_warned = False  # that nothing proves the server

    def warn_if_unproven(self, control: ControlConn) -> None:
        """Say once that nothing proves the server, if so; this may wait for another connection to it."""
        # Asked again behind `is_unproven`, which may wait: another link may have said it meanwhile.
        if not self._has_warned and control.is_unproven and not self._has_warned:
            self._has_warned = True
            token = "leave --auth md5 out" if self.config.token else "set a token at both ends"
            _log.warning(
                "what travels is encrypted, but nothing proves the server, whose certificate is %s: "
                "%s, or set --fingerprint to the SHA-256 that the server logs",
                control.certificate,
                token,
            )
