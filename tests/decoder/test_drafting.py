"""Drafting: the text of plain decoding in fewer passes, whatever the drafter guesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import build, random_ids, random_weights, variants
from tiny_model import VOCAB, write_tiny

import llama_ext
from llama_ext import _core
from llama_ext.drafting import MOST_DRAFTED, Drafting, ModelDrafter, Pace, PromptLookup, draws
from llama_ext.sampling import SamplingParams
from llama_ext.session import Session

NOTE = (
    "Anna lives in a small house by the river with her two dogs. Every morning she walks to the old bridge, "
    "feeds the ducks, and reads the paper until the baker opens."
)
REPEAT = [{"role": "user", "content": f"Repeat this text word for word:\n\n{NOTE}"}]
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0.5, "seed": 3},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 4},
    {"temperature": 0.6, "min_p": 0.1, "repetition_penalty": 1.02, "seed": 5},
    {"repetition_penalty": 1.05},
]


class Guesses:
    """Guesses right and wrong tokens by turns of random length: what plain decoding says, or something else."""

    cost = 0.0

    def __init__(self, prompt: int, told: Sequence[int], seed: int = 0, vocab: int = VOCAB) -> None:
        self._prompt, self._told, self._vocab = prompt, list(told), vocab
        self._random = np.random.default_rng(seed)

    def propose(self, ids: Sequence[int], count: int, params: SamplingParams) -> list[int]:
        guess = self._told[len(ids) - self._prompt :][: self._random.integers(0, count + 1)]
        if guess and self._random.random() < 0.5:
            at = self._random.integers(len(guess))
            guess[at] = (guess[at] + 1) % self._vocab
        return guess


def sampling(**options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0} | options)


def plain(llm: llama_ext.Llama, prompt: list[int], count: int, **options: Any) -> list[int]:
    session, params = llm.session(), sampling(**options)
    told = [session.sample(session.prefill(prompt), params)]
    while len(told) < count and session.position < session.max_context:
        told.append(session.draw(told[-1], params))
    return told


def drafted(
    session: Session, prompt: list[int], count: int, drafter: Any, most: int = MOST_DRAFTED, **options: Any
) -> tuple[list[int], Drafting]:
    params, drafting = sampling(**options), Drafting(drafter, Pace(0.0, most))
    logits = session.prefill(prompt)
    told = [token for token, _ in draws(session, logits, params, drafting, limit=count, want_logits=False)]
    return told, drafting


def ids_of(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, 256, count).tolist()
    return ids


@pytest.fixture(scope="module")
def with_lookup(smollm2: llama_ext.Llama) -> llama_ext.Llama:
    return llama_ext.Llama(smollm2.checkpoint, smollm2.executor, "lookup")


# --- whole generations


def test_the_same_text_in_fewer_passes(smollm2: llama_ext.Llama, with_lookup: llama_ext.Llama) -> None:
    told, sooner = (llm.chat(REPEAT, max_new_tokens=80) for llm in (smollm2, with_lookup))
    assert sooner.token_ids == told.token_ids and sooner.text == told.text and sooner.finish_reason == "stop"
    assert sooner.finish_reason == told.finish_reason and sooner.stop_reason == told.stop_reason
    timings = sooner.timings
    assert timings.passes < 0.6 * timings.generated_tokens, str(timings)
    assert timings.acceptance == timings.accepted_tokens / timings.drafted_tokens > 0.3
    assert timings.passes + timings.accepted_tokens >= timings.generated_tokens - 1
    assert "drafted tokens accepted" in str(timings) and sooner.to_dict()["timings"]["acceptance"] > 0.3
    assert told.timings.passes == told.timings.generated_tokens - 1 and told.timings.drafted_tokens == 0
    assert "drafted" not in str(told.timings)


@pytest.mark.parametrize("options", SAMPLED)
def test_the_same_draws(smollm2: llama_ext.Llama, with_lookup: llama_ext.Llama, options: dict[str, Any]) -> None:
    told, sooner = (llm.chat(REPEAT, max_new_tokens=40, **options) for llm in (smollm2, with_lookup))
    assert sooner.token_ids == told.token_ids and sooner.timings.drafted_tokens


def test_the_same_logprobs(smollm2: llama_ext.Llama, with_lookup: llama_ext.Llama) -> None:
    told, sooner = (llm.chat(REPEAT, max_new_tokens=30, logprobs=2) for llm in (smollm2, with_lookup))
    assert sooner.logprobs == told.logprobs and sooner.timings.accepted_tokens


def test_a_conversation(smollm2: llama_ext.Llama, with_lookup: llama_ext.Llama) -> None:
    """What was drafted past the end of an answer is not taken for part of it."""
    messages = list(REPEAT)
    for question in ("Repeat the last word.", "Repeat it again."):
        answer = with_lookup.chat(messages, max_new_tokens=50)
        alone = llama_ext.Llama(smollm2.checkpoint, smollm2.executor).chat(messages, max_new_tokens=50)
        assert answer.token_ids == alone.token_ids
        messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]
    assert answer.timings.cached_tokens > 50


def test_stop_strings_and_limits(smollm2: llama_ext.Llama, with_lookup: llama_ext.Llama) -> None:
    for options in ({"stop": "river"}, {"stop": ["two", "house by"]}, *({"max_new_tokens": n} for n in (1, 2, 3, 9))):
        told, sooner = (llm.chat(REPEAT, **{"max_new_tokens": 40} | options) for llm in (smollm2, with_lookup))
        assert (sooner.text, sooner.token_ids) == (told.text, told.token_ids)
        assert (sooner.finish_reason, sooner.stop_reason) == (told.finish_reason, told.stop_reason)


def test_a_pass_takes_no_more_than_asked_for(with_lookup: llama_ext.Llama) -> None:
    none = with_lookup.chat(REPEAT, max_new_tokens=20, draft_tokens=0).timings
    assert (none.passes, none.drafted_tokens) == (19, 0)
    some = with_lookup.chat(REPEAT, max_new_tokens=20, draft_tokens=1).timings
    assert 0 < some.accepted_tokens <= some.drafted_tokens <= some.passes


# --- drafts of any kind


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 2.0, "seed": 7, "top_k": 40}])
@pytest.mark.parametrize("window", [None, 16, 40])
def test_right_and_wrong_guesses(tmp_path: Path, window: int | None, options: dict[str, Any]) -> None:
    """Also where wrong tokens have gone into a ring of a window that is full."""
    llm = llama_ext.load(write_tiny(tmp_path / "tiny.gguf", sliding_window=window), threads=2)
    prompt = ids_of(30)
    told = plain(llm, prompt, 150, **options)
    for seed in range(3):
        session = llm.session()
        found, drafting = drafted(session, prompt, 150, Guesses(len(prompt), told, seed), **options)
        assert found == told and session.ids == prompt + told[:-1]
        assert 0 < drafting.accepted < drafting.drafted


def test_the_end_of_the_context(tiny_path: Path) -> None:
    llm = llama_ext.load(tiny_path, threads=1, max_context=50)
    prompt = ids_of(30)
    told = plain(llm, prompt, 100)
    assert len(told) == 21
    for seed in range(5):
        assert drafted(llm.session(), prompt, 100, Guesses(30, told + [1] * 20, seed))[0] == told


@pytest.mark.parametrize("max_rows", [1, 3])
def test_programs_of_few_rows(max_rows: int) -> None:
    """A pass takes no more tokens than its program does."""
    config = variants()["global"]
    program = build(config, random_weights(config), max_rows=max_rows)
    executor = _core.Executor(program.native, threads=1)
    prompt = random_ids(config, 7)
    told, plainly = drafted(Session(program, executor), prompt, 30, None)
    found, drafting = drafted(
        Session(program, executor), prompt, 30, Guesses(len(prompt), told, vocab=config.vocab_size)
    )
    assert found == told and plainly.passes == 29
    assert drafting.drafted <= (max_rows - 1) * drafting.passes
    assert (drafting.accepted > 0) == (max_rows > 1)


class Stubborn:
    """Always guesses the same."""

    cost = 0.0

    def __init__(self, guess: list[int]) -> None:
        self._guess = guess

    def propose(self, ids: Sequence[int], count: int, params: SamplingParams) -> list[int]:
        return self._guess[:count]


def total_variation(llm: llama_ext.Llama, prompt: list[int], seeds: int) -> tuple[float, float]:
    """Between the frequencies of the first token behind a drafted one and its probability, and what is to be expected
    of so many draws."""
    session = llm.session()
    logits = session.prefill(prompt)
    best = np.argsort(logits)[::-1][:8].tolist()
    chance: dict[tuple[int, int], float] = {}
    first = np.exp(logits[best] - logits[best].max(), dtype=np.float64)
    for token, share in zip(best, first / first.sum(), strict=True):
        then = session.step(token)
        following = np.argsort(then)[::-1][:8].tolist()
        second = np.exp(then[following] - then[following].max(), dtype=np.float64)
        chance |= {(token, b): share * s for b, s in zip(following, second / second.sum(), strict=True)}
        session.rollback(1)
    (_, likely), _ = max(chance.items(), key=lambda item: item[1])
    drafter = Stubborn([likely])
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(seeds):
        session.rollback(session.position - len(prompt) + 1)
        options = {"temperature": 1.0, "top_k": 8, "seed": seed}
        at = SamplingParams(**options)  # type: ignore[arg-type]
        logits, drafting = session.prefill(prompt[-1:]), Drafting(drafter, Pace(0.0, 4))
        first_of_all, second_of_all, _ = (
            token for token, _ in draws(session, logits, at, drafting, limit=3, want_logits=False)
        )
        counts[first_of_all, second_of_all] += 1
        assert drafting.drafted
    pairs = set(chance) | set(counts)
    off = 0.5 * sum(abs(counts[pair] / seeds - chance.get(pair, 0.0)) for pair in pairs)
    noise = 0.5 * sum((2 * p * (1 - p) / (np.pi * seeds)) ** 0.5 for p in chance.values())
    return off, noise


def test_the_distribution(tiny: llama_ext.Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of tokens come as often as the model's probabilities say, though one of them is always drafted; and a
    verification that is too kind to drafts is noticed."""
    prompt = ids_of(9)
    off, noise = total_variation(tiny, prompt, 2000)
    assert off < 1.5 * noise

    def kind(self: Session, token: int, draft: list[int], params: SamplingParams) -> tuple[list[int], np.ndarray]:
        logits = self.logits([token, *draft])
        self.rollback(len(draft))
        return [draft[0]], logits[:1]

    monkeypatch.setattr(Session, "verify", kind)
    off, noise = total_variation(tiny, prompt, 2000)
    assert off > 3 * noise


# --- Session.verify


def test_verify(tiny: llama_ext.Llama) -> None:
    prompt = ids_of(20)
    told = plain(tiny, prompt, 9)
    session, params = tiny.session(), sampling()
    logits = session.logits(prompt)
    for right in range(6):
        draft = told[1 : 1 + right] + [(told[1 + right] + 1) % VOCAB] * (5 - right)
        drawn, rows = session.verify(told[0], draft, params)
        assert drawn == told[1 : right + 2] and session.ids == prompt + told[: right + 1]
        assert rows.shape == (right + 1, VOCAB)
        assert rows.argmax(-1).tolist() == drawn
        session.rollback(right + 1)
    assert session.step(told[0]).argmax() == told[1] and len(logits) == 20
    assert session.verify(told[1], [], params)[0] == told[2:3]


def test_verify_refuses(tiny: llama_ext.Llama, tiny_path: Path) -> None:
    session, params = tiny.session(), sampling()
    session.prefill([1, 2, 3])
    rows = tiny.program.native.max_rows
    for call, error in (
        (lambda: session.verify(1, [2] * rows, params), f"a draft of {rows} tokens is too long: a pass takes {rows}"),
        (lambda: session.verify(1, [VOCAB], params), f"there is no token {VOCAB}"),
        (lambda: session.verify(-1, [2], params), "there is no token -1"),
    ):
        with pytest.raises(llama_ext.OptionError, match=error):
            call()
        assert session.ids == [1, 2, 3]
    full = llama_ext.load(tiny_path, threads=1, max_context=8).session()
    full.prefill([1] * 6)
    with pytest.raises(llama_ext.ContextError):
        full.verify(1, [2, 3], params)
    assert full.ids == [1] * 6 and full.verify(1, [2], params)


def test_verify_of_nan(tmp_path: Path) -> None:
    """A model that gives NaN: the error of sampling, and nothing has changed."""
    nan = np.full((VOCAB, 64), np.nan, np.float32)
    path = write_tiny(tmp_path / "nan.gguf", leave_out="output_norm", extra={"output_norm.weight": nan[0]})
    llm = llama_ext.load(path, threads=1)
    session = llm.session()
    session.prefill([1, 2])
    with pytest.raises(llama_ext.LlamaExtError, match="NaN"):
        session.verify(3, [4, 5], sampling())
    assert session.ids == [1, 2]


# --- drafters


def test_prompt_lookup() -> None:
    params = sampling()
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3], 5, params) == []
    assert lookup.propose([1, 2, 3, 9, 8, 7, 2, 3], 4, params) == [9, 8, 7, 2]
    # The longest match counts, of several the last.
    assert PromptLookup().propose([5, 1, 2, 3, 4, 1, 2, 3, 6, 7, 2, 3, 9, 1, 2, 3], 1, params) == [6]
    assert PromptLookup().propose([1, 2, 4, 1, 2, 5, 1, 2], 1, params) == [5]
    # Past the end it repeats itself.
    assert PromptLookup().propose([1, 2, 1, 2, 1], 6, params) == [2, 1, 2, 1, 2, 1]
    assert PromptLookup().propose([], 3, params) == []
    # What comes later is learnt.
    ids = [1, 2, 3]
    assert lookup_of(ids, [4, 1, 2]) == [3, 4]


def lookup_of(first: list[int], more: list[int]) -> list[int]:
    lookup, ids, guess = PromptLookup(), list(first), []
    for token in more:
        guess = lookup.propose(ids, 2, sampling())
        ids.append(token)
        guess = lookup.propose(ids, 2, sampling())
    return guess


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafting costs nothing, so it is always done: the tiny model's drafts would not pay."""
    monkeypatch.setattr("llama_ext.decoder.Pace", lambda cost, most: Pace(0.0, most))


@pytest.mark.usefixtures("generous")
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 2}])
def test_a_model_that_drafts_itself(tiny_path: Path, tiny: llama_ext.Llama, options: dict[str, Any]) -> None:
    llm = llama_ext.load(tiny_path, threads=1, draft=tiny_path)
    assert isinstance(llm.draft, llama_ext.Llama)
    told, sooner = (
        each.generate([7, 8, 9], max_new_tokens=41, draft_tokens=4, **options)  # type: ignore[arg-type]
        for each in (tiny, llm)
    )
    assert sooner.token_ids == told.token_ids
    # It never guesses wrong: a pass is one token and four more.
    timings = sooner.timings
    assert timings.passes == -(-(timings.generated_tokens - 1) // 5)


@pytest.mark.usefixtures("generous")
@pytest.mark.parametrize("options", [{"seed": 3, "temperature": 1.5}, {"temperature": 0.5, "seed": 2}])
def test_a_model_that_drafts_another(
    tmp_path: Path, tiny: llama_ext.Llama, tiny_path: Path, options: dict[str, Any]
) -> None:
    other = write_tiny(tmp_path / "other.gguf", experts=3, context=32)
    llm = llama_ext.load(tiny_path, threads=1, draft=other)
    told, sooner = (each.generate([7, 8, 9], max_new_tokens=100, **options) for each in (tiny, llm))
    assert sooner.token_ids == told.token_ids  # also past the end of the smaller context
    assert sooner.timings.drafted_tokens > sooner.timings.accepted_tokens


def test_a_drafter_that_fails_is_silent(tiny: llama_ext.Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = ModelDrafter(tiny.session(), 0.1)
    assert len(drafter.propose([1, 2, 3], 4, sampling())) == 4

    def broken(self: Session, *arguments: Any) -> int:
        raise llama_ext.LlamaExtError("the logits hold a NaN")

    monkeypatch.setattr(Session, "draw", broken)
    assert drafter.propose([1, 2, 3], 4, sampling()) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": 300, "rows": 300}, "it has 300 tokens where the model has 260"),
        ({"add_bos": True}, "it divides text otherwise"),
    ],
)
def test_another_vocabulary(tmp_path: Path, tiny_path: Path, changes: dict[str, Any], sentence: str) -> None:
    other = write_tiny(tmp_path / "other.gguf", **changes)
    with pytest.raises(llama_ext.OptionError, match=sentence) as error:
        llama_ext.load(tiny_path, threads=1, draft=other)
    assert "other.gguf" in str(error.value) and "draft='lookup'" in str(error.value)


def test_no_such_draft(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(llama_ext.LlamaExtError, match="nowhere"):
        llama_ext.load(tiny_path, draft=tmp_path / "nowhere.gguf")


def test_draft_tokens_out_of_range(tiny: llama_ext.Llama) -> None:
    with pytest.raises(llama_ext.OptionError, match="draft_tokens=16 is too many; draft up to 15 tokens"):
        tiny.generate([1], draft_tokens=16)
    with pytest.raises(llama_ext.OptionError, match="draft_tokens must be an integer of at least 0"):
        tiny.generate([1], draft_tokens=-1)


# --- how many


def test_pace() -> None:
    pace = Pace(0.2, 15)
    first = pace.count()
    assert 0 < first < 15
    for _ in range(20):
        pace.note(first, first)
    assert first < pace.count() <= 15 and pace.share > 0.9
    for _ in range(40):
        pace.note(4, 0)
    assert pace.count() == 0 and pace.share < 0.2
    passes = 0
    while not pace.count():  # tried again after a while
        pace.note_none()
        passes += 1
    assert 20 < passes < 1000
    assert Pace(0.0, 7).count() == 7 and Pace(0.0, 0).count() == 0 and Pace(5.0, 15).count() == 0
