"""The proxies of a client: from the tables of a file, from mappings and from flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gnar_lib.config import values
from gnar_lib.config.keys import COMMON_TO_MAPPINGS, PROXY, by_field, variable_of
from gnar_lib.config.model import LOOPBACK, ProxyConfig
from gnar_lib.config.sources import given_keys, read_env, read_flags, read_table, read_value, rows_of
from gnar_lib.errors import ConfigError


def file_proxies(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of the proxies in a file's tables; raises `ConfigError`."""
    if len(tables) > 1:
        raise ConfigError(f"{[*tables][-1]}: the same as [[proxys]]; use one of the two")
    proxies = []
    for where, rows in tables.items():
        for place, row in rows_of(where, rows):
            proxy = read_table(PROXY, row, f"{place}.", hints=[*PROXY])
            if "local-port" not in proxy:
                raise ConfigError(f"{place}.local-port: missing; expected the port of the local service")
            proxies.append(proxy)
    return proxies


def flag_proxies(flags: Mapping[str, Any], env: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the settings of the proxies of mappings, and of the proxy of `--local-port`, if it is there.

    Variables count as flags do. Raises `ConfigError`.
    """
    in_env, in_flags = read_env(PROXY, env, given_keys(PROXY, flags)), read_flags(PROXY, flags)
    one = {**in_env, **in_flags}  # settings outside mappings
    common = {key: one[key] for key in COMMON_TO_MAPPINGS if key in one}
    proxies = []
    for text in flags.get("mappings") or ():
        for host, local, remote in read_value(values.mapping, text, "mapping"):
            where = {"local-host": host} if host else {}
            proxies.append({**common, **where, "local-port": local, "remote-port": remote})
    if "local-port" in one:
        proxies.append(one)
    elif len(proxies) == 1:
        proxies[0].update({key: one[key] for key in ("proxy-name", "subdomain") if key in one})
        if "remote-port" in one:
            place = "--remote-port" if flags.get("remote-port") is not None else variable_of("remote-port")
            raise ConfigError(f"{place}: goes with --local-port; a mapping names both ports")
    else:
        for key in in_flags:
            if key not in COMMON_TO_MAPPINGS:
                raise ConfigError(f"--{key}: goes with --local-port, which is missing")
            if not proxies:
                raise ConfigError(
                    f"--{key}: goes with a mapping or --local-port; a file says it for each proxy"
                )
    return proxies


def named(proxies: list[dict[str, Any]]) -> tuple[ProxyConfig, ...]:
    """Return the proxies, each with a name of its own.

    Raises `ConfigError` for a name, or a port at the server, that two proxies have.
    """
    named: dict[str, ProxyConfig] = {}
    given = [proxy["proxy-name"] for proxy in proxies if "proxy-name" in proxy]
    taken = set(given)
    for key in given:
        if given.count(key) > 1:
            raise ConfigError(f"proxy-name {key!r} is given twice; each proxy needs its own")
    ports: set[tuple[str, int]] = set()
    for proxy in proxies:
        name = proxy.get("proxy-name") or _free_name(proxy, taken)
        taken.add(name)
        named[name] = replace(ProxyConfig(**by_field({"proxy-name": name, **proxy})), proxy_name=name)
        port = (named[name].proxy_type, named[name].remote_port)
        if port[1] and port in ports:
            raise ConfigError(f"remote-port {port[1]} is given twice; each proxy needs its own")
        ports.add(port)
    return tuple(named.values())


def _free_name(proxy: Mapping[str, Any], taken: set[str]) -> str:
    """Return a name that is not in `taken`: `tcp-3000`, or `tcp-HOST-3000` for a host other than loopback."""
    host = proxy.get("local-host", LOOPBACK)
    where = "" if host == LOOPBACK else f"{host}-"
    base = f"{proxy.get('proxy-type', 'tcp')}-{where}{proxy['local-port']}"
    names = (base if number == 1 else f"{base}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)
