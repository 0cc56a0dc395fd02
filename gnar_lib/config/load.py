"""Makes the settings of a process out of what its sources say, and refuses what does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

from gnar_lib.config import values
from gnar_lib.config.keys import (
    ADMIN,
    CLIENT,
    EITHER,
    FIELDS,
    HOOK_TABLES,
    LOG,
    OF_ONE_CLIENT,
    PROXY,
    PROXY_TABLES,
    SERVER,
    SERVER_WITHOUT_EFFECT,
    by_field,
    variable_of,
)
from gnar_lib.config.model import (
    DEFAULT_PORT,
    MOST_PROXIES,
    Access,
    Address,
    AdminConfig,
    ClientConfig,
    HookConfig,
    LogConfig,
    ServerConfig,
)
from gnar_lib.config.proxies import file_proxies, flag_proxies, named
from gnar_lib.config.public import settle_names
from gnar_lib.config.sources import (
    file_of,
    given_keys,
    read_env,
    read_flags,
    read_sources,
    settle_secrets,
    with_older_names,
)
from gnar_lib.config.transport import settle_way
from gnar_lib.errors import ConfigError


def load_server(flags: Mapping[str, Any], env: Mapping[str, str], *, with_token: bool = True) -> ServerConfig:
    """Return the settings of a server, or those that are no secret, without `with_token`.

    `flags` holds values of the command line by key; the value of `config` is the path of a file. Raises
    `ConfigError` with the place of the wrong value and what was expected there.
    """
    settings, tables = read_sources(SERVER, SERVER_WITHOUT_EFFECT, HOOK_TABLES, flags, env)
    settle_secrets(settings, reads_files=with_token)
    admin = _take_admin(settings)
    settle_names(settings)
    return ServerConfig(
        admin=admin,
        hooks=_hooks_of(tables, "server", env) if with_token else (),
        **by_field({key: value for key, value in settings.items() if key not in SERVER_WITHOUT_EFFECT}),
    )


def _hooks_of(tables: dict[str, Any], side: str, env: Mapping[str, str]) -> tuple[HookConfig, ...]:
    """Return the hooks in a file's tables. Most files have none, and load nothing for them."""
    if not any(place.rpartition(" ")[2] in HOOK_TABLES for place in tables):
        return ()
    from gnar_lib.config.hooks import hooks_of
    from gnar_lib.events import Side

    return hooks_of(tables, Side(side), env)


def load_client(flags: Mapping[str, Any], env: Mapping[str, str], *, is_single: bool = False) -> ClientConfig:
    """Return the settings of a client, as `load_server` does.

    The value of `mappings` in `flags` is a list of texts such as 3000:9000. With `is_single`, the one proxy
    is that of the flags: what file and variables say of other proxies, of hooks and of the admin port does
    not count, since it is for the client that runs all the time. Raises `ConfigError`.
    """
    if is_single:
        env = {name: text for name, text in env.items() if name not in map(variable_of, OF_ONE_CLIENT)}
    settings, tables = read_sources(CLIENT, {}, (*PROXY_TABLES, *HOOK_TABLES), flags, env)
    if is_single:
        settings = {key: value for key, value in settings.items() if key not in ADMIN}
        tables = {}
    settle_secrets(settings, reads_files=True)
    admin = _take_admin(settings)
    hooks = _hooks_of(tables, "client", env)
    proxies = [*file_proxies(tables), *flag_proxies(flags, env)]
    if not proxies:
        raise ConfigError("nothing to forward: give a mapping such as 3000:9000, -l, or [[proxys]] in a file")
    if len(proxies) > MOST_PROXIES:
        raise ConfigError(
            f"{len(proxies)} ports to forward: no server takes more than {MOST_PROXIES} of one client; "
            "forward fewer, or start several clients"
        )
    server = settings.pop("server-addr", Address("localhost", DEFAULT_PORT))
    settle_way(settings, server, env)
    return ClientConfig(server=server, proxies=named(proxies), admin=admin, hooks=hooks, **by_field(settings))


def load_access(env: Mapping[str, str]) -> Access:
    """Return what variables, and the file that a variable names, say of the server; raises `ConfigError`."""
    settings, tables = read_sources(CLIENT, {}, (*PROXY_TABLES, *HOOK_TABLES), {}, env)
    file = file_of({}, env)
    variable = variable_of("server-addr")
    rows = [rows for where, rows in tables.items() if where.rpartition(" ")[2] in PROXY_TABLES]
    return Access(
        server=settings.get("server-addr"),
        place=variable if env.get(variable, "").strip() else file,
        has_token=any(key in settings for key in EITHER["token"]),
        file=file,
        others=sum(len(each) for each in rows if isinstance(each, list)),
    )


def load_admin(flags: Mapping[str, Any], env: Mapping[str, str]) -> AdminConfig:
    """Return the settings of the admin port of a process that reads no others from a file or variables.

    Variables give the secrets alone, which are not for command lines. Raises `ConfigError`.
    """
    secrets = {key: value for key, value in env.items() if key in map(variable_of, EITHER)}
    settings, _ = read_sources(ADMIN, {}, (), flags, secrets)
    settle_secrets(settings, reads_files=True)
    return _take_admin(settings)


def load_log(flags: Mapping[str, Any], env: Mapping[str, str]) -> LogConfig:
    """Return what flags and variables say about the log; raises `ConfigError`."""
    in_env = read_env(LOG, with_older_names(env), given_keys(LOG, flags))
    return LogConfig(**by_field({**in_env, **read_flags(LOG, flags)}))


def after_reload(before: AdminConfig, after: AdminConfig) -> AdminConfig:
    """Return the settings of an admin port that is open, once a reload has read `after`: the port stays.

    Raises `ConfigError` if the port can be reached from elsewhere, and there would be no password any more.
    """
    admin = replace(after, port=before.port, bind=before.bind)
    if admin.port and not values.is_loopback(admin.bind) and not admin.password:
        raise ConfigError("admin-password: has to stay, since the admin port can be reached from elsewhere")
    return admin


def variables() -> dict[str, dict[str, str]]:
    """Return, for each command, the variables that it reads, and for each variable the same option."""
    keys = {"server": ["config", *SERVER], "client": ["config", *CLIENT, *PROXY]}
    keys["http"] = [key for key in keys["client"] if key not in OF_ONE_CLIENT and not key.startswith("udp-")]
    keys |= {command: [*LOG] for command in ("relay", "demo", "health")}
    return {command: {variable_of(key): f"--{key}" for key in own} for command, own in keys.items()}


def changed_keys(before: ClientConfig | ServerConfig, after: ClientConfig | ServerConfig) -> tuple[str, ...]:
    """Return the keys of the settings in which two configurations differ, in the order of the fields."""
    return (*_differing(before, after, ""), *_differing(before.admin, after.admin, "admin-"))


def _differing(before: Any, after: Any, prefix: str) -> list[str]:
    keys = {field: key for key, field in FIELDS.items()}
    names = [field.name for field in fields(before) if field.name != "admin"]
    return [
        prefix + keys.get(name, name.replace("_", "-"))
        for name in names
        if getattr(before, name) != getattr(after, name)
    ]


def _take_admin(settings: dict[str, Any]) -> AdminConfig:
    """Return the settings of the admin port, and remove them from `settings`. Raises `ConfigError`."""
    given = {key: settings.pop(key) for key in ADMIN if key in settings}
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
