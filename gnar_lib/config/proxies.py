"""The proxies of a client: from the tables of a file, from mappings and from flags."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gnar_lib.config.files import read_text
from gnar_lib.config.keys import COMMON_TO_MAPPINGS, PROXY, WEB, by_field, variable_of
from gnar_lib.config.mappings import Service, mapping
from gnar_lib.config.model import LOOPBACK, NAMED_KINDS, ProxyConfig
from gnar_lib.config.sources import given_keys, read_env, read_flags, read_table, read_value, rows_of
from gnar_lib.errors import ConfigError

MAX_ERROR_PAGE = 8192  # characters: it goes with the request for the proxy
MAX_WEB_BYTES = 15_000  # of all that goes with it
HASH_BYTES = 120  # of the hash of a password, with the user's name
_LISTS = ("request-headers", "response-headers", "allow-from", "deny-from")
_OF_ONE = ("proxy-name", "subdomain", "path")  # keys that a single mapping may have, besides common ones


def file_proxies(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of the proxies in a file's tables; raises `ConfigError`."""
    if len(tables) > 1:
        raise ConfigError(f"{[*tables][-1]}: the same as [[proxys]]; use one of the two")
    proxies = []
    for where, rows in tables.items():
        for place, row in rows_of(where, rows):
            proxy = read_table(PROXY, row, f"{place}.", hints=[*PROXY])
            if "error-page" in proxy:
                folder = os.path.dirname(where.rpartition(": ")[0])
                proxy["error-page"] = _page(os.path.join(folder, proxy["error-page"]))
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
    if "error-page" in one:
        one["error-page"] = _page(one["error-page"])
    common = {key: one[key] for key in COMMON_TO_MAPPINGS if key in one}
    mappings = [each for text in flags.get("mappings") or () for each in read_value(mapping, text, "mapping")]
    proxies = [{**common, **_mapped(each)} for each in mappings]
    if "local-port" in one:
        proxies.append(one)
    elif len(proxies) == 1:
        if "subdomain" in in_flags and "subdomain" in proxies[0]:
            raise ConfigError("--subdomain: the mapping names one already")
        proxies[0] = {**{key: one[key] for key in _OF_ONE if key in one}, **proxies[0]}
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
    return _with_web_settings_for_names_alone(proxies)


def _with_web_settings_for_names_alone(proxies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the proxies, of which those of HTTP have the settings for all that are about HTTP.

    Unless there is none of HTTP: then `named` says that they go with none.
    """
    if not any(_kind_of(proxy) == "http" for proxy in proxies):
        return proxies
    return [
        {key: value for key, value in proxy.items() if key not in WEB or _kind_of(proxy) == "http"}
        for proxy in proxies
    ]


def _kind_of(proxy: Mapping[str, Any]) -> str:
    """Return the type of a proxy: one that has a name, and no port at the server, is of HTTP by itself."""
    default = "http" if "subdomain" in proxy and "remote-port" not in proxy else "tcp"
    return str(proxy.get("proxy-type", default))


def _page(path: str) -> str:
    """Return the HTML of a file; raises `ConfigError`."""
    html = read_text(path)
    if len(html) > MAX_ERROR_PAGE:
        raise ConfigError(
            f"{path}: longer than {MAX_ERROR_PAGE} characters; keep styles and images elsewhere"
        )
    return html


def _mapped(each: Service) -> dict[str, Any]:
    """Return the settings that a mapping gives."""
    said = {"local-host": each.local_host, "remote-port": each.remote_port}
    name = {} if each.name is None else {"subdomain": each.name}
    return {"local-port": each.local_port, **{key: value for key, value in said.items() if value}, **name}


def named(proxies: list[dict[str, Any]]) -> tuple[ProxyConfig, ...]:
    """Return the proxies, each with a name of its own.

    Raises `ConfigError` for what does not go together, and for what two proxies have that only one can: a
    name in listings, a port at the server, or a name and path there.
    """
    named: dict[str, ProxyConfig] = {}
    given = [proxy["proxy-name"] for proxy in proxies if "proxy-name" in proxy]
    taken = set(given)
    for key in given:
        if given.count(key) > 1:
            raise ConfigError(f"proxy-name {key!r} is given twice; each proxy needs its own")
    places: set[tuple[object, ...]] = set()
    for proxy in proxies:
        proxy["proxy-type"] = _kind_of(proxy)
        name = proxy.get("proxy-name") or _free_name(proxy, taken)
        taken.add(name)
        _check(name, proxy)
        config = replace(ProxyConfig(**by_field({"proxy-name": name, **proxy})), proxy_name=name)
        named[name] = config
        for place, said in _places_of(config):
            if place in places:
                raise ConfigError(f"{said} is given twice; each proxy needs its own")
            places.add(place)
    return tuple(named.values())


def _places_of(config: ProxyConfig) -> list[tuple[tuple[object, ...], str]]:
    """Return what a proxy asks for at the server that no other can have, with words for it."""
    found: list[tuple[tuple[object, ...], str]] = []
    if config.remote_port:
        kind = "udp" if config.proxy_type == "udp" else "tcp"
        found.append(((kind, config.remote_port), f"remote-port {config.remote_port}"))
    if config.subdomain:
        kind = "https" if config.proxy_type == "https" else "http"
        with_path = f" with path {config.path!r}" if config.path else ""
        found.append(((kind, config.subdomain, config.path), f"subdomain {config.subdomain!r}{with_path}"))
    return found


def _check(name: str, proxy: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the settings of one proxy do not go together."""
    kind = proxy["proxy-type"]
    where = f"proxy {name!r}: "
    if kind == "udp" and "subdomain" in proxy:
        raise ConfigError(f"{where}subdomain: a proxy of UDP has no name")
    if kind in NAMED_KINDS and proxy.get("remote-port"):
        raise ConfigError(f"{where}remote-port: goes with proxy-type tcp or udp; {kind} has a name instead")
    if kind == "udp" and proxy.get("proxy-protocol") == "v1":
        raise ConfigError(f"{where}proxy-protocol: v1 is for TCP alone; UDP needs v2")
    for key in ("path", *WEB):
        if kind != "http" and proxy.get(key):
            raise ConfigError(f"{where}{key}: goes with proxy-type http")
    texts = [each for key in _LISTS for each in proxy.get(key, ())] + [proxy.get("error-page", "")]
    size = sum(len(each.encode()) for each in texts) + HASH_BYTES * len(proxy.get("basic-auth", ()))
    if size > MAX_WEB_BYTES:
        raise ConfigError(
            f"{where}error page, headers, users and networks take {size} bytes; {MAX_WEB_BYTES} are possible"
        )


def _free_name(proxy: Mapping[str, Any], taken: set[str]) -> str:
    """Return a name that is not in `taken`: `tcp-3000`, or `tcp-HOST-3000` for a host other than loopback."""
    host = proxy.get("local-host", LOOPBACK)
    where = "" if host == LOOPBACK else f"{host}-"
    base = f"{proxy['proxy-type']}-{where}{proxy['local-port']}"
    names = (base if number == 1 else f"{base}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)
