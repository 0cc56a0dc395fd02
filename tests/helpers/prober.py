"""Has schemathesis ask for whatever a description of an API allows, and for what it does not.

A program of its own: `python -m tests.helpers.prober FOLDER URL`. It reads probes from standard input and
writes the statuses of the answers to standard output, both as JSON, and fails if an answer is not as the
document says. Within pytest, which rewrites all modules of schemathesis, it would take several times as long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = 5  # of each operation, right ones and wrong ones


class Probe(NamedTuple):
    """What is to be asked for: an operation, with these header fields."""

    method: str
    path: str
    fields: dict[str, str]


def probe(url: str, probes: Iterable[Probe]) -> list[set[int]]:
    """Return the statuses that came for each probe; fails if an answer is not as it is described at `url`."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, ROOT / "build" / "cache" / "hypothesis", url],
        input=json.dumps([*probes]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-20_000:]
    return [set(statuses) for statuses in json.loads(done.stdout)]


def main(folder: str, url: str) -> None:
    """Do what the module says."""
    import requests
    import schemathesis
    from hypothesis import HealthCheck, Phase, configuration, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    configuration.set_hypothesis_home_dir(folder)
    calm = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],  # they tell of a slow machine
    )
    schema = schemathesis.openapi.from_url(url)

    def statuses_of(each: Probe, session: requests.Session) -> list[int]:
        statuses: set[int] = set()

        def check(case: Any) -> None:
            answer = case.call(session=session, headers=each.fields)
            case.validate_response(answer)
            statuses.add(answer.status_code)

        operation = schema[each.path][each.method]
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases = operation.as_strategy(generation_mode=mode)  # type: ignore[arg-type]
            with suppress(Unsatisfiable):  # what has no parameters cannot be asked for in a wrong way
                calm(given(case=cases)(check))()
        return sorted(statuses)

    with requests.Session() as session:
        json.dump([statuses_of(Probe(*each), session) for each in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
