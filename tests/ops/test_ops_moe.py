"""torch.ops.llama_ext.moe_route, moe_dispatch and moe_combine against plain torch, and together against the blocks of
transformers' Llama 4 and Mixtral."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import models
import ops_oracles as oracle
import pytest
import tolerances
import torch
from torch import Tensor, nn
from torch.library import opcheck

from llama_ext import ops

SCORINGS = ("sigmoid", "softmax")
# (experts, top_k): Mixtral's, Scout's, Maverick's, and shapes of no model
SHAPES = [(1, 1), (8, 2), (16, 1), (40, 8), (128, 1), (128, 2), (128, 8), (5, 5), (1000, 3), (300, 300)]


def random_experts(rows: int, top_k: int, num_experts: int, seed: int = 0) -> Tensor:
    """[rows, top_k], distinct in a row."""
    return torch.rand(rows, num_experts, generator=oracle.generator(seed)).argsort(1)[:, :top_k].contiguous()


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=oracle.generator(seed))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- route


def check_route(result: tuple[Tensor, Tensor], logits: Tensor, top_k: int, scoring: str) -> None:
    experts, scores = result
    expected_experts, expected_scores = oracle.moe_route(logits, top_k, scoring)
    assert experts.dtype == torch.int64
    assert experts.is_contiguous() and scores.is_contiguous()
    assert torch.equal(experts, expected_experts)
    oracle.check(scores, expected_scores, torch.float32)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(("experts", "top_k"), SHAPES)
def test_route(experts: int, top_k: int, scoring: str, dtype: torch.dtype) -> None:
    """bfloat16 logits hold many ties."""
    for scale in (1.0, 20.0):
        logits = (oracle.normal(33, experts, seed=experts) * scale).to(dtype)
        check_route(ops.moe_route(logits, top_k, scoring), logits, top_k, scoring)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_ties_go_to_the_lowest_index(scoring: str) -> None:
    logits = torch.tensor([[2.0, 7.0, 7.0, -1.0, 7.0], [0.0, -0.0, 0.0, -0.0, 0.0], [-3.0, -0.0, 0.0, -0.0, 1.0]])
    experts, scores = ops.moe_route(logits, 4, scoring)
    assert experts.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [4, 1, 2, 3]]
    assert torch.equal(scores[1], scores[1, :1].expand(4))
    few = torch.randint(0, 3, (200, 128), generator=oracle.generator(0)).float()  # three values, so 40 equals each
    for top_k in (1, 2, 8, 128):
        check_route(ops.moe_route(few, top_k, scoring), few, top_k, scoring)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("rising", [True, False])
def test_every_order_of_arrival(rising: bool, scoring: str) -> None:
    """The largest comes last, or first: the longest and the shortest way through the selection."""
    logits = torch.linspace(-5, 5, 1000).sort(descending=not rising).values[None]
    for top_k in (1, 2, 8, 1000):
        check_route(ops.moe_route(logits, top_k, scoring), logits, top_k, scoring)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("top_k", [1, 2, 8, 128])
def test_nan_and_infinite_logits(top_k: int, dtype: torch.dtype) -> None:
    logits = oracle.normal(8, 128, dtype=dtype)
    logits[0] = math.nan
    logits[1, 77] = math.nan
    logits[2, ::3] = -math.nan
    logits[3] = -math.inf
    logits[4, 99] = math.inf
    logits[5, 1:] = -math.inf
    logits[6, 1::2] = math.inf
    logits[7, :2] = torch.tensor([math.inf, math.nan])
    in_order = logits.float().sort(dim=1, descending=True, stable=True)  # to torch, too, NaN is the largest
    chosen = in_order.values[:, :top_k].double()
    for scoring, expected in (("sigmoid", chosen.sigmoid()), ("softmax", chosen.softmax(1))):
        experts, scores = ops.moe_route(logits, top_k, scoring)
        assert torch.equal(experts, in_order.indices[:, :top_k])
        assert all(len(set(row)) == top_k and min(row) >= 0 and max(row) < 128 for row in experts.tolist())
        torch.testing.assert_close(scores, expected.float(), rtol=oracle.FLOAT32, atol=0.0, equal_nan=True)
    assert experts[7, 0] == 1 and scores[7, 0].isnan()


def test_sigmoid_is_not_renormalised_and_softmax_is() -> None:
    logits = oracle.normal(5, 16)
    (same, sigmoid), (experts, softmax) = (ops.moe_route(logits, 4, scoring) for scoring in SCORINGS)
    assert torch.equal(same, experts)
    torch.testing.assert_close(sigmoid, logits.gather(1, experts).sigmoid())
    over_all = logits.softmax(1).gather(1, experts)
    torch.testing.assert_close(softmax, over_all / over_all.sum(1, keepdim=True))


def test_the_checker_sees_a_wrong_route() -> None:
    logits = torch.randint(0, 5, (20, 16), generator=oracle.generator(1)).float()
    experts, scores = ops.moe_route(logits, 2, "sigmoid")
    last_first = (
        15 - logits.flip(1).sort(dim=1, descending=True, stable=True).indices[:, :2]
    )  # ties to the highest index
    for wrong in (
        (last_first, scores),
        (experts.flip(1), scores),
        (experts.int(), scores),
        (experts, scores.double()),
        (experts, scores * (1 + 3e-6)),
        ops.moe_route(logits, 2, "softmax"),
    ):
        with pytest.raises(AssertionError):
            check_route(wrong, logits, 2, "sigmoid")


# --- dispatch


def check_dispatch(
    result: tuple[Tensor, Tensor, Tensor], x: Tensor, experts: Tensor, num_experts: int, scores: Tensor | None
) -> None:
    for part, expected in zip(result, oracle.moe_dispatch(x, experts, num_experts, scores), strict=True):
        assert part.is_contiguous()
        assert part.dtype == expected.dtype
        assert torch.equal(part, expected)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize(("num_experts", "top_k"), SHAPES)
def test_dispatch(num_experts: int, top_k: int, dtype: torch.dtype, scaled: bool) -> None:
    x, experts = oracle.normal(21, 19, dtype=dtype), random_experts(21, top_k, num_experts)
    scores = uniform(21, top_k) if scaled else None
    check_dispatch(ops.moe_dispatch(x, experts, num_experts, scores), x, experts, num_experts, scores)


def test_grouping() -> None:
    """By hand: rows ascend inside an expert, experts 0 and 3 get nothing, and a row may name an expert twice."""
    x = torch.tensor([[1.0], [2.0], [3.0]])
    experts = torch.tensor([[4, 1], [1, 2], [4, 4]])
    gathered, offsets, source = ops.moe_dispatch(x, experts, 6)
    assert offsets.tolist() == [0, 0, 2, 3, 3, 6, 6]
    assert source.tolist() == [1, 2, 3, 0, 4, 5]
    assert gathered.flatten().tolist() == [1, 2, 2, 1, 3, 3]
    scores = torch.tensor([[0.5, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert ops.moe_dispatch(x, experts, 6, scores)[0].flatten().tolist() == [2, 6, 8, 0.5, 15, 18]


def test_all_to_one_expert() -> None:
    x = oracle.normal(50, 8)
    for expert in (0, 17, 39):
        gathered, offsets, source = ops.moe_dispatch(x, torch.full((50, 1), expert), 40)
        assert torch.equal(gathered, x)
        assert torch.equal(source, torch.arange(50))
        assert offsets.tolist() == [0] * (expert + 1) + [50] * (40 - expert)


def test_rows_are_copied_bit_for_bit() -> None:
    """Without scores no value is touched, NaN with a payload included."""
    bits = torch.randint(-(2**15), 2**15, (9, 33), generator=oracle.generator(0)).to(torch.int16)
    bits[0, 0] = 0x7F81  # a signalling NaN of bfloat16
    gathered, _, source = ops.moe_dispatch(bits.view(torch.bfloat16), random_experts(9, 2, 4), 4)
    assert torch.equal(gathered.view(torch.int16), bits[source // 2])


def test_the_checker_sees_a_wrong_dispatch() -> None:
    x, experts = oracle.normal(30, 4), random_experts(30, 2, 8)
    gathered, offsets, source = ops.moe_dispatch(x, experts, 8)
    swapped = torch.arange(60)
    swapped[[0, 1]] = swapped[[1, 0]]  # two rows of one expert in descending order
    assert offsets[1] >= 2
    for wrong in (
        (gathered[swapped], offsets, source[swapped]),
        (gathered, offsets + 1, source),
        (gathered, offsets, source // 2),
        ops.moe_dispatch(x, experts, 8, torch.full((30, 2), 1 + 2**-23)),
    ):
        with pytest.raises(AssertionError):
            check_dispatch(wrong, x, experts, 8, None)


# --- combine


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize(("num_experts", "top_k"), SHAPES)
def test_combine(num_experts: int, top_k: int, dtype: torch.dtype, scaled: bool) -> None:
    source = oracle.moe_dispatch(torch.zeros(21, 1), random_experts(21, top_k, num_experts), num_experts, None)[2]
    y, scores = oracle.normal(21 * top_k, 19, dtype=dtype), uniform(21, top_k) if scaled else None
    result = ops.moe_combine(y, source, 21, scores)
    assert result.is_contiguous()
    oracle.check(result, oracle.moe_combine(y, source, 21, scores), dtype)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_the_order_of_the_sum_is_that_of_the_choices(dtype: torch.dtype) -> None:
    """The first two of eight are large and cancel: added last, they would swallow digits of the others."""
    results, scores = oracle.normal(20, 8, 33, dtype=dtype), uniform(20, 8)
    results[:, 0], results[:, 1], scores[:, :2] = 2.0**15, -(2.0**15), 1.0
    source = torch.randperm(160, generator=oracle.generator(0))
    y, terms = results.flatten(0, 1)[source], results.float() * scores[..., None]
    forward, backward = terms[:, 0], terms[:, -1]
    for i in range(1, 8):
        forward, backward = forward + terms[:, i], backward + terms[:, -1 - i]
    result = ops.moe_combine(y, source, 20, scores)
    assert torch.equal(result, forward.to(dtype))
    assert not torch.equal(result, backward.to(dtype))  # so the bits do tell


def test_grouping_moves_no_bit() -> None:
    results, scores = oracle.normal(40 * 8, 33), uniform(40, 8)  # one a choice
    expected = ops.moe_combine(results, torch.arange(320), 40, scores)
    for seed in range(5):
        source = torch.randperm(320, generator=oracle.generator(seed))
        assert torch.equal(ops.moe_combine(results[source], source, 40, scores), expected)


def test_dispatch_and_combine_are_inverse() -> None:
    for dtype in oracle.DTYPES:
        x, experts = oracle.normal(70, 24, dtype=dtype), random_experts(70, 1, 16)
        gathered, _, source = ops.moe_dispatch(x, experts, 16)
        assert torch.equal(ops.moe_combine(gathered, source, 70), x)


def test_the_checker_sees_a_wrong_combine() -> None:
    y, scores, source = oracle.normal(16, 12), uniform(8, 2), torch.randperm(16, generator=oracle.generator(0))
    expected = oracle.moe_combine(y, source, 8, scores)
    assert oracle.excess(ops.moe_combine(y, source, 8, scores), expected, torch.float32) <= 1
    for wrong in (
        ops.moe_combine(y, source, 8),
        ops.moe_combine(y, source.argsort(), 8, scores),
        ops.moe_combine(y, source, 8, scores.flip(1)),
        ops.moe_combine(y * (1 + 5e-6), source, 8, scores),
    ):
        assert oracle.excess(wrong, expected, torch.float32) > 1


# --- all three: bits, strides, empty tensors


def scale_by_expert(gathered: Tensor, offsets: Tensor) -> Tensor:
    """A stand-in for the experts whose result shows which one it was."""
    factor = torch.arange(1, len(offsets), dtype=torch.float32).repeat_interleave(offsets.diff())
    return (gathered.float() * factor[:, None]).to(gathered.dtype)


def whole_layer(x: Tensor, logits: Tensor, top_k: int) -> list[Tensor]:
    results: list[Tensor] = []
    for scoring in SCORINGS:
        experts, scores = ops.moe_route(logits, top_k, scoring)
        before, after = (scores, None) if scoring == "sigmoid" else (None, scores)
        gathered, offsets, source = ops.moe_dispatch(x, experts, logits.shape[1], before)
        combined = ops.moe_combine(scale_by_expert(gathered, offsets), source, len(x), after)
        results += [experts, scores, gathered, offsets, source, combined]
    return results


@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    """More than one thread's share of rows for each of the three."""
    x, logits = oracle.normal(3000, 64, dtype=dtype), oracle.normal(3000, 128, dtype=dtype, seed=1)
    threads(1)
    expected = whole_layer(x, logits, 2)
    for n in (2, 3, 8):
        threads(n)
        assert all(torch.equal(a, b) for a, b in zip(whole_layer(x, logits, 2), expected, strict=True))


@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_bits_do_not_depend_on_the_other_rows(dtype: torch.dtype) -> None:
    x, logits = oracle.normal(40, 24, dtype=dtype), oracle.normal(40, 40, dtype=dtype, seed=1)
    whole = whole_layer(x, logits, 8)
    for first, last in ((0, 1), (17, 18), (10, 25), (39, 40)):
        part = whole_layer(x[first:last], logits[first:last], 8)
        for i in (0, 1, 5, 6, 7, 11):  # experts, scores and the result, for both scorings
            assert torch.equal(part[i], whole[i][first:last])


@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_strides(dtype: torch.dtype) -> None:
    logits = oracle.normal(40, 12, dtype=dtype).T
    check_route(ops.moe_route(logits, 3, "sigmoid"), logits, 3, "sigmoid")
    x, experts, scores = oracle.normal(12, 34, dtype=dtype)[:, ::2], random_experts(12, 6, 40)[:, ::2], uniform(3, 12).T
    check_dispatch(ops.moe_dispatch(x, experts, 40, scores), x, experts, 40, scores)
    one_row = x[:1].expand(12, -1)
    check_dispatch(ops.moe_dispatch(one_row, experts, 40), one_row, experts, 40, None)
    y = oracle.normal(17, 36, dtype=dtype).T
    source = torch.randperm(36, generator=oracle.generator(0)).repeat_interleave(2)[::2]
    oracle.check(ops.moe_combine(y, source, 12, scores), oracle.moe_combine(y, source, 12, scores), dtype)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_empty(dtype: torch.dtype) -> None:
    for scoring in SCORINGS:
        experts, scores = ops.moe_route(torch.empty(0, 8, dtype=dtype), 2, scoring)
        assert (experts.shape, experts.dtype, scores.shape, scores.dtype) == (
            (0, 2),
            torch.int64,
            (0, 2),
            torch.float32,
        )
    for factors in (None, scores):
        gathered, offsets, source = ops.moe_dispatch(torch.empty(0, 16, dtype=dtype), experts, 8, factors)
        assert (gathered.shape, gathered.dtype, source.shape) == ((0, 16), dtype, (0,))
        assert offsets.tolist() == [0] * 9
        combined = ops.moe_combine(gathered, source, 0, factors)
        assert (combined.shape, combined.dtype) == ((0, 16), dtype)
    # no hidden size, no choices, no experts
    gathered, offsets, source = ops.moe_dispatch(torch.empty(3, 0, dtype=dtype), torch.tensor([[1], [0], [1]]), 2)
    assert (gathered.shape, offsets.tolist(), source.tolist()) == ((3, 0), [0, 1, 3], [1, 0, 2])
    assert ops.moe_combine(gathered, source, 3).shape == (3, 0)
    none = torch.empty(3, 0, dtype=torch.int64)
    gathered, offsets, source = ops.moe_dispatch(torch.ones(3, 4, dtype=dtype), none, 0)
    assert (gathered.shape, offsets.tolist()) == ((0, 4), [0])
    assert torch.equal(ops.moe_combine(gathered, source, 3, torch.empty(3, 0)), torch.zeros(3, 4, dtype=dtype))


# --- transformers' blocks


def randomize(block: nn.Module, seed: int) -> None:
    """Of a size that keeps values near 1, and logits that spread."""
    generator = oracle.generator(seed)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            inputs = parameter.shape[-1] if parameter.dim() == 2 else min(parameter.shape[1:])
            size = 2.0 if name.startswith(("router", "gate.")) else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size / math.sqrt(inputs))


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """gate, up [intermediate, hidden], down [hidden, intermediate]"""
    hidden = nn.functional.silu(ops.linear(x, gate, "F32")) * ops.linear(x, up, "F32")
    return ops.linear(hidden, down, "F32")


def by_expert(gathered: Tensor, offsets: Tensor, experts: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    bounds = offsets.tolist()
    parts = [gathered[begin:end] for begin, end in itertools.pairwise(bounds)]
    return torch.cat([swiglu(part, *weights) for part, weights in zip(parts, experts, strict=True)])


def llama4(x: Tensor, num_experts: int, top_k: int, scale_output: bool = False) -> tuple[Tensor, Tensor]:
    """(ours, transformers')"""
    from transformers import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

    hidden, inner = x.shape[1], 48
    block = Llama4TextMoe(
        Llama4TextConfig(
            hidden_size=hidden, intermediate_size=inner, num_local_experts=num_experts, num_experts_per_tok=top_k
        )
    )
    randomize(block, num_experts + top_k)
    gate_up, down = block.experts.gate_up_proj, block.experts.down_proj  # [experts, inputs, outputs]
    weights = [
        (g[:, :inner].T.contiguous(), g[:, inner:].T.contiguous(), d.T.contiguous())
        for g, d in zip(gate_up, down, strict=True)
    ]
    experts, scores = ops.moe_route(ops.linear(x, block.router.weight, "F32"), top_k, "sigmoid")
    before, after = (None, scores) if scale_output else (scores, None)
    gathered, offsets, source = ops.moe_dispatch(x, experts, num_experts, before)
    routed = ops.moe_combine(by_expert(gathered, offsets, weights), source, len(x), after)
    shared = block.shared_expert
    ours = routed + swiglu(x, shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
    return ours, block(x)[0]


def mixtral(x: Tensor, num_experts: int, top_k: int, scale_input: bool = False) -> tuple[Tensor, Tensor]:
    """(ours, transformers')"""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    hidden, inner = x.shape[1], 48
    config = MixtralConfig(
        hidden_size=hidden, intermediate_size=inner, num_local_experts=num_experts, num_experts_per_tok=top_k
    )
    config._experts_implementation = "eager"
    block = MixtralSparseMoeBlock(config).eval()
    randomize(block, num_experts + top_k)
    gate_up, down = block.experts.gate_up_proj, block.experts.down_proj  # [experts, outputs, inputs]
    weights = [(g[:inner], g[inner:], d) for g, d in zip(gate_up, down, strict=True)]
    experts, scores = ops.moe_route(ops.linear(x, block.gate.weight, "F32"), top_k, "softmax")
    before, after = (scores, None) if scale_input else (None, scores)
    gathered, offsets, source = ops.moe_dispatch(x, experts, num_experts, before)
    ours = ops.moe_combine(by_expert(gathered, offsets, weights), source, len(x), after)
    return ours, block(x[None])[0]


@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("num_experts", [40, 128])
@pytest.mark.parametrize("block", [llama4, mixtral])
def test_as_transformers(block: Callable[..., tuple[Tensor, Tensor]], num_experts: int, top_k: int) -> None:
    pytest.importorskip("transformers")
    with torch.inference_mode():
        ours, theirs = block(oracle.normal(37, 32, seed=top_k), num_experts, top_k)
    assert models.deviation(ours.numpy(), theirs.numpy()) <= tolerances.MOE_BLOCK


def test_scores_on_the_wrong_side_are_seen() -> None:
    pytest.importorskip("transformers")
    x = oracle.normal(37, 32)
    with torch.inference_mode():
        for wrong in (llama4(x, 40, 2, scale_output=True), mixtral(x, 40, 2, scale_input=True)):
            assert models.deviation(wrong[0].numpy(), wrong[1].numpy()) > 1000 * tolerances.MOE_BLOCK


# --- as PyTorch sees them


def samples(name: str, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    x, logits = oracle.normal(6, 16, dtype=dtype), oracle.normal(6, 40, dtype=dtype)
    experts, scores, source = random_experts(6, 2, 40), uniform(6, 2), torch.randperm(12)
    y = oracle.normal(12, 16, dtype=dtype)
    return {
        "moe_route": [(logits, 2, "sigmoid"), (logits.T, 1, "softmax"), (logits[:0], 8, "softmax")],
        "moe_dispatch": [
            (x, experts, 40),
            (x, experts, 40, scores),
            (y.T[:6], experts.flip(1), 41, scores.T.contiguous().T),
            (x[:0], experts[:0], 40),
        ],
        "moe_combine": [
            (y, source, 6),
            (y, source, 6, scores),
            (y.T.contiguous().T, source, 12),
            (y[:0], source[:0], 0),
        ],
    }[name]


NAMES = ("moe_route", "moe_dispatch", "moe_combine")


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    for arguments in samples(name, dtype):
        results = opcheck(getattr(torch.ops.llama_ext, name).default, arguments)
        assert results and set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_compile(name: str, dtype: torch.dtype) -> None:
    function: Callable[..., Any] = getattr(ops, name)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for arguments in samples(name, dtype):
            found, expected = compiled(*arguments), function(*arguments)
            if isinstance(expected, Tensor):
                found, expected = (found,), (expected,)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def layer(x: Tensor, logits: Tensor) -> Tensor:
    experts, scores = ops.moe_route(logits, 2, "sigmoid")
    gathered, _, source = ops.moe_dispatch(x, experts, 40, scores)
    return ops.moe_combine(gathered, source, x.shape[0])


def test_a_changing_number_of_rows_does_not_recompile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for rows in (2, 3, 5, 30):
        x, logits = oracle.normal(rows, 16), oracle.normal(rows, 40, seed=rows)
        assert torch.equal(compiled(x, logits), layer(x, logits))
    # The first compilation takes the number for a constant, the second for a variable.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_fakes_and_meta_tensors() -> None:
    x = torch.empty(5, 64, device="meta", dtype=torch.bfloat16)
    experts, scores = ops.moe_route(torch.empty(5, 40, device="meta"), 2, "softmax")
    gathered, offsets, source = ops.moe_dispatch(x, experts, 40, scores)
    combined = ops.moe_combine(gathered, source, 5, scores)
    found = [(t.shape, t.dtype, t.device.type) for t in (experts, scores, gathered, offsets, source, combined)]
    assert found == [
        ((5, 2), torch.int64, "meta"),
        ((5, 2), torch.float32, "meta"),
        ((10, 64), torch.bfloat16, "meta"),
        ((41,), torch.int64, "meta"),
        ((10,), torch.int64, "meta"),
        ((5, 64), torch.bfloat16, "meta"),
    ]
    for name, arguments in {
        "moe_route": (x[0], 1, "softmax"),
        "moe_dispatch": (x[0], experts, 40),
        "moe_combine": (x[0], source, 5),
    }.items():
        with pytest.raises(RuntimeError, match=f"^{name}: "):
            getattr(ops, name)(*arguments)


def test_no_backward() -> None:
    x, experts = oracle.normal(6, 16).requires_grad_(), random_experts(6, 2, 8)
    gathered, _, _ = ops.moe_dispatch(x, experts, 8)
    for result in (gathered, ops.moe_combine(x, torch.arange(6), 3), ops.moe_route(x, 2, "sigmoid")[1]):
        with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
            result.sum().backward()
    assert x.grad is None


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 4, dtype=torch.float16), 1, "softmax"), "logits must be float32 or bfloat16, not Half"),
        ((torch.zeros(2, 4, dtype=torch.int64), 1, "softmax"), "logits must be float32 or bfloat16"),
        ((torch.zeros(4), 1, "softmax"), r"logits must be \[rows, experts\], not \[4\]"),
        ((torch.zeros(1, 2, 4), 1, "softmax"), r"logits must be \[rows, experts\], not \[1, 2, 4\]"),
        ((torch.zeros(2, 4), 0, "softmax"), "top_k must be 1 to the number of experts, 4, not 0"),
        ((torch.zeros(2, 4), 5, "softmax"), "top_k must be 1 to the number of experts, 4, not 5"),
        ((torch.zeros(2, 4), -(2**63), "softmax"), "top_k must be"),
        ((torch.zeros(2, 4), 2**32 + 1, "softmax"), "top_k must be"),
        ((torch.zeros(2, 0), 1, "softmax"), "top_k must be 1 to the number of experts, 0"),
        ((torch.zeros(1, 1).expand(1, 2**31), 1, "softmax"), r"logits of \[1, 2147483648\] is too large"),
        ((torch.zeros(2, 4), 1, "relu"), "scoring must be 'softmax' or 'sigmoid', not 'relu'"),
    ],
)
def test_bad_route(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^moe_route: {message}"):
        ops.moe_route(*arguments)


X, EXPERTS = torch.zeros(3, 4), torch.tensor([[0, 1], [1, 2], [2, 0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X.double(), EXPERTS, 3), "x must be float32 or bfloat16, not Double"),
        ((X[0], EXPERTS, 3), r"x must be \[rows, hidden\], not \[4\]"),
        ((X, EXPERTS.int(), 3), "experts must be Long, not Int"),
        ((X, EXPERTS[0], 3), r"experts must be \[3, top_k\], one row a row of x, not \[2\]"),
        ((X, EXPERTS[:2], 3), r"experts must be \[3, top_k\], one row a row of x, not \[2, 2\]"),
        ((X, EXPERTS, -1), "num_experts must be 0 to 2147483647, not -1"),
        ((X, EXPERTS, 2**63 - 1), "num_experts must be 0 to 2147483647"),
        ((X, EXPERTS, 3, torch.zeros(3, 1)), r"scores must be \[3, 2\], one a choice, not \[3, 1\]"),
        ((X, EXPERTS, 3, torch.zeros(6)), r"scores must be \[3, 2\], one a choice, not \[6\]"),
        ((X, EXPERTS, 3, torch.zeros(3, 2, dtype=torch.bfloat16)), "scores must be Float, not BFloat16"),
        ((X, EXPERTS, 2), r"experts\[1, 1\] is 2; with 2 experts it must be at least 0 and below 2"),
        ((X, EXPERTS, 0), r"experts\[0, 0\] is 0; with 0 experts"),
        ((X, EXPERTS - 1, 3), r"experts\[0, 0\] is -1; with 3 experts"),
    ],
)
def test_bad_dispatch(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^moe_dispatch: {message}"):
        ops.moe_dispatch(*arguments)


@pytest.mark.parametrize("index", [-(2**63), -(2**31), -1, 40, 128, 2**31, 2**32, 2**63 - 1])
def test_no_index_out_of_range_gets_through(index: int) -> None:
    """Wherever it stands, and whatever 32 bits would make of it."""
    for row, choice in ((0, 0), (1, 1), (49, 1)):
        experts = random_experts(50, 2, 40)
        experts[row, choice] = index
        with pytest.raises(RuntimeError, match=rf"^moe_dispatch: experts\[{row}, {choice}\] is {index}; "):
            ops.moe_dispatch(torch.zeros(50, 4), experts, 40)
    source = torch.arange(10)
    source[7] = index
    with pytest.raises(RuntimeError, match=rf"^moe_combine: source\[7\] is {index}; each of 0 to 9"):
        ops.moe_combine(torch.zeros(10, 4), source, 5)


Y, SOURCE = torch.zeros(6, 4), torch.arange(6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Y.half(), SOURCE, 3), "y must be float32 or bfloat16, not Half"),
        ((Y[0], SOURCE, 3), r"y must be \[rows \* top_k, hidden\], not \[4\]"),
        ((Y, SOURCE, 4), r"y of \[6, 4\] does not hold the same number of results for each of 4 rows"),
        ((Y, SOURCE, 0), r"y of \[6, 4\] does not hold"),
        ((Y, SOURCE, -3), r"y of \[6, 4\] does not hold .* -3 rows"),
        ((Y, SOURCE.int(), 3), "source must be Long, not Int"),
        ((Y, SOURCE[:5], 3), r"source must be \[6\], one a row of y, not \[5\]"),
        ((Y, SOURCE.view(3, 2), 3), r"source must be \[6\]"),
        ((Y, torch.tensor([0, 1, 2, 3, 1, 5]), 3), r"source\[1\] and source\[4\] are both 1; each of 0 to 5"),
        ((Y, SOURCE, 3, torch.zeros(2, 3)), r"scores must be \[3, 2\], one a choice, not \[2, 3\]"),
        ((Y, SOURCE, 3, torch.zeros(3, 2).double()), "scores must be Float, not Double"),
        ((Y[:0], SOURCE[:0], 0, torch.zeros(1, 2)), r"scores must be \[0, 2\], one a choice, not \[1, 2\]"),
        ((Y[:0], SOURCE[:0], 0, torch.zeros(2)), r"scores must be \[0, 0\]"),
    ],
)
def test_bad_combine(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^moe_combine: {message}"):
        ops.moe_combine(*arguments)
