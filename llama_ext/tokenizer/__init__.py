"""Tokenizers: the vocabulary of a checkpoint behind one small interface, whatever file it comes in.

| file | read by | merging done by |
|---|---|---|
| the metadata of a GGUF file | `tokenizer_from_gguf` | `sentencepiece` or `tokenizers` |
| `tokenizer.json` (Hugging Face) | `tokenizer_from_json` | `tokenizers` |
| `tokenizer.model`, SentencePiece (Llama 1 and 2, Mistral) | `tokenizer_from_sentencepiece` | `sentencepiece` |
| `tokenizer.model`, ranks of tokens (Llama 3 and 4) | `tokenizer_from_tiktoken` | `tiktoken` |

`tokenizer_from_folder` takes what a folder has and reads the small files beside it. Two kinds of vocabulary occur
in the family: SentencePiece BPE with byte fallback (Llama 1 and 2), and byte-level BPE with a regular expression
that cuts the text first (Llama 3, Llama 4, SmolLM2). What is ours is everything around the merging: special tokens,
the space before the first word, BOS, the rules that cut, the tokens that end a generation.

Where the ids of llama.cpp and of the model's own tokenizer differ, we follow the model's own; the tests list each
such case.
"""

from llama_ext.tokenizer.folder import tokenizer_from_folder
from llama_ext.tokenizer.gguf import tokenizer_from_gguf
from llama_ext.tokenizer.hugging_face import tokenizer_from_json
from llama_ext.tokenizer.interface import StreamDecoder, Tokenizer
from llama_ext.tokenizer.sentence_piece import tokenizer_from_sentencepiece
from llama_ext.tokenizer.tiktoken_ranks import tokenizer_from_tiktoken

__all__ = [
    "StreamDecoder",
    "Tokenizer",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
    "tokenizer_from_json",
    "tokenizer_from_sentencepiece",
    "tokenizer_from_tiktoken",
]
