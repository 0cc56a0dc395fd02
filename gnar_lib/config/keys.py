"""The keys of all settings, with what reads the value of each; reads nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gnar_lib import logger
from gnar_lib.config import names, transport, values
from gnar_lib.config.model import MOST_PROXIES, MOST_USERS
from gnar_lib.config.values import Reader

# The reader of each setting by its key. The flag of a key is `--key`, the variable GNAR_KEY, and the field of
# the dataclass the key itself or its entry in `FIELDS`.
LOG: dict[str, Reader] = {  # of any process
    "log-format": values.one_of(*logger.FORMATS),
    "log-level": values.one_of(*logger.LEVELS),
}
USERS: dict[str, Reader] = {  # of a proxy, or of a whole server
    "max-users": values.count(MOST_USERS),
    "max-users-per-address": values.count(MOST_USERS),
    "idle-timeout": values.timeout,
}
ADDRESSES: dict[str, Reader] = {  # of a proxy: from where users may come
    "allow-from": names.networks,
    "deny-from": names.networks,
}
WEB: dict[str, Reader] = {  # of a proxy of HTTP
    "host-header": names.host_header,
    "request-headers": names.headers,
    "response-headers": names.headers,
    "basic-auth": names.basic_auth,
    "redirect-https": values.flag,
    "http2": values.flag,
    "error-page": values.path,
}
ADMIN: dict[str, Reader] = {  # of any process
    "admin-port": values.port_or_0,
    "admin-bind": values.bind,
    "admin-password": values.secret,
    "admin-password-file": values.path,
    "admin-read-token": values.secret,
    "admin-read-token-file": values.path,
}
SERVER: dict[str, Reader] = {
    "port": values.port,
    "bind": values.bind,
    "udp-bind": values.bind,
    "token": values.secret,
    "token-file": values.path,
    "auth": values.one_of("any", "hmac"),
    "tls": values.one_of("any", "require"),
    "ws-path": transport.own_ws_path,
    "accept-proxy-protocol": names.networks,
    "allow-ports": values.port_ranges,
    "max-proxies": values.count(MOST_PROXIES),
    "max-speed": values.rate,
    **USERS,
    "max-memory": values.memory,
    "heartbeat": values.heartbeat,
    "dead-after": values.dead_after,
    "half-close-timeout": values.timeout,
    "grace": values.seconds,
    **ADMIN,
    "state-dir": values.path,
    "domain": names.domain,
    "http-port": names.port_or_off,
    "http-bind": values.bind,
    "https-port": names.port_or_off,
    "tls-cert": names.paths,
    "tls-key": names.paths,
    "hsts": names.hsts,
    "allow-hosts": names.host_patterns,
    "reserved-names": names.labels,
    "trust-forwarded": names.networks_or_none,
    "caddy-api": names.caddy_api,
    "caddy-srv-name": values.name,
    "caddy-remove": values.flag,
    "error-page": values.path,
    **LOG,
}
# Settings of the Go program's server. They are read, so that its files and command lines are understood, but
# have no effect and are not advertised.
SERVER_WITHOUT_EFFECT: dict[str, Reader] = {
    "domain-tunnel": values.flag,
    "multiplex": values.flag,
}
CLIENT: dict[str, Reader] = {
    "server-addr": transport.server_address,
    "token": values.secret,
    "token-file": values.path,
    "auth": values.one_of("hmac", "md5"),
    "tls": transport.on_or_off,
    "fingerprint": transport.fingerprints,
    "proxy": transport.proxy,
    "multiplex": values.flag,
    "heartbeat": values.heartbeat,
    "dead-after": values.dead_after,
    "half-close-timeout": values.timeout,
    "grace": values.seconds,
    "plain": values.flag,
    "inspect": values.inspect,
    "inspect-bodies": values.kept_size,
    "inspect-log": values.path,
    **ADMIN,
    **LOG,
}
PROXY: dict[str, Reader] = {
    "proxy-name": values.name,
    "proxy-type": values.one_of("tcp", "udp", "http", "https"),
    "local-host": values.host,
    "local-port": values.port,
    "remote-port": values.port_or_0,
    "subdomain": names.subdomain,
    "path": names.path_prefix,
    "speed-limit": values.rate,
    "udp-timeout": values.timeout,
    "udp-any-source": values.flag,
    **USERS,
    **ADDRESSES,
    **WEB,
    "proxy-protocol": values.one_of("v1", "v2"),
}
FIELDS = {
    "grace": "grace_s",
    "dead-after": "dead_after_s",
    "half-close-timeout": "half_close_timeout_s",
    "idle-timeout": "idle_timeout_s",
    "udp-timeout": "udp_timeout_s",
    "server-addr": "server",
    "hsts": "hsts_s",
}
SECRETS = ("token", "admin-password", "admin-read-token")
# Two ways to say one thing: a source overrides both with either.
EITHER = {key: (secret, f"{secret}-file") for secret in SECRETS for key in (secret, f"{secret}-file")}
PATHS = (
    "state-dir",
    "inspect-log",
    "tls-cert",
    "tls-key",
    "error-page",
    *(f"{secret}-file" for secret in SECRETS),
)  # in a file: beside the file
HOOK_TABLES = ("hooks",)
PROXY_TABLES = ("proxys", "forwards")  # "forwards" is the name in the Go program of 2023
COMMON_TO_MAPPINGS = (
    "proxy-type",
    "local-host",
    "speed-limit",
    "udp-timeout",
    "udp-any-source",
    *USERS,
    *ADDRESSES,
    *WEB,
    "proxy-protocol",
)

# What a file and variables say of the client that runs all the time. `gnar http`, which runs beside it, has
# its service and its name from the command line.
OF_ONE_CLIENT = (
    *("proxy-name", "proxy-type", "local-host", "local-port", "remote-port", "subdomain", "path"),
    *ADMIN,
)


def variable_of(key: str) -> str:
    """Return the name of the variable for a key."""
    return "GNAR_" + key.upper().replace("-", "_")


def by_field(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names of the dataclasses' fields."""
    return {FIELDS.get(key, key.replace("-", "_")): value for key, value in settings.items()}
