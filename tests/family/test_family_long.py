"""Forty thousand tokens through a Llama 4 with a small chunk, one at a time: flat memory, and the logits of a fresh
prefill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import long_run
import tolerances

# Bytes that a process may take besides: pages that are full in part, and what Python keeps. Measured: 18 kB to 47 kB.
# One chunked layer that kept all its keys and values would take 4.9 MB.
SLACK = 1_000_000


def run(**options: Any) -> dict[str, Any]:
    here = Path(__file__).resolve()
    path = os.pathsep.join(filter(None, [str(here.parents[1]), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(here.parent / "long_run.py"), json.dumps(options)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def excess(facts: dict[str, Any]) -> int:
    """Bytes by which the process grew beyond what the global layer's keys and values take."""
    assert (facts["from"], facts["to"]) == (long_run.EARLY, long_run.LENGTH)
    return facts["grown"] - (facts["to"] - facts["from"]) * facts["slot_bytes"][-1]


def test_a_long_run() -> None:
    facts = run(broken=False, rows=1)
    print(facts)
    ring = long_run.CHUNK + long_run.MAX_ROWS
    assert facts["capacities"] == [ring, ring, ring, long_run.LENGTH + long_run.MAX_ROWS]
    assert facts["used"] == sum(
        min(slots, facts["to"]) * size for slots, size in zip(facts["capacities"], facts["slot_bytes"], strict=True)
    )
    assert -SLACK < excess(facts) < SLACK
    assert facts["equal"]
    assert facts["deviation"] < tolerances.REFERENCE


def test_a_ring_as_long_as_the_context_is_noticed() -> None:
    facts = run(broken=True, rows=long_run.MAX_ROWS)
    print(facts)
    assert excess(facts) > 10 * SLACK
