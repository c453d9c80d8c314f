"""The host side: plans that read, arguments that are refused, and what the driver's refusals read like."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_worker import Remote

import llama_ext
from llama_ext import _core


def test_a_plan_reads(card_of: Callable[[str], Remote]) -> None:
    text = card_of("sm_90").call("plans")
    at = text["address"]
    assert text["rms_norm"] == (
        f"rms_norm<<<3, 160, 0 B>>>(x = {at}, weight = null, y = {at}, n = 576, eps = 1e-05) programmatic\n"
    )
    # Shared memory for 3 rows of x, two planes each of 8 units and a padding of 4; a block a pair of rows of W.
    assert text["product"].startswith(
        f"product_bf16_4<<<50, 256, {3 * 2 * 12 * 16} B>>>(weight = {at}, experts = null, "
    )
    assert "rows = 100, cols = 64, tile_units = 8, step = 0x" in text["product"]
    assert text["product"].endswith("gathered = 0, scaled = 0) programmatic\n")
    append, split, combine = text["attention"].splitlines()
    assert append == (
        f"attention_append_bf16<<<2, 64, 0 B>>>(k = {at}, v = {at}, position = {at}, keys = {at}, values = {at}, "
        "capacity = 100, head_dim = 64) programmatic"
    )
    # 2 stages of keys and of values, 32 rows of 9 x 16 bytes; 3 queries of 64, 3 rows of 32 probabilities
    assert split.startswith(f"attention_split_bf16_64_1<<<4 x 2, 96, {4 * 32 * 144 + 3 * 96 * 4} B>>>(q = {at}, ")
    assert split.endswith("extent = 32, mask = 2, group = 3, head_dim = 64, scale = 0.125) programmatic")
    assert combine.startswith("attention_combine<<<6, 64, 0 B>>>(partial_max = 0x") and "splits = 4" in combine


@pytest.mark.parametrize(
    ("operation", "changes", "sentence"),
    [
        ("rms_norm", {"rows": 0}, "rms_norm: rows is 0, must be 1 to 2147483647"),
        ("rms_norm", {"n": -1}, "rms_norm: n is -1, must be 1 to 2147483647"),
        ("rms_norm", {"eps": -1.0}, "rms_norm: eps is -1.000000, must be 0 or more"),
        ("rms_norm", {"eps": float("nan")}, "rms_norm: eps is nan, must be 0 or more"),
        ("rms_norm", {"rows": 1000}, "rms_norm: x has 1048576 bytes, its shape needs 2304000 bytes"),
        ("rms_norm", {"x": "2+8000"}, "rms_norm: x is not aligned, must be on 4 bytes"),
        ("rms_norm", {"weight": "1+8000"}, "rms_norm: weight is not aligned, must be on 4 bytes"),
        ("product", {"cols": 60}, "product: cols is 60, must be a multiple of 32, as Q4_0 has its blocks"),
        ("product", {"rows": 0}, "product: rows is 0, must be 1 to"),
        ("product", {"max_rows": 17}, "product: max_rows is 17, must be 1 to 16"),
        ("product", {"weight": "128+100000"}, "product: weight is not aligned, must be on 256 bytes"),
        ("product", {"weight": None}, "product: weight is null, must be an address"),
        ("product", {"weight": "0+3839"}, "product: weight has 3839 bytes, its shape needs 3840 bytes"),
        ("product", {"x": "4+2000"}, "product: x is not aligned, must be on 16 bytes"),
        ("product", {"x": "0+1023"}, "product: x has 1023 bytes, its shape needs 1024 bytes"),
        ("product", {"y": "0+1599"}, "product: y has 1599 bytes, its shape needs 1600 bytes"),
        ("product", {"y_stride": 99}, "product: y_stride is 99, must be 100 or more"),
        (
            "product",
            {"epilogue": "gelu"},
            "product: epilogue is gelu, must be one of store, add, silu_times_up, rotate",
        ),
        ("product", {"rows": 99, "epilogue": "silu_times_up"}, "product: rows is 99, must be even"),
        ("product", {"epilogue": "rotate"}, "product: table is null, must be an address"),
        ("product", {"eps": float("nan")}, "product: eps is nan, must be 0 or more"),
        (
            "attention_append",
            {"position": "4+8"},
            "attention_append: position is not aligned, must be on 8 bytes",
        ),
        ("attention_append", {"head_dim": 12}, "attention_append: head_dim is 12, must be a multiple of 8"),
        ("attention", {"head_dim": 264}, "attention: head_dim is 264, must be 8 to 256"),
        ("attention", {"format": "q8_0"}, "attention: the cache's format is q8_0, must be f32, f16 or bf16"),
        ("attention_append", {"format": "q8_0"}, "attention_append: the cache's format is q8_0, must be f32"),
        ("attention", {"heads": 7}, "attention: heads is 7, must be a multiple of kv_heads, 2"),
        ("attention", {"heads": 34}, "attention: heads is 34, must be 2 to 32"),
        ("attention", {"splits": 0}, "attention: splits is 0, must be 1 to 1024"),
        ("attention", {"capacity": 0}, "attention: capacity is 0, must be 1 to"),
        ("attention", {"capacity": 5000}, "attention: keys has 1048576 bytes, its shape needs 1280000 bytes"),
        ("attention", {"scratch": "0+6335"}, "attention: scratch has 6335 bytes, its shape needs 6336 bytes"),
        ("attention", {"keys": "8+90000"}, "attention: keys is not aligned, must be on 16 bytes"),
    ],
)
def test_wrong_arguments(
    card_of: Callable[[str], Remote], operation: str, changes: dict[str, object], sentence: str
) -> None:
    assert re.fullmatch(sentence + ".*", card_of("sm_90").call("wrong_arguments", operation=operation, **changes))


def test_what_the_driver_refuses(card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path) -> None:
    (tmp_path / "empty.cu").write_text('extern "C" __global__ void nothing() {}\n')
    made = {}
    for code, kind in (("compute_80", "-ptx"), ("compute_90", "-fatbin")):
        target = tmp_path / code
        subprocess.run([nvcc, kind, f"-arch={code}", "-o", target, tmp_path / "empty.cu"], check=True, timeout=120)
        made[code] = target.read_bytes()
    card = card_of("sm_80")
    error = card.call("driver_error", case="ordinal")
    assert error == "ValueError: there is no CUDA device 7: the driver reports 1, counted from 0"
    error = card.call("driver_error", case="memory")
    assert error.startswith(f"RuntimeError: cuMemAlloc for a buffer of {1 << 60} bytes: CUDA_ERROR_OUT_OF_MEMORY (")
    assert card.call("driver_error", case="part") == (
        "ValueError: part: 97 bytes from 4000 on do not lie in a buffer of 4096 bytes"
    )
    assert card.call("driver_error", case="write") == "ValueError: write: 9 bytes do not fit a buffer of 8 bytes"
    error = card.call("driver_error", case="image", image=b"no image")
    assert re.match(r"RuntimeError: cuModuleLoadData for the kernels: CUDA_ERROR_INVALID_(IMAGE|PTX) \(", error)
    error = card.call("driver_error", case="kernel", image=made["compute_80"])
    assert error.startswith("RuntimeError: cuModuleGetFunction for rms_norm: CUDA_ERROR_NOT_FOUND (")
    error = card.call("driver_error", case="image", image=made["compute_90"])
    assert re.fullmatch(
        r"RuntimeError: the kernels hold no code for .*, compute capability 8.0: build llama_ext with it in "
        r"LLAMA_EXT_CUDA_ARCHITECTURES",
        error,
    )


def load_error(library: str) -> str:
    """What load(device="cuda") says, in a process of its own that takes `library` for the driver."""
    code = (
        "import llama_ext\n"
        "try: llama_ext.load('x.gguf', device='cuda')\n"
        "except llama_ext.OptionError as error: print(error)"
    )
    environment = {**os.environ, "LLAMA_EXT_LIBCUDA": library}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("device='cuda': ")
    return done.stdout.strip()


@pytest.mark.skipif(not _core.cuda.built, reason=_core.cuda.about)
def test_load_without_a_driver() -> None:
    assert re.fullmatch(
        r"device='cuda': LLAMA_EXT_LIBCUDA=/nowhere/libcuda.so.1 does not load \(.*No such file or directory\): "
        r"name the file of a CUDA driver, or unset it to use the system's, or use device='cpu'.",
        load_error("/nowhere/libcuda.so.1"),
    )
    assert load_error("libc.so.6") == (
        "device='cuda': the CUDA driver has no cuGetProcAddress_v2; llama_ext needs a driver for CUDA 13.0 or later "
        "(580 or later): update the NVIDIA driver, or use device='cpu'."
    )
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert "there is no CUDA driver (libcuda.so.1: " in load_error("")


def test_load_with_a_device(virtual_gpu: Path) -> None:
    assert re.fullmatch(
        r"device='cuda': .* is there, but only single operations run on it so far \(llama_ext._core.cuda\); "
        r"use device='cpu' to decode.",
        load_error(str(virtual_gpu)),
    )


def test_load_of_a_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core.cuda, "built", False)
    monkeypatch.setattr(_core.cuda, "about", "no CUDA (a reason)")
    sentence = r"device='cuda:1': this build has no CUDA \(a reason\); install llama_ext with LLAMA_EXT_CUDA=ON"
    with pytest.raises(llama_ext.OptionError, match=sentence):
        llama_ext.load("x.gguf", device="cuda:1")


def test_decoding_needs_no_driver() -> None:
    """The extension links against nothing of CUDA's."""
    code = (
        "import llama_ext; from llama_ext import _core; llm = llama_ext.load('smollm2'); "
        "assert llm.generate('Once upon a time', max_new_tokens=2).token_ids; "
        "maps = open('/proc/self/maps').read(); assert 'libcuda' not in maps"
    )
    environment = {**os.environ, "LLAMA_EXT_LIBCUDA": "/nowhere/libcuda.so.1"}
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, timeout=120, check=True)


@pytest.mark.skipif(not _core.cuda.built, reason=_core.cuda.about)
def test_what_is_built_in() -> None:
    assert _core.cuda.about.startswith("CUDA sm_") and _core.cuda.about.endswith(" + PTX")
    assert _core.cuda.about in llama_ext.build_info()
    image = Path(str(_core.__file__)).read_bytes()
    assert b"\n.target sm_80" in image and b"\n.target sm_90" in image  # PTX, not compressed
