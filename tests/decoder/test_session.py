"""`Session`: the same bits however tokens are divided, and errors that change nothing."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from tiny_model import VOCAB, write_tiny

import llama_ext
from llama_ext.session import progress_bar


def random_ids(count: int, vocab: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, vocab, count).tolist()
    return ids


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 300])
def test_logits_are_those_of_prefill_and_steps(smollm2_exact: llama_ext.Llama, count: int) -> None:
    ids = random_ids(count, smollm2_exact.config.vocab_size, seed=count)
    session = smollm2_exact.session()
    logits = session.logits(ids)
    assert logits.shape == (count, smollm2_exact.config.vocab_size) and logits.dtype == np.float32
    assert session.position == count and session.ids == ids

    session.reset()
    last = session.prefill(ids)
    assert last.shape == (smollm2_exact.config.vocab_size,) and last.dtype == np.float32
    np.testing.assert_array_equal(last, logits[-1])

    session.reset()
    np.testing.assert_array_equal(session.prefill(ids[:1]), logits[0])
    for index in range(1, count):
        np.testing.assert_array_equal(session.step(ids[index]), logits[index])


def test_tiny_models_too(tiny: llama_ext.Llama) -> None:
    ids = random_ids(600, VOCAB)  # more than two steps' worth
    session = tiny.session()
    logits = session.logits(ids)
    session.reset()
    np.testing.assert_array_equal(np.stack([session.step(token) for token in ids]), logits)
    session.reset()
    blocks = list(session.iter_logits(ids))
    assert max(map(len, blocks)) <= tiny.program.native.max_rows
    np.testing.assert_array_equal(np.concatenate(blocks), logits)


def test_a_prompt_is_coarse_unless_it_shall_be_exact(smollm2: llama_ext.Llama, smollm2_exact: llama_ext.Llama) -> None:
    ids = random_ids(300, smollm2.config.vocab_size)
    ours, exact = smollm2.session().logits(ids), smollm2_exact.session().logits(ids)
    np.testing.assert_array_equal(smollm2.session().prefill(ids), ours[-1])
    np.testing.assert_array_equal(smollm2.session().logits(ids[:16]), exact[:16])
    # The usual row: of random tokens one in some hundreds stands on an edge, and takes another way for any rounding.
    off = np.median(np.sqrt(((ours - exact) ** 2).mean(1)) / exact.std(1))
    assert 1e-3 < off < tolerances.COARSE["integers"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exact_prompt": "yes"}, "exact_prompt='yes' must be True or False"),
        ({"exact_prompt": True, "device": "cuda"}, "exact_prompt is not served by a CUDA device"),
    ],
)
def test_exact_prompt_refused(tiny_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(llama_ext.OptionError, match=message):
        llama_ext.load(tiny_path, **options)


def test_rollback_gives_the_same_bits(smollm2_exact: llama_ext.Llama) -> None:
    ids = random_ids(60, smollm2_exact.config.vocab_size)
    session = smollm2_exact.session()
    logits = session.logits(ids)
    for n in (0, 1, 17, 60):
        session.rollback(n)
        assert session.position == 60 - n and session.ids == ids[: 60 - n]
        session.logits(random_ids(5, 100, seed=n))  # another way, which must leave no trace
        session.rollback(5)
        np.testing.assert_array_equal(session.logits(ids[60 - n :]), logits[60 - n :])


def test_rollback_past_a_window(tmp_path: Path) -> None:
    llm = llama_ext.load(write_tiny(tmp_path / "sliding.gguf", sliding_window=32), threads=1)
    session = llm.session()
    assert llm.program.native.caches[0].capacity == 32 + 256
    ids = random_ids(500, VOCAB)
    logits = session.logits(ids)
    furthest = session.max_rollback
    assert 256 <= furthest < 288
    with pytest.raises(llama_ext.OptionError, match=f"cannot roll back {furthest + 1}.*reset and prefill again"):
        session.rollback(furthest + 1)
    assert session.position == 500
    session.rollback(furthest)
    np.testing.assert_array_equal(session.logits(ids[500 - furthest :]), logits[500 - furthest :])


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        lambda ids: np.array(ids),
        lambda ids: np.array(ids, np.int16),
        lambda ids: np.array(ids, np.uint64),
        lambda ids: np.array(ids * 2, np.int32)[::2],
        lambda ids: [np.int64(index) for index in ids],
    ],
)
def test_kinds_of_ids(tiny: llama_ext.Llama, make: Any) -> None:
    session = tiny.session()
    ids = [7, 7, 7]
    session.prefill(make(ids))
    assert session.ids == ids
    session.step(np.uint8(3))  # type: ignore[arg-type]
    assert session.ids == [7, 7, 7, 3]


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([], "no tokens to process"),
        (np.array([], np.int32), "no tokens to process"),
        ([1, 260], r"there is no token 260 \(at index 1\); ids go from 0 to 259"),
        ([-1], "there is no token -1"),
        (np.array([2**40]), "there is no token 1099511627776"),
        ([1.0, 2.0], "integers"),
        (np.array([1.0]), "integers"),
        ([True], "integers"),
        ([[1, 2]], "integers"),
        ([[1], [2, 3]], "integers"),
        ([2**80], "integers"),
        ([None], "integers"),
        ("abc", "integers"),
        (5, "integers"),
    ],
)
def test_wrong_ids(tiny: llama_ext.Llama, ids: Any, sentence: str) -> None:
    session = tiny.session()
    session.prefill([1, 2])
    with pytest.raises(llama_ext.OptionError, match=sentence):
        session.prefill(ids)
    assert session.ids == [1, 2]


@pytest.mark.parametrize("token", [-1, VOCAB, 1.0, True, None, "a", [1], 2**70])
def test_wrong_steps(tiny: llama_ext.Llama, token: Any) -> None:
    session = tiny.session()
    with pytest.raises(llama_ext.OptionError):
        session.step(token)
    assert session.position == 0


@pytest.mark.parametrize("n", [-1, 4, 1.0, True, "1", 2**70, -(2**70)])
def test_wrong_rollbacks(tiny: llama_ext.Llama, n: Any) -> None:
    session = tiny.session()
    session.prefill([1, 2, 3])
    with pytest.raises(llama_ext.OptionError):
        session.rollback(n)
    assert session.position == 3


def test_no_ids_have_no_logits(tiny: llama_ext.Llama) -> None:
    assert tiny.session().logits([]).shape == (0, VOCAB)


def test_past_the_context(tiny_path: Path) -> None:
    session = llama_ext.load(tiny_path, threads=1, max_context=10).session()
    with pytest.raises(llama_ext.ContextError, match=r"11 tokens do not fit: the context holds 10; .*2,048"):
        session.prefill([1] * 11)
    assert session.position == 0
    session.prefill([1] * 10)
    with pytest.raises(llama_ext.ContextError, match=r"1 token does not fit after the 10 in the cache.*reset"):
        session.step(1)
    with pytest.raises(llama_ext.ContextError):
        session.logits([1])
    assert session.position == 10
    session.rollback(1)
    session.step(2)
    assert session.ids == [1] * 9 + [2]


def test_progress_of_a_prompt(tiny: llama_ext.Llama) -> None:
    seen: list[tuple[int, int]] = []
    tiny.session().prefill([1] * 600, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600), (600, 600)]


def test_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        terminal = True

        def isatty(self) -> bool:
            return self.terminal

    for terminal in (True, False):
        screen = Screen()
        screen.terminal = terminal
        monkeypatch.setattr("sys.stderr", screen)
        with progress_bar(True, "loading", "B") as report:
            report(1000, 4000)
            time.sleep(0.6)  # what is done sooner shows no bar
            report(2000, 4000)
        assert ("loading:  50%" in screen.getvalue() and "2.00k/4.00k" in screen.getvalue()) == terminal
        assert terminal or screen.getvalue() == ""
    with progress_bar(None, "loading", "B") as report:
        report(1, 2)


def test_an_interrupt_between_the_steps_of_a_prompt(tiny: llama_ext.Llama) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= 512:
            raise KeyboardInterrupt

    session = tiny.session()
    ids = random_ids(700, VOCAB)
    with pytest.raises(KeyboardInterrupt):
        session.prefill(ids, progress=interrupt)
    assert session.position == 512 and session.ids == ids[:512]
    whole = tiny.session().prefill(ids)
    np.testing.assert_array_equal(session.prefill(ids[512:]), whole)


def test_sampling_from_a_session(tiny: llama_ext.Llama) -> None:
    session = tiny.session()
    logits = session.prefill([1, 2, 3])
    best = int(logits.argmax())
    assert session.sample(logits, llama_ext.SamplingParams(temperature=0)) == best
    warm = llama_ext.SamplingParams(temperature=1.5, seed=3)
    assert session.sample(logits, warm) == session.sample(logits, warm)
    # The penalty sees what is in the cache.
    session.step(best)
    strong = llama_ext.SamplingParams(temperature=0, repetition_penalty=1e6)
    assert session.sample(logits, strong) != best
    with pytest.raises(llama_ext.OptionError, match=r"float32 logits \[260\]"):
        session.sample(logits.astype(np.float64), warm)


def test_sessions_are_independent(tiny: llama_ext.Llama) -> None:
    one, two = tiny.session(), tiny.session()
    one.prefill([1, 2, 3])
    before = two.prefill([9])
    assert (one.ids, two.ids) == ([1, 2, 3], [9])
    one.reset()
    assert one.position == one.cache_bytes == 0 and two.cache_bytes > 0
    two.reset()
    np.testing.assert_array_equal(two.prefill([9]), before)


def test_a_session_keeps_its_model(tiny_path: Path) -> None:
    import gc

    session = llama_ext.load(tiny_path, threads=2).session()
    gc.collect()
    assert session.prefill([1]).shape == (VOCAB,)
