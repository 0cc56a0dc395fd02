"""Reads settings from a file, the environment and flags; a later source overrides the earlier."""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import tomli

from gnar_lib import logger
from gnar_lib.config import values
from gnar_lib.config.files import read_secret, read_text
from gnar_lib.config.keys import CLIENT, EITHER, PATHS, PROXY, PROXY_TABLES, SECRETS, SERVER, variable_of
from gnar_lib.config.model import Secret
from gnar_lib.config.values import Reader
from gnar_lib.errors import ConfigError

# What Docker and Kubernetes put into GNAR_PORT, GNAR_LOCAL_PORT and so on for a service that is called gnar,
# gnar-local and so on.
_INJECTED = re.compile(r"(tcp|udp|sctp)://.*")

_log = logger.get("config")


def read_sources(
    readers: Mapping[str, Reader],
    unadvertised: Mapping[str, Reader],
    tables: tuple[str, ...],
    flags: Mapping[str, Any],
    env: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of file, environment and flags, and those of the file's `tables` unread.

    Keys with a reader in `unadvertised` are read, too, but no error names them. The tables are returned by
    their place, such as `gnar.toml: proxys`.
    """
    settings: dict[str, Any] = {}
    path = file_of(flags, env)
    content = _read_file(path) if path else {}
    found = {f"{path}: {key}": content.pop(key) for key in tables if key in content}
    all_readers = {**readers, **unadvertised}
    in_file = read_table(all_readers, content, f"{path}: ", hints=(*readers, *tables))
    for key in in_file.keys() & PATHS:
        in_file[key] = _beside(path, in_file[key])
    _override(settings, in_file, lambda key: f"{path}: {key}")
    env = with_older_names(env)
    _override(settings, read_env(all_readers, env, given_keys(all_readers, flags)), variable_of)
    _override(settings, read_flags(all_readers, flags), lambda key: f"--{key}")
    return settings, found


def _beside(file: str, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return a path, or several, that a file names relative to its own folder."""
    if isinstance(path, tuple):
        return tuple(os.path.join(os.path.dirname(file), each) for each in path)
    return os.path.join(os.path.dirname(file), path)


def file_of(flags: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """Return the path of the configuration file, empty if there is none."""
    in_env = env.get(variable_of("config"), "")
    return str(flags.get("config") or (in_env if in_env.strip() else ""))


def _override(settings: dict[str, Any], source: Mapping[str, Any], place: Callable[[str], str]) -> None:
    """Let the settings of a source override those of the sources before; `place` names a key in errors."""
    for secret in SECRETS:
        given = [key for key in EITHER[secret] if key in source]
        if len(given) > 1:
            raise ConfigError(f"{place(given[1])}: does not go with {given[0]}; leave one of them out")
        if given:
            for key in EITHER[secret]:
                settings.pop(key, None)
    settings.update(source)


def settle_secrets(settings: dict[str, Any], *, reads_files: bool) -> None:
    """Put what each file of a secret holds in its place; warn of quotes around it. Raises `ConfigError`."""
    for key in SECRETS:
        path = settings.pop(f"{key}-file", "")
        if path and reads_files:
            settings[key] = read_secret(path)
        text = settings.get(key, Secret()).reveal()
        if len(text) > 1 and text[0] in values.QUOTES and text[-1] in values.QUOTES:
            _log.warning(
                "the quotes around the %s are part of it; leave them out, unless the other end has them",
                key.replace("-", " "),
            )


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


def read_table(
    readers: Mapping[str, Reader], table: Mapping[str, Any], where: str, hints: Sequence[str]
) -> dict[str, Any]:
    """Return the settings in a table of a file.

    Raises `ConfigError`. For an unknown key, the error names the most similar of `hints`, or all of them that
    are keys of `readers`.
    """
    for key in table:
        if key not in readers:
            if key in PROXY and PROXY_TABLES[0] in hints:
                raise ConfigError(f"{where}{key}: is of one proxy; write it below a line [[proxys]]")
            if where.endswith(": ") and (end := _end_of(key)):  # of no table in the file
                raise ConfigError(f"{where}{key}: unknown key; it is a setting of gnar {end}")
            close = difflib.get_close_matches(key, hints, n=1)
            known = ", ".join(sorted(name for name in hints if name in readers))
            hint = f"; did you mean {close[0]}?" if close else f"; there are {known}"
            raise ConfigError(f"{where}{key}: unknown key{hint}")
    return {key: read_value(readers[key], value, f"{where}{key}") for key, value in table.items()}


def _end_of(key: str) -> str:
    """Return which end has a setting; empty for none, or both."""
    ends = [name for name, known in (("server", SERVER), ("client", CLIENT)) if key in known]
    return ends[0] if len(ends) == 1 else ""


def rows_of(where: str, rows: object) -> list[tuple[str, dict[str, Any]]]:
    """Return the tables of a list such as `[[proxys]]`, each with its place; raises `ConfigError`."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        key = where.rpartition(" ")[2]
        raise ConfigError(f"{where}: expected tables, each with the line [[{key}]] above it")
    return [(f"{where}[{number}]", row) for number, row in enumerate(rows, 1)]


def given_keys(readers: Mapping[str, Reader], flags: Mapping[str, Any]) -> set[str]:
    """Return the keys that are flags of the command line; with either key of a secret, both."""
    given = {key for key in readers if flags.get(key) not in (None, False)}
    return given | {both for key in given for both in EITHER.get(key, ())}


def with_older_names(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment in which DEBUG=1 and GNAR_LOG=json stand for variables that are not set."""
    is_debug = env.get("DEBUG", "").strip().lower() not in {"", "0", "false", "no", "off"}
    older = {variable_of("log-level"): "debug"} if is_debug else {}
    if env.get("GNAR_LOG", "").strip().lower() == "json":
        older[variable_of("log-format")] = "json"
    return {**env, **{name: value for name, value in older.items() if not env.get(name, "").strip()}}


def read_env(
    readers: Mapping[str, Reader], env: Mapping[str, str], overridden: Collection[str]
) -> dict[str, Any]:
    """Return the settings of variables, without those that are empty or `overridden` by flags."""
    found = {}
    for key in readers:
        name = variable_of(key)
        text = env.get(name, "")
        if key in overridden or not text.strip():
            continue
        if key.endswith("port") and _INJECTED.fullmatch(text):
            _log.warning("%s=%s is passed over: Docker and Kubernetes set it for a service", name, text)
        else:
            found[key] = read_value(readers[key], text, name)
    return found


def read_flags(readers: Mapping[str, Reader], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the flags that were given."""
    given = {key: flags[key] for key in readers if flags.get(key) not in (None, False)}
    return {key: read_value(readers[key], value, f"--{key}") for key, value in given.items()}


def read_value(reader: Reader, value: object, where: str) -> Any:
    """Return what a reader makes of a value; its `ConfigError` says `where` the value stands."""
    try:
        return reader(value)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from None
    except ValueError:  # TOML's hexadecimal numbers may be so long that Python does not show them
        raise ConfigError(f"{where}: a number with too many digits") from None
