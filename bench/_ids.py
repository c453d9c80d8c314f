"""Token ids for timing: fixed, spread over the vocabulary, and the same for every system."""

from __future__ import annotations

__all__ = ["token_chain"]


def token_chain(first: int, n: int, vocab_size: int) -> list[int]:
    """`n` ids from `first` on, each made of the one before by a fixed linear congruence (numbers of MMIX)."""
    if vocab_size < 1:
        raise ValueError("a vocabulary has at least one token")
    ids = []
    state = first
    token = first % vocab_size
    for _ in range(n):
        ids.append(token)
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        token = (state >> 33) % vocab_size
    return ids
