"""Gnar's certificates on demand among the TLS policies of others; knows nothing of routes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from gnar_lib.server.caddy.shape import managed_hosts, rows, table, texts
from gnar_lib.server.caddy.wish import ASK_PATH, Wish, is_covered

POLICY_ID = "gnar-tls"
OTHERS_ID = "gnar-others"
ASK_ID = "gnar-ask"
INTERNAL = (".localhost", ".local", ".internal", ".home.arpa")  # ends of names that Caddy certifies itself
_OURS = (POLICY_ID, OTHERS_ID)
_PLACES = ("ask", "permission")  # where a configuration says whom Caddy asks; the second since Caddy 2.8


def automated(apps: dict[str, Any], wish: Wish, *, is_old: bool) -> tuple[dict[str, Any], str]:
    """Return Caddy's `tls` with certificates on demand for gnar's hosts, and what is wrong, empty if nothing.

    Only hosts for which nobody else's policy holds are meant. Caddy applies the first policy that fits, and
    one without `subjects` is the default. `is_old` says that Caddy only knows `ask`.
    """
    tls = table(apps, "tls")
    automation = table(tls, "automation")
    others = [policy for policy in rows(automation, "policies") if table(policy).get("@id") not in _OURS]
    ours = _policies(others, managed_hosts(apps), wish)
    at = next((at for at, policy in enumerate(others) if not texts(policy, "subjects")), len(others))
    policies = [*others[:at], *ours, *others[at:]]
    on_demand, trouble = _on_demand(table(automation, "on_demand"), wish if ours else None, is_old=is_old)
    changed = _with(automation, "policies", policies)
    return _with(tls, "automation", _with(changed, "on_demand", on_demand)), trouble


def without_ours(apps: dict[str, Any]) -> dict[str, Any]:
    """Return Caddy's `tls` without what gnar has put there."""
    tls = table(apps, "tls")
    automation = table(tls, "automation")
    others = [policy for policy in rows(automation, "policies") if table(policy).get("@id") not in _OURS]
    on_demand, _ = _on_demand(table(automation, "on_demand"), None, is_old=False)
    return _with(tls, "automation", _with(_with(automation, "policies", others), "on_demand", on_demand))


def _with(value: dict[str, Any], key: str, part: Any) -> dict[str, Any]:
    """Return an object with a part, or without it if that is empty now, and was not."""
    if not part and not value.get(key):
        return value
    rest = {name: each for name, each in value.items() if name != key}
    return {**rest, key: part} if part else rest


def _policies(others: list[Any], managed: set[str], wish: Wish) -> list[dict[str, Any]]:
    """Return gnar's policies: the one on demand, and one for hosts of others that would fall under that."""
    default = next((table(policy) for policy in others if not texts(policy, "subjects")), {})
    subjects = {subject for policy in others for subject in texts(policy, "subjects")}
    if default.get("on_demand"):
        return []
    hosts = [host for host in wish.hosts if not is_covered(host, subjects | managed)]
    if not hosts:
        return []
    like_default = {key: value for key, value in default.items() if key not in ("@id", "on_demand")}
    # Caddy gets the certificates of these hosts by its default, as without gnar.
    below = sorted(host for host in managed if is_covered(host, hosts) and not is_covered(host, subjects))
    ours = {**_issuers(hosts), **like_default, "@id": POLICY_ID, "subjects": hosts, "on_demand": True}
    for_others = {**_issuers(below), **like_default, "@id": OTHERS_ID, "subjects": below}
    return [for_others, ours] if below else [ours]


def _issuers(hosts: list[str]) -> dict[str, Any]:
    """Return who certifies hosts: Caddy itself, where no public authority does.

    Caddy has the same rule, but not for hosts that a policy names.
    """
    is_internal = all(f".{host}".endswith(INTERNAL) for host in hosts)
    return {"issuers": [{"module": "internal"}]} if is_internal else {}


def _on_demand(present: dict[str, Any], wish: Wish | None, *, is_old: bool) -> tuple[dict[str, Any], str]:
    """Return `on_demand` with gnar as the one whom Caddy asks, or without; and what is wrong, or nothing."""
    is_ours = present.get("@id") == ASK_ID
    asked = _asked(present)
    if not is_ours and (asked or wish is None):
        is_gnar = urlsplit(asked).path == ASK_PATH
        if is_gnar or wish is None:
            return present, ""
        return present, (
            f"Caddy asks {asked} and not gnar whether it may get a certificate, and Caddy can ask only one: "
            f"that one has to say yes where {wish.ask} does"
        )
    if wish is None:
        return {key: value for key, value in present.items() if key not in ("@id", *_PLACES)}, ""
    if is_ours and asked == wish.ask and (not is_old or "ask" in present):
        return present, ""
    rest = {key: value for key, value in present.items() if key not in _PLACES}
    if is_old:
        return {**rest, "@id": ASK_ID, "ask": wish.ask}, ""
    return {**rest, "@id": ASK_ID, "permission": {"module": "http", "endpoint": wish.ask}}, ""


def _asked(on_demand: dict[str, Any]) -> str:
    """Return whom Caddy asks, empty if nobody: a URL, or the name of a module."""
    permission = table(on_demand, "permission")
    return str(on_demand.get("ask") or permission.get("endpoint") or permission.get("module") or "")
