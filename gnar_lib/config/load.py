"""Reads settings from defaults, a file, the environment and flags; a later source overrides the earlier."""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import tomli

from gnar_lib import logger
from gnar_lib.config import values
from gnar_lib.config.files import read_secret, read_text
from gnar_lib.config.model import (
    DEFAULT_PORT,
    LOOPBACK,
    MOST_PROXIES,
    MOST_USERS,
    Address,
    AdminConfig,
    ClientConfig,
    ProxyConfig,
    Secret,
    ServerConfig,
)
from gnar_lib.config.values import Reader
from gnar_lib.errors import ConfigError

# The reader of each setting by its key. The flag of a key is `--key`, the variable GNAR_KEY, and the field of
# the dataclass the key itself or its entry in `_FIELDS`.
_USERS: dict[str, Reader] = {  # of a proxy, or of a whole server
    "max-users": values.count(MOST_USERS),
    "max-users-per-address": values.count(MOST_USERS),
    "idle-timeout": values.timeout,
}
_ADMIN: dict[str, Reader] = {  # of any process
    "admin-port": values.port_or_0,
    "admin-bind": values.bind,
    "admin-password": values.secret,
    "admin-password-file": values.path,
    "admin-read-token": values.secret,
    "admin-read-token-file": values.path,
}
_SERVER: dict[str, Reader] = {
    "port": values.port,
    "bind": values.bind,
    "udp-bind": values.bind,
    "token": values.secret,
    "token-file": values.path,
    "auth": values.one_of("any", "hmac"),
    "allow-ports": values.port_ranges,
    "max-proxies": values.count(MOST_PROXIES),
    "max-speed": values.rate,
    **_USERS,
    "max-memory": values.memory,
    "heartbeat": values.heartbeat,
    "dead-after": values.dead_after,
    "half-close-timeout": values.timeout,
    "grace": values.seconds,
    **_ADMIN,
    "state-dir": values.path,
}
# Settings of the Go program's server. They are read, so that its files and command lines are understood, but
# have no effect and are not advertised. `_UNSUPPORTED` are those whose effect a user would miss.
_SERVER_WITHOUT_EFFECT: dict[str, Reader] = {
    "domain": values.domain,
    "domain-tunnel": values.flag,
    "caddy-srv-name": values.name,
    "multiplex": values.flag,
}
_UNSUPPORTED = ("domain", "domain-tunnel")
_CLIENT: dict[str, Reader] = {
    "server-addr": values.address(DEFAULT_PORT),
    "token": values.secret,
    "token-file": values.path,
    "auth": values.one_of("hmac", "md5"),
    "multiplex": values.flag,
    "heartbeat": values.heartbeat,
    "dead-after": values.dead_after,
    "half-close-timeout": values.timeout,
    "grace": values.seconds,
    **_ADMIN,
}
_PROXY: dict[str, Reader] = {
    "proxy-name": values.name,
    "proxy-type": values.one_of("tcp", "udp"),
    "local-host": values.host,
    "local-port": values.port,
    "remote-port": values.port_or_0,
    "subdomain": values.subdomain,
    "speed-limit": values.rate,
    "udp-timeout": values.timeout,
    "udp-any-source": values.flag,
    **_USERS,
}
_FIELDS = {
    "grace": "grace_s",
    "dead-after": "dead_after_s",
    "half-close-timeout": "half_close_timeout_s",
    "idle-timeout": "idle_timeout_s",
    "udp-timeout": "udp_timeout_s",
    "server-addr": "server",
}
_SECRETS = ("token", "admin-password", "admin-read-token")
# Two ways to say one thing: a source overrides both with either.
_EITHER = {key: (secret, f"{secret}-file") for secret in _SECRETS for key in (secret, f"{secret}-file")}
_PATHS = ("state-dir", *(f"{secret}-file" for secret in _SECRETS))  # in a file: beside the file
_PROXY_TABLES = ("proxys", "forwards")  # "forwards" is the name in the Go program of 2023
_COMMON_TO_MAPPINGS = ("proxy-type", "local-host", "speed-limit", "udp-timeout", "udp-any-source", *_USERS)
# What Docker and Kubernetes put into GNAR_PORT, GNAR_LOCAL_PORT and so on for a service that is called gnar,
# gnar-local and so on.
_INJECTED = re.compile(r"(tcp|udp|sctp)://.*")

_log = logger.get("config")


def load_server(flags: Mapping[str, Any], env: Mapping[str, str], *, with_token: bool = True) -> ServerConfig:
    """Return the settings of a server, or those that are no secret, without `with_token`.

    `flags` holds values of the command line by key; the value of `config` is the path of a file. Raises
    `ConfigError` with the place of the wrong value and what was expected there.
    """
    settings, _ = _read_sources(_SERVER, _SERVER_WITHOUT_EFFECT, (), flags, env)
    _settle_secrets(settings, reads_files=with_token)
    for key in _UNSUPPORTED:
        if settings.get(key):
            raise ConfigError(f"{key} is not supported yet; leave it out")
    admin = _take_admin(settings)
    if settings.get("state-dir") and not admin.port:
        raise ConfigError("state-dir: holds the history of the panel, so it goes with admin-port")
    return ServerConfig(
        admin=admin,
        **_by_field({key: value for key, value in settings.items() if key not in _SERVER_WITHOUT_EFFECT}),
    )


def load_client(flags: Mapping[str, Any], env: Mapping[str, str]) -> ClientConfig:
    """Return the settings of a client, as `load_server` does.

    The value of `mappings` in `flags` is a list of texts such as 3000:9000. Raises `ConfigError`.
    """
    settings, tables = _read_sources(_CLIENT, {}, _PROXY_TABLES, flags, env)
    _settle_secrets(settings, reads_files=True)
    admin = _take_admin(settings)
    proxies = [*_file_proxies(tables), *_flag_proxies(flags, env)]
    if not proxies:
        raise ConfigError("nothing to forward: give a mapping such as 3000:9000, -l, or [[proxys]] in a file")
    if len(proxies) > MOST_PROXIES:
        raise ConfigError(
            f"{len(proxies)} ports to forward: no server takes more than {MOST_PROXIES} of one client; "
            "forward fewer, or start several clients"
        )
    server = settings.pop("server-addr", Address("localhost", DEFAULT_PORT))
    return ClientConfig(server=server, proxies=_named(proxies), admin=admin, **_by_field(settings))


def load_admin(flags: Mapping[str, Any], env: Mapping[str, str]) -> AdminConfig:
    """Return the settings of the admin port of a process that reads no others from a file or variables.

    Variables give the secrets alone, which are not for command lines. Raises `ConfigError`.
    """
    secrets = {key: value for key, value in env.items() if key in map(_variable, _EITHER)}
    settings, _ = _read_sources(_ADMIN, {}, (), flags, secrets)
    _settle_secrets(settings, reads_files=True)
    return _take_admin(settings)


def variables() -> dict[str, dict[str, str]]:
    """Return, for each command, the variables that it reads, and for each variable the same option."""
    keys = {"server": ["config", *_SERVER], "client": ["config", *_CLIENT, *_PROXY]}
    return {command: {_variable(key): f"--{key}" for key in own} for command, own in keys.items()}


def changed_keys(before: ClientConfig | ServerConfig, after: ClientConfig | ServerConfig) -> tuple[str, ...]:
    """Return the keys of the settings in which two configurations differ, in the order of the fields."""
    return (*_differing(before, after, ""), *_differing(before.admin, after.admin, "admin-"))


def _differing(before: Any, after: Any, prefix: str) -> list[str]:
    keys = {field: key for key, field in _FIELDS.items()}
    names = [field.name for field in fields(before) if field.name != "admin"]
    return [
        prefix + keys.get(name, name.replace("_", "-"))
        for name in names
        if getattr(before, name) != getattr(after, name)
    ]


def _by_field(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names of the dataclasses' fields."""
    return {_FIELDS.get(key, key.replace("-", "_")): value for key, value in settings.items()}


# ---- sources -----------------------------------------------------------------------------------------------


def _read_sources(
    readers: Mapping[str, Reader],
    unadvertised: Mapping[str, Reader],
    tables: tuple[str, ...],
    flags: Mapping[str, Any],
    env: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of file, environment and flags, and the file's tables of proxies unread.

    Keys with a reader in `unadvertised` are read, too, but no error names them. The tables are returned by
    their place, such as `gnar.toml: proxys`.
    """
    settings: dict[str, Any] = {}
    path = file_of(flags, env)
    content = _read_file(path) if path else {}
    found = {f"{path}: {key}": content.pop(key) for key in tables if key in content}
    all_readers = {**readers, **unadvertised}
    in_file = _read_table(all_readers, content, f"{path}: ", hints=(*readers, *tables))
    for key in in_file.keys() & _PATHS:
        in_file[key] = os.path.join(os.path.dirname(path), in_file[key])
    _override(settings, in_file, lambda key: f"{path}: {key}")
    _override(settings, _read_env(all_readers, env, _given(all_readers, flags)), _variable)
    _override(settings, _read_flags(all_readers, flags), lambda key: f"--{key}")
    return settings, found


def file_of(flags: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """Return the path of the configuration file, empty if there is none."""
    in_env = env.get(_variable("config"), "")
    return str(flags.get("config") or (in_env if in_env.strip() else ""))


def _override(settings: dict[str, Any], source: Mapping[str, Any], place: Callable[[str], str]) -> None:
    """Let the settings of a source override those of the sources before; `place` names a key in errors."""
    for secret in _SECRETS:
        given = [key for key in _EITHER[secret] if key in source]
        if len(given) > 1:
            raise ConfigError(f"{place(given[1])}: does not go with {given[0]}; leave one of them out")
        if given:
            for key in _EITHER[secret]:
                settings.pop(key, None)
    settings.update(source)


def _settle_secrets(settings: dict[str, Any], *, reads_files: bool) -> None:
    """Put what each file of a secret holds in its place; warn of quotes around it. Raises `ConfigError`."""
    for key in _SECRETS:
        path = settings.pop(f"{key}-file", "")
        if path and reads_files:
            settings[key] = read_secret(path)
        text = settings.get(key, Secret()).reveal()
        if len(text) > 1 and text[0] in values.QUOTES and text[-1] in values.QUOTES:
            _log.warning(
                "the quotes around the %s are part of it; leave them out, unless the other end has them",
                key.replace("-", " "),
            )


def _take_admin(settings: dict[str, Any]) -> AdminConfig:
    """Return the settings of the admin port, and remove them from `settings`. Raises `ConfigError`."""
    given = {key: settings.pop(key) for key in _ADMIN if key in settings}
    admin = AdminConfig(**{key.removeprefix("admin-").replace("-", "_"): given[key] for key in given})
    secrets = {
        key: secret
        for key, secret in (
            ("token", settings.get("token")),
            ("admin-password", admin.password),
            ("admin-read-token", admin.read_token),
        )
        if secret
    }
    for one, other in combinations(secrets, 2):
        if secrets[one] == secrets[other]:
            raise ConfigError(f"{other}: the same as {one}; choose another, since each opens something else")
    if admin.port and not values.is_loopback(admin.bind) and not admin.password:
        raise ConfigError(
            f"admin-bind: {admin.bind or 'every address'} can be reached from elsewhere, so a password is "
            "needed: set GNAR_ADMIN_PASSWORD, or leave admin-bind out"
        )
    return admin


def _read_file(path: str) -> dict[str, Any]:
    """Return the content of a TOML file; raises `ConfigError`."""
    text = read_text(path)
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as exc:
        number = getattr(exc, "lineno", 0)  # tomli tells since 2.1
        line = [*text.splitlines(), ""][number - 1] if number else ""
        raise ConfigError(f"{path}: {exc}{values.name_of_odd(line)}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: cannot read it: {exc}") from exc


def _read_table(
    readers: Mapping[str, Reader], table: Mapping[str, Any], where: str, hints: Sequence[str]
) -> dict[str, Any]:
    """Return the settings in a table of a file.

    Raises `ConfigError`. For an unknown key, the error names the most similar of `hints`, or all of them that
    are keys of `readers`.
    """
    for key in table:
        if key not in readers:
            if key in _PROXY and _PROXY_TABLES[0] in hints:
                raise ConfigError(f"{where}{key}: is of one proxy; write it below a line [[proxys]]")
            close = difflib.get_close_matches(key, hints, n=1)
            known = ", ".join(sorted(name for name in hints if name in readers))
            hint = f"; did you mean {close[0]}?" if close else f"; there are {known}"
            raise ConfigError(f"{where}{key}: unknown key{hint}")
    return {key: _read(readers[key], value, f"{where}{key}") for key, value in table.items()}


def _variable(key: str) -> str:
    """Return the name of the variable for a key."""
    return "GNAR_" + key.upper().replace("-", "_")


def _given(readers: Mapping[str, Reader], flags: Mapping[str, Any]) -> set[str]:
    """Return the keys that are flags of the command line; with either key of a secret, both."""
    given = {key for key in readers if flags.get(key) not in (None, False)}
    return given | {both for key in given for both in _EITHER.get(key, ())}


def _read_env(
    readers: Mapping[str, Reader], env: Mapping[str, str], overridden: Collection[str]
) -> dict[str, Any]:
    """Return the settings of variables, without those that are empty or `overridden` by flags."""
    found = {}
    for key in readers:
        name = _variable(key)
        text = env.get(name, "")
        if key in overridden or not text.strip():
            continue
        if key.endswith("port") and _INJECTED.fullmatch(text):
            _log.warning("%s=%s is passed over: Docker and Kubernetes set it for a service", name, text)
        else:
            found[key] = _read(readers[key], text, name)
    return found


def _read_flags(readers: Mapping[str, Reader], flags: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: flags[key] for key in readers if flags.get(key) not in (None, False)}
    return {key: _read(readers[key], value, f"--{key}") for key, value in given.items()}


def _read(reader: Reader, value: object, where: str) -> Any:
    try:
        return reader(value)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from None
    except ValueError:  # TOML's hexadecimal numbers may be so long that Python does not show them
        raise ConfigError(f"{where}: a number with too many digits") from None


# ---- proxies -----------------------------------------------------------------------------------------------


def _file_proxies(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of the proxies in a file's tables; raises `ConfigError`."""
    if len(tables) > 1:
        raise ConfigError(f"{[*tables][-1]}: the same as [[proxys]]; use one of the two")
    proxies = []
    for where, rows in tables.items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            key = where.rpartition(" ")[2]
            raise ConfigError(f"{where}: expected tables, each with the line [[{key}]] above it")
        for number, row in enumerate(rows, 1):
            place = f"{where}[{number}]"
            proxy = _read_table(_PROXY, row, f"{place}.", hints=[*_PROXY])
            if "local-port" not in proxy:
                raise ConfigError(f"{place}.local-port: missing; expected the port of the local service")
            proxies.append(proxy)
    return proxies


def _flag_proxies(flags: Mapping[str, Any], env: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the settings of the proxies of mappings, and of the proxy of `--local-port`, if it is there.

    Variables count as flags do. Raises `ConfigError`.
    """
    in_env, in_flags = _read_env(_PROXY, env, _given(_PROXY, flags)), _read_flags(_PROXY, flags)
    one = {**in_env, **in_flags}  # settings outside mappings
    common = {key: one[key] for key in _COMMON_TO_MAPPINGS if key in one}
    proxies = []
    for text in flags.get("mappings") or ():
        for host, local, remote in _read(values.mapping, text, "mapping"):
            where = {"local-host": host} if host else {}
            proxies.append({**common, **where, "local-port": local, "remote-port": remote})
    if "local-port" in one:
        proxies.append(one)
    elif len(proxies) == 1:
        proxies[0].update({key: one[key] for key in ("proxy-name", "subdomain") if key in one})
        if "remote-port" in one:
            place = "--remote-port" if flags.get("remote-port") is not None else _variable("remote-port")
            raise ConfigError(f"{place}: goes with --local-port; a mapping names both ports")
    else:
        for key in in_flags:
            if key not in _COMMON_TO_MAPPINGS:
                raise ConfigError(f"--{key}: goes with --local-port, which is missing")
            if not proxies:
                raise ConfigError(
                    f"--{key}: goes with a mapping or --local-port; a file says it for each proxy"
                )
    return proxies


def _named(proxies: list[dict[str, Any]]) -> tuple[ProxyConfig, ...]:
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
        named[name] = replace(ProxyConfig(**_by_field({"proxy-name": name, **proxy})), proxy_name=name)
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
