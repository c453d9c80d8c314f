"""The exceptions that `llama_ext` raises for what a user can mend.

Every message is one sentence that names the thing at fault and what to do about it. All of them are
`ValueError`s as well, so code that knows nothing of `llama_ext` still catches them in the usual way.
"""

from __future__ import annotations

__all__ = ["CheckpointError", "ContextError", "LlamaExtError", "OptionError"]


class LlamaExtError(Exception):
    """The base of every error of this package."""


class CheckpointError(LlamaExtError, ValueError):
    """A checkpoint (weights, metadata, vocabulary, chat template) is damaged, unsupported or contradicts
    itself."""


class OptionError(LlamaExtError, ValueError):
    """An argument given by the caller has a wrong type, an unknown name or a value out of range."""


class ContextError(LlamaExtError, ValueError):
    """More tokens were asked for than the context of the session holds."""
