"""`load` of a mixture of experts that stays in its file: what fits, and what is said where it does not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tiny_model import FFN, HIDDEN, LAYERS, write_tiny

import llama_ext
from llama_ext import loading
from llama_ext.machine import resident_memory

EXPERTS = 6
EXPERT_BYTES = 3 * FFN * HIDDEN * 4


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("moe") / "mixtral.gguf", experts=EXPERTS)


def test_the_same_tokens_with_a_limit(mixtral: Path) -> None:
    ids = [1, 2, 3, 4]
    whole = llama_ext.load(mixtral, threads=2)
    assert whole.executor.residency is None
    limit = resident_memory() + (128 << 20)
    part = llama_ext.load(mixtral, threads=2, resident_limit=limit)
    facts = part.executor.residency
    assert facts is not None and 0 < facts["budget"] < 128 << 20
    assert np.array_equal(part.session().prefill(ids), whole.session().prefill(ids))
    assert part.generate(ids, max_new_tokens=20).token_ids == whole.generate(ids, max_new_tokens=20).token_ids
    assert facts["budget"] >= part.executor.residency["resident"] > 0  # type: ignore[index]


def test_too_little_is_said_before_anything_is_packed(mixtral: Path) -> None:
    seen: list[int] = []
    checkpoint = loading.open_checkpoint(mixtral)
    with pytest.raises(
        llama_ext.OptionError, match=r"resident_limit=1000000 leaves nothing for experts: .* allow more"
    ):
        loading.make_executor(checkpoint, threads=1, resident_limit=10**6)
    with pytest.raises(llama_ext.OptionError, match=r"allow more than") as caught:
        loading.make_executor(checkpoint, threads=1, resident_limit=10**6)
    # A little more than that is too little for the experts of one token.
    native = checkpoint.program.native
    with pytest.raises(ValueError, match=r"the experts of one token in one layer take \d+ bytes, 100 may be resident"):
        llama_ext._core.Executor(native, threads=1, resident_experts=100, progress=lambda done, _: seen.append(done))
    assert seen == [] and ".." not in str(caught.value)


def test_errors_of_other_things_are_not_blamed_on_the_limit(mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_EXT_SIMD", "none")
    for limit in (None, 1 << 40):
        with pytest.raises(llama_ext.OptionError, match="none") as caught:
            llama_ext.load(mixtral, threads=1, resident_limit=limit)
        assert "resident_limit" not in str(caught.value) and ".." not in str(caught.value)


def test_experts_that_are_converted_do_not_stay_in_the_file(mixtral: Path) -> None:
    with pytest.raises(llama_ext.OptionError, match=r"experts can stay in a file only.*llama-ext convert"):
        llama_ext.load(mixtral, threads=1, weights="q8_0", resident_limit="1TB")
    sizes = loading.open_checkpoint(mixtral).weight_sizes()
    assert sizes.experts == LAYERS * EXPERTS * EXPERT_BYTES


def test_what_cannot_be_converted_is_the_checkpoints_fault(tmp_path: Path) -> None:
    bad = np.full((FFN, HIDDEN), np.nan, np.float32)
    path = write_tiny(tmp_path / "nan.gguf", leave_out="blk.1.ffn_up", extra={"blk.1.ffn_up.weight": bad})
    with pytest.raises(llama_ext.CheckpointError, match=r"blk\.1\.ffn_up.*NaN.*download the model again\.$"):
        llama_ext.load(path, threads=1, weights="q8_0")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "plain.gguf")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.gguf"))
    path.rename(odd)
    assert llama_ext.load(odd, threads=1).generate("abc", max_new_tokens=2).timings.prompt_tokens == 3
