"""Reads the mappings of a command line, such as 3000:9000 or blog=3000; knows no other setting."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gnar_lib.config import names, values
from gnar_lib.config.model import MAX_PORT
from gnar_lib.config.values import wrong
from gnar_lib.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Service:
    """One service to be forwarded, as a mapping says; what the mapping does not say is empty, or None."""

    local_port: int
    local_host: str = ""
    remote_port: int = 0
    name: str | None = None  # under the server's domain; empty for one that the server chooses


def mapping(value: str) -> list[Service]:
    """Read a mapping: `3000`, `3000:9000`, `host:3000:9000`, `3000-3010:9000-9010` or `name=host:3000`.

    Returns one `Service` for each port.
    """
    expected = "a mapping such as 3000:9000, host:3000:9000, 3000-3010:9000-9010 or blog=3000"
    if "::" in value:
        expected += "; an IPv6 address needs brackets, as in [::1]:3000:9000"
    host = r"(?:(\[[^\]\s]+\]|[^:\s\[\]=]+):)?"
    found = re.fullmatch(rf"([^=]*)={host}(\d{{1,5}})", value, re.ASCII)
    if found is not None:
        name = names.subdomain(found[1])
        return [Service(values.port(found[3]), (found[2] or "").strip("[]"), name=name)]
    span = r"(\d{1,5})(?:-(\d{1,5}))?"
    found = re.fullmatch(rf"{host}{span}:{span}", value, re.ASCII)
    if found is None:
        if re.fullmatch(r"\d{1,5}", value, re.ASCII):
            return [Service(values.port(value))]
        raise wrong(value, expected)
    try:
        local = range(values.port(found[2]), values.port(found[3] or found[2]) + 1)
        remote = range(values.port_or_0(found[4]), values.port_or_0(found[5] or found[4]) + 1)
    except ConfigError:
        raise wrong(value, f"ports from 1 to {MAX_PORT}") from None
    if not local or not remote:
        raise wrong(value, "the lower port of a range first")
    if len(local) != len(remote):
        raise wrong(value, "as many local as remote ports")
    where = (found[1] or "").strip("[]")
    return [Service(here, where, there) for here, there in zip(local, remote, strict=True)]
