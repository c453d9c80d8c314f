"""The executor's attention against the reference: head sizes, sharing, cache formats, lengths around every tile and
block, masks, threads, SIMD levels; with every buffer and every empty slot NaN."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tolerances
from models import (
    CpuSession,
    build,
    deviation,
    llama4_config,
    random_ids,
    random_weights,
    replaced,
    tiny_config,
    variants,
)

from llama_ext import _core
from llama_ext.config import LlamaConfig
from llama_ext.program import Program
from llama_ext.reference import ReferenceSession

LEVELS = _core.simd_levels()
THREADS = (1, 2, 3, 5)
LENGTHS = (1, 15, 16, 17, 127, 128, 129, 255, 256, 257, 300)  # tiles of 16 slots, blocks of 128
GROUPS = (1, 3, 4, 5, 8)
WHOLE_FLOATS = [
    (head_dim, group, ("f32", "f16", "bf16")[(number // 5 + number) % 3])
    for number, (head_dim, group) in enumerate(itertools.product((8, 24, 64, 80, 128), GROUPS))
]
SHAPES = WHOLE_FLOATS + [(head_dim, group, "q8_0") for head_dim in (32, 64, 96, 128, 256) for group in GROUPS]
CACHES = ("f32", "f16", "bf16", "q8_0")


def one_layer(head_dim: int, group: int, **changes: object) -> LlamaConfig:
    fields: dict[str, object] = {
        "num_hidden_layers": 1,
        "head_dim": head_dim,
        "num_attention_heads": 2 * group,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "hidden_size": 32,
    }
    return tiny_config(**(fields | changes))


@pytest.mark.parametrize("number", range(len(SHAPES)), ids=lambda i: "x".join(map(str, SHAPES[i])))
def test_shapes(number: int) -> None:
    """Every head size with every group; cache format, level and threads go round with different periods."""
    head_dim, group, kv_cache = SHAPES[number]
    simd, threads = LEVELS[number % len(LEVELS)], THREADS[number % 4]
    config = one_layer(head_dim, group)
    weights = random_weights(config, seed=number)
    ids = random_ids(config, 300)
    program = build(config, weights, kv_cache=kv_cache)
    expected = ReferenceSession(program).logits(ids)
    session = CpuSession(program, threads=threads, simd=simd)
    whole = session.logits(ids, 256)
    assert deviation(whole, expected) < tolerances.CACHE[kv_cache]
    for length in LENGTHS:  # one row at each border, over a cache that holds no more than its keys
        session.rollback(session.position - length + 1)
        assert np.array_equal(session.logits(ids[length - 1 : length])[0], whole[length - 1]), length
        if length < len(ids):
            session.logits(ids[length:], 256)


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("kv_cache", CACHES)
@pytest.mark.parametrize("head_dim", [24, 64, 96])
def test_every_level_and_cache_format(simd: str, kv_cache: str, head_dim: int) -> None:
    if kv_cache == "q8_0" and head_dim == 24:
        head_dim = 32
    config = one_layer(head_dim, 3)
    program = build(config, random_weights(config, seed=1), kv_cache=kv_cache)
    ids = random_ids(config, 140)
    expected = ReferenceSession(program).logits(ids)
    assert deviation(CpuSession(program, threads=2, simd=simd).logits(ids, 17), expected) < tolerances.CACHE[kv_cache]
    if kv_cache != "f32":  # the tolerance of one format does not pass another's rounding by accident of being slack
        exact = ReferenceSession(build(config, random_weights(config, seed=1), kv_cache="f32")).logits(ids)
        assert deviation(expected, exact) > 10 * tolerances.EXECUTOR_FLOAT


TWO_LAYERS = {
    "num_hidden_layers": 2,
    "layer_kinds": ("chunked", "global"),
    "rope_layers": (True, False),
    "max_position_embeddings": 512,
}
MASKED = {
    **{f"tiny-{name}": config for name, config in variants().items()},
    "chunk100": llama4_config(100, **TWO_LAYERS),
    "chunk128": llama4_config(128, **TWO_LAYERS, head_dim=24),
    "window100": tiny_config(num_hidden_layers=2, sliding_window=100, max_position_embeddings=512),
    "window17": tiny_config(num_hidden_layers=2, sliding_window=17, max_position_embeddings=512, num_attention_heads=6),
}


@pytest.fixture(scope="module", params=MASKED, ids=str)
def masked(request: pytest.FixtureRequest) -> tuple[Program, list[int], np.ndarray]:
    config = MASKED[request.param]
    program = build(config, random_weights(config, seed=2), kv_cache="f32", max_rows=20)
    ids = random_ids(config, 60 if request.param.startswith("tiny") else 260)
    return program, ids, ReferenceSession(program).logits(ids)


@pytest.mark.parametrize("simd", LEVELS)
def test_masks_and_rings(masked: tuple[Program, list[int], np.ndarray], simd: str) -> None:
    program, ids, expected = masked
    for rows, threads in ((20, 2), (1, 1), (7, 3)):
        found = CpuSession(program, threads=threads, simd=simd).logits(ids, rows)
        assert deviation(found, expected) < tolerances.EXECUTOR_FLOAT, (rows, threads)


@pytest.mark.parametrize("simd", LEVELS)
def test_the_same_bits_whatever_the_rows_and_threads(masked: tuple[Program, list[int], np.ndarray], simd: str) -> None:
    program, ids, _ = masked
    single = CpuSession(program, threads=1, simd=simd).logits(ids, 1)
    rng = np.random.default_rng(3)
    for threads in THREADS:
        session = CpuSession(program, threads=threads, simd=simd)
        rows = [int(r) for r in rng.permutation(np.arange(1, 18))] * 2
        at = 0
        for count in rows:
            step = ids[at : at + count]
            if not step:
                break
            assert np.array_equal(session.logits(step), single[at : at + len(step)]), (threads, at, count)
            at += len(step)


@pytest.mark.parametrize("kv_cache", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("simd", LEVELS)
def test_the_same_bits_in_narrow_caches(kv_cache: str, simd: str) -> None:
    config = one_layer(96 if kv_cache == "q8_0" else 24, 5, num_hidden_layers=2)
    program = build(config, random_weights(config, seed=2), kv_cache=kv_cache)
    ids = random_ids(config, 150)
    single = CpuSession(program, threads=1, simd=simd).logits(ids, 1)
    for threads, rows in ((1, 16), (2, 3), (3, 17), (5, 150)):
        assert np.array_equal(CpuSession(program, threads=threads, simd=simd).logits(ids, rows), single)


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("name", [name for name in MASKED if name != "chunk128"])
def test_rings_and_rollback_in_q8_0(name: str, simd: str) -> None:
    """The same bits in steps of one row and of many, around every ring, and once positions were taken back."""
    config = replaced(MASKED[name], head_dim=32)
    program = build(config, random_weights(config, seed=2), kv_cache="q8_0", max_rows=20)
    ids = random_ids(config, 60 if name.startswith("tiny") else 260)
    single = CpuSession(program, threads=1, simd=simd).logits(ids, 1)
    assert deviation(single, ReferenceSession(program).logits(ids)) < tolerances.CACHE["q8_0"]
    session = CpuSession(program, threads=3, simd=simd)
    for at in range(0, len(ids), 13):
        step = ids[at : at + 13]
        assert np.array_equal(session.logits(step), single[at : at + len(step)])
        back = min(len(step), session.cache.max_rollback)
        session.rollback(back)
        session.logits(random_ids(config, back, seed=at))
        session.rollback(back)
        assert np.array_equal(
            session.logits(ids[session.position : at + len(step)]), single[at + len(step) - back : at + len(step)]
        )


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("kv_cache", CACHES)
def test_a_nan_that_is_read_shows(simd: str, kv_cache: str) -> None:
    """What the other tests' silence means: a NaN in keys alone or in values alone reaches the logits, whatever its
    bits.
    """
    config = one_layer(32, 1)
    weights = random_weights(config, seed=2)
    ids = [1, 2, 7, 3, 4]
    for name in ("layers.0.k", "layers.0.v"):
        for bits in (0xFFFFFFFF, 0x7FC00000, 0x7F800001, 0xFFC12345):
            spoilt = {n: w.copy() for n, w in weights.items()}
            spoilt[name].view(np.uint32)[:] = bits
            session = CpuSession(build(config, spoilt, kv_cache=kv_cache), simd=simd)
            assert np.isnan(session.logits(ids, 1)).all(), (name, hex(bits))
            session.reset()
            assert np.isnan(session.logits(ids)).all(), (name, hex(bits))


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("kv_cache", ["f32", "q8_0"])
@pytest.mark.parametrize("bad", [0xFFFFFFFF, 0x7FC00000, 0x7F800000])
def test_a_later_row_that_is_not_finite_leaves_the_earlier_ones_alone(simd: str, bad: int, kv_cache: str) -> None:
    """Rows of a step share passes over the keys; what a row does not see must not reach it, not even times zero."""
    config = one_layer(32, 2)
    weights = random_weights(config, seed=2)
    weights["embed"].view(np.uint32)[7, 3] = bad
    program = build(config, weights, kv_cache=kv_cache)
    ids = [1, 2, 3, 4, 5, 7, 6]
    single = CpuSession(program, simd=simd).logits(ids, 1)
    together = CpuSession(program, simd=simd).logits(ids)
    assert np.isfinite(single[:5]).all() and np.isnan(single[5:]).all()
    assert np.array_equal(together[:5], single[:5])
    assert np.isnan(together[5:]).all()


@pytest.mark.parametrize("simd", LEVELS)
def test_scores_far_apart(simd: str) -> None:
    """Softmax over scores of hundreds: the largest wins, nothing overflows, block borders included."""
    config = one_layer(64, 4)
    weights = random_weights(config, seed=9)
    weights["layers.0.q"] *= 30
    program = build(config, weights, kv_cache="f32")
    ids = random_ids(config, 270)
    found = CpuSession(program, threads=2, simd=simd).logits(ids, 256)
    # A score of s has an error of s x 1e-7 and softmax makes it a relative one: 30 times the usual tolerance.
    assert deviation(found, ReferenceSession(program).logits(ids)) < 30 * tolerances.EXECUTOR_FLOAT


@pytest.mark.parametrize("group", [1, 4])
def test_a_wrong_mask_is_seen(group: int) -> None:
    """The twin: an executor whose chunk or window is one off fails the comparison."""
    for right, wrong in (
        (one_layer(8, group, sliding_window=17), one_layer(8, group, sliding_window=18)),
        (one_layer(8, group, sliding_window=17), one_layer(8, group)),
    ):
        weights = random_weights(right, seed=2)
        ids = random_ids(right, 60)
        expected = ReferenceSession(build(right, weights, kv_cache="f32")).logits(ids)
        found = CpuSession(build(wrong, weights, kv_cache="f32")).logits(ids)
        assert deviation(found, expected) > 10 * tolerances.EXECUTOR_FLOAT
        assert deviation(found[:17], expected[:17]) < tolerances.EXECUTOR_FLOAT
