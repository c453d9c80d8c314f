"""What the threads of a warp do together, and what they can ask about themselves (PTX ISA 9.0)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from harness import Gpu
from numpy.typing import NDArray
from ptx_case import check, run
from ptx_entry import enter

Words = NDArray[np.uint32]
FULL = 0xFFFFFFFF
WARPS = 24
LANES = np.tile(np.arange(32), WARPS)
# Who goes which way: all, none, halves, alternating, one alone, then by chance.
MASKS = np.concatenate(
    [[FULL, 0, 0xFFFF, 0xFFFF0000, 0x55555555, 1, 0x80000000], np.random.default_rng(1).integers(0, 1 << 32, WARPS - 7)]
).astype(np.uint32)


def words(seed: int, bound: int = 1 << 32) -> Words:
    return np.random.default_rng(seed).integers(0, bound, 32 * WARPS).astype(np.uint32)


def split(instruction: str) -> str:
    """Lanes in $m run it with that mask, in one branch; the others with the rest, in another. $k is the mask."""
    return f"""{{
    .reg .pred in_mask; .reg .b32 mask;
    mov.b32 mask, %lanemask_eq; and.b32 mask, mask, $m; setp.ne.u32 in_mask, mask, 0;
    mov.b32 mask, $m;
    @!in_mask bra OTHERS;
    {instruction.replace("$k", "mask")}
    bra.uni JOIN;
    OTHERS:
    not.b32 mask, mask;
    {instruction.replace("$k", "mask")}
    JOIN:
    }}"""


def groups() -> list[tuple[int, NDArray[np.intp]]]:
    """Mask and threads of every group that `split` makes."""
    found = []
    for warp, mask in enumerate(MASKS):
        for part in (int(mask), FULL ^ int(mask)):
            lanes = np.array([lane for lane in range(32) if part >> lane & 1], np.intp)
            if lanes.size:
                found.append((part, 32 * warp + lanes))
    return found


def together(
    gpu: Gpu,
    instruction: str,
    sources: dict[str, Any],
    results: dict[str, Any],
    expected: Callable[[int, NDArray[np.intp]], dict[str, Any]],
) -> None:
    """Whole warps, then split ones, against `expected(mask, threads)`."""
    whole = [(FULL, 32 * w + np.arange(32)) for w in range(WARPS)]
    for text, parts in ((instruction.replace("$k", "0xffffffff"), whole), (split(instruction), groups())):
        given = {**sources, "m": np.repeat(MASKS, 32)}
        found = run(gpu, text, given, results, "sm_90", alone=True)
        for name in results:
            right = np.zeros_like(found[name])
            for mask, threads in parts:
                right[threads] = expected(mask, threads)[name]
            check(instruction, given, found[name], right)


def shuffled(mode: str, a: Words, b: Words, c: Words) -> tuple[Words, NDArray[np.bool_]]:
    """The pseudocode of shfl.sync, with every lane there."""
    d, p = np.zeros_like(a), np.zeros(len(a), np.bool_)
    for thread in range(len(a)):
        lane, bval, cval, segment = thread % 32, int(b[thread]) & 31, int(c[thread]) & 31, int(c[thread]) >> 8 & 31
        highest, lowest = (lane & segment) | (cval & ~segment & 31), lane & segment
        j = {
            "up": lane - bval,
            "down": lane + bval,
            "bfly": lane ^ bval,
            "idx": lowest | (bval & ~segment & 31),
        }[mode]
        p[thread] = j >= highest if mode == "up" else j <= highest
        d[thread] = a[thread - lane + (j if p[thread] else lane)]
    return d, p


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(gpu: Gpu, mode: str) -> None:
    """shfl.sync: any b and c, also beyond their five bits; the segments that width 1 to 32 makes; no p."""
    a, b = words(0), words(1)
    widths = np.repeat(1 << np.arange(WARPS) % 6, 32)
    usual = ((32 - widths) << 8 | (0 if mode == "up" else 31)).astype(np.uint32)
    for c in (words(2), usual):
        given = {"a": a, "b": b, "c": c}
        d, p = shuffled(mode, a, b, c)
        text = f"shfl.sync.{mode}.b32 $d|$p, $a, $b, $c, 0xffffffff;"
        found = run(gpu, text, given, {"d": np.uint32, "p": np.bool_}, alone=True)
        check(text, given, found["d"], d)
        check(text, given, found["p"], p)
    for steps, limits in ((1, 0 if mode == "up" else 31), (5, 0x181F), (16, 0x1C03)):
        given = {"a": a}
        d, _ = shuffled(mode, a, np.full_like(a, steps), np.full_like(a, limits))
        text = f"shfl.sync.{mode}.b32 $d, $a, {steps}, {limits}, -1;"
        check(text, given, run(gpu, text, given, {"d": np.uint32}, alone=True)["d"], d)
        # onto itself
        text = f"{{ .reg .b32 x; mov.b32 x, $a; shfl.sync.{mode}.b32 x, x, {steps}, {limits}, -1; mov.b32 $d, x; }}"
        check(text, given, run(gpu, text, given, {"d": np.uint32}, alone=True)["d"], d)


def test_shfl_of_some(gpu: Gpu) -> None:
    """shfl.sync in two branches, from a lane of one's own branch."""
    a, b = words(3), words(4)
    source = np.zeros(len(a), np.intp)
    for _, threads in groups():
        source[threads] = threads[b[threads] % len(threads)]
    given = {"a": a, "b": (source % 32).astype(np.uint32), "m": np.repeat(MASKS, 32)}
    text = split("shfl.sync.idx.b32 $d|$p, $a, $b, 31, $k;")
    found = run(gpu, text, given, {"d": np.uint32, "p": np.bool_}, alone=True)
    check(text, given, found["d"], a[source])
    assert found["p"].all()


@pytest.mark.parametrize("chance", [0, 1, 50, 99, 100])
def test_vote(gpu: Gpu, chance: int) -> None:
    """vote.sync: of the lanes in the mask alone; a lane outside is a zero in a ballot. a may be negated."""
    a = words(chance, 100) < chance
    text = """
    vote.sync.all.pred $all, $a, $k; vote.sync.any.pred $any, $a, $k; vote.sync.uni.pred $uni, $a, $k;
    vote.sync.ballot.b32 $bits, $a, $k; vote.sync.ballot.b32 $none, !$a, $k; vote.sync.all.pred $nall, !$a, $k;
    """
    results = dict.fromkeys(("all", "any", "uni", "nall"), np.bool_) | {"bits": np.uint32, "none": np.uint32}

    def expected(mask: int, threads: NDArray[np.intp]) -> dict[str, Any]:
        votes = a[threads]
        bits = sum(1 << int(t) % 32 for t in threads[votes])
        return {
            "all": votes.all(),
            "any": votes.any(),
            "uni": votes.all() or not votes.any(),
            "nall": not votes.any(),
            "bits": bits,
            "none": mask ^ bits,
        }

    together(gpu, text, {"a": a}, results, expected)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("values", [1, 3, 32])
def test_match(gpu: Gpu, width: int, values: int) -> None:
    """match.sync: all bits of a count; d and p of .all, which is zero where one lane differs."""
    # few values, which differ in the top bit alone or in low ones
    few = np.random.default_rng(5).integers(0, 1 << 63, values, np.uint64) | np.uint64(1)
    few[-1] = few[0] ^ np.uint64((1 << (width - 1)) * (values > 1))
    kind = np.dtype(f"u{width // 8}")
    a = few[words(values, values)].astype(kind)
    text = f"match.any.sync.b{width} $any, $a, $k; match.all.sync.b{width} $all|$p, $a, $k;"
    text += f"match.all.sync.b{width} $alone, $a, $k;"

    def expected(mask: int, threads: NDArray[np.intp]) -> dict[str, Any]:
        same = [sum(1 << int(u) % 32 for u in threads[a[threads] == a[t]]) for t in threads]
        every = len(set(a[threads].tolist())) == 1
        return {"any": same, "all": mask if every else 0, "alone": mask if every else 0, "p": every}

    results = {"any": np.uint32, "all": np.uint32, "alone": np.uint32, "p": np.bool_}
    together(gpu, text, {"a": a}, results, expected)


def test_redux(gpu: Gpu) -> None:
    """redux.sync: sums wrap, .s32 compares with the sign."""
    a = words(6)
    forms: dict[str, Callable[[Words], int]] = {
        "add.u32": lambda v: int(v.sum(dtype=np.uint64)) & FULL,
        "add.s32": lambda v: int(v.view(np.int32).sum(dtype=np.int64)) & FULL,
        "min.u32": lambda v: int(v.min()),
        "max.u32": lambda v: int(v.max()),
        "min.s32": lambda v: int(v.view(np.int32).min()) & FULL,
        "max.s32": lambda v: int(v.view(np.int32).max()) & FULL,
        "and.b32": lambda v: int(np.bitwise_and.reduce(v)),
        "or.b32": lambda v: int(np.bitwise_or.reduce(v)),
        "xor.b32": lambda v: int(np.bitwise_xor.reduce(v)),
    }
    names = {form: "d" + form.replace(".", "") for form in forms}
    text = "".join(f"redux.sync.{form} ${name}, $a, $k;" for form, name in names.items())
    results = dict.fromkeys(names.values(), np.uint32)
    for values in (a, a | np.uint32(0x80000001), a & np.uint32(0x7FFFFFFF)):

        def expected(mask: int, threads: NDArray[np.intp], values: Words = values) -> dict[str, Any]:
            return {names[form]: rule(values[threads]) for form, rule in forms.items()}

        together(gpu, text, {"a": values}, results, expected)


def test_elect(gpu: Gpu) -> None:
    """elect.sync: one leader of the mask, the same again for the same mask; d may be _."""
    text = "elect.sync $d|$p, $k; elect.sync _|$again, $k;"
    for form, parts in ((text.replace("$k", "-1"), [(FULL, np.arange(32))]), (split(text), groups())):
        given = {"m": np.repeat(MASKS, 32)}
        results = {"d": np.uint32, "p": np.bool_, "again": np.bool_}
        found = run(gpu, form, given, results, "sm_90", alone=True)
        for mask, threads in parts:
            leader = int(found["d"][threads[0]])
            assert mask >> leader & 1
            assert (found["d"][threads] == leader).all()
            assert ((threads % 32 == leader) == found["p"][threads]).all()
            assert ((threads % 32 == leader) == found["again"][threads]).all()


def test_activemask(gpu: Gpu) -> None:
    """activemask: the lanes that run this with me: all, or of my branch, or of my guard."""
    text = """{
    .reg .pred first; .reg .b32 bit;
    activemask.b32 $all;
    mov.b32 bit, %lanemask_eq; and.b32 bit, bit, $m; setp.ne.u32 first, bit, 0;
    mov.b32 $guarded, %lanemask_eq;
    @first activemask.b32 $guarded;
    @first bra FIRST;
    activemask.b32 $some;
    bra JOIN;
    FIRST: activemask.b32 $some;
    JOIN:
    bar.warp.sync -1;
    }"""
    masks = np.repeat(MASKS, 32)
    found: dict[str, Any] = run(
        gpu, text, {"m": masks}, dict.fromkeys(("all", "some", "guarded"), np.uint32), alone=True
    )
    assert (found["all"] == FULL).all()
    me = (1 << LANES).astype(np.uint32)
    first = (masks & me).astype(np.bool_)
    for mine, mask in ((found["some"], np.where(first, masks, ~masks)), (found["guarded"], np.where(first, masks, me))):
        assert (mine & ~mask == 0).all()
        assert (mine & me == me).all()


def test_leaving_one_by_one(gpu: Gpu) -> None:
    """The .sync forms: lane i leaves at trip i; those that are left vote, add and shuffle with a mask of themselves."""
    out = gpu.empty((64, 3), np.uint32)
    body = """
    mov.u32 %r1, %laneid; mov.u32 %r2, -1; mov.u32 %r3, 0; mov.u32 %r4, 0; mov.u32 %r5, 0; mov.u32 %r6, 0;
    LOOP:
    redux.sync.add.u32 %r7, %r1, %r2; add.u32 %r4, %r4, %r7;
    setp.gt.u32 %p1, %r1, 20; vote.sync.ballot.b32 %r7, %p1, %r2; add.u32 %r5, %r5, %r7;
    shfl.sync.idx.b32 %r7, %r1, 31, 31, %r2; add.u32 %r6, %r6, %r7;
    setp.ge.u32 %p2, %r3, %r1;
    add.u32 %r3, %r3, 1; shl.b32 %r2, %r2, 1;
    @!%p2 bra LOOP;
    st.global.u32 [%out_g], %r4; st.global.u32 [%out_g+4], %r5; st.global.u32 [%out_g+8], %r6;
    """
    enter(gpu, body, 1, 64, out=out)
    lanes = np.arange(32)
    totals = [sum(sum(range(t, 32)) for t in range(lane + 1)) for lane in lanes]
    ballots = [sum(FULL << max(t, 21) & FULL for t in range(lane + 1)) & FULL for lane in lanes]
    expected = np.stack([totals, ballots, 31 * (lanes + 1)], 1).astype(np.uint32)
    assert np.array_equal(out.get(), np.concatenate([expected, expected]))


def test_after_some_have_left(gpu: Gpu) -> None:
    """The .sync forms: a full mask waits for the threads that have not exited; a block's last warp may be short."""
    out = gpu.empty((48, 4), np.uint32)
    out.set(0)
    body = """
    and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 1; @%p1 exit;
    setp.eq.u32 %p2, 0, 0; vote.sync.ballot.b32 %r2, %p2, -1; st.global.u32 [%out_g], %r2;
    mov.u32 %r3, 7; match.all.sync.b32 %r4|%p3, %r3, -1; st.global.u32 [%out_g+4], %r4;
    match.any.sync.b32 %r4, %r3, -1; st.global.u32 [%out_g+8], %r4;
    redux.sync.add.u32 %r5, %r0, -1; st.global.u32 [%out_g+12], %r5;
    """
    enter(gpu, body, 1, 48, out=out)
    found = out.get()
    assert (found[1::2] == 0).all()
    for warp, mask in ((slice(0, 32, 2), 0x55555555), (slice(32, 48, 2), 0x5555)):
        assert (found[warp, :3] == mask).all()
        assert (found[warp, 3] == np.arange(48)[warp].sum()).all()


@pytest.mark.parametrize(
    ("grid", "block"), [(3, 70), ((2, 3), (5, 7)), ((2, 3, 4), (5, 3, 6)), ((1, 1, 5), (1, 1, 64))]
)
def test_special_registers(gpu: Gpu, grid: Any, block: Any) -> None:
    """Special registers: the thread's place, in blocks and grids of one to three dimensions."""
    grid3, block3 = ((*np.atleast_1d(s).tolist(), 1, 1)[:3] for s in (grid, block))
    size, blocks = int(np.prod(block3)), int(np.prod(grid3))
    names = [f"{r}.{axis}" for r in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    names += ["laneid", *(f"lanemask_{c}" for c in ("eq", "le", "lt", "ge", "gt"))]
    names += ["warpid", "nwarpid", "smid", "nsmid"]
    out = gpu.empty((size * blocks, len(names)), np.uint32)
    body = "".join(
        f"mov.u32 %r3, %{name}; st.global.u32 [%out_g+{4 * place}], %r3;\n" for place, name in enumerate(names)
    )
    enter(gpu, body, grid, block, out=out)
    found = dict(zip(names, out.get().T.astype(np.int64), strict=True))
    thread, number = np.arange(size * blocks) % size, np.arange(size * blocks) // size
    for name, index, shape in (("tid", thread, block3), ("ctaid", number, grid3)):
        for axis, place in zip("xyz", np.unravel_index(index, shape[::-1])[::-1], strict=True):
            assert np.array_equal(found[f"{name}.{axis}"], place), f"{name}.{axis}"
            assert (found[f"n{name}.{axis}"] == shape["xyz".index(axis)]).all(), f"n{name}.{axis}"
    lane = thread % 32
    assert np.array_equal(found["laneid"], lane)
    assert np.array_equal(found["lanemask_eq"], 1 << lane)
    assert np.array_equal(found["lanemask_lt"], (1 << lane) - 1)
    assert np.array_equal(found["lanemask_le"], (2 << lane) - 1)
    assert np.array_equal(found["lanemask_ge"], FULL ^ ((1 << lane) - 1))
    assert np.array_equal(found["lanemask_gt"], FULL ^ ((2 << lane) - 1))
    assert (found["warpid"] < found["nwarpid"]).all()
    assert (found["smid"] < found["nsmid"]).all()
    warp = number * 64 + thread // 32
    pairs = set(zip(warp.tolist(), (number * 4096 + found["warpid"]).tolist(), strict=True))
    assert len(pairs) == len(set(warp.tolist())) == len({second for _, second in pairs}), "one %warpid a warp"
    places = set(zip(number.tolist(), found["smid"].tolist(), strict=True))
    assert len(places) == blocks, "one %smid a block"


def test_clocks(gpu: Gpu) -> None:
    """%clock64 does not go back, %clock and %clock_hi are its halves, %globaltimer does not go back."""
    out = gpu.empty((64, 6), np.uint64)
    body = """
    mov.u64 %rd1, %clock64; mov.u32 %r1, %clock; mov.u32 %r2, %clock_hi; mov.u64 %rd4, %globaltimer;
    mov.u64 %rd2, %clock64; mov.u64 %rd3, %clock64; mov.u64 %rd5, %globaltimer; mov.b64 %rd6, {%r1, %r2};
    st.global.v2.u64 [%out_g], {%rd1, %rd6}; st.global.v2.u64 [%out_g+16], {%rd2, %rd3};
    st.global.v2.u64 [%out_g+32], {%rd4, %rd5};
    """
    enter(gpu, body, 1, 64, out=out)
    found = out.get()
    assert (np.diff(found[:, :4].astype(np.int64), axis=1) >= 0).all()
    assert (found[:, 3] > found[:, 0]).all()
    assert (found[:, 4] <= found[:, 5]).all()


@pytest.mark.parametrize(("static", "dynamic", "total"), [(0, 0, 0), (0, 1000, 1024), (512, 0, 512), (512, 300, 896)])
def test_shared_sizes(gpu: Gpu, static: int, dynamic: int, total: int) -> None:
    """%dynamic_smem_size as asked; %total_smem_size with the static part, in units of 128 bytes."""
    out = gpu.empty((1, 2), np.uint32)
    body = f".shared .align 16 .b8 fixed[{static}]; mov.u32 %r4, fixed; st.shared.u32 [%r4], 0;" if static else ""
    body += "mov.u32 %r1, %dynamic_smem_size; mov.u32 %r2, %total_smem_size; st.global.v2.u32 [%out_g], {%r1, %r2};"
    enter(gpu, body, 1, 1, shared=dynamic, out=out)
    assert (out.get() == [dynamic, total]).all()


def test_a_wrong_value_is_told() -> None:
    """The comparison of all these tests: it names the operands, what came and what should have come."""
    a = np.arange(32, dtype=np.uint32)
    with pytest.raises(AssertionError, match=r"not\.b32 with a = 0x5: 0x6 instead of 0x5, and 0 more of 32"):
        check("not.b32", {"a": a}, np.where(a == 5, 6, a).astype(np.uint32), a)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mov.b32 $d, 1; add.u32 $d, $d, $a;", "another d where it is a source too"),
        ("not.b32 $d, $a; not.pred %odd, %odd;", "another d under a guard"),
    ],
)
def test_a_wrong_run_is_told(gpu: Gpu, text: str, message: str) -> None:
    """`run` holds the three runs of an instruction against each other."""
    with pytest.raises(AssertionError, match=message):
        run(gpu, text, {"a": np.arange(256, dtype=np.uint32)}, {"d": np.uint32})
