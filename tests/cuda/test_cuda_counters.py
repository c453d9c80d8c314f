"""What the operations ask of memory at Llama 3.2 1B's shapes, counted by the virtual GPU: nothing twice or in vain.

Sectors, bytes a lane and bank conflicts are what bounds these kernels on a GPU, and they can be counted without one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_oracle import Case
from cuda_worker import Remote
from product_oracle import ALL, Weights, make

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


# q, k and v; o; gate and up; down
SHAPES = [(HIDDEN + 2 * KV_ROWS, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]


def measure(card: Remote, weights: Weights, x: np.ndarray, **arguments: Any) -> Record:
    (launch,) = card.call(
        "report", function="cases_product.product", arguments={**weights.arguments, "x": x, **arguments}
    )
    return launch


@pytest.mark.parametrize("format", ["BF16", "Q4_0"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_product(card: Remote, format: str, rows: int, cols: int) -> None:
    random = np.random.default_rng(1)
    weights, x = make(format, rows, cols, 1), random.standard_normal((1, cols), np.float32)
    normed = cols == HIDDEN
    norm = random.standard_normal(cols, np.float32) if normed else None
    start = None if normed else random.standard_normal((1, rows), np.float32)
    launch = measure(card, weights, x, norm=norm, start=start, epilogue="store" if normed else "add")
    assert launch["kernel"] == f"product_{format.lower()}_1"
    # Every byte of W comes once: quants 16 bytes a lane, 512 with each warp instruction, and the scales.
    planes = {"BF16": {".v4": 2 * rows * cols}, "Q4_0": {".v4": rows * cols // 2, ".u16": rows * cols // 32 * 2}}[
        format
    ]
    for opcode, size in planes.items():
        found = accesses(launch, "ld.global.nc", opcode)
        figures = [total(found, figure) for figure in ("sectors", "sectors_unique", "sectors_ideal")]
        assert figures == [size // 32] * 3
        assert total(found, "bytes") == size
        if opcode == ".v4":
            assert {entry["bytes_per_lane"] for entry in found} == {16}
            assert total(found, "requests") == size // 512
    assert sum(planes.values()) == weights.data.size
    check_global(launch)
    check_shared(launch)
    # A block reads x and the norm's weights once, 16 bytes a lane, whatever the number of its rows.
    blocks, staged = launch["grid"][0], accesses(launch, "ld.global.v4")
    assert {entry["bytes_per_lane"] for entry in staged} == {16}
    assert total(staged, "bytes") == blocks * cols * 4 * (1 + normed)
    # Beside these there is the residual stream. A step of one row is known to have one: nobody waits to read so.
    rest = 0 if normed else 4 * rows
    assert launch["global_load_bytes"] == sum(planes.values()) + total(staged, "bytes") + rest
    assert launch["global_store_bytes"] == rows * 4
    unique = sum(planes.values()) // 32 + cols * 4 // 32 * (1 + normed) + (0 if normed else rows * 4 // 32)
    assert launch["global_load_sectors_unique"] == unique
    assert launch["barriers"] == blocks * (1 + normed)
    # A pair of rows shares what it takes of x from shared memory: floats as they are, or digits and scales, 80 bytes a
    # block of 32. A norm's mean square comes from 8 warps.
    taken = rows // 2 * (cols * 4 if format == "BF16" else cols // 32 * 80)
    assert launch["shared_load_wavefronts"] == taken // 128 + (blocks * 8 * 8 if normed else 0)


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("format", ALL)
def test_product_of_several_rows(card: Remote, format: str, rows: int) -> None:
    """No format and no number of rows meets a bank twice or asks for quants again; x is read once a block and row."""
    outputs, cols = 264, HIDDEN
    weights, x = make(format, outputs, cols, 1), np.random.default_rng(2).standard_normal((rows, cols), np.float32)
    launch = measure(card, weights, x, epilogue="silu_times_up")
    quants = accesses(launch, "ld.global.nc.L1::no_allocate.v4")
    size = plane_bytes(format, outputs, cols)
    assert [total(quants, figure) for figure in ("sectors", "sectors_unique", "sectors_ideal")] == [size // 32] * 3
    assert {entry["bytes_per_lane"] for entry in quants} == {16} and total(quants, "bytes") == size
    check_shared(launch)
    # Where 16 rows of x do not fit a tile is staged after the other, each once too as there is one round.
    assert total(accesses(launch, "ld.global.v4"), "bytes") == launch["grid"][0] * rows * cols * 4


def plane_bytes(format: str, rows: int, cols: int) -> int:
    """Of the quants."""
    return rows * cols * {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8, "MXFP8": 8}.get(format, 4) // 8


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
    """Blocks that have more than one pair of rows a warp stage x once."""
    rows, cols = 14336, 64
    weights = make("BF16", rows, cols, 1)
    launch = measure(card, weights, np.ones((1, cols), np.float32))
    blocks = launch["grid"][0]
    assert blocks * 16 < rows
    assert total(accesses(launch, "ld.global.v4"), "bytes") == blocks * cols * 4
    assert total(accesses(launch, "ld.global.nc", ".v4"), "sectors") == rows * cols * 2 // 32
