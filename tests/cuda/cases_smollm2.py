"""The real SmolLM2-135M on the card of this process, through the package's own front door."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import llama_ext

Floats = NDArray[np.float32]
PROMPT = [{"role": "user", "content": "What is the capital of France?"}]


def run(steps: int) -> dict[str, Any]:
    """A prompt in one prefill, and `steps` greedy steps: logits after each, ids, and the text of a chat of its own."""
    llm = llama_ext.load("smollm2", device="cuda", max_context=512, threads=1)
    ids = llm.tokenizer.encode(llm.chat_template.render(PROMPT))
    session = llm.session()
    logits: list[Floats] = [*session.logits(ids)]
    chosen: list[int] = []
    for _ in range(steps):
        chosen.append(int(logits[-1].argmax()))
        logits.append(session.step(chosen[-1]))
    return {
        "ids": ids,
        "chosen": chosen,
        "logits": np.stack(logits),
        "text": llm.chat(PROMPT, max_new_tokens=steps).text,
        "captures": llm.executor.captures,  # type: ignore[attr-defined]
        "about": str(llm),
    }
