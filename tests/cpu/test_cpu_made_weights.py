"""Weights whose bytes are made when they are needed: permuted, quantized, put together from parts."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import models
import numpy as np
import pytest

from llama_ext import _core
from llama_ext.reference import ReferenceSession


class Maker:
    """Gives a fresh array each time and counts how many of them are alive."""

    def __init__(self, values: models.Floats) -> None:
        self.values = values
        self.calls = 0

    def __call__(self) -> models.Bytes:
        self.calls += 1
        made = self.values.copy().view(np.uint8)
        Maker.alive += 1
        Maker.most = max(Maker.most, Maker.alive)
        weakref.finalize(made, Maker.gone)
        return made

    @classmethod
    def gone(cls) -> None:
        cls.alive -= 1

    alive = most = 0


def made_program(config: models.LlamaConfig) -> tuple[models.programs.Program, models.programs.Program, list[Maker]]:
    """A program over arrays and the same over makers."""
    weights = models.random_weights(config)
    makers = {name: Maker(w) for name, w in weights.items() if len(w) > 1}
    made = {name: _core.Weight(name, "F32", *m.values.shape, m) for name, m in makers.items()}
    return models.build(config, weights), models.build(config, weights | made), list(makers.values())


@pytest.mark.parametrize("name", ["global", "mha", "scout", "mixtral"])
def test_made_weights_give_the_same_bits_and_are_not_kept(name: str) -> None:
    config = models.variants()[name]
    assert config.tie_word_embeddings == (name == "mha")
    plain, made, makers = made_program(config)
    Maker.alive = Maker.most = 0
    session = models.CpuSession(made, threads=2)
    gc.collect()
    # An embedding without a head of its own is read from the head's packed copy, any other is kept as it is.
    assert Maker.alive == (0 if config.tie_word_embeddings else 1)
    assert Maker.most <= 2
    assert all(m.calls == 1 for m in makers)
    ids = models.random_ids(config, 20)
    assert np.array_equal(session.logits(ids), models.CpuSession(plain).logits(ids))
    assert np.array_equal(session.logits(ids, 1), models.CpuSession(plain).logits([*ids, *ids], 1)[20:])
    found, expected = ReferenceSession(made).logits(ids), ReferenceSession(plain).logits(ids)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("format", models.FORMATS)
def test_a_tied_embedding_is_read_from_the_packed_head(format: str) -> None:
    config = models.tiny_config(hidden_size=256, vocab_size=35, tie_word_embeddings=True)
    weights: dict[str, models.Floats | _core.Weight] = dict(models.random_weights(config))
    table = models.random_weight("embed", format, config.vocab_size, config.hidden_size, 3)
    plain = models.build(config, weights | {"embed": table})
    made = models.build(config, weights | {"embed": _core.Weight("embed", format, table.rows, table.cols, table.bytes)})
    ids = list(range(config.vocab_size))
    assert np.array_equal(models.CpuSession(made).logits(ids), models.CpuSession(plain).logits(ids))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: np.zeros(7, np.uint8), r"7 bytes, but .* takes"),
        (lambda: np.zeros(32, np.float32), "must be the format's bytes, uint8"),
        (lambda: None, "what was made is no array"),
    ],
)
def test_what_is_made_wrong_is_named(made: Callable[[], object], message: str) -> None:
    weight = _core.Weight("blk.0.odd", "F32", 4, 8, made)  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match=rf"blk\.0\.odd.*{message}"):
        weight.dequantize()


def test_an_error_of_a_maker_comes_through() -> None:
    def fails() -> models.Bytes:
        raise OSError("the disk is gone")

    config = models.tiny_config()
    weights: dict[str, models.Floats | _core.Weight] = dict(models.random_weights(config))
    q = weights["layers.1.q"]
    assert isinstance(q, np.ndarray)
    program = models.build(config, weights | {"layers.1.q": _core.Weight("layers.1.q", "F32", *q.shape, fails)})
    with pytest.raises(OSError, match="the disk is gone"):
        models.CpuSession(program)


def test_data_is_an_array_or_a_function() -> None:
    with pytest.raises(TypeError, match="an array of the format's bytes, or a function"):
        _core.Weight("odd", "F32", 1, 8, "text")  # type: ignore[arg-type]
