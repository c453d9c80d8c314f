"""How fast we decode at batch 1 on a CUDA device, against PyTorch on the same shapes.

    python bench/cuda_decode.py [--preset 1b 8b] [--type bf16 q8_0 q4_0] [--context 512] [--tokens 128] [--json]
    python bench/cuda_decode.py --virtual             runs through on the virtual GPU and torch's CPU, tiny shapes

Random weights in the shapes of models (bench/make_model.py). Ours is timed around `Session.step`, logits on the host
included. PyTorch is the same Llama in bfloat16 with a static cache: eager, compiled (torch.compile, without graphs),
and each of them as one captured CUDA graph; the token goes in and the logits come out on the host as well.

`share` is the bytes that a token reads over its time, over the bandwidth of a copy on the device. This has never been
run on hardware. The last line is one JSON object with --json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import _cuda
import make_model

if TYPE_CHECKING:
    from torch import Tensor


def timed(step: Callable[[int], object], tokens: int, rounds: int) -> float:
    """Milliseconds a token: the median of the rounds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for token in range(tokens):
            step(token)
        times.append(1e3 * (time.perf_counter() - begin) / tokens)
    return statistics.median(times)


def ours(options: argparse.Namespace, preset: str, kind: str) -> dict[str, Any]:
    import llama_ext

    path = _cuda.random_model(preset, kind)
    context = options.context + options.tokens + 64
    llm = llama_ext.load(path, device="cuda", kv_cache="bf16", max_context=context)
    session = llm.session()
    session.prefill([1] * options.context)
    session.step(1)

    def one(token: int) -> object:
        if token == 0:
            session.rollback(session.position - options.context)
        return session.step(1 + token)

    one(0)
    milliseconds = timed(one, options.tokens, options.rounds)
    native = llm.program.native
    cache = sum(native.cost(i, 1, options.context).cache_bytes for i in range(len(native.code)))
    return {"ms": milliseconds, "bytes": llm.program.weight_bytes_per_token + cache}


class TorchLlama:
    """A Llama's decoding step in PyTorch: one token, a static cache, matrices of random bfloat16."""

    def __init__(self, shape: make_model.Shape, context: int, device: str) -> None:
        import torch

        self.shape, self.device = shape, device
        kind = torch.bfloat16

        def matrix(rows: int, cols: int) -> Tensor:
            return torch.randn(rows, cols, device=device, dtype=kind) * 0.03

        width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.embed = matrix(shape.vocab, shape.hidden)
        self.layers = [
            {
                "qkv": matrix(width + 2 * kv, shape.hidden),
                "o": matrix(shape.hidden, width),
                "gate_up": matrix(2 * shape.ffn, shape.hidden),
                "down": matrix(shape.hidden, shape.ffn),
                "norms": torch.ones(2, shape.hidden, device=device, dtype=kind),
                "keys": torch.zeros(shape.kv_heads, context, shape.head_dim, device=device, dtype=kind),
                "values": torch.zeros(shape.kv_heads, context, shape.head_dim, device=device, dtype=kind),
            }
            for _ in range(shape.layers)
        ]
        self.slots = torch.arange(context, device=device)
        pairs = torch.arange(shape.head_dim // 2, device=device) * 2 / shape.head_dim
        self.frequency = shape.rope_theta ** -pairs.float()

    def step(self, token: Tensor, position: Tensor) -> Tensor:
        """token, position: int64 [1] -> logits [vocab]"""
        import torch
        from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

        s = self.shape
        angle = position.float() * self.frequency
        turn = torch.cat([angle.cos(), angle.cos()]), torch.cat([-angle.sin(), angle.sin()])

        def rotated(x: Tensor) -> Tensor:
            return (x * turn[0] + x.roll(s.head_dim // 2, -1) * turn[1]).to(x.dtype)

        seen = (self.slots <= position)[None, None, None]
        x = self.embed[token]
        for w in self.layers:
            heads = linear(rms_norm(x, (s.hidden,), w["norms"][0], s.rms_eps), w["qkv"]).view(-1, s.head_dim)
            q, k, v = heads.split([s.heads, s.kv_heads, s.kv_heads])
            w["keys"].index_copy_(1, position, rotated(k)[:, None])
            w["values"].index_copy_(1, position, v[:, None])
            a = scaled_dot_product_attention(
                *(rotated(q)[None, :, None], w["keys"][None], w["values"][None]), attn_mask=seen, enable_gqa=True
            )
            x = x + linear(a.reshape(1, -1), w["o"])
            gate, up = linear(rms_norm(x, (s.hidden,), w["norms"][1], s.rms_eps), w["gate_up"]).chunk(2, -1)
            x = x + linear(silu(gate) * up, w["down"])
        return linear(rms_norm(x, (s.hidden,), self.layers[0]["norms"][0], s.rms_eps), self.embed)[0].float()


def torch_modes(options: argparse.Namespace, preset: str) -> dict[str, float]:
    """Milliseconds a token of each way to run PyTorch."""
    import torch

    device = "cpu" if options.virtual else "cuda"
    shape = make_model.PRESETS[preset]
    found = {}
    with torch.inference_mode():
        model = TorchLlama(shape, options.context + options.tokens, device)
        token, position = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        steps: dict[str, Callable[..., Tensor]] = {"eager": model.step}
        if device == "cuda":
            steps["compiled"] = torch.compile(model.step, dynamic=False)
        for name, step in steps.items():

            def one(at: int, run: Callable[[], Tensor]) -> Tensor:
                token.fill_(1 + at)
                position.fill_(options.context + at)
                return run().cpu()

            def plain(step: Callable[..., Tensor] = step) -> Tensor:
                return step(token, position)

            for _ in range(3):
                one(0, plain)
            found[name] = timed(lambda at, run=plain: one(at, run), options.tokens, options.rounds)  # type: ignore[misc]
            if device != "cuda":
                continue
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = plain()

            def replay(graph: Any = graph, logits: Tensor = logits) -> Tensor:
                graph.replay()
                return logits

            one(0, replay)
            found[f"{name}, graph"] = timed(
                lambda at, run=replay: one(at, run),  # type: ignore[misc]
                options.tokens,
                options.rounds,
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["1b", "8b"], help="shapes of bench/make_model.py")
    parser.add_argument("--type", nargs="+", default=["bf16", "q8_0", "q4_0"], help="of our weights")
    parser.add_argument("--context", type=int, default=512, help="tokens in the cache (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="that are decoded (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (default: %(default)s)")
    parser.add_argument("--virtual", action="store_true", help="on the virtual GPU, tiny shapes: times mean nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.virtual:
        _cuda.use_virtual_gpu()
        options.preset, options.type = ["tiny"], ["bf16"]
        options.context, options.tokens, options.rounds = 8, 2, 1

    from llama_ext import _core

    if not _core.cuda.built:
        sys.exit(f"this build has {_core.cuda.about}")
    device = _core.cuda.Device()
    bandwidth = _cuda.copy_bandwidth(device, 1 if options.virtual else 512)
    facts: dict[str, Any] = {"device": device.name, "copy_bytes_per_second": bandwidth, "rows": []}
    facts |= {"context": options.context, "virtual": options.virtual}
    print(f"{device.name}: a copy moves {bandwidth / 1e9:,.1f} GB/s; {options.context} tokens in the cache\n")
    if options.virtual:
        print(_cuda.NEVER_RUN + "\n")
    executor = hasattr(_core.cuda, "Executor")
    if not executor:
        print("this build has no executor for CUDA: PyTorch alone\n")
    print("| shape | what | ms a token | tokens/s | share |\n|---|---|--:|--:|--:|")
    for preset in options.preset:
        rows: list[tuple[str, float, int | None]] = []
        for kind in options.type if executor else ():
            figures = ours(options, preset, kind)
            rows.append((f"llama_ext, {kind}", figures["ms"], figures["bytes"]))
        try:
            rows += [(f"torch, bf16, {name}", ms, None) for name, ms in torch_modes(options, preset).items()]
        except ImportError:
            print("| | no torch here | | | |")
        for what, ms, size in rows:
            share = f"{size / (1e-3 * ms) / bandwidth:.0%}" if size else ""
            print(f"| {preset} | {what} | {ms:.3f} | {1e3 / ms:,.1f} | {share} |")
            facts["rows"].append({"shape": preset, "what": what, "ms": ms, "bytes": size})
    if options.json:
        print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
