"""Some of the comparisons, few enough for a process of their own: it chooses its SIMD level once."""

from __future__ import annotations

import ops_oracles as oracle
import torch

from llama_ext import ops


def run() -> int:
    count = 0
    for dtype in oracle.DTYPES:
        for n in (8, 80, 576):
            x, weight = oracle.normal(3, n, dtype=dtype), oracle.normal(n, seed=1)
            oracle.check(ops.rms_norm(x, weight, 1e-5), oracle.rms_norm(x, weight, 1e-5), dtype)
            positions, frequency = torch.tensor([0, 7, 100_000]), torch.rand(n // 2, dtype=torch.float64)
            heads = oracle.normal(3, 2, n, dtype=dtype)
            for interleaved in (True, False):
                result = ops.rope(heads, positions, frequency, interleaved)
                oracle.check(result, oracle.rope(heads, positions, frequency, interleaved), dtype)
            count += 3
        for head_dim in (8, 64, 80):
            q, k, v = (oracle.normal(n, h, head_dim, dtype=dtype, seed=h) for n, h in ((7, 6), (290, 2), (290, 2)))
            for mask, extent in (("causal", 0), ("chunked", 100), ("sliding", 129)):
                result = ops.attention(q, k, v, 283, mask, extent)
                oracle.check(result, oracle.attention(q, k, v, 283, mask, extent), dtype)
                count += 1
        for format in oracle.FORMATS:
            for n, cols, rows in ((1, 256, 1), (37, 768, 17)):
                weight, values = oracle.random_weight(format, n, cols)
                x = oracle.normal(rows, cols, dtype=dtype, seed=1)
                oracle.check(ops.linear(x, weight, format), oracle.linear(x, values, format), dtype)
                count += 1
    return count


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{run()} comparisons")
