"""What a generation gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llama_ext.sampling import SamplingParams

__all__ = ["GenerationResult", "Timings", "TokenLogprob"]


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went. Seconds are wall-clock; what the reader of a stream does between pieces is not
    counted.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that were in the cache already (chat).
        prompt_seconds: processing the others.
        first_token_seconds: from the call until the first token was chosen.
        generated_tokens: tokens drawn, the end token included.
        decode_seconds: all generated tokens but the first, which comes with the prompt.
        passes: of the model, for those: one a token, fewer where drafted tokens were accepted.
        drafted_tokens: guessed ahead and verified.
        accepted_tokens: those of them that were right.
    """

    prompt_tokens: int
    cached_tokens: int
    prompt_seconds: float
    first_token_seconds: float
    generated_tokens: int
    decode_seconds: float
    passes: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that were right; 0 where none was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        return _rate(self.prompt_tokens - self.cached_tokens, self.prompt_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed; 0 where fewer than two tokens were generated."""
        return _rate(self.generated_tokens - 1, self.decode_seconds)

    def __str__(self) -> str:
        drafted = (
            f", {self.passes:,} passes: {self.accepted_tokens:,} of {self.drafted_tokens:,} drafted tokens accepted "
            f"({self.acceptance:.0%})"
            if self.drafted_tokens
            else ""
        )
        cached = f" (and {self.cached_tokens:,} cached)" if self.cached_tokens else ""
        return (
            f"prompt {self.prompt_tokens - self.cached_tokens:,} tokens{cached} at "
            f"{self.prompt_tokens_per_second:,.1f} a second, first token after "
            f"{self.first_token_seconds:.3f} s, {self.generated_tokens:,} tokens at "
            f"{self.tokens_per_second:,.1f} a second{drafted}"
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of probabilities at one position, from the model's own logits: before temperature,
    penalties and filters, in float64.

    Attributes:
        token_id: the token that was drawn.
        logprob: its log-probability.
        top: the n most probable tokens as (token id, log-probability), most probable first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished generation; `str()` of it is its text.

    Attributes:
        text: what was generated, without the end token or the stop string that ended it.
        token_ids: the tokens drawn, without the end token. Those that spell a stop string are among them.
        finish_reason: "stop": the model ended, or a stop string came. "length": max_new_tokens or the context
            was used up.
        stop_reason: the id of the end token or the stop string; None with "length".
        prompt_ids: the tokens of the prompt.
        sampling: the parameters used. With `seed` None in the call, `sampling.seed` is the one that was
            chosen: the same call with it gives the same text.
        timings: seconds and tokens.
        logprobs: one entry a token of `token_ids`; None if not asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None
    prompt_ids: list[int] = field(repr=False)
    sampling: SamplingParams
    timings: Timings
    logprobs: list[TokenLogprob] | None = field(default=None, repr=False)

    @property
    def seed(self) -> int:
        return self.sampling.seed

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings, as the command line's --json prints them."""
        timings = asdict(self.timings)
        timings["prompt_tokens_per_second"] = self.timings.prompt_tokens_per_second
        timings["tokens_per_second"] = self.timings.tokens_per_second
        timings["acceptance"] = self.timings.acceptance
        out: dict[str, Any] = {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "prompt_ids": self.prompt_ids,
            "sampling": asdict(self.sampling),
            "timings": timings,
        }
        if self.logprobs is not None:
            out["logprobs"] = [
                {
                    "token_id": entry.token_id,
                    "logprob": entry.logprob,
                    "top": [{"token_id": index, "logprob": value} for index, value in entry.top],
                }
                for entry in self.logprobs
            ]
        return out
