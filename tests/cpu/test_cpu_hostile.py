"""Programs and calls at the edge of what is allowed: the executor refuses them or gets them right; it never crashes."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import tolerances
from models import deviation

from llama_ext import _core


def _vector(name: str, size: int) -> _core.Weight:
    return _core.Weight(name, "F32", 1, size, np.ones(size, np.float32).view(np.uint8))


def _matrix(name: str, rows: int, cols: int, seed: int = 0) -> _core.Weight:
    values = np.random.default_rng(seed).normal(0, 0.5, (rows, cols)).astype(np.float32)
    return _core.Weight(name, "F32", rows, cols, values.reshape(-1).view(np.uint8))


def _narrow(intermediate: int, vocab: int, hidden: int, layers: int = 3, max_rows: int = 4) -> _core.Program:
    code: list[object] = [_core.Embed(table=_matrix("embed", vocab, hidden))]
    for layer in range(layers):
        gate, up = (_matrix(f"{name}{layer}", intermediate, hidden, layer) for name in ("gate", "up"))
        code += [
            _core.GateUp(layer=layer, norm=_vector("norm", hidden), gate=gate, up=up, eps=1e-5),
            _core.Down(layer=layer, weight=_matrix(f"down{layer}", hidden, intermediate, layer)),
        ]
    code += [_core.Head(norm=_vector("norm", hidden), weight=_matrix("head", vocab, hidden), eps=1e-5), _core.Sample()]
    return _core.Program(vocab=vocab, hidden=hidden, max_context=16, max_rows=max_rows, ropes=[], caches=[], code=code)  # type: ignore[arg-type]


@pytest.mark.parametrize(("intermediate", "vocab", "hidden"), [(1, 7, 33), (5, 1, 16), (3, 4, 1), (1, 1, 1)])
def test_matrices_of_one_row(intermediate: int, vocab: int, hidden: int) -> None:
    """A matrix of one row takes a whole group of 16 when it is packed."""
    seen: list[tuple[int, int]] = []
    native = _narrow(intermediate, vocab, hidden)
    executor = _core.Executor(native, threads=2, poison=True, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and all(done <= total for done, total in seen)
    ids = np.zeros(4, np.int32)
    logits = executor.run(_core.Cache(executor), ids, 4)
    x = _matrix("embed", vocab, hidden).dequantize()[0].astype(np.float64)
    for layer in range(3):
        n = x / np.sqrt(np.mean(x**2) + 1e-5)
        gate, up = (_matrix("", intermediate, hidden, layer).dequantize() @ n for _ in range(2))
        x = x + _matrix("", hidden, intermediate, layer).dequantize() @ (gate / (1 + np.exp(-gate)) * up)
    expected = _matrix("head", vocab, hidden).dequantize() @ (x / np.sqrt(np.mean(x**2) + 1e-5))
    assert deviation(logits, np.tile(expected, (4, 1))) < tolerances.EXECUTOR_FLOAT


def test_a_step_is_not_disturbed_by_a_reset() -> None:
    """rollback and reset from another thread wait for the step: the position they leave is one they can have left."""
    executor = _core.Executor(_narrow(2048, 64, 512, layers=8, max_rows=16), threads=2)
    cache = _core.Cache(executor)
    ids = np.zeros(16, np.int32)
    for _ in range(20):
        cache.reset()
        runner = threading.Thread(target=executor.run, args=(cache, ids))
        runner.start()
        cache.reset()
        runner.join()
        assert cache.position in (0, 16)


def test_ids_that_change_during_a_step_do_no_harm() -> None:
    executor = _core.Executor(_narrow(64, 64, 64, max_rows=16), threads=2)
    cache = _core.Cache(executor)
    ids = np.zeros(16, np.int32)
    stop = threading.Event()

    def spoil() -> None:
        while not stop.is_set():
            ids[:] = 2**30
            ids[:] = 0

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    try:
        for _ in range(300):
            cache.reset()
            try:
                executor.run(cache, ids, 1)
            except ValueError as error:
                assert "outside the vocabulary" in str(error)
    finally:
        stop.set()
        spoiler.join()


def test_flushing_subnormals_elsewhere_changes_nothing() -> None:
    """Whether the calling thread flushes subnormals must not matter to the result, whichever member computes a row."""
    import torch

    hidden = 64
    tiny = np.full((64, hidden), 1e-39, np.float32)
    head = _core.Weight("head", "F32", 64, hidden, tiny.reshape(-1).view(np.uint8))
    code = [
        _core.Embed(table=_matrix("embed", 64, hidden)),
        _core.Head(norm=_vector("norm", hidden), weight=head, eps=1e-5),
        _core.Sample(),
    ]
    native = _core.Program(vocab=64, hidden=hidden, max_context=16, max_rows=1, ropes=[], caches=[], code=code)
    results = []
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            for threads in (1, 2):
                executor = _core.Executor(native, threads=threads)
                results.append(executor.run(_core.Cache(executor), np.zeros(1, np.int32), 1))
        finally:
            torch.set_flush_denormal(False)
    assert np.all(results[0] != 0)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_a_cache_of_another_executor() -> None:
    one, other = (_core.Executor(_narrow(8, 8, 8), threads=1) for _ in range(2))
    with pytest.raises(ValueError, match="made for another executor"):
        one.run(_core.Cache(other), np.zeros(1, np.int32), 1)


@pytest.mark.parametrize("size", [0, 63, 2**63, 2**64 - 1])
def test_reading_an_impossible_amount(size: int) -> None:
    executor = _core.Executor(_narrow(8, 8, 8), threads=1)
    with pytest.raises(ValueError, match="bytes to read must be"):
        executor.read_seconds(size)


def test_a_forked_child_can_load_again() -> None:
    """The old model's threads stay behind; a new model in the child works, and both can go."""
    executor = _core.Executor(_narrow(8, 8, 8), threads=3)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            fresh = _core.Executor(_narrow(8, 8, 8), threads=3)
            fresh.run(_core.Cache(fresh), np.zeros(1, np.int32), 1)
            try:
                executor.run(_core.Cache(executor), np.zeros(1, np.int32), 1)
            except RuntimeError as error:
                status = 0 if "load it again in the child" in str(error) else 2
            del executor, fresh
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_weights_of_another_dtype() -> None:
    with pytest.raises(TypeError, match=r"x: .*uint8, not int32"):
        _core.Weight("x", "F32", 4, 8, np.zeros((8, 4), np.int32))  # type: ignore[arg-type]


def test_costs_of_impossible_steps() -> None:
    native = _narrow(8, 8, 8)
    for rows, position, logit_rows in ((0, 0, 0), (17, 0, 1), (1, 16, 1), (1, -1, 1), (2**62, 0, 0), (1, 0, 2)):
        with pytest.raises(ValueError, match="there is no step of"):
            native.cost(0, rows, position, logit_rows)
