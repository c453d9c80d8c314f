"""Write a GGUF of random weights in the shape of a real model, in any of the common weight types.

A speed depends on shapes and types, not on what the weights say, so a random model answers for a real
one that cannot be downloaded. `f32`, `f16`, `bf16`, `q8_0`, `q4_0`, `q4_1`, `q5_0` and `q5_1` are
quantized from normal numbers by the `gguf` package; `q4_k`, `q5_k` and `q6_k` are written as random
valid blocks, and `q4_k_m` and `q5_k_m` mix them as files of those names do. Weights have a standard
deviation of about 0.03. They are drawn from a pool of a few million numbers at random places, chunk by
chunk, so the file is written about as fast as the disk takes it and memory stays small.

Types follow llama.cpp's quantizer where it matters for bytes: with 4- and 5-bit layers the tied
embedding is `q6_k` (or `q8_0` where rows are no multiple of 256), and a K-quant falls back to `q5_0`,
`q5_1` or `q8_0` on such rows. `--embedding-type` overrules the first. Norms are float32 and not all
one.

    python bench/make_model.py --preset 1b --type q4_0 model.gguf
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

__all__ = [
    "PRESETS",
    "TYPES",
    "Shape",
    "TensorSpec",
    "random_blocks",
    "rope_factors",
    "tensors_of",
    "write_model",
]

STD = 0.03
POOL_VALUES = 1 << 22
CHUNK_VALUES = 1 << 20

TYPES: dict[str, GGMLQuantizationType] = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
    "q4_1": GGMLQuantizationType.Q4_1,
    "q5_0": GGMLQuantizationType.Q5_0,
    "q5_1": GGMLQuantizationType.Q5_1,
    "q4_k": GGMLQuantizationType.Q4_K,
    "q5_k": GGMLQuantizationType.Q5_K,
    "q6_k": GGMLQuantizationType.Q6_K,
}

FILE_TYPES: dict[str, LlamaFileType] = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q4_k": LlamaFileType.MOSTLY_Q4_K_S,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k": LlamaFileType.MOSTLY_Q5_K_S,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
}

#: Mixtures of types, each by the type of most of its matrices; attn_v and ffn_down of half of the layers are `q6_k`.
MIXTURES = {"q4_k_m": "q4_k", "q5_k_m": "q5_k"}

#: What llama.cpp's quantizer takes instead of a K-quant where a row is no multiple of 256.
FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama with grouped-query attention.

    With experts it is a Llama 4: in every layer `experts` of size `ffn`, one of them chosen, and a shared one.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float
    rms_eps: float = 1e-5
    llama3_rope_factor: float | None = None
    experts: int = 0


PRESETS: dict[str, Shape] = {
    "1b": Shape(
        name="random-1b",
        hidden=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        head_dim=64,
        ffn=8192,
        vocab=128256,
        context=131072,
        rope_theta=500000.0,
        llama3_rope_factor=32.0,
    ),
    "8b": Shape(
        name="random-8b",
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        vocab=128256,
        context=131072,
        rope_theta=500000.0,
        llama3_rope_factor=8.0,
    ),
    "smollm2": Shape(
        name="random-smollm2-135m",
        hidden=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        ffn=1536,
        vocab=49152,
        context=8192,
        rope_theta=100000.0,
    ),
    # As active a token as the 1b shape is as a whole, about: 4 GB in Q4_0, most of them experts that sleep.
    "moe": Shape(
        name="random-moe-7b",
        hidden=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        head_dim=64,
        ffn=4096,
        vocab=128256,
        context=131072,
        rope_theta=500000.0,
        experts=16,
    ),
    # More than a small machine's memory wants to hold: 11 GB in Q4_0.
    "moe-large": Shape(
        name="random-moe-20b",
        hidden=2048,
        layers=24,
        heads=32,
        kv_heads=8,
        head_dim=64,
        ffn=4096,
        vocab=128256,
        context=131072,
        rope_theta=500000.0,
        experts=32,
    ),
    "tiny-moe": Shape(
        name="random-tiny-moe",
        hidden=256,
        layers=4,
        heads=8,
        kv_heads=2,
        head_dim=32,
        ffn=256,
        vocab=512,
        context=16384,
        rope_theta=10000.0,
        experts=16,
    ),
    "tiny": Shape(
        name="random-tiny",
        hidden=256,
        layers=2,
        heads=8,
        kv_heads=2,
        head_dim=32,
        ffn=512,
        vocab=512,
        context=4096,
        rope_theta=10000.0,
    ),
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to write: GGUF name, shape as rows first, type, and whether it is a norm or a fixed table."""

    name: str
    shape: tuple[int, ...]
    type: str
    fixed: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        block, size = GGML_QUANT_SIZES[TYPES[self.type]]
        return math.prod(self.shape) // block * size


def fitting_type(type_name: str, columns: int) -> str:
    """`type_name`, or what llama.cpp would take for rows of `columns` values that it cannot cut into
    blocks.
    """
    block, _ = GGML_QUANT_SIZES[TYPES[type_name]]
    if columns % block == 0:
        return type_name
    if type_name in FALLBACK and columns % 32 == 0:
        return FALLBACK[type_name]
    raise ValueError(f"rows of {columns} values do not divide into blocks of {type_name}")


def has_more_bits(layer: int, layers: int) -> bool:
    """Whether a mixture spends more bits on attn_v and ffn_down of this layer: the first and last eighth, and each
    third of the others.
    """
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def embedding_type_for(type_name: str) -> str:
    """The type that llama.cpp's quantizer gives a tied embedding when the layers are `type_name`."""
    return "q6_k" if type_name[:2] in ("q4", "q5", "q6") else type_name


def rope_factors(shape: Shape) -> np.ndarray | None:
    """The divisors of the rotary frequencies that Llama 3.1 and 3.2 stretch their context with, or None."""
    if shape.llama3_rope_factor is None:
        return None
    low_factor, high_factor, original_context = 1.0, 4.0, 8192.0
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
    wavelengths = 2 * np.pi * shape.rope_theta**exponents
    smooth = np.clip((original_context / wavelengths - low_factor) / (high_factor - low_factor), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / shape.llama3_rope_factor + smooth)).astype(np.float32)


def tensors_of(
    shape: Shape, type_name: str, embedding_type: str | None = None, tied: bool = True
) -> Iterator[TensorSpec]:
    """The tensors of the model, in the order of the file."""
    mixed = type_name in MIXTURES
    type_name = MIXTURES.get(type_name, type_name)

    def important(layer: int) -> str:
        return "q6_k" if mixed and has_more_bits(layer, shape.layers) else type_name

    def matrix(name: str, rows: int, columns: int, wanted: str = type_name) -> TensorSpec:
        return TensorSpec(name + ".weight", (rows, columns), fitting_type(wanted, columns))

    def experts(name: str, rows: int, columns: int) -> TensorSpec:
        return TensorSpec(name + "_exps.weight", (shape.experts, rows, columns), fitting_type(type_name, columns))

    def norm(name: str) -> TensorSpec:
        return TensorSpec(name + ".weight", (shape.hidden,), "f32")

    table_type = embedding_type or embedding_type_for(type_name)
    kv_rows = shape.kv_heads * shape.head_dim
    q_rows = shape.heads * shape.head_dim
    yield matrix("token_embd", shape.vocab, shape.hidden, table_type)
    factors = rope_factors(shape)
    if factors is not None:
        yield TensorSpec("rope_freqs.weight", factors.shape, "f32", factors)
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        yield norm(prefix + "attn_norm")
        yield matrix(prefix + "attn_q", q_rows, shape.hidden)
        yield matrix(prefix + "attn_k", kv_rows, shape.hidden)
        yield matrix(prefix + "attn_v", kv_rows, shape.hidden, important(layer))
        yield matrix(prefix + "attn_output", shape.hidden, q_rows)
        yield norm(prefix + "ffn_norm")
        suffix = "_shexp" if shape.experts else ""
        if shape.experts:
            yield TensorSpec(prefix + "ffn_gate_inp.weight", (shape.experts, shape.hidden), "f32")
            yield experts(prefix + "ffn_gate", shape.ffn, shape.hidden)
            yield experts(prefix + "ffn_up", shape.ffn, shape.hidden)
            yield experts(prefix + "ffn_down", shape.hidden, shape.ffn)
        yield matrix(prefix + "ffn_gate" + suffix, shape.ffn, shape.hidden)
        yield matrix(prefix + "ffn_up" + suffix, shape.ffn, shape.hidden)
        yield matrix(prefix + "ffn_down" + suffix, shape.hidden, shape.ffn, important(layer))
    yield norm("output_norm")
    if not tied:
        yield matrix("output", shape.vocab, shape.hidden, table_type)


def pack_k_scales(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Pack eight 6-bit scales and eight 6-bit minima a block into the 12 bytes of Q4_K and Q5_K."""
    low = (scales[:, :4] | (scales[:, 4:] >> 4 << 6)).astype(np.uint8)
    middle = (mins[:, :4] | (mins[:, 4:] >> 4 << 6)).astype(np.uint8)
    high = ((scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)).astype(np.uint8)
    return np.concatenate([low, middle, high], axis=1)


def _half_bytes(values: np.ndarray) -> np.ndarray:
    """float16 numbers as two bytes each, one row a block."""
    return values.astype("<f2").reshape(-1, 1).view(np.uint8)


def _k_blocks(type_name: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` random valid blocks of a K-quant whose weights are about centred with a deviation of `STD`."""

    def random_bytes(columns: int) -> np.ndarray:
        return generator.integers(0, 256, (count, columns), dtype=np.uint8)

    spread = generator.uniform(0.8, 1.2, count)
    if type_name == "q6_k":
        # weight = d * scale * (q - 32); scales carry a sign in real files as well
        scales = generator.integers(20, 128, (count, 16)) * generator.choice([-1, 1], (count, 16))
        unit = np.sqrt(np.mean(np.square(np.arange(20, 128)))) * np.sqrt(np.mean(np.square(np.arange(-32, 32))))
        return np.concatenate(
            [
                random_bytes(128),
                random_bytes(64),
                scales.astype(np.int8).view(np.uint8),
                _half_bytes(STD / unit * spread),
            ],
            axis=1,
        )
    # weight = d * scale * q - dmin * min: dmin is chosen so that min = scale would centre a block
    levels = 16 if type_name == "q4_k" else 32
    scales = generator.integers(20, 64, (count, 8))
    mins = np.clip(scales + generator.integers(-4, 5, (count, 8)), 0, 63)
    unit = np.sqrt(np.mean(np.square(np.arange(20, 64)))) * np.sqrt((levels**2 - 1) / 12)
    d = STD / unit * spread
    columns = [_half_bytes(d), _half_bytes(d * (levels - 1) / 2), pack_k_scales(scales, mins)]
    if type_name == "q5_k":
        columns.append(random_bytes(32))
    columns.append(random_bytes(128))
    return np.concatenate(columns, axis=1)


def random_blocks(type_name: str, values: int, seed: int) -> np.ndarray:
    """Random weights in a type's blocks: bytes, one row a block (one row a value where a type has no
    blocks).
    """
    generator = np.random.default_rng([seed, *type_name.encode()])
    quantization = TYPES[type_name]
    block, size = GGML_QUANT_SIZES[quantization]
    if type_name.endswith("_k"):
        blocks = _k_blocks(type_name, values // block, generator)
    else:
        numbers = generator.standard_normal(values, dtype=np.float32) * np.float32(STD)
        blocks = quants.quantize(numbers.reshape(-1, block * 32 if values % (block * 32) == 0 else block), quantization)
    return np.ascontiguousarray(blocks).view(np.uint8).reshape(-1, size)


def _tensor_bytes(
    spec: TensorSpec, pool: Callable[[str], np.ndarray], generator: np.random.Generator
) -> Iterator[bytes]:
    """The bytes of a tensor, a chunk at a time."""
    if spec.fixed is not None:
        yield spec.fixed.astype("<f4").tobytes()
        return
    if len(spec.shape) == 1:
        yield (1.0 + 0.1 * generator.standard_normal(spec.shape)).astype("<f4").tobytes()
        return
    block, _ = GGML_QUANT_SIZES[TYPES[spec.type]]
    blocks = pool(spec.type)
    left = math.prod(spec.shape) // block
    while left:
        count = min(left, CHUNK_VALUES // block)
        first = int(generator.integers(0, len(blocks) - count + 1))
        yield blocks[first : first + count].tobytes()
        left -= count


def byte_characters() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = []
    extra = 0
    for value in range(256):
        if value in plain:
            characters.append(chr(value))
        else:
            characters.append(chr(256 + extra))
            extra += 1
    return characters


def synthetic_vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their GGUF types and the merges of a byte-level vocabulary that covers every text.

    256 bytes, some merges of lower-case letters, unused tokens as padding, and the two special tokens last.
    """
    if size < 258:
        raise ValueError("a byte-level vocabulary with two special tokens has at least 258 entries")
    normal, control, unused = 1, 3, 5
    tokens = byte_characters()
    merges = []
    for left in "etaoinshr":
        for right in "etaoinshr":
            if len(tokens) + 2 < size:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
    types = [normal] * len(tokens)
    padding = size - 2 - len(tokens)
    tokens += [f"<|unused_{index}|>" for index in range(padding)]
    types += [unused] * padding
    tokens += ["<|begin_of_text|>", "<|end_of_text|>"]
    types += [control, control]
    return tokens, types, merges or ["a b"]


def write_model(
    path: Path,
    shape: Shape,
    type_name: str,
    seed: int = 0,
    embedding_type: str | None = None,
    tied: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the model to `path` and return the bytes of its weights."""
    specs = list(tensors_of(shape, type_name, embedding_type, tied))
    total = sum(spec.nbytes for spec in specs)

    writer = GGUFWriter(path, "llama4" if shape.experts else "llama")
    writer.add_type("model")
    writer.add_name(shape.name)
    writer.add_description(f"random weights, seed {seed}: for timing only")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_vocab_size(shape.vocab)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(1)
        writer.add_expert_feed_forward_length(shape.ffn)
        writer.add_interleave_moe_layer_step(1)
    writer.add_file_type(FILE_TYPES[type_name])
    writer.add_quantization_version(2)

    tokens, token_types, merges = synthetic_vocabulary(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(token_types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(shape.vocab - 2)
    writer.add_eos_token_id(shape.vocab - 1)
    writer.add_add_bos_token(True)

    for spec in specs:
        writer.add_tensor_info(spec.name, spec.shape, np.dtype(np.float32), spec.nbytes, raw_dtype=TYPES[spec.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()

    pool = functools.cache(lambda kind: random_blocks(kind, POOL_VALUES, seed))
    generator = np.random.default_rng(seed)
    assert writer.fout is not None
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    done = 0
    for spec in specs:
        for chunk in _tensor_bytes(spec, pool, generator):
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        writer.write_padding(file, spec.nbytes)
    writer.close()
    return total


class _Progress:
    """A line on stderr, redrawn a few times a second, and only on a terminal."""

    def __init__(self) -> None:
        self._next = 0.0
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and (now >= self._next or done == total):
            self._next = now + 0.2
            self._shown = True
            print(f"\r{done / 1e6:8.0f} of {total / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """End the line."""
        if self._shown:
            print(file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="the shape (default: %(default)s)")
    parser.add_argument("--type", choices=FILE_TYPES, default="q4_0", help="type of the layers (default: %(default)s)")
    parser.add_argument(
        "--embedding-type",
        choices=TYPES,
        help="type of the embedding (default: as llama.cpp's quantizer would choose)",
    )
    parser.add_argument("--untied", action="store_true", help="write an output matrix of its own")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one model."""
    options = build_parser().parse_args(arguments)
    shape = PRESETS[options.preset]
    start = time.monotonic()
    progress = _Progress()
    try:
        total = write_model(
            options.out,
            shape,
            options.type,
            options.seed,
            options.embedding_type,
            not options.untied,
            progress,
        )
    except (OSError, ValueError) as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    finally:
        progress.finish()
    kinds = sorted({spec.type for spec in tensors_of(shape, options.type, options.embedding_type)} - {"f32"})
    print(
        f"{options.out}: {shape.name}, {' + '.join(kinds) or 'f32'}, {total / 1e6:.1f} MB of weights, "
        f"{time.monotonic() - start:.1f} s",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
