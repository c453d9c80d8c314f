"""The operators as PyTorch sees them: schemas, fakes, torch.compile, SIMD levels, and a failing import."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ops_oracles as oracle
import pytest
import torch
from torch.library import opcheck

import llama_ext
from llama_ext import _core, ops

NAMES = ("rms_norm", "rope", "attention", "linear")


def samples(name: str, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    x, weight = oracle.normal(2, 3, 64, dtype=dtype), oracle.normal(64)
    heads = oracle.normal(5, 4, 16, dtype=dtype)
    keys, values = (
        oracle.normal(40, 2, 16, dtype=dtype, seed=1),
        oracle.normal(40, 2, 16, dtype=dtype, seed=2),
    )
    positions, frequency = torch.arange(5), torch.rand(8, dtype=torch.float64)
    return {
        "rms_norm": [(x, weight, 1e-5), (x[0, 0], None, 1e-6), (x.transpose(0, 1), weight.to(dtype), 1e-5)],
        "rope": [
            (heads, positions, frequency, True),
            (heads.expand(2, 3, 5, 4, 16), positions, frequency, False),
        ],
        "attention": [
            (heads, keys, values, 35, "causal"),
            (heads, keys, values, 3, "sliding", 4, 0.5),
            (heads[:1].transpose(1, 2).contiguous().transpose(1, 2), keys, values, 39, "chunked", 16),
            (heads[:0], keys, values, 0, "causal"),
        ],
        "linear": [(x, oracle.random_weight(format, 19, 64)[0], format) for format in ("F32", "F16", "BF16", "Q4_0")],
    }[name]


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    for arguments in samples(name, dtype):
        results = opcheck(getattr(torch.ops.llama_ext, name).default, arguments)
        assert results and set(results.values()) == {"SUCCESS"}


def test_opcheck_sees_a_wrong_fake() -> None:
    with torch.library._scoped_library("llama_ext_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: torch.cat((x, x)), "CPU")
        torch.library.register_fake("llama_ext_test::twice", lambda x: x.new_empty(x.shape), lib=library)
        with pytest.raises(Exception, match="test_faketensor"):
            opcheck(torch.ops.llama_ext_test.twice.default, (torch.ones(3),))


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_compile(name: str, dtype: torch.dtype) -> None:
    function: Callable[..., torch.Tensor] = getattr(ops, name)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for arguments in samples(name, dtype):
            assert torch.equal(compiled(*arguments), function(*arguments))


def block(
    x: torch.Tensor, weight: torch.Tensor, frequency: torch.Tensor, keys: torch.Tensor, position: int
) -> torch.Tensor:
    """All four operators, one decoding step after the other."""
    q = ops.linear(ops.rms_norm(x, None, 1e-5), weight, "Q8_0").view(1, 4, 16)
    q = ops.rope(q, torch.arange(position, position + 1), frequency, True)
    return ops.attention(q, keys, keys, position, "sliding", 9)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_changing_position_does_not_recompile(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    x, keys, frequency = oracle.normal(1, 64), oracle.normal(40, 2, 16), torch.rand(8, dtype=torch.float64)
    weight = oracle.random_weight("Q8_0", 64, 64)[0]
    steps = (2, 3, 4, 30) if backend == "aot_eager" else (2,)
    torch._dynamo.utils.counters.clear()
    for position in steps:
        assert torch.equal(compiled(x, weight, frequency, keys, position), block(x, weight, frequency, keys, position))
    # The first compilation takes the position for a constant, the second for a variable.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_fakes_and_meta_tensors() -> None:
    x = torch.empty(2, 3, 64, device="meta", dtype=torch.bfloat16)
    assert ops.rms_norm(x, None, 1e-5).shape == (2, 3, 64)
    result = ops.linear(x, torch.empty(7, 72, device="meta", dtype=torch.uint8), "Q4_K")
    assert (result.shape, result.dtype, result.device.type) == ((2, 3, 7), torch.bfloat16, "meta")
    with pytest.raises(RuntimeError, match=r"^linear: "):
        ops.linear(x, x, "F32")


def test_no_backward() -> None:
    x = oracle.normal(2, 64).requires_grad_()
    result = ops.rms_norm(x, None, 1e-5)
    with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
        result.sum().backward()
    assert x.grad is None


EVERY = ("rms_norm", "rope", "attention", "linear", "moe_route", "moe_dispatch", "moe_combine")


@pytest.mark.parametrize("name", EVERY)
def test_registered_for_cuda(name: str) -> None:
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"llama_ext::{name}", key)


def mixed() -> dict[str, tuple[tuple[Any, ...], str]]:
    """Arguments of which one lies on another device than the rest, and what is said of it."""
    x, chosen = oracle.normal(5, 64), torch.zeros(5, 2, dtype=torch.int64)
    heads, scores = oracle.normal(5, 4, 16), torch.ones(5, 2)
    positions, frequency = torch.arange(5), torch.rand(8, dtype=torch.float64)
    away: Callable[[torch.Tensor], torch.Tensor] = lambda t: t.to("meta")  # noqa: E731
    return {
        "rms_norm": ((x, away(oracle.normal(64)), 1e-5), "weight must be on x's device"),
        "rope": ((heads, away(positions), frequency, True), "positions must be on x's device"),
        "attention": ((heads, heads, away(heads), 0, "causal", 0, None), "v must be on q's device"),
        "linear": ((x, away(x), "F32"), "weight must be on x's device"),
        "moe_route": ((away(x), 2, "softmax"), "logits must be a CPU or a CUDA tensor"),
        "moe_dispatch": ((x, chosen, 3, away(scores)), "scores must be on x's device"),
        "moe_combine": ((x[:4], away(torch.arange(4)), 2, None), "source must be on y's device"),
    }


@pytest.mark.parametrize("key", ["CPU", "CUDA"])
@pytest.mark.parametrize("name", EVERY)
def test_a_mix_of_devices(name: str, key: str) -> None:
    """The kernel of either dispatch key, with a tensor that neither takes (the one that there is without a GPU)."""
    arguments, said = mixed()[name]
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    with pytest.raises(RuntimeError, match=rf"^{name}: {said}"):
        getattr(torch.ops.llama_ext, name).default.redispatch(keys, *arguments)


def test_a_library_of_another_build() -> None:
    table = ctypes.create_string_buffer(1024)  # no layout is 0
    with pytest.raises(ImportError, match=r"_ops.*are not of one build: build llama_ext again"):
        ops._connect(ops._library, ctypes.addressof(table))


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(llama_ext.__path__[0]).parent), str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    return subprocess.run([sys.executable, "-P", *arguments], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("level", _core.simd_levels())
def test_simd_levels(level: str) -> None:
    done = python(str(Path(__file__).with_name("ops_levels.py")), LLAMA_EXT_SIMD=level)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "80 comparisons\n"


def test_a_level_that_is_not_there_is_an_error_of_the_call() -> None:
    code = "import torch; from llama_ext import ops; ops.rms_norm(torch.ones(4), None, 1e-5)"
    done = python("-c", code, LLAMA_EXT_SIMD="avx1024")
    assert done.returncode == 1
    assert "RuntimeError: LLAMA_EXT_SIMD='avx1024' is no SIMD level" in done.stderr


def test_import_without_torch() -> None:
    done = python("-c", "import sys; sys.modules['torch'] = None; import llama_ext.ops")
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: llama_ext.ops needs PyTorch 2.10 or later, which is not installed: install torch (2.10 or later)."
    )


def test_import_with_an_old_torch() -> None:
    for version in ("1.13.1", "2.9.1+cpu", "2.9"):
        with pytest.raises(ImportError, match=rf"needs PyTorch 2\.10 or later, not {version[:3]}"):
            ops._check_torch(version)
    for version in ("2.10.0", "2.10.0a0+git123", "2.13.0+cpu", "3.0"):
        ops._check_torch(version)


def test_import_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"llama_ext\._nothing is missing\).*LLAMA_EXT_OPS=ON"):
        ops._load("llama_ext._nothing")
    (tmp_path / "not_a_library.so").write_bytes(b"nothing of the kind")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"not_a_library\.so does not load with PyTorch .*again"):
        ops._load("not_a_library")
