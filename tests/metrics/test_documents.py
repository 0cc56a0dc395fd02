"""What the documents say of metrics is true: the table, the alerts, the dashboard, the examples."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from shutil import which

import pytest

from gnar_lib.events import Refusal, Side
from tests.helpers.docs import DOCS, ROOT, blocks
from tests.metrics.dashboard import expressions, panels
from tests.metrics.sides import SIDES, families, running

needs_promtool = pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed")
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\| ([^|]*)\| [^|]+ \|$", re.MULTILINE)
NAMES = re.compile(r"\b(?:gnar|process|python)_[a-z_]+")


def promtool(*args: str | Path) -> str:
    """Return what promtool prints if all is well."""
    done = subprocess.run(["promtool", *args], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(side: Side) -> set[tuple[str, str, tuple[str, ...]]]:
    """Return name, type and labels of each metric that one side has, as the table has them."""
    found = set()
    with running(side) as metrics:
        for family in families(metrics).values():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {label: None for sample in family.samples for label in sample.labels}
            found.add((name, family.type, tuple(sorted(labels))))
    return found


@pytest.mark.parametrize("side", SIDES)
def test_the_table_has_every_metric_of_each_side_and_no_other(side: Side) -> None:
    documented = {
        (name, kind, tuple(sorted(re.findall(r"`(\w+)`", labels))))
        for name, kind, labels, sides in ROW.findall(DOCS["docs/metrics.md"].read_text())
        if side.value in sides or "all" in sides
    }
    assert documented == rows_of(side)


def test_every_reason_for_a_refused_login_is_explained() -> None:
    text = DOCS["docs/metrics.md"].read_text()
    (row,) = re.findall(r"^\| `gnar_logins_refused_total`.*", text, re.MULTILINE)
    assert set(re.findall(r"`([a-z-]+)` ", row)) >= {cause.value for cause in Refusal}


def series_of_all_sides() -> set[str]:
    """Return the name of every series."""
    found = {"up"}  # Prometheus's own
    for side in SIDES:
        with running(side) as metrics:
            found |= {sample.name for each in families(metrics).values() for sample in each.samples}
    return found


@pytest.mark.parametrize("name", ["docs/alerts.yml", "docs/grafana.json", "docs/metrics.md"])
def test_names_of_metrics_exist(name: str) -> None:
    existing = series_of_all_sides() | {"gnar_exchange_seconds"}
    named = set(NAMES.findall((ROOT / name).read_text()))
    assert len(named) > 5
    assert named <= existing


@needs_promtool
def test_promtool_takes_the_alerts() -> None:
    assert "rules found" in promtool("check", "rules", ROOT / "docs" / "alerts.yml")


@needs_promtool
def test_promtool_takes_the_example_of_a_configuration(tmp_path: Path) -> None:
    (text,) = (text for text in blocks("yaml") if text.startswith("# prometheus.yml"))
    (tmp_path / "prometheus.yml").write_text(text)
    (tmp_path / "alerts.yml").write_bytes((ROOT / "docs" / "alerts.yml").read_bytes())
    (tmp_path / "gnar.read-token").write_text("a token")
    assert "1 rule files found" in promtool("check", "config", tmp_path / "prometheus.yml")


@needs_promtool
def test_promtool_understands_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # YAML, too
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_panels_do_not_overlap_and_take_the_prometheus_that_is_chosen() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        where = panel["gridPos"]
        assert where["x"] + where["w"] <= 24
        cells = {
            (x, y)
            for x in range(where["x"], where["x"] + where["w"])
            for y in range(where["y"], where["y"] + where["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for chosen in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert chosen == {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in panels()}) == len(panels())
