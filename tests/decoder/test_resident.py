"""A model larger than its memory: the process stays within `resident_limit`, by the kernel's own count."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_ext
from llama_ext.loading import open_checkpoint

BENCH = Path(__file__).resolve().parents[2] / "bench"
MB = 10**6

PROGRAM = """
import json, sys
import numpy as np
import llama_ext

path, limit, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
llm = llama_ext.load(path, threads=threads, max_context=1024, resident_limit=None if limit == "none" else limit)
session = llm.session()
ids = np.random.default_rng(3).integers(0, 900, 320)
logits = [session.prefill(ids[:300])]
logits += [session.step(int(token)) for token in ids[300:]]
lines = open("/proc/self/status").read().splitlines()
most = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
print(json.dumps({"most": most, "residency": llm.executor.residency, "logits": [float(x.sum()) for x in logits]}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 experts in each of 4 layers: 400 MB of them, and 25 MB that every token reads."""
    sys.path.insert(0, str(BENCH))
    try:
        import make_model
    finally:
        sys.path.remove(str(BENCH))
    shape = make_model.Shape(
        name="many experts",
        hidden=512,
        layers=4,
        heads=8,
        kv_heads=2,
        head_dim=64,
        ffn=1024,
        vocab=1000,
        context=2048,
        rope_theta=10000.0,
        experts=32,
    )
    path: Path = tmp_path_factory.mktemp("resident") / "many experts.gguf"
    make_model.write_model(path, shape, "bf16")
    return path


def run(path: Path, limit: str, threads: int = 2) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(path), limit, str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_the_process_stays_within_its_limit(model: Path) -> None:
    assert model.stat().st_size > 400 * MB
    free = run(model, "none")
    assert free["most"] > 400 * MB  # the measure sees a model that is held
    assert free["residency"] is None
    for limit, threads in ((250, 1), (320, 2)):
        held = run(model, f"{limit}MB", threads)
        assert held["most"] <= limit * MB
        residency = held["residency"]
        assert 0.5 * residency["budget"] < residency["resident"] <= residency["budget"]
        assert residency["misses"] > 100  # the budget was too small for all of them
        assert held["logits"] == free["logits"]


def test_what_is_too_little_is_said(model: Path) -> None:
    with pytest.raises(
        llama_ext.OptionError, match=r"resident_limit=100000000 leaves nothing for experts: .* the process itself, .*"
    ):
        llama_ext.load(model, resident_limit="100MB")
    with pytest.raises(llama_ext.OptionError, match=r"keys and values of 2,048 tokens; allow more than .*"):
        llama_ext.load(model, resident_limit=1)


def test_experts_that_are_converted_cannot_stay_in_their_file(model: Path) -> None:
    with pytest.raises(llama_ext.OptionError, match=r"is converted or reordered when it is read; write a \.gguf file"):
        llama_ext.load(model, resident_limit="300MB", weights="q8_0")


def test_opening_touches_no_weights(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    assert all(w.in_file for w in checkpoint.experts) and len(checkpoint.experts) == 4 * 32 * 3
    assert checkpoint.weight_sizes().experts == 4 * 32 * 3 * 512 * 1024 * 2
    assert np.isclose(checkpoint.weight_bytes, model.stat().st_size, rtol=0.01)
