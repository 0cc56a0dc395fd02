"""What all connections to the web ports have in common: names, limits, whom to believe; serves nobody."""

from __future__ import annotations

from dataclasses import replace

from gnar_lib.config import ServerConfig
from gnar_lib.config.files import read_text
from gnar_lib.config.model import DEFAULT_HTTPS_PORT
from gnar_lib.errors import ConfigError
from gnar_lib.http.crowd import Crowd
from gnar_lib.http.heads import Pairs
from gnar_lib.http.limits import Limits
from gnar_lib.net import descriptors
from gnar_lib.server.names.table import Names
from gnar_lib.server.web.forwarded import Trust

MAX_PAGE = 64 * 1024  # characters
# Of the last request and answer, what each of thousands of connections may keep while nothing happens.
SMALL_HEAD_BYTES, SMALL_HEAD_FIELDS = 4096, 40

# More than at the admin port: browsers send long cookies. One network can have half of the connections, since
# a proxy such as Caddy brings all users from one address.
LIMITS = Limits(head_bytes=32 * 1024, target_bytes=16 * 1024, fields=200)


class Site:
    """The web ports of a server. A reload calls `use` with its new settings."""

    def __init__(self, names: Names, config: ServerConfig, answers: list[int]) -> None:
        self.names = names
        self.answers = answers  # counts them, by the hundreds of their statuses
        places = max((descriptors.limit - descriptors.reserve) // 2, 2)
        self.use_limits(replace(LIMITS, connections=places, connections_of_network=places // 2))
        self.is_ending = False  # each answer is the last one of its connection
        self.is_closing = False  # nobody is served any more, but for requests that are being passed on
        self.https_port = DEFAULT_HTTPS_PORT  # where users find names by HTTPS
        self.use(config)

    def use_limits(self, limits: Limits) -> None:
        """Take limits over, before the first connection."""
        self.limits = limits
        self.surely_short = min(limits.head_bytes, limits.target_bytes) - 4  # where a head may end
        self.crowd = Crowd(limits)

    def use(self, config: ServerConfig) -> None:
        """Take settings over; raises `ConfigError`, and changes nothing, if they cannot be."""
        error_page = read_page(config.error_page) if config.error_page else ""
        self.trust = Trust(config.trust_forwarded)
        self.hsts = b""
        if config.hsts_s:
            self.hsts = b"Strict-Transport-Security: max-age=%d\r\n" % config.hsts_s
        self.error_page = error_page


def is_small(head: bytes, pairs: Pairs) -> bool:
    """Tell whether a head, and what it says, may be kept in case the same comes again."""
    return len(head) <= SMALL_HEAD_BYTES and len(pairs) <= SMALL_HEAD_FIELDS


def read_page(path: str) -> str:
    """Return the HTML of somebody's own error page; raises `ConfigError`."""
    try:
        text = read_text(path)
    except ConfigError as exc:
        raise ConfigError(f"error-page: {exc}") from exc
    if len(text) > MAX_PAGE:
        raise ConfigError(f"error-page: {path}: longer than {MAX_PAGE} characters")
    return text
