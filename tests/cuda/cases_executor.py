"""Whole programs on the card of this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOM = Path(__file__).resolve().parents[1]
if str(ROOM) not in sys.path:
    sys.path.insert(0, str(ROOM))

from models import build, build_in_blocks, random_weights, variants  # noqa: E402

from llama_ext import _core  # noqa: E402
from llama_ext.config import LlamaConfig  # noqa: E402
from llama_ext.drafting import Drafter, Drafting, Pace, draws  # noqa: E402
from llama_ext.program import Program  # noqa: E402
from llama_ext.sampling import SamplingParams  # noqa: E402
from llama_ext.session import Session  # noqa: E402

Array = NDArray[Any]
cuda = _core.cuda


def config_of(name: str, changes: dict[str, Any]) -> LlamaConfig:
    """A variant of tests/models.py, in sizes that fill the blocks of every format and the loads of every kernel."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    config = variants()[name]
    if config.intermediate_size_mlp:
        sizes["intermediate_size_mlp"] = 160
    from models import replaced

    return replaced(config, **(sizes | changes))


def program_of(name: str, format: str, seed: int, changes: dict[str, Any], **options: Any) -> Program:
    config = config_of(name, changes)
    if format in ("F32", "F16", "BF16"):
        return build(config, random_weights(config, seed), format=format, **options)
    return build_in_blocks(config, format, seed, **options)


def run(
    name: str,
    format: str,
    script: list[tuple[Any, ...]],
    model_seed: int = 1,
    changes: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    executor: dict[str, Any] | None = None,
    start: int = 0,
) -> tuple[list[Any], dict[str, Any]]:
    """Carries out a script: ("step", ids, logit_rows) -> logits; ("draw", ids, params, history) -> the id;
    ("rollback", n); ("reset",); ("session", i): goes on with the i-th cache.

    -> (the results, facts of the executor)
    """
    program = program_of(name, format, model_seed, changes or {}, **(options or {}))
    made = cuda.Executor(program.native, **({"poison": True} | (executor or {})))
    caches = [made.make_cache(poison=True, start=start)]
    cache, results = caches[0], []
    for what, *rest in script:
        if what == "step":
            results.append(made.run(cache, np.array(rest[0], np.int32), rest[1]))
        elif what == "draw":
            results.append(
                made.run_and_draw(
                    cache, np.array(rest[0], np.int32), _core.SamplingParams(**rest[1]), np.array(rest[2], np.int32)
                )
            )
        elif what == "rollback":
            cache.rollback(rest[0])
        elif what == "reset":
            cache.reset()
        else:
            assert what == "session"
            while len(caches) <= rest[0]:
                caches.append(made.make_cache(poison=True))
            cache = caches[rest[0]]
    return results, {
        "captures": made.captures,
        "residency": made.residency,
        "plans": {rows: str(made.plan(rows)) for rows in (1, min(2, program.native.max_rows))},
        "kernels": made.plan(1).kernels,
    }


def drafted(name: str, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """Tokens drawn one a pass, and with guesses that are right for a while and then wrong."""
    program = program_of(name, "Q4_0", 1, {})
    executor = cuda.Executor(program.native, poison=True)
    params, prompt = SamplingParams(**options), list(range(20))

    def told(drafter: Drafter | None) -> tuple[list[int], Drafting]:
        session, drafting = Session(program, executor), Drafting(drafter, Pace(0.0, 15))
        first = session.prefill(prompt)
        found = draws(session, first, params, drafting, limit=count, want_logits=False)
        return [token for token, _ in found], drafting

    plain, _ = told(None)

    class Guesses:
        cost = 0.0

        def propose(self, ids: Any, most: int, params: SamplingParams) -> list[int]:
            at = len(ids) - len(prompt)
            right = plain[at : at + min(most, at % 5)]
            return [*right, 1][:most]

    sooner, drafting = told(Guesses())
    facts = {"passes": drafting.passes, "accepted": drafting.accepted, "captures": executor.captures}
    return {"plain": plain, "drafted": sooner, **facts}


def card_bytes(name: str, format: str, model_seed: int = 1) -> int:
    """The largest limit of the card's memory, but for a few kB, with which not all experts lie on the card."""
    program = program_of(name, format, model_seed, {})
    least, most = 0, 1 << 24
    while most - least > 4096:
        limit = (least + most) // 2
        try:
            fits = cuda.Executor(program.native, memory_limit=limit, graphs=False).residency is None
        except RuntimeError:
            fits = False
        if fits:
            most = limit
        else:
            least = limit
    return least
