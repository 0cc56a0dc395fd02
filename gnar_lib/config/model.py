"""The settings of server and client, as frozen dataclasses whose values have been checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gnar_lib import logger

DEFAULT_PORT = 8910
DEFAULT_GRACE_S = 8.0  # Docker kills a container 10 s after it asked it to stop
DEFAULT_DEAD_AFTER_S = 120.0
DEFAULT_HALF_CLOSE_TIMEOUT_S = 3600.0
DEFAULT_HEARTBEAT_S = 5
DEFAULT_HOOK_TIMEOUT_S = 10.0
DEFAULT_HOOK_RETRY_FOR_S = 3600.0
DEFAULT_UDP_TIMEOUT_S = 60.0
DEFAULT_MAX_PROXIES = 4096  # of one client
DEFAULT_INSPECT_BODIES = 64 << 10  # bytes
MOST_USERS = 1_000_000  # that a limit may name
MOST_PROXIES = 16384  # that a server can be told to take of one client
DEFAULT_WS_PATH = "/gnar"
HEALTH_PATH = "/healthz"  # at the control port, for load balancers and monitors
DEFAULT_HTTP_PORT = 80
DEFAULT_HTTPS_PORT = 443
DEFAULT_HTTP_PORT_BEHIND_CADDY = 8080
LOOPBACK = "127.0.0.1"
LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1/128")
# Labels that nobody gets directly under a server's domain: programs trust whoever has some of them, people
# trust whoever has the others. Those of RFC 2142 are there, but for those that usual hosts have.
RESERVED_NAMES = (
    *("abuse", "hostmaster", "noc", "postmaster", "security", "support", "usenet", "uucp", "webmaster"),
    *("admin", "administrator", "root", "ssladmin", "ssladministrator", "sslwebmaster", "sysadmin"),
    "gnar",  # as the server itself is often called, where its clients come
    *("autoconfig", "autodiscover", "isatap", "mta-sts", "openpgpkey", "wpad"),
    *("imap", "localdomain", "localhost", "mail", "ns1", "ns2", "pop", "smtp"),
)
MAX_PORT = 65535
NAMED_KINDS = ("http", "https")  # types of proxies that have a name and no port


class Secret:
    """A token whose text does not appear in prints, logs and errors; false when it is empty."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text of the token."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        from hmac import compare_digest  # loads OpenSSL, which not every start needs

        return compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret()"

    def __reduce__(self) -> str:
        raise TypeError("a secret cannot be pickled or copied")


NO_SECRET = Secret()


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class WebAddress(Address):
    """A server that is reached by a WebSocket, at a path of a web server."""

    path: str = DEFAULT_WS_PATH
    is_tls: bool = True  # wss:// rather than ws://

    def __str__(self) -> str:
        return f"{'wss' if self.is_tls else 'ws'}://{Address(self.host, self.port)}{self.path}"


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """A proxy between a client and its server, such as a company has: how to speak to it, and where it is."""

    kind: str  # "http" and "https" (CONNECT; with TLS to the proxy itself), "socks5", or "socks5h"
    host: str
    port: int
    user: str = ""
    password: Secret = NO_SECRET

    def __str__(self) -> str:
        return f"{self.kind}://{Address(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Rate:
    """A speed limit in bytes per second; None is no limit."""

    up: int | None = None  # from the user to the local service
    down: int | None = None  # from the local service to the user


@dataclass(frozen=True, slots=True)
class PortRanges:
    """The ports that clients may open; without ranges, all ports."""

    text: str = ""  # as the user wrote the ranges, for messages
    ranges: tuple[tuple[int, int], ...] = ()  # lowest and highest port of each

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __str__(self) -> str:
        return self.text or f"1-{MAX_PORT}"

    def __iter__(self) -> Iterator[int]:
        for low, high in self.ranges:
            yield from range(low, high + 1)

    def __len__(self) -> int:
        return sum(high - low + 1 for low, high in self.ranges)

    def __getitem__(self, index: int) -> int:
        for low, high in self.ranges:
            if index <= high - low:
                return low + index
            index -= high - low + 1
        raise IndexError("there are not so many ports in the ranges")

    def allows(self, port: int) -> bool:
        """Tell whether clients may open a port."""
        return not self.ranges or any(low <= port <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What a process logs, and in which form: the settings that all commands have."""

    log_format: str = logger.DEFAULT_FORMAT  # one of `logger.FORMATS`
    log_level: str = logger.DEFAULT_LEVEL  # one of `logger.LEVELS`


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """Where a process answers browsers and programs that watch and steer it, and who may ask."""

    port: int = 0  # 0 for no such port
    bind: str = LOOPBACK  # address to listen on
    password: Secret = NO_SECRET  # lets whoever knows it see and change everything
    read_token: Secret = NO_SECRET  # lets whoever knows it see everything

    @property
    def needs_secret(self) -> bool:
        """Whether nobody may ask without a password or a token."""
        return bool(self.password or self.read_token)


NO_ADMIN = AdminConfig()


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The settings of one proxy of a client."""

    proxy_name: str
    local_port: int  # of the local service
    remote_port: int = 0  # port at the server; 0 lets the server choose
    proxy_type: str = "tcp"  # or "udp", "http", "https"
    local_host: str = ""  # of the local service; empty for this machine: 127.0.0.1, or ::1 behind it
    subdomain: str = ""  # name under the server's domain, or a whole one; empty: none, or the server chooses
    path: str = ""  # with a name: where the paths of this proxy begin; empty for all
    speed_limit: Rate = Rate()
    udp_timeout_s: float = DEFAULT_UDP_TIMEOUT_S  # a UDP session without datagrams ends after that time
    udp_any_source: bool = False  # answers of the service count, whatever address they come from
    max_users: int = 0  # at the same time; 0 for no limit
    max_users_per_address: int = 0  # the same, of one address
    idle_timeout_s: float = 0.0  # a user of TCP without bytes ends after that time; 0 for never
    allow_from: tuple[str, ...] = ()  # networks of users, all others being turned away; empty for all
    deny_from: tuple[str, ...] = ()  # networks of users who are turned away
    host_header: str = ""  # in place of users' Host; "local" for that of the local service
    request_headers: tuple[str, ...] = ()  # "Name: value", or "-Name"
    response_headers: tuple[str, ...] = ()  # the same
    basic_auth: tuple[Secret, ...] = ()  # "user:password" or "user:hash" of those who may come; empty for all
    redirect_https: bool = False  # requests without TLS are redirected
    http2: bool = False  # connections of users who begin with HTTP/2 are passed through as they are
    error_page: str = ""  # HTML of answers that the server makes by itself; empty for the server's own
    proxy_protocol: str = ""  # by which the local service learns users' addresses: "v1", "v2", or empty

    @property
    def has_name(self) -> bool:
        """Whether users reach the proxy by a name."""
        return bool(self.subdomain) or self.proxy_type in NAMED_KINDS

    @property
    def local_service(self) -> Address:
        """Where the local service is, for people."""
        return Address(self.local_host or LOOPBACK, self.local_port)


@dataclass(frozen=True, slots=True)
class HookConfig:
    """Whom to tell of which events: a URL, or a command."""

    events: tuple[str, ...]  # their names
    url: Secret = NO_SECRET  # whoever knows the address of a chat's channel may write there
    command: tuple[str, ...] = ()  # words; the first is the program
    secret: Secret = NO_SECRET  # signs what is posted; without one nothing is signed
    headers: tuple[tuple[str, Secret], ...] = ()  # of the request, besides gnar's own
    format: str = "json"  # or "text", or "slack"
    text: str = ""  # what "text" and "slack" say, with {fields}; empty for all fields
    timeout_s: float = DEFAULT_HOOK_TIMEOUT_S  # for one request, or one run of the command
    retry_for_s: float = DEFAULT_HOOK_RETRY_FOR_S  # how long one event is posted again until it is taken
    delay_s: float = 0.0  # before an event is told that something has gone; not at all if it is back by then
    proxies: tuple[str, ...] = ()  # whose events alone are told; empty for all

    @property
    def label(self) -> str:
        """The host of the URL, or the name of the program, for log lines."""
        if self.command:
            return re.split(r"[/\\]", self.command[0])[-1]
        return re.split(r"[/?]", self.url.reveal().partition("://")[2])[0]


@dataclass(frozen=True, slots=True)
class ClientConfig(LogConfig):
    """The settings of a client."""

    server: Address
    proxies: tuple[ProxyConfig, ...]
    token: Secret = NO_SECRET
    auth: str = "hmac"  # or "md5", for a Go server
    tls: str = ""  # "on" or "off", between client and server; empty: on, unless the login is by md5
    fingerprint: tuple[str, ...] = ()  # SHA-256 of the server's certificate, one of these; empty for any
    proxy: ProxyServer | None = None  # between client and server; None for none
    multiplex: bool | None = None  # True: over one connection and never another; False: not at all
    heartbeat: int = DEFAULT_HEARTBEAT_S  # seconds between two; the slower end's pace holds
    dead_after_s: float = DEFAULT_DEAD_AFTER_S  # how long a peer may be silent that should answer
    half_close_timeout_s: float = DEFAULT_HALF_CLOSE_TIMEOUT_S  # of a user, one of whose directions has ended
    grace_s: float = DEFAULT_GRACE_S  # how long users may finish when the client stops
    plain: bool = False  # write lines also where there is a terminal for a live view
    inspect: Address | None = None  # where the inspector's page is; port 0: the first free one of its own
    inspect_bodies: int = DEFAULT_INSPECT_BODIES  # bytes that the inspector keeps of each body
    inspect_log: str = ""  # file that gets a line for each exchange; empty for none
    admin: AdminConfig = NO_ADMIN
    hooks: tuple[HookConfig, ...] = ()

    @property
    def uses_tls(self) -> bool:
        """Whether what travels between client and server is encrypted by TLS of gnar's own."""
        return self.tls == "on" or (not self.tls and self.auth != "md5")


@dataclass(frozen=True, slots=True)
class Access:
    """What a client's settings say of the server, where nothing is to be forwarded yet."""

    server: Address | None = None  # None: no setting names one
    place: str = ""  # the variable or the file that names it
    has_token: bool = False
    file: str = ""  # the configuration file, empty for none
    others: int = 0  # proxies in this file


@dataclass(frozen=True, slots=True)
class ServerConfig(LogConfig):
    """The settings of a server."""

    port: int = DEFAULT_PORT  # the control port
    bind: str = ""  # address to listen on; empty for every address
    udp_bind: str = ""  # address of UDP sockets; empty for `bind`
    token: Secret = NO_SECRET
    auth: str = "any"  # or "hmac", which refuses the md5 logins of Go clients
    tls: str = "any"  # or "require", which refuses clients without TLS
    ws_path: str = DEFAULT_WS_PATH  # where clients come that begin with HTTP (WebSocket)
    accept_proxy_protocol: tuple[str, ...] = ()  # networks of load balancers that tell users' addresses
    allow_ports: PortRanges = PortRanges()
    max_proxies: int = DEFAULT_MAX_PROXIES  # of one client
    max_speed: Rate = Rate()  # of every proxy
    max_users: int = 0  # of all proxies at the same time; 0 for no limit
    max_users_per_address: int = 0  # the same, of one address
    idle_timeout_s: float = 0.0  # a user of TCP without bytes ends after that time; 0 for never
    max_memory: int = 0  # bytes for the process; 0 for half of what the container or the machine has
    heartbeat: int = DEFAULT_HEARTBEAT_S  # seconds between two; the slower end's pace holds
    dead_after_s: float = DEFAULT_DEAD_AFTER_S  # how long a peer may be silent that should answer
    half_close_timeout_s: float = DEFAULT_HALF_CLOSE_TIMEOUT_S  # of a user, one of whose directions has ended
    grace_s: float = DEFAULT_GRACE_S  # how long users may finish when the server stops
    admin: AdminConfig = NO_ADMIN
    hooks: tuple[HookConfig, ...] = ()
    state_dir: str = ""  # folder for what is to survive a restart; empty for nothing
    domain: str = ""  # under which clients have names; empty for none
    allow_hosts: tuple[str, ...] = ()  # patterns of whole host names that clients may have
    reserved_names: tuple[str, ...] = RESERVED_NAMES  # labels that nobody gets directly under the domain
    http_port: int = 0  # where users of names come without TLS; 0 for nowhere
    http_bind: str = ""  # address of that port; empty for every address
    https_port: int = 0  # where they come with TLS; 0 for nowhere
    tls_cert: tuple[str, ...] = ()  # paths of certificates
    tls_key: tuple[str, ...] = ()  # of their keys; empty if the same files have them
    hsts_s: int = 0  # for which browsers are to use HTTPS alone; 0 says nothing to them
    trust_forwarded: tuple[str, ...] = LOOPBACK_NETWORKS  # whose X-Forwarded-For is believed
    caddy_api: str = ""  # of the Caddy in front; empty for none
    caddy_srv_name: str = "srv0"  # its server
    caddy_remove: bool = False  # remove the route from Caddy when this server stops
    error_page: str = ""  # path of the HTML of answers that the server makes by itself
