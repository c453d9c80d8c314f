"""The tokenizer of a checkpoint folder, Hugging Face's or Meta's."""

from __future__ import annotations

from pathlib import Path

from llama_ext.errors import CheckpointError
from llama_ext.tokenizer.hugging_face import tokenizer_from_json
from llama_ext.tokenizer.interface import Tokenizer
from llama_ext.tokenizer.sentence_piece import tokenizer_from_sentencepiece
from llama_ext.tokenizer.sidecars import read_bytes, read_sidecars
from llama_ext.tokenizer.tiktoken_ranks import looks_like_ranks, tokenizer_from_tiktoken

__all__ = ["tokenizer_from_folder"]

_HEAD = 1 << 10


def tokenizer_from_folder(path: Path) -> Tokenizer:
    """The tokenizer of a folder as Hugging Face or Meta lay it out.

    Takes `tokenizer.json` where there is one, else `tokenizer.model`, whose content says whether it is SentencePiece
    (Llama 1 and 2) or a list of ranks (Llama 3 and 4). Beside it are read, where they exist: tokenizer_config.json,
    special_tokens_map.json, added_tokens.json, generation_config.json, config.json, params.json, chat_template.jinja
    and chat_template.json. Llama 1 and 2 as Meta gave them out have one tokenizer.model above the folders of all sizes:
    for a folder with a params.json it is looked for there too. No code in the folder is run.

    A vocabulary of fewer tokens than `vocab_size` in config.json is filled up with tokens that stand for nothing.

    Args:
        path: the folder.

    Raises:
        CheckpointError: there is no tokenizer, a file is damaged, or two files contradict each other.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder: pass the folder that holds the checkpoint.")
    sidecars = read_sidecars(path)
    if (path / "tokenizer.json").is_file():
        return tokenizer_from_json(path / "tokenizer.json", sidecars=sidecars)
    models = [path / "tokenizer.model"]
    if (path / "params.json").is_file():
        models.append(path.parent / "tokenizer.model")
    for model in models:
        if not model.is_file():
            continue
        head = read_bytes(model)[:_HEAD]
        if looks_like_ranks(head):
            return tokenizer_from_tiktoken(model, sidecars=sidecars)
        return tokenizer_from_sentencepiece(model, sidecars=sidecars)
    where = ", there and one folder up" if len(models) > 1 else ""
    raise CheckpointError(
        f"{path} has no tokenizer (looked for tokenizer.json and tokenizer.model{where}): copy the one that came with"
        " the model into it."
    )
