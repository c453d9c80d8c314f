"""The building blocks as PyTorch operators: `torch.ops.llama_ext.rms_norm`, `rope`, `attention`, `linear`, and
`moe_route`, `moe_dispatch`, `moe_combine` for mixtures of experts.

Importing this module loads `llama_ext._ops` and registers the operators; the functions here are the same
operators with names and types. They take CPU or CUDA tensors, all of a call on one device, in float32 or bfloat16,
compute in float32 with the kernels that decode, and round once at the end. Inputs need not be contiguous (a copy is
made); results always are, and never share memory with an input. There are fake kernels, and all of it works under
`torch.compile(fullgraph=True)`.

On a CPU they run on PyTorch's threads (`torch.set_num_threads`), whose number changes no bit.

On CUDA a call puts its launches into PyTorch's current stream of the device and returns: it waits for nothing and takes
what memory it needs from PyTorch, so that it can be captured in a graph (after the same call outside, which loads its
kernels). Nothing looks at values there: `moe_dispatch` and `moe_combine` say what becomes of a wrong index. bfloat16 is
widened in memory first. It needs a build with CUDA (`llama_ext._core.cuda.about`) and a PyTorch with CUDA. The kernels,
and the calls that launch them, are tested on raw addresses on the project's virtual GPU; that PyTorch dispatches CUDA
tensors to them, on its stream, has not been run yet, for want of a GPU.

They are for inference: there is no backward. A result of inputs that require a gradient can be computed, but
PyTorch warns, and yields no gradient, when `backward()` reaches it.

A wrong shape, dtype, device, mask, format or index is one `RuntimeError` that names the operator and the argument.

Raises:
    ImportError: PyTorch is missing or older than 2.10, or this build has no operators or does not fit it.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

try:
    import torch
except ImportError as _error:
    raise ImportError(
        "llama_ext.ops needs PyTorch 2.10 or later, which is not installed: install torch (2.10 or later)."
    ) from _error

from . import _core

__all__ = ["attention", "linear", "moe_combine", "moe_dispatch", "moe_route", "rms_norm", "rope"]

_F = TypeVar("_F", bound=Callable[..., torch.Tensor | tuple[torch.Tensor, ...]])

# torch leaves both untyped.
_ops: Any = torch.ops
_fake: Callable[[str], Callable[[_F], _F]] = torch.library.register_fake


def _check_torch(version: str) -> None:
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < (2, 10):
        raise ImportError(f"llama_ext.ops needs PyTorch 2.10 or later, not {version}: install torch (2.10 or later).")


def _load(module: str) -> str:
    """-> the library's file"""
    # Not a Python module, but its file lies where one of that name would, in a wheel and an editable install.
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(
            f"This build of llama_ext has no torch operators ({module} is missing): "
            "run 'pip install torch==2.13.0 && pip install --no-build-isolation -C cmake.define.LLAMA_EXT_OPS=ON .' "
            "in llama_ext's source folder."
        )
    try:
        _ops.load_library(spec.origin)
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"{spec.origin} does not load with PyTorch {torch.__version__} ({error}): build llama_ext again."
        ) from error
    return spec.origin


def _connect(library: str, table: int) -> None:
    """Hands the operators the CUDA calls, whose kernels lie in _core."""
    set_cuda = ctypes.CDLL(library).llama_ext_ops_set_cuda
    set_cuda.argtypes, set_cuda.restype = (ctypes.c_void_p,), ctypes.c_int
    if not set_cuda(table):
        raise ImportError(f"{library} and llama_ext._core are not of one build: build llama_ext again.")


_check_torch(torch.__version__)
_library = _load("llama_ext._ops")
if _core.cuda.built:
    _connect(_library, _core.cuda.calls_address)


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Hugging Face's LlamaRMSNorm rounds to x's dtype before it multiplies by the weight; here nothing is
    rounded in between.

    Args:
        x: [..., n], float32 or bfloat16.
        weight: [n], float32 or bfloat16, whatever x is; None stands for ones.
        eps: added to the mean of the squares.

    Returns:
        x's shape and dtype.
    """
    result: torch.Tensor = _ops.llama_ext.rms_norm.default(x, weight, eps)
    return result


def rope(x: torch.Tensor, positions: torch.Tensor, inverse_frequency: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    Pair i of a head, (a, b), becomes (a cos t - b sin t, a sin t + b cos t) with
    t = position * inverse_frequency[i]. t, its cosine and its sine are computed in float64: positions may be
    as large as a context gets.

    Args:
        x: [..., rows, heads, head_dim], float32 or bfloat16; head_dim even.
        positions: [rows] int64; leading dimensions of x share them.
        inverse_frequency: [head_dim / 2] float64, radians a position.
        interleaved: a pair is (2i, 2i + 1), as in Meta's and GGUF's checkpoints, or, if False,
            (i, i + head_dim / 2), as in Hugging Face's.

    Returns:
        x's shape and dtype.
    """
    result: torch.Tensor = _ops.llama_ext.rope.default(x, positions, inverse_frequency, interleaved)
    return result


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    first_position: int,
    mask: str,
    extent: int = 0,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale q K^T over the keys that the mask shows) V, with grouped heads.

    Grouped heads: Ainslie et al. 2023, arXiv:2305.13245. The softmax is taken online over blocks of 128 keys:
    Milakov and Gimelshein 2018, arXiv:1805.02867.

    Key j stands at position j and query r at p = first_position + r. Query head h reads key-value head
    h // (heads / kv_heads). The keys that a query sees end at its own and begin at

    - "causal": 0,
    - "chunked": p - p % extent, the start of its chunk,
    - "sliding": max(0, p - extent + 1).

    A call first copies the visible keys and values into the layout that decoding keeps them in. For one query
    that costs more than the attention: a `llama_ext.Session` keeps its cache instead. On CUDA head_dim is a multiple of
    8 up to 256, and up to 16 query heads share a key-value head.

    Args:
        q: [rows, heads, head_dim], float32 or bfloat16.
        k, v: [keys, kv_heads, head_dim], q's dtype; heads % kv_heads == 0; keys >= first_position + rows.
        first_position: the position of q's first row; a changing one does not recompile.
        mask: "causal", "chunked" or "sliding".
        extent: the chunk's length or the window's; 0 for a causal mask.
        scale: None stands for 1 / sqrt(head_dim).

    Returns:
        q's shape and dtype.
    """
    result: torch.Tensor = _ops.llama_ext.attention.default(q, k, v, first_position, mask, extent, scale)
    return result


def linear(x: torch.Tensor, weight: torch.Tensor, format: str) -> torch.Tensor:
    """x W^T with W in one of a checkpoint's formats.

    For the integer formats (every one but F32, F16 and BF16) x is rounded, in blocks of 32 along k, to 15-bit
    integers times max|x| / 16319, so an output is off by no more than the sum over blocks of
    sum|w| * max|x| / 32638. Weights are brought into the kernels' order at every call, which costs a second
    pass over them, and on CUDA as much memory again for the time of the call: a `llama_ext.Session` does so once.

    Args:
        x: [..., k], float32 or bfloat16; k a multiple of the format's block.
        weight: uint8 [n, bytes of a row], the blocks as GGUF stores them; or [n, k] in float32, float16 or
            bfloat16 for the format of that name.
        format: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K.

    Returns:
        [..., n] in x's dtype.
    """
    result: torch.Tensor = _ops.llama_ext.linear.default(x, weight, format)
    return result


def moe_route(logits: torch.Tensor, top_k: int, scoring: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each row, those of its top_k largest logits, and their scores.

    Logits are compared in float32; ties go to the lowest expert index. NaN ranks above every number, as in
    torch.topk, so a broken row shows. Scores are computed in float64 and rounded once; no two rows meet:

    - "sigmoid": 1 / (1 + exp(-logit)) of each chosen logit, not renormalised. Llama 4, which multiplies an
      expert's input by it: pass the scores to `moe_dispatch`.
    - "softmax": softmax over the chosen logits, which is a softmax over all of them, renormalised. Mixtral (Jiang
      et al. 2024, arXiv:2401.04088, section 2.1), which multiplies an expert's output by it: pass the scores to
      `moe_combine`.

    Args:
        logits: [rows, experts], float32 or bfloat16: the router's product.
        top_k: experts a row (num_experts_per_tok in a config.json), 1 to the number of experts.
        scoring: "sigmoid" or "softmax".

    Returns:
        experts [rows, top_k] int64, the dtype that PyTorch indexes with, in descending order of their logits, and
        scores [rows, top_k] float32. A row's experts differ from each other.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _ops.llama_ext.moe_route.default(logits, top_k, scoring)
    return result


def moe_dispatch(
    x: torch.Tensor, experts: torch.Tensor, num_experts: int, scores: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A copy of each row for each of its experts, brought together by expert.

    gathered[offsets[e] : offsets[e + 1]] are the rows of expert e, in ascending order; an expert may have none.

    Args:
        x: [rows, hidden], float32 or bfloat16.
        experts: [rows, top_k] int64, each 0 to num_experts - 1. On CUDA this is not checked: one that is not has no
            place, and part of `gathered` and `source` is then left as it is.
        num_experts: how many experts there are, 0 to 2^31 - 1.
        scores: [rows, top_k] float32; each multiplies its copy (Llama 4). The product is rounded once, to x's
            dtype. None leaves rows as they are.

    Returns:
        gathered [rows * top_k, hidden] in x's dtype; offsets [num_experts + 1] int64; source [rows * top_k] int64,
        the choice that each row of gathered serves, as row * top_k + its index in the row of `experts`.
    """
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _ops.llama_ext.moe_dispatch.default(
        x, experts, num_experts, scores
    )
    return result


def moe_combine(y: torch.Tensor, source: torch.Tensor, rows: int, scores: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of the experts' results for each row: what `moe_dispatch` took apart.

    Added up in float32 from a row's first choice to its last and rounded once, so that neither the grouping nor
    what else is in a batch moves a bit.

    Args:
        y: [rows * top_k, hidden], float32 or bfloat16: the experts' results, in the order of moe_dispatch's
            `gathered`.
        source: [rows * top_k] int64 from moe_dispatch: a permutation. On CUDA this is not checked: a choice that it
            lacks makes its row NaN.
        rows: how many rows there are; a changing number does not recompile.
        scores: [rows, top_k] float32; each multiplies its choice's result (Mixtral). None adds them as they are.

    Returns:
        [rows, hidden] in y's dtype.
    """
    result: torch.Tensor = _ops.llama_ext.moe_combine.default(y, source, rows, scores)
    return result


# What torch.compile sees: shapes and dtypes. The operators themselves check everything else when they run.


@_fake("llama_ext::rms_norm")
def _(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape)


@_fake("llama_ext::rope")
def _(x: torch.Tensor, positions: torch.Tensor, inverse_frequency: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return x.new_empty(x.shape)


@_fake("llama_ext::attention")
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    first_position: int,
    mask: str,
    extent: int = 0,
    scale: float | None = None,
) -> torch.Tensor:
    return q.new_empty(q.shape)


@_fake("llama_ext::linear")
def _(x: torch.Tensor, weight: torch.Tensor, format: str) -> torch.Tensor:
    if x.dim() < 1 or weight.dim() != 2:
        raise RuntimeError("linear: x must be [..., k] and weight two-dimensional.")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@_fake("llama_ext::moe_route")
def _(logits: torch.Tensor, top_k: int, scoring: str) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.dim() != 2:
        raise RuntimeError("moe_route: logits must be [rows, experts].")
    sizes = (logits.shape[0], top_k)
    return logits.new_empty(sizes, dtype=torch.int64), logits.new_empty(sizes, dtype=torch.float32)


@_fake("llama_ext::moe_dispatch")
def _(
    x: torch.Tensor, experts: torch.Tensor, num_experts: int, scores: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if x.dim() != 2 or experts.dim() != 2:
        raise RuntimeError("moe_dispatch: x must be [rows, hidden] and experts [rows, top_k].")
    choices = experts.shape[0] * experts.shape[1]
    return (
        x.new_empty((choices, x.shape[1])),
        x.new_empty((num_experts + 1,), dtype=torch.int64),
        x.new_empty((choices,), dtype=torch.int64),
    )


@_fake("llama_ext::moe_combine")
def _(y: torch.Tensor, source: torch.Tensor, rows: int, scores: torch.Tensor | None = None) -> torch.Tensor:
    if y.dim() != 2:
        raise RuntimeError("moe_combine: y must be [rows * top_k, hidden].")
    return y.new_empty((rows, y.shape[1]))
