"""The tokenizer that the metadata of a GGUF file describes."""

from __future__ import annotations

from collections.abc import Mapping

from llama_ext.errors import CheckpointError
from llama_ext.tokenizer.byte_level import ByteLevelTokenizer
from llama_ext.tokenizer.hugging_face import TOKENIZER_JSON, json_tokenizer_from_metadata
from llama_ext.tokenizer.interface import Tokenizer
from llama_ext.tokenizer.sentence_piece import SentencePieceTokenizer
from llama_ext.tokenizer.tiktoken_ranks import MERGE_BY_RANK, TiktokenTokenizer
from llama_ext.tokenizer.vocabulary import Vocabulary

__all__ = ["tokenizer_from_gguf"]


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Args:
        metadata: `GgufFile.metadata`, or what `Tokenizer.gguf_metadata` gives, whose own keys are honoured.

    Raises:
        CheckpointError: there is no vocabulary, its kind or its rule for cutting text is not supported, or
            its parts contradict each other.
    """
    model = metadata.get("tokenizer.ggml.model")
    if metadata.get(TOKENIZER_JSON) is not None:
        return json_tokenizer_from_metadata(Vocabulary(metadata), metadata)
    if model == "gpt2":
        if metadata.get(MERGE_BY_RANK) is True:
            return TiktokenTokenizer(Vocabulary(metadata), metadata)
        return ByteLevelTokenizer(Vocabulary(metadata), metadata)
    if model == "llama":
        return SentencePieceTokenizer(Vocabulary(metadata), metadata)
    if model is None:
        raise CheckpointError(
            "The checkpoint has no tokenizer (tokenizer.ggml.model): use a file with a tokenizer inside."
        )
    raise CheckpointError(
        f"The tokenizer model {model!r} is not supported: llama (SentencePiece) and gpt2 (byte-level) are."
    )
