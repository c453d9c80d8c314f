"""Random models: valid, sane, reproducible, and accepted by llama.cpp in every type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

import make_model  # noqa: E402
from make_model import MIXTURES, PRESETS, TYPES  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """A function that gives the tiny model of a type, written once."""
    folder = tmp_path_factory.mktemp("tiny")

    def model(type_name: str, preset: str = "tiny") -> Path:
        path = folder / f"{preset}-{type_name}.gguf"
        if not path.exists():
            make_model.write_model(path, PRESETS[preset], type_name)
        return path

    return model


def values_of(tensor) -> np.ndarray:
    """The weights of a tensor of a GGUF file as float32, rows first."""
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_is_finite_centred_and_of_the_promised_scale(tiny, type_name: str) -> None:
    """Every weight is finite; matrices have a deviation near 0.03 and a mean near zero."""
    reader = gguf.GGUFReader(tiny(type_name))
    kinds = set()
    for tensor in reader.tensors:
        values = values_of(tensor)
        assert values.size == tensor.n_elements
        assert np.isfinite(values).all(), tensor.name
        if values.ndim == 2:
            kinds.add(tensor.tensor_type)
            assert 0.02 < values.std() < 0.05, tensor.name
            assert abs(values.mean()) < 0.002, tensor.name
        else:
            assert 0.5 < values.mean() < 1.5, tensor.name
            assert values.std() > 0, tensor.name
    assert TYPES[type_name] in kinds


@pytest.mark.parametrize(
    ("type_name", "preset"), [*((name, "tiny") for name in (*TYPES, *MIXTURES)), ("q4_0", "tiny-moe")]
)
def test_llama_cpp_runs_every_type(tiny, type_name: str, preset: str) -> None:
    """llama.cpp loads the file, tokenizes with its vocabulary and gives finite logits."""
    pytest.importorskip("llama_cpp")
    from llama_cpp_peer import LlamaCpp

    with LlamaCpp() as peer:
        assert peer.load(str(tiny(type_name, preset)), threads=1, context=256) > 0
        ids = peer.tokenize("the hat, Ä 9")
        assert ids[0] == PRESETS["tiny"].vocab - 2
        assert len(ids) > 3
        peer.prefill(ids)
        prompt_logits = peer.logits()
        assert peer.position == len(ids)
        assert np.isfinite(prompt_logits).all()
        assert prompt_logits.std() > 0
        assert len(peer.decode(3, first_id=5)) == 3
        assert np.isfinite(peer.logits()).all()
        assert peer.position == len(ids) + 3
        peer.reset()
        assert peer.position == 0
        peer.prefill(ids)
        np.testing.assert_array_equal(peer.logits(), prompt_logits)


def test_peer_rewinds_and_splits_long_prompts(tiny) -> None:
    """A cache cut back gives what it gave before; a prompt longer than llama.cpp's batch is split."""
    pytest.importorskip("llama_cpp")
    from _ids import token_chain
    from llama_cpp_peer import LlamaCpp

    with LlamaCpp() as peer:
        peer.load(str(tiny("f32")), threads=1, context=2600)
        ids = token_chain(2, 2500, peer.vocab_size)
        peer.prefill(ids)
        assert peer.position == 2500
        peer.rewind(100)
        assert peer.position == 100
        peer.decode(1, first_id=7)
        again = peer.logits()
        peer.reset()
        peer.prefill([*ids[:100], 7])
        np.testing.assert_allclose(peer.logits(), again, atol=2e-2 * float(again.std()))


def test_peer_says_what_it_cannot_load(tmp_path: Path) -> None:
    """A file that is no model raises, and nothing is left half loaded."""
    pytest.importorskip("llama_cpp")
    from llama_cpp_peer import LlamaCpp

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but no more")
    with LlamaCpp() as peer, pytest.raises(RuntimeError, match="cannot load"):
        peer.load(str(broken), threads=1, context=64)


def test_k_scales_come_back() -> None:
    """The packing of 6-bit scales is the inverse of gguf's unpacking."""
    generator = np.random.default_rng(3)
    scales, mins = generator.integers(0, 64, (2, 50, 8))
    packed = make_model.pack_k_scales(scales, mins)
    assert packed.shape == (50, 12)
    unpacked_scales, unpacked_mins = gguf.quants.Q4_K.get_scale_min(packed)
    np.testing.assert_array_equal(unpacked_scales, scales)
    np.testing.assert_array_equal(unpacked_mins, mins)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """A file is a function of its arguments."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_model.write_model(tmp_path / name, PRESETS["tiny"], "q4_k", seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_metadata_of_the_1b_shape() -> None:
    """The big preset is Llama 3.2 1B: its tensors, its parameters, its rotary factors."""
    specs = {spec.name: spec for spec in make_model.tensors_of(PRESETS["1b"], "q4_k")}
    assert specs["token_embd.weight"].shape == (128256, 2048)
    assert specs["token_embd.weight"].type == "q6_k"
    assert specs["blk.15.attn_k.weight"].shape == (512, 2048)
    assert specs["blk.15.ffn_down.weight"].shape == (2048, 8192)
    assert "output.weight" not in specs
    matrices = sum(int(np.prod(spec.shape)) for spec in specs.values() if spec.fixed is None)
    assert matrices == 1_235_814_400  # the parameters of Llama 3.2 1B
    factors = make_model.rope_factors(PRESETS["1b"])
    assert factors is not None
    assert factors.shape == (32,)
    assert factors[0] == 1.0
    assert factors[-1] == 32.0
    assert (np.diff(factors) >= 0).all()


def test_mixtures_have_the_types_of_llama_cpp() -> None:
    """Of 16 layers, by llama.cpp's rule, half have more bits: worked out by hand."""
    specs = {spec.name: spec.type for spec in make_model.tensors_of(PRESETS["1b"], "q4_k_m")}
    for name in ("attn_v", "ffn_down"):
        better = [layer for layer in range(16) if specs[f"blk.{layer}.{name}.weight"] == "q6_k"]
        assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    assert {kind for name, kind in specs.items() if "attn_q" in name or "ffn_up" in name} == {"q4_k"}
    assert specs["token_embd.weight"] == "q6_k"


def test_rows_that_blocks_do_not_fit_fall_back_as_in_llama_cpp() -> None:
    """SmolLM2's rows of 576 values take the 32-value types that llama.cpp's quantizer takes for them."""
    specs = {spec.name: spec.type for spec in make_model.tensors_of(PRESETS["smollm2"], "q4_k")}
    assert specs["token_embd.weight"] == "q8_0"
    assert specs["blk.0.attn_q.weight"] == "q5_0"
    assert specs["blk.0.ffn_down.weight"] == "q4_k"
    with pytest.raises(ValueError, match="do not divide"):
        make_model.fitting_type("q4_0", 100)


def test_command_line(tmp_path: Path) -> None:
    """The script writes a file and explains itself."""
    script = make_model.__file__
    out = tmp_path / "m.gguf"
    done = subprocess.run(
        [sys.executable, script, str(out), "--type", "q5_1", "--untied"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stat().st_size > 100_000
    assert "q5_1" in done.stderr
    assert "output.weight" in {tensor.name for tensor in gguf.GGUFReader(out).tensors}
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "--preset" in shown.stdout
