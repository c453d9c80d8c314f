"""How well a model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_ext.decoder import Llama
from llama_ext.errors import OptionError
from llama_ext.sampling import log_softmax
from llama_ext.session import Progress, progress_bar, token_ids

__all__ = ["DEFAULT_WINDOW", "Perplexity", "perplexity"]

DEFAULT_WINDOW = 2048
"""Tokens a window, unless the context is smaller: fixed, so that figures can be compared."""

_ROWS = 32  # of logits at a time: a row in float64 is a megabyte for a vocabulary of 128,000


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The score of a text.

    Attributes:
        nll: mean negative log-likelihood of a scored token, in nats.
        scored: tokens that were scored.
        tokens: tokens of the text, a BOS included where the tokenizer adds one.
        windows: windows that the text was divided into.
        window: their length in tokens.
        stride: tokens from one's beginning to the next one's.
    """

    nll: float
    scored: int
    tokens: int
    windows: int
    window: int
    stride: int

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where that is past what a float holds."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf


def perplexity(
    llm: Llama,
    text: str | Sequence[int],
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress = None,
) -> Perplexity:
    """Scores a text.

    The tokens are cut into windows, each read from an empty cache. A window's first token is never scored:
    nothing stands before it. With a stride below the window, windows overlap, and of each only the tokens
    are scored that no earlier one had, so that every token but the text's first counts once. That is
    Hugging Face's way (docs/transformers/perplexity). Log-probabilities are float64, from float32 logits.

    Args:
        llm: the model.
        text: text, tokenized as a prompt is (with BOS where the tokenizer adds one, at the very beginning
            only), or token ids.
        window: tokens a window, at least 2; None: 2048, or the context where that is smaller.
        stride: 1 to window; None: the window, so that none overlap.
        progress: reported in tokens.

    Raises:
        OptionError: window or stride out of range, or fewer than two tokens.
    """
    limit = llm.max_context
    size = min(limit, DEFAULT_WINDOW) if window is None else window
    if isinstance(size, bool) or not isinstance(size, int) or not 2 <= size <= limit:
        raise OptionError(f"window must be from 2 to the context, {limit}, not {size!r}.")
    step = size if stride is None else stride
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= size:
        raise OptionError(f"stride must be from 1 to the window, {size}, not {step!r}.")
    ids = token_ids(llm.tokenizer.encode(text) if isinstance(text, str) else text, llm.config.vocab_size)
    if len(ids) < 2:
        raise OptionError(f"the text has {len(ids)} token{'' if len(ids) == 1 else 's'}; give at least two.")

    session = llm.session()
    total, scored, windows, reached = 0.0, 0, 0, 0
    with progress_bar(progress, "perplexity", " tokens") as report:
        for start in range(0, len(ids), step):
            end = min(start + size, len(ids))
            first = max(reached, start + 1)  # the first token to score
            if first < end:
                windows += 1
                session.reset()
                if start < first - 1:
                    session.prefill(ids[start : first - 1])
                at = first
                for block in session.iter_logits(ids[first - 1 : end - 1]):
                    for row in range(0, len(block), _ROWS):
                        logprobs = log_softmax(block[row : row + _ROWS])
                        targets = ids[at : at + len(logprobs)]
                        total -= float(logprobs[np.arange(len(targets)), targets].sum())
                        at += len(targets)
                    report(at, len(ids))
                scored += end - first
            reached = end
            if end == len(ids):
                break
        report(len(ids), len(ids))
    return Perplexity(total / scored, scored, len(ids), windows, size, step)
