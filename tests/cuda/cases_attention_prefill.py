"""Attention of many rows, in the card's process."""

from __future__ import annotations

from typing import Any

from cases_attention import STEP, HeldCache, run_steps
from cuda_worker import Array, Card, cuda

from llama_ext import _core


def prefill(
    steps: list[tuple[int, Array]],
    planes: list[Array],
    held: Array | None,
    format: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
    max_rows: int,
    mask: tuple[str, int],
    scale: float,
    start: int = 0,
    qk_norm: bool = False,
    qk_norm_eps: float = 0.0,
    after_norm: bool = False,
    captured: bool = False,
    image: bytes | None = None,
    **temperature: Any,
) -> list[tuple[Array, list[Array]]]:
    """One plan, or graph, for steps of (position, qkv [rows, width]): appends, then attends.

    planes: keys, values and for q8_0 their scales, [kv_heads, capacity, ...].  held [capacity]: the slots to write
    before; the others stay unwritten. None: all are.  after_norm: the rows, max_rows of them, are normalised by the
    launch before.
    -> of each step out [rows, heads, head_dim], and the planes after it, empty unless all were written
    """
    card = Card(image)
    cache = HeldCache(card, planes, held)
    width = (heads + 2 * kv_heads) * head_dim
    given, qkv = (cuda.Buffer(card.device, 4 * max_rows * width) for _ in range(2))
    out, step = card.output(max_rows * heads * head_dim), cuda.Buffer(card.device, STEP.itemsize)
    shape = {"max_rows": max_rows, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "format": format}
    norm = {"qk_norm": qk_norm, "qk_norm_eps": qk_norm_eps}
    plan = cuda.attention_append(qkv=qkv, step=step, cache=cache.state, **shape, **norm)
    plan += cuda.attention_prefill(
        qkv=qkv,
        step=step,
        cache=cache.state,
        out=out,
        mask=_core.Mask(*mask),
        scale=scale,
        **shape,
        **norm,
        **temperature,
    )
    if after_norm:
        plan = cuda.rms_norm(x=given, weight=None, y=qkv, rows=max_rows, n=width, eps=1e-5) + plan
    rows = given if after_norm else qkv
    return run_steps(card, plan, steps, start, step, rows, out, (max_rows, heads, head_dim), cache, captured)


def plans() -> str:
    """What append and attention of a layer are, printed."""
    big = cuda.Buffer(cuda.Device(), 1 << 20)
    arguments: dict[str, Any] = {"qkv": big, "step": big, "cache": big, "max_rows": 70, "heads": 6, "kv_heads": 2}
    plan = cuda.attention_append(**arguments, head_dim=64, format="bf16")
    for head_dim, format in ((64, "bf16"), (128, "f32")):
        plan += cuda.attention_prefill(
            **arguments, head_dim=head_dim, format=format, out=big, mask=_core.Mask("sliding", 32), scale=0.125
        )
    return str(plan).replace(hex(big.address), "ADDRESS")


def wrong_arguments(operation: str, **changes: Any) -> str:
    """The sentence that refuses a plan, one of whose arguments is wrong."""
    big = cuda.Buffer(cuda.Device(), 1 << 20)
    arguments: dict[str, Any] = {
        **{"qkv": big, "step": big, "cache": big, "max_rows": 70, "heads": 6, "kv_heads": 2, "head_dim": 64},
        "format": "bf16",
    }
    if operation == "attention_prefill":
        arguments |= {"out": big, "mask": ("global", 0), "scale": 1.0}
    arguments |= changes
    for name, value in arguments.items():
        if isinstance(value, str) and "+" in value:  # "offset+bytes" of a buffer
            offset, size = value.split("+")
            arguments[name] = big.part(int(offset), int(size))
    if "mask" in arguments:
        arguments["mask"] = _core.Mask(*arguments["mask"])
    try:
        getattr(cuda, operation)(**arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")
