"""A real model end to end: SmolLM2-135M in Q4_1 on the virtual GPU, prefill on tensor cores and the captured graphs,
against the reference."""

from __future__ import annotations

from collections.abc import Callable

import tolerances
from cuda_worker import Remote
from models import deviation

from llama_ext.loading import open_checkpoint
from llama_ext.reference import ReferenceSession

STEPS = 8


def test_smollm2(card_of: Callable[[str], Remote]) -> None:
    found = card_of("sm_90").call("cases_smollm2.run", steps=STEPS)
    program = open_checkpoint("smollm2", max_context=512).program
    expected = ReferenceSession(program).logits([*found["ids"], *found["chosen"]])
    assert deviation(found["logits"], expected) < tolerances.CUDA_SMOLLM2
    assert found["chosen"] == expected[-STEPS - 1 : -1].argmax(-1).tolist()
    assert found["text"] == "The capital of France is Paris."
    assert found["captures"] == 2
    assert "cuda on virtual H100 (sm_90)" in found["about"]
