"""Whole programs on the card, through the captured graphs, against the reference: every generation, weight format and
cache; over chunk borders, drafted rows and what is taken back of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tolerances
from cases_executor import config_of, program_of
from cuda_worker import Remote
from models import FORMATS, deviation, random_ids, variants

from llama_ext import _core
from llama_ext.reference import ReferenceSession

RUN = "cases_executor.run"
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32}
"""Sizes that fill the blocks of the K formats."""


def expected(
    name: str, format: str, ids: list[int], changes: dict[str, Any] | None = None, **options: Any
) -> np.ndarray:
    """Logits after each id, of the reference."""
    return ReferenceSession(program_of(name, format, 1, changes or {}, **options)).logits(ids)


def ids_for(name: str, count: int) -> list[int]:
    return random_ids(config_of(name, {}), count)


def steps(ids: list[int], *sizes: int) -> list[tuple[Any, ...]]:
    """A script of steps of these sizes, the last as often as it takes, with logits of every row."""
    script, at = [], 0
    while at < len(ids):
        size = sizes[min(len(script), len(sizes) - 1)]
        script.append(("step", ids[at : at + size], len(ids[at : at + size])))
        at += size
    return script


def bound(format: str, cache: str, prefill: bool) -> float:
    weights = tolerances.EXECUTOR_FLOAT if format in ("F32", "F16", "BF16", "MXFP8") else tolerances.EXECUTOR_Q15
    return max(weights, tolerances.CACHE[cache], tolerances.CUDA_PREFILL if prefill else 0)


@pytest.mark.parametrize("format", [*FORMATS])
def test_every_format(format: str, card: Remote) -> None:
    """Decoding token by token, drafted rows, and a prefill, whose steps divide the same ids."""
    changes = WIDE if format.endswith("K") else {}
    options = {"kv_cache": "f32"}
    ids = ids_for("global", 24)
    wanted = expected("global", format, ids, changes, **options)
    for sizes, prefill in (((1, 1, 5, 1, 16), False), ((20, 1), True)):
        logits, facts = card.call(
            RUN, name="global", format=format, changes=changes, script=steps(ids, *sizes), options=options
        )
        assert deviation(np.concatenate(logits), wanted) < bound(format, "f32", prefill)
        assert facts["captures"] == 2


@pytest.mark.parametrize("name", variants())
@pytest.mark.parametrize("format", ["F32", "BF16"])
def test_the_family(name: str, format: str, card: Remote) -> None:
    """Past several chunk borders, with steps that end before, at and behind them; and drafts that are taken back."""
    ids = ids_for(name, 45)
    wanted = expected(name, format, ids, kv_cache="f32")
    wrong = ids_for(name, 60)[45:]
    script = steps(ids[:27], 18, 1, 1, 4, 1)
    for at in range(27, len(ids), 6):  # drafts of 5, of which some are taken back
        script.append(("step", [*ids[at : at + 2], *wrong[:3]], 5))
        script.append(("rollback", 3))
        script += steps(ids[at + 2 : at + 6], 3, 1)
    logits, facts = card.call(RUN, name=name, format=format, script=script, options={"kv_cache": "f32"})
    kept = [rows[:2] if len(rows) == 5 else rows for rows in logits]
    assert deviation(np.concatenate(kept), wanted) < bound(format, "f32", prefill=format != "F32")
    assert facts["captures"] == 2


@pytest.mark.parametrize("cache", ["f32", "bf16", "f16", "q8_0", "fp8"])
@pytest.mark.parametrize("name", ["global", "scout"])
def test_every_cache(name: str, cache: str, card: Remote) -> None:
    changes = {"head_dim": 32}
    ids = ids_for(name, 30)
    wanted = expected(name, "F16", ids, changes, kv_cache=cache)
    logits, _ = card.call(
        RUN, name=name, format="F16", changes=changes, script=steps(ids, 17, 1, 1, 6, 1), options={"kv_cache": cache}
    )
    assert deviation(np.concatenate(logits), wanted) < bound("F16", cache, prefill=True)


@pytest.mark.parametrize("name", ["global", "scout", "mixtral"])
@pytest.mark.parametrize("format", ["BF16", "Q4_0"])
def test_rows_are_the_same_bits(name: str, format: str, card: Remote) -> None:
    ids = ids_for(name, 20)
    one, *others = (
        np.concatenate(card.call(RUN, name=name, format=format, script=steps(ids, *sizes))[0])
        for sizes in ((1,), (16, 4), (3,), (7, 1, 2))
    )
    for other in others:
        assert np.array_equal(one, other)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}])
@pytest.mark.parametrize("name", ["global", "scout"])
def test_drafted_tokens(name: str, options: dict[str, Any], card: Remote) -> None:
    """The draws of plain decoding in fewer passes, also where what was wrong has to leave a ring of keys again."""
    found = card.call("cases_executor.drafted", name=name, count=24, options=options)
    assert found["drafted"] == found["plain"] and len(found["plain"]) == 24
    assert found["accepted"] > 6 and found["passes"] + found["accepted"] >= 23
    assert found["passes"] < 18 and found["captures"] == 2


@pytest.mark.parametrize("seed", range(3))
def test_graphs_are_their_launches(seed: int, card: Remote) -> None:
    ids = ids_for("maverick", 12)
    graph, launches = (
        card.call(RUN, seed=seed, name="maverick", format="Q8_0", script=steps(ids, 5, 1), executor={"graphs": graphs})[
            0
        ]
        for graphs in (True, False)
    )
    assert np.array_equal(np.concatenate(graph), np.concatenate(launches))


def test_sessions_take_turns_and_grow(card: Remote) -> None:
    """Two caches on the same graphs; one of them grows beyond the slots it begins with."""
    changes = {"max_position_embeddings": 700}
    ids, others = ids_for("global", 275), ids_for("global", 300)[275:]
    wanted = expected("global", "F16", ids, changes)[-19:]
    script = steps(ids[:256], 128)
    script += [("session", 1), *steps(others[:3], 1), ("session", 0), *steps(ids[256:], 16, 1)]
    script += [("session", 1), *steps(others[3:8], 5)]
    logits, facts = card.call(RUN, name="global", format="F16", changes=changes, script=script)
    assert deviation(np.concatenate(logits[5:-1]), wanted) < bound("F16", "f16", prefill=True)
    of_the_other = np.concatenate([*logits[2:5], logits[-1]])
    assert deviation(of_the_other, expected("global", "F16", others[:8], changes)) < bound("F16", "f16", prefill=False)
    assert facts["captures"] == 2


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 7},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 3},
    ],
)
def test_draws_are_those_of_the_cpu(params: dict[str, Any], card: Remote) -> None:
    ids = ids_for("global", 30)
    script: list[tuple[Any, ...]] = []
    for at in range(len(ids)):
        script += [("step", ids[at : at + 1], 1), ("rollback", 1), ("draw", ids[at : at + 1], params, ids[: at + 1])]
    results, _ = card.call(RUN, name="global", format="Q8_0", script=script)
    for at, (logits, drawn) in enumerate(zip(results[::2], results[1::2], strict=True)):
        history = np.array(ids[: at + 1], np.int32)
        assert drawn == _core.sample(logits[0], _core.SamplingParams(**params), history, at + 1)
    prompt, _ = card.call(RUN, name="global", format="Q8_0", script=[("draw", ids, params, ids)])
    assert isinstance(prompt[0], int) and 0 <= prompt[0] < 61


@pytest.mark.parametrize("name", ["mixtral", "scout", "maverick"])
def test_experts_in_the_hosts_memory(name: str, card: Remote) -> None:
    """The same bits with a few places on the card for all experts, and the last used are there."""
    ids = ids_for(name, 40)
    script = steps(ids, 18, 1, 1, 1, 6, 1)
    whole, facts = card.call(RUN, name=name, format="Q8_0", script=script)
    assert facts["residency"] is None
    full = card.call("cases_executor.card_bytes", name=name, format="Q8_0")
    part, facts = card.call(RUN, name=name, format="Q8_0", script=script, executor={"memory_limit": full})
    assert np.array_equal(np.concatenate(whole), np.concatenate(part))
    assert facts["residency"]["misses"] > 0 and facts["residency"]["hits"] > 0
    # The products behind `fetch` take weights for what nobody writes while they run: they begin when it has ended.
    for plan in facts["plans"].values():
        lines = plan.splitlines()
        behind = [line for before, line in itertools.pairwise(lines) if ": fetch<<<" in before]
        assert behind and not any(line.endswith(" programmatic") for line in behind)


def test_launches_a_layer(card: Remote) -> None:
    """5 of a dense layer, 7 of a mixture, and 3 beside."""
    for name, layers in (("global", 3 * 5), ("maverick", 2 * 5 + 2 * 7), ("scout", 4 * 7)):
        _, facts = card.call(RUN, name=name, format="BF16", script=[])
        assert len(facts["kernels"]) == layers + 3
        for plan in facts["plans"].values():
            lines = plan.splitlines()
            assert lines[0].startswith("embed: ") and lines[-1].startswith("sample: ")
            assert all(re.match(r"[\w.]+: \w+<<<[\dx ]+, [\dx ]+, \d+ B>>>\(", line) for line in lines)
            assert sum(line.startswith("layers.1.attention: ") for line in lines) == 1


def test_blocks_of_attention_run_all_at_once(card: Remote) -> None:
    """Two a multiprocessor at the most: what is beyond that would begin when the others have ended."""
    _, _, multiprocessors = card.call("describe")
    for kv_heads in (5, 7, 16):
        changes = {"num_key_value_heads": kv_heads, "num_attention_heads": kv_heads}
        _, facts = card.call(RUN, name="global", format="BF16", changes=changes, script=[])
        (splits,) = {int(found) for found in re.findall(r"attention_decode_\w+<<<(\d+) x", facts["plans"][1])}
        assert 2 * multiprocessors - kv_heads < splits * kv_heads <= 2 * multiprocessors


def test_far_from_zero(card: Remote) -> None:
    """A cache may begin at any position."""
    start = 10_000_000
    changes = {"max_position_embeddings": start + 300}
    ids = ids_for("scout", 14)
    program = program_of("scout", "F32", 1, changes, kv_cache="f32")
    wanted = ReferenceSession(program, start=start).logits(ids)
    script = steps(ids, 5, 1)
    logits, _ = card.call(
        RUN, name="scout", format="F32", changes=changes, script=script, options={"kv_cache": "f32"}, start=start
    )
    assert deviation(np.concatenate(logits), wanted) < bound("F32", "f32", prefill=False)


def test_a_second_order_of_everything(card_of: Callable[[str], Remote]) -> None:
    """Every card that there is code for, one seed each, the same ids for all."""
    ids = ids_for("scout", 22)
    wanted = expected("scout", "Q4_0", ids)
    for number, name in enumerate(("sm_86", "sm_89", "sm_100", "sm_120")):
        logits, _ = card_of(name).call(RUN, seed=number, name="scout", format="Q4_0", script=steps(ids, 18, 1, 3))
        assert deviation(np.concatenate(logits), wanted) < bound("Q4_0", "f16", prefill=True)
