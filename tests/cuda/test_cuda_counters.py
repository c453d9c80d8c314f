"""What the operations ask of memory at Llama 3.2 1B's shapes, counted by the virtual GPU: nothing twice or in vain.

Sectors, bytes a lane and bank conflicts are what bounds these kernels on a GPU, and they can be counted without one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_oracle import Case
from cuda_oracles import bf16
from cuda_worker import Remote

HIDDEN, INTERMEDIATE, KV_ROWS = 2048, 8192, 512
KV_HEADS, KEYS = 8, 704

Record = dict[str, Any]


def accesses(launch: Record, begins: str, contains: str = "") -> list[Record]:
    """The records of the memory instructions whose PTX reads so."""
    found = [
        entry
        for entry in launch["accesses"]
        if entry["instruction"].startswith(begins) and contains in entry["instruction"]
    ]
    assert found, f"{launch['kernel']} has no {begins}...{contains}"
    return found


def total(entries: list[Record], figure: str) -> int:
    return sum(entry[figure] for entry in entries)


def check_shared(launch: Record) -> None:
    """No bank twice in a pass, in no instruction."""
    assert launch["shared_bank_conflicts"] == 0
    for entry in launch["accesses"]:
        assert entry["wavefronts"] == entry["wavefronts_ideal"], entry


def check_global(launch: Record) -> None:
    """No warp instruction touches more sectors than its bytes fill."""
    assert launch["global_load_sectors_requested"] == launch["global_load_sectors_ideal"]
    assert launch["global_store_sectors_requested"] == launch["global_store_sectors_ideal"]


# q and o, k and v, gate and up, down
@pytest.mark.parametrize(
    ("rows", "cols"),
    [(HIDDEN, HIDDEN), (KV_ROWS, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)],
)
def test_product(card: Remote, rows: int, cols: int) -> None:
    random = np.random.default_rng(1)
    weight = bf16(random.standard_normal((rows, cols), np.float32))
    x, residual = random.standard_normal(cols, np.float32), random.standard_normal(rows, np.float32)
    (launch,) = card.call("report", function="product", arguments={"weight": weight, "x": x, "residual": residual})
    assert launch["kernel"] == "product_bf16"
    weights = accesses(launch, "ld.global.nc", ".v4")
    for entry in weights:
        assert entry["bytes_per_lane"] == 16, entry
    # Every byte of W comes once, 512 of it with each warp instruction.
    sectors = rows * cols * 2 // 32
    assert total(weights, "sectors") == total(weights, "sectors_unique") == total(weights, "sectors_ideal") == sectors
    assert total(weights, "bytes") == rows * cols * 2
    assert total(weights, "requests") == rows * cols * 2 // 512
    check_global(launch)
    check_shared(launch)
    # A block reads x once, 16 bytes a lane, whatever the number of its rows.
    staged = accesses(launch, "ld.global.v4")
    assert {entry["bytes_per_lane"] for entry in staged} == {16}
    assert total(staged, "bytes") == launch["grid"][0] * cols * 4
    # Beside W there is nothing but x, and the residual row by row.
    assert launch["global_load_bytes"] == rows * cols * 2 + launch["grid"][0] * cols * 4 + rows * 4
    assert launch["global_store_bytes"] == rows * 4
    # Shared memory gives each lane the 8 values of x that its 8 weights meet.
    assert launch["shared_load_wavefronts"] == rows * cols * 4 // 128
    assert launch["global_load_sectors_unique"] == sectors + cols * 4 // 32 + rows * 4 // 32


@pytest.mark.parametrize(
    ("format", "head_dim", "heads", "kernel"),
    [
        ("bf16", 64, 32, "bf16_64_4"),
        ("f16", 128, 40, "f16_128_4"),  # 5 heads share a key: two warps
        ("bf16", 128, 8, "bf16_128_1"),
        ("f32", 128, 32, "f32_128_4"),
        ("q8_0", 64, 32, "q8_0_64_4"),
        ("q8_0", 128, 32, "q8_0_128_4"),
        ("fp8", 128, 64, "fp8_128_4"),
        ("bf16", 96, 24, "bf16_any_4"),
    ],
)
@pytest.mark.parametrize("splits", [1, 22])
def test_attention(card: Remote, splits: int, format: str, head_dim: int, heads: int, kernel: str) -> None:
    case = Case(
        position=KEYS,
        heads=heads,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        format=format,
        capacity=1024,
        splits=splits,
        max_rows=1,
    )
    (launch,) = card.call("report", function="cases_attention.attention", arguments=case.arguments)
    assert launch["kernel"] == f"attention_decode_{kernel}"
    # Every key and value once, for all query heads of the group: 16 bytes a lane, a key's scales of 2 bytes together.
    copies = accesses(launch, "cp.async")
    elements = [entry for entry in copies if entry["bytes_per_lane"] == 16]
    scales = total(copies, "bytes") - total(elements, "bytes")
    numbers = 2 * KEYS * KV_HEADS * head_dim
    assert total(elements, "bytes") == numbers * case.planes[0].itemsize
    assert scales == (numbers // 32 * 2 if format == "q8_0" else 0)
    sectors = [total(copies, figure) for figure in ("sectors", "sectors_unique", "sectors_ideal")]
    assert sectors == [total(copies, "bytes") // 32] * 3
    # Beside the cache no more sectors than queries, keys and values of the step and partial results have.
    group, used = heads // KV_HEADS, 18 if splits == 22 else 1  # 89 steps, 5 each
    step = (heads + 2 * KV_HEADS) * head_dim * 4 // 32
    partial = used * heads * (head_dim * 4 + 8) // 32 if used > 1 else 0
    assert launch["global_load_sectors_unique"] <= sectors[0] + step + partial + group * KV_HEADS + 8
    stored = (numbers * case.planes[0].itemsize + scales) // KEYS + heads * head_dim * 4
    partial_bytes = used * heads * (head_dim * 4 + 8) + used * KV_HEADS * 4 if used > 1 else 0  # and counters
    assert launch["global_store_bytes"] == stored + partial_bytes
    # The two numbers that a head's partial result has beside its values lie in a sector of their own.
    apart = used * heads if used > 1 else 0
    assert launch["global_store_sectors_requested"] <= launch["global_store_sectors_ideal"] + apart
    assert launch["atomics"] == (used * KV_HEADS if used > 1 else 0)
    check_shared(launch)


@pytest.mark.parametrize(("rows", "n"), [(1, HIDDEN), (3, HIDDEN), (1, INTERMEDIATE)])
def test_rms_norm(card: Remote, rows: int, n: int) -> None:
    random = np.random.default_rng(3)
    x, weight = random.standard_normal((rows, n), np.float32), random.standard_normal(n, np.float32)
    (launch,) = card.call("report", function="rms_norm", arguments={"x": x, "weight": weight, "eps": 1e-5})
    assert launch["kernel"] == "rms_norm"
    check_global(launch)
    check_shared(launch)
    for entry in launch["accesses"]:
        assert entry["space"] != "global" or entry["bytes_per_lane"] == 16, entry
    # x once, as it stays in registers; the weight once a row.
    assert launch["global_load_bytes"] == 2 * rows * n * 4
    assert launch["global_store_bytes"] == rows * n * 4
    assert launch["global_load_sectors_requested"] == 2 * rows * n * 4 // 32
    assert launch["global_load_sectors_unique"] == (rows + 1) * n * 4 // 32
    assert launch["barriers"] == rows


def test_x_is_read_once_a_block_in_a_second_round_too(card: Remote) -> None:
    """Blocks that have more than one row a warp stage x once."""
    rows, cols = 14336, 64
    weight = np.zeros((rows, cols), np.uint16)
    (launch,) = card.call(
        "report",
        function="product",
        arguments={"weight": weight, "x": np.ones(cols, np.float32), "residual": None},
    )
    blocks = launch["grid"][0]
    assert blocks * 8 < rows
    assert total(accesses(launch, "ld.global.v4"), "bytes") == blocks * cols * 4
    assert total(accesses(launch, "ld.global.nc", ".v4"), "sectors") == rows * cols * 2 // 32
