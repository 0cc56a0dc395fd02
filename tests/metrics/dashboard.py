"""Reads the Grafana dashboard of the documents."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.docs import ROOT


def panels() -> list[dict[str, Any]]:
    """Return the panels."""
    found: list[dict[str, Any]] = json.loads((ROOT / "docs" / "grafana.json").read_text())["panels"]
    return found


def expressions(interval: str = "5m") -> list[str]:
    """Return every expression in PromQL, with everything chosen, and rates over an interval."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [
        text.replace("$__rate_interval", interval).replace("$instance", ".*").replace("$proxy", ".*")
        for text in found
    ]
