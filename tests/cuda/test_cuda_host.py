"""The host side: plans that read, arguments that are refused, and what the driver's refusals read like."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cuda_worker import Remote
from numpy.typing import NDArray

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
    # 8 key sets of one warp each: probabilities [8][4], 3 stages of 8 keys and values of 128 bytes
    assert text["attention"].startswith(
        f"attention_decode_bf16_64_4<<<4 x 2 x 16, 256, {8 * (128 + 3 * 8 * 2 * 128)} B>>>(qkv = {at}, step = {at}, "
        f"cache = {at}, out = {at}, counters = {at}, partial_stats = 0x"
    )
    assert text["attention"].endswith(
        "extent = 32, temperature_floor = 0, mask = 2, group = 3, head_dim = 64, scale = 0.125, qk_norm = 0, "
        "qk_norm_eps = 0, temperature_scale = 0) programmatic\n"
    )


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
        ("attention", {"max_rows": 17}, "attention: max_rows is 17, must be 1 to 16"),
        ("attention", {"head_dim": 264}, "attention: head_dim is 264, must be 8 to 256"),
        ("attention", {"head_dim": 12}, "attention: head_dim is 12, must be a multiple of 8 for a cache in bf16"),
        (
            "attention",
            {"head_dim": 48, "format": "q8_0"},
            "attention: head_dim is 48, must be a multiple of 32 for a cache in q8_0",
        ),
        ("attention", {"format": "q4_0"}, "unknown cache format 'q4_0'; known: f32, f16, bf16, q8_0, fp8"),
        ("attention", {"heads": 7}, "attention: heads is 7, must be a multiple of kv_heads, 2"),
        ("attention", {"heads": 34}, "attention: heads is 34, must be 2 to 32"),
        ("attention", {"kv_heads": 0}, "attention: kv_heads is 0, must be 1 to 65535"),
        ("attention", {"splits": 0}, "attention: splits is 0, must be 1 to 256"),
        ("attention", {"qk_norm_eps": -1.0}, "attention: qk_norm_eps is -1.000000, must be 0 or more"),
        ("attention", {"temperature_scale": 0.1}, "attention: temperature_floor is 0, must be positive"),
        ("attention", {"qkv": "0+5119"}, "attention: qkv has 5119 bytes, its shape needs 5120 bytes"),
        ("attention", {"out": "0+3071"}, "attention: out has 3071 bytes, its shape needs 3072 bytes"),
        ("attention", {"step": "0+23"}, "attention: step has 23 bytes, its shape needs 24 bytes"),
        ("attention", {"cache": "0+39"}, "attention: cache has 39 bytes, its shape needs 40 bytes"),
        ("attention", {"cache": "4+40"}, "attention: cache is not aligned, must be on 8 bytes"),
        # counters [16, 6]; 2 rows of 6 heads and 4 splits, 66 floats each
        ("attention", {"scratch": "0+13055"}, "attention: scratch has 13055 bytes, its shape needs 13056 bytes"),
        ("attention", {"qkv": "8+9000"}, "attention: qkv is not aligned, must be on 16 bytes"),
    ],
)
def test_wrong_arguments(
    card_of: Callable[[str], Remote], operation: str, changes: dict[str, object], sentence: str
) -> None:
    assert re.fullmatch(sentence + ".*", card_of("sm_90").call("wrong_arguments", operation=operation, **changes))


@pytest.mark.usefixtures("virtual_gpu")  # one device, of a known compute capability
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
    assert card.call("driver_error", case="part") == (
        "ValueError: part: 97 bytes from 4000 on do not lie in a buffer of 4096 bytes"
    )
    assert card.call("driver_error", case="write") == "ValueError: write: 9 bytes do not fit a buffer of 8 bytes"
    error = card.call("driver_error", case="image", image=b"no image")
    assert re.match(r"RuntimeError: cuModuleLoadData for the kernels: CUDA_ERROR_INVALID_(IMAGE|PTX) \(", error)
    error = card.call("driver_error", case="image", image=made["compute_90"])
    assert re.fullmatch(
        r"RuntimeError: the kernels hold no code for .*, compute capability 8.0: build llama_ext with it in "
        r"LLAMA_EXT_CUDA_ARCHITECTURES",
        error,
    )


def normed(x: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = x.astype(np.float64)
    return np.asarray(exact / np.sqrt((exact**2).mean()))


@pytest.fixture(scope="module")
def inputs() -> list[NDArray[np.float32]]:
    random = np.random.default_rng(7)
    return [(random.standard_normal(100) * scale).astype(np.float32) for scale in (1, 100, 0.01)]


def test_a_graph_of_copies_and_launches(card: Remote, inputs: list[NDArray[np.float32]]) -> None:
    """Each run takes what lies in pinned memory then. A norm of a norm is the norm."""
    for seed in range(3):
        results = card.call("cases_host.replays", seed=seed, inputs=inputs)
        for x, y in zip(inputs, results, strict=True):
            np.testing.assert_allclose(y, normed(x), rtol=2e-6)


def test_kernels_reach_memory_of_the_host(card: Remote, inputs: list[NDArray[np.float32]]) -> None:
    for seed, x in enumerate(inputs):
        np.testing.assert_allclose(card.call("cases_host.in_place", seed=seed, x=x), normed(x), rtol=1e-6)


def test_a_stream_of_another_library(card: Remote, inputs: list[NDArray[np.float32]]) -> None:
    y, codes = card.call("cases_host.foreign_stream", x=inputs[0])
    np.testing.assert_allclose(y, normed(inputs[0]), rtol=1e-6)
    assert codes == [0, 0]  # it is still there, and its owner's to destroy


def test_a_launch_of_a_plan(card: Remote, inputs: list[NDArray[np.float32]]) -> None:
    y, kernels, labels, refused = card.call("cases_host.repeated", x=inputs[0])
    np.testing.assert_allclose(y, 2 * normed(inputs[0]), rtol=2e-6)
    assert (kernels, labels) == (["rms_norm"] * 3, [""] * 3)
    assert refused == "repeated: launch is 2, must be less than 2"


def test_events(card: Remote, inputs: list[NDArray[np.float32]]) -> None:
    assert 0 < card.call("cases_host.elapsed", x=inputs[0]) < 60_000


def test_free_memory(card_of: Callable[[str], Remote]) -> None:
    before, between, after = card_of("sm_90").call("cases_host.memory_left", bytes=1 << 20)
    assert (before - between, after) == (1 << 20, before)


def test_too_little_memory(card_of: Callable[[str], Remote]) -> None:
    device, host = card_of("sm_90").call("cases_host.sentence", case="memory")
    found = re.fullmatch(
        r"RuntimeError: a buffer of (\d+) bytes does not fit .*: of its (\d+) bytes (\d+) are free, "
        r"1000 are missing",
        device,
    )
    assert found, device
    assert int(found[1]) - 1000 == int(found[3]) <= int(found[2])
    assert host.startswith(f"RuntimeError: the host cannot pin {1 << 60} bytes of memory: ")


def test_copies_of_other_sizes(card_of: Callable[[str], Remote]) -> None:
    assert card_of("sm_90").call("cases_host.sentence", case="sizes") == [
        "ValueError: write_async: 60 bytes of the host, 64 bytes of the device, must be as many",
        "ValueError: read_async: 60 bytes of the host, 64 bytes of the device, must be as many",
        "ValueError: copy: 8 bytes to 64 bytes, must be as many",
    ]


def test_what_a_capture_refuses(card_of: Callable[[str], Remote]) -> None:
    """Whatever waits; the stream is as it was afterwards. And a stream that cannot be captured."""
    said = card_of("sm_90").call("cases_host.sentence", case="capture")
    assert said[0].startswith("RuntimeError: cuStreamSynchronize for a copy to the device: CUDA_ERROR_STREAM_CAPTURE_")
    assert said[1] == "nothing"
    assert said[2].startswith("RuntimeError: cuStreamBeginCapture for a graph: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (")


@pytest.mark.parametrize(
    ("body", "code", "fault"),
    [
        ("y[1 << 20] = 1;", "ILLEGAL_ADDRESS", "out_of_bounds"),
        ("*(float *)((char *)y + 2) = 1;", "MISALIGNED_ADDRESS", "misaligned"),
        ('asm volatile("trap;");', "(ILLEGAL_INSTRUCTION|LAUNCH_FAILED)", "trap"),
    ],
)
def test_a_lost_device(
    card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path, body: str, code: str, fault: str
) -> None:
    """A kernel's fault is the end of the process's context, and every sentence after it says so."""
    source = tmp_path / "broken.cu"
    parameters = "const float *x, const float *weight, float *y, int n, float eps"
    source.write_text(f'extern "C" __global__ void rms_norm({parameters}) {{ {body} }}\n')
    image = tmp_path / "broken.ptx"
    subprocess.run([nvcc, "-ptx", "-arch=compute_80", "-o", image, source], check=True, timeout=120)
    said, kinds = card_of("sm_80").outcome("cases_host.sentence", case="kernel", image=image.read_bytes() + b"\0")
    assert kinds == [fault]
    assert re.fullmatch(r"RuntimeError: cu\w+ for [^:]+: CUDA_ERROR_.*", said[0])
    for sentence in said:
        assert re.fullmatch(
            rf"RuntimeError: cu\w+ for [^:]+: CUDA_ERROR_{code} \(.*\); the device is lost to this process, and with "
            r"it all memory on it: start a new process",
            sentence,
        )


def test_an_image_takes_the_place_of_kernels_of_its_names(
    card_of: Callable[[str], Remote], nvcc: str, tmp_path: Path, inputs: list[NDArray[np.float32]]
) -> None:
    """Of those alone: an image without a kernel of the name leaves ours in place."""
    parameters = "const float *x, const float *weight, float *y, int n, float eps"
    results = []
    for name in ("rms_norm", "rms_norm_of_another_name"):
        source, image = tmp_path / "image.cu", tmp_path / "image.ptx"
        source.write_text(
            f'extern "C" __global__ void {name}({parameters}) {{ if (threadIdx.x < n) y[threadIdx.x] = 7; }}\n'
        )
        subprocess.run([nvcc, "-ptx", "-arch=compute_80", "-o", image, source], check=True, timeout=120)
        y, _ = card_of("sm_80").call(
            "rms_norm", x=inputs[0][None, :8], weight=None, eps=0.0, image=image.read_bytes() + b"\0"
        )
        results.append(y[0])
    assert (results[0] == 7).all()
    np.testing.assert_allclose(results[1], normed(inputs[0][:8]), rtol=1e-6)


def load_error(library: str, **environment: str) -> str:
    """What load(device="cuda") says, in a process of its own that takes `library` for the driver."""
    code = (
        "import llama_ext\n"
        "try: llama_ext.load('x.gguf', device='cuda')\n"
        "except llama_ext.OptionError as error: print(error)"
    )
    environment = {**os.environ, "LLAMA_EXT_LIBCUDA": library, **environment}
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


def test_load_without_a_device(virtual_gpu: Path) -> None:
    assert load_error(str(virtual_gpu), LLAMA_EXT_VGPU_DEVICES="0") == (
        "device='cuda': the CUDA driver finds no device: check that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES "
        "does not hide it, or use device='cpu'."
    )


def test_load_with_an_old_driver(virtual_gpu: Path) -> None:
    """One that lacks entry points, and one that says it itself."""
    for version, sentence in (
        ("12020", r"the CUDA driver has no cu\w+ of version 12.\d"),
        ("12080", r"the CUDA driver serves CUDA 12.8"),
    ):
        assert re.fullmatch(
            rf"device='cuda': {sentence}; llama_ext needs a driver for CUDA 13.0 or later \(580 or later\): update the "
            r"NVIDIA driver, or use device='cpu'.",
            load_error(str(virtual_gpu), LLAMA_EXT_VGPU_DRIVER=version),
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
