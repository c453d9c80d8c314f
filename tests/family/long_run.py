"""A long run in a process of its own, so that what its memory grows by is the run's: see test_family_long.py.

python long_run.py '{"broken": false, "rows": 1}' prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from models import (
    Floats,
    build,
    plain_mixture,
    plain_norm,
    plain_stream,
    random_ids,
    random_weights,
    scout_config,
)

from llama_ext import _core
from llama_ext.config import LlamaConfig
from llama_ext.machine import resident_memory
from llama_ext.program import Program

LENGTH = 40_000
EARLY = 2_000
CHUNK, MAX_ROWS = 64, 16
LAST = 3  # rows whose logits are compared


def config_of_the_run() -> LlamaConfig:
    """A Scout of three chunked layers and a global one, which alone keeps what it has seen."""
    return scout_config(
        CHUNK,
        num_local_experts=4,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=LENGTH + MAX_ROWS,
        floor_scale=1000,
    )


def program_of_the_run(weights: dict[str, Floats], broken: bool) -> Program:
    program = build(config_of_the_run(), weights, kv_cache="f32", max_rows=MAX_ROWS)
    if not broken:
        return program
    native = program.native
    caches = [
        _core.CacheLayer(kv_heads=c.kv_heads, head_dim=c.head_dim, capacity=native.max_context, format=c.format)
        for c in native.caches
    ]
    twin = _core.Program(
        vocab=native.vocab,
        hidden=native.hidden,
        max_context=native.max_context,
        max_rows=native.max_rows,
        ropes=native.ropes,
        caches=caches,
        code=native.code,
    )
    return Program(program.config, twin)


def run(program: Program, ids: npt.NDArray[np.int32], rows: int) -> tuple[Floats, dict[str, Any]]:
    """The logits of the last rows, taken `rows` ids a step, and the memory before and after."""
    executor = _core.Executor(program.native, threads=1)
    cache = _core.Cache(executor)
    at, memory = 0, 0
    last = []
    while at < len(ids):
        if at >= EARLY and not memory:
            memory, early = resident_memory(), cache.position
        # The last rows one by one whatever the steps before.
        step = 1 if at >= len(ids) - LAST else min(rows, len(ids) - LAST - at)
        logits = executor.run(cache, ids[at : at + step], int(at >= len(ids) - LAST))
        if len(logits):
            last.append(logits)
        at += step
    grown = resident_memory() - memory
    facts = {
        "grown": grown,
        "from": early,
        "to": cache.position,
        "used": cache.bytes_used,
        "reserved": cache.bytes_reserved,
    }
    return np.concatenate(last), facts


def main(options: dict[str, Any]) -> dict[str, Any]:
    config = config_of_the_run()
    weights = random_weights(config, seed=1)
    ids = np.array(random_ids(config, LENGTH), np.int32)
    program = program_of_the_run(weights, options["broken"])
    found, facts = run(program, ids, options["rows"])
    if not options["broken"]:
        fresh, _ = run(program, ids, MAX_ROWS)
        facts["equal"] = bool(np.array_equal(found, fresh))
        exact = plain_tail(config, weights, ids.tolist())
        facts["deviation"] = float(np.abs(found - exact).max() / np.abs(exact).max())
        facts["spread"] = float(np.abs(exact).max())
    return facts | {
        "capacities": [layer.capacity for layer in program.native.caches],
        "slot_bytes": [layer.bytes_per_slot for layer in program.native.caches],
    }


def plain_tail(config: LlamaConfig, weights: dict[str, Floats], ids: list[int]) -> npt.NDArray[np.float64]:
    """float64's logits of the last rows.

    What a chunked layer hands on depends on its chunk alone, so all layers but the last, which is global, go chunk by
    chunk through the plain definition; then come the last rows over all keys, with one head and no rotation.
    """
    last = config.num_hidden_layers - 1
    chunks = range(0, LENGTH, CHUNK)
    streams = [plain_stream(config, weights, ids[at : at + CHUNK], layers=last, start=at) for at in chunks]
    x = np.concatenate(streams)

    def of(name: str) -> npt.NDArray[np.float64]:
        return weights[f"layers.{last}.{name}"].astype(np.float64)

    m = plain_norm(config, x, of("attention_norm"))
    x, positions = x[-LAST:], np.arange(LENGTH - LAST, LENGTH)
    temperature = np.log((positions + 1) // config.floor_scale + 1.0) * config.attn_scale + 1
    scores = (m[-LAST:] @ of("q").T) * temperature[:, None] @ (m @ of("k").T).T / np.sqrt(config.head_dim)
    scores[np.arange(LENGTH)[None, :] > positions[:, None]] = -np.inf
    shares = np.exp(scores - scores.max(1, keepdims=True))
    x = x + shares / shares.sum(1, keepdims=True) @ (m @ of("v").T) @ of("o").T
    x = x + plain_mixture(config, plain_norm(config, x, of("ffn_norm")), of)
    return plain_norm(config, x, weights["norm"]) @ weights["head"].T.astype(np.float64)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
