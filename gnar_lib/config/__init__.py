"""Reads settings from a file, the environment and flags into frozen dataclasses; touches no socket."""

from gnar_lib.config.keys import variable_of
from gnar_lib.config.load import (
    after_reload,
    changed_keys,
    load_access,
    load_admin,
    load_client,
    load_log,
    load_server,
    variables,
)
from gnar_lib.config.model import (
    Access,
    Address,
    AdminConfig,
    ClientConfig,
    HookConfig,
    LogConfig,
    PortRanges,
    ProxyConfig,
    Rate,
    Secret,
    ServerConfig,
)
from gnar_lib.config.sources import file_of

__all__ = [
    "Access",
    "Address",
    "AdminConfig",
    "ClientConfig",
    "HookConfig",
    "LogConfig",
    "PortRanges",
    "ProxyConfig",
    "Rate",
    "Secret",
    "ServerConfig",
    "after_reload",
    "changed_keys",
    "file_of",
    "load_access",
    "load_admin",
    "load_client",
    "load_log",
    "load_server",
    "variable_of",
    "variables",
]
