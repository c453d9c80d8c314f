"""Barriers, mbarriers, fences and what orders launches, by their definitions in the PTX ISA 9.0."""

from __future__ import annotations

import numpy as np
import pytest
from harness import Gpu
from ptx_entry import enter, faults, kernel

TILE = ".shared .align 16 .b8 tile[2048]; mov.u32 %r40, tile; mad.lo.u32 %r41, %r0, 4, %r40;"
"""%r40: shared memory; %r41: this thread's word of it, in a launch of one block."""


def word_of(register: str) -> str:
    """%r42 = the address of a thread's word."""
    return f"mad.lo.u32 %r42, {register}, 4, %r40;"


@pytest.mark.parametrize("form", ["bar.sync", "bar.cta.sync", "barrier.sync", "barrier.cta.sync.aligned"])
@pytest.mark.parametrize("threads", [128, 80])
def test_block_barriers(gpu: Gpu, form: str, threads: int) -> None:
    """bar.sync, barrier.sync: all sixteen of them, by number and by register, again and again."""
    out = gpu.empty((threads, 16), np.uint32)
    body = TILE + f"add.u32 %r1, %r0, 37; rem.u32 %r1, %r1, {threads};" + word_of("%r1")
    for number in range(16):
        name = str(number) if number % 2 else "%r3"
        body += f"""mov.u32 %r3, {number}; mad.lo.u32 %r2, %r0, 100, {number}; st.shared.u32 [%r41], %r2; {form} {name};
        ld.shared.u32 %r2, [%r42]; st.global.u32 [%out_g+{4 * number}], %r2; {form} {15 - number};"""
    enter(gpu, body, 1, threads, out=out)
    assert np.array_equal(out.get(), ((np.arange(threads) + 37) % threads * 100)[:, None] + np.arange(16))


def test_named_barriers(gpu: Gpu) -> None:
    """bar.sync a, b: pairs of warps, each with a barrier of its own, as often as each likes."""
    out = gpu.empty(128, np.uint32)
    body = (
        TILE
        + """
    mov.u32 %r2, 0; shr.u32 %r3, %r0, 6; add.u32 %r4, %r3, 1; mad.lo.u32 %r5, %r3, 3, 2; mov.u32 %r6, 64;
    xor.b32 %r1, %r0, 32; mad.lo.u32 %r42, %r1, 4, %r40; add.u32 %r7, %r0, 1;
    LOOP:
    st.shared.u32 [%r41], %r7; bar.sync %r4, %r6; ld.shared.u32 %r8, [%r42]; add.u32 %r7, %r7, %r8; bar.sync %r4, 64;
    add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, %r5; @%p1 bra LOOP;
    st.global.u32 [%out_g], %r7;
    """
    )
    enter(gpu, body, 1, 128, out=out)
    value = np.arange(1, 129)
    for trip in range(5):
        value = np.where(trip < np.where(np.arange(128) < 64, 2, 5), value + value[np.arange(128) ^ 32], value)
    assert np.array_equal(out.get(), value)


@pytest.mark.parametrize("form", ["bar", "barrier"])
def test_arrive(gpu: Gpu, form: str) -> None:
    """bar.arrive: two warps hand words to two others, round for round; who arrives does not wait."""
    out = gpu.empty((64, 4), np.uint32)
    body = (
        TILE
        + f"""
    setp.ge.u32 %p1, %r0, 64; mov.u32 %r2, 0; xor.b32 %r1, %r0, 64; mad.lo.u32 %r42, %r1, 4, %r40;
    sub.u32 %r3, %r0, 64; mad.wide.u32 %rd1, %r3, 16, %out;
    @%p1 bra TAKER;
    GIVER: mad.lo.u32 %r4, %r2, 1000, %r0; st.shared.u32 [%r41], %r4; {form}.arrive 1, 128; {form}.sync 2, 128;
    add.u32 %r2, %r2, 1; setp.lt.u32 %p2, %r2, 4; @%p2 bra GIVER; bra DONE;
    TAKER: {form}.sync 1, 128; ld.shared.u32 %r4, [%r42]; st.global.u32 [%rd1], %r4; add.u64 %rd1, %rd1, 4;
    {form}.arrive 2, 128; add.u32 %r2, %r2, 1; setp.lt.u32 %p2, %r2, 4; @%p2 bra TAKER;
    DONE:
    """
    )
    enter(gpu, body, 1, 128, out=out)
    assert np.array_equal(out.get(), np.arange(64)[:, None] + 1000 * np.arange(4))


@pytest.mark.parametrize("form", ["bar", "barrier"])
def test_reductions(gpu: Gpu, form: str) -> None:
    """bar.red: .popc, .and, .or over the block or over a count; the predicate may be negated."""
    out = gpu.empty((128, 8), np.uint32)
    body = """
    and.b32 %r1, %r0, 7; setp.eq.u32 %p1, %r1, 3; setp.lt.u32 %p2, %r0, 1000; setp.ge.u32 %p3, %r0, 64;
    shr.u32 %r9, %r0, 6; add.u32 %r9, %r9, 4;
    """
    cases = [
        ("popc", "0, %p1"),
        ("popc", "1, !%p1"),
        ("and", "0, %p1"),
        ("and", "0, %p2"),
        ("or", "0, %p1"),
        ("or", "0, !%p2"),
    ]
    cases += [("popc", "%r9, 64, %p3"), ("or", "%r9, 64, %p3")]
    for place, (op, operands) in enumerate(cases):
        if op == "popc":
            body += f"{form}.red.popc.u32 %r2, {operands};"
        else:
            body += f"{form}.red.{op}.pred %p4, {operands}; selp.u32 %r2, 1, 0, %p4;"
        body += f"st.global.u32 [%out_g+{4 * place}], %r2;\n"
    enter(gpu, body, 1, 128, out=out)
    found = out.get()
    assert (found[:, :6] == [16, 112, 0, 1, 1, 0]).all()
    assert (found[:64, 6:] == [0, 0]).all()
    assert (found[64:, 6:] == [64, 1]).all()


def test_barrier_in_branches(gpu: Gpu) -> None:
    """barrier.sync without .aligned: the threads of a warp may reach the same barrier at different places."""
    out = gpu.empty(64, np.uint32)
    body = (
        TILE
        + """
    and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0; xor.b32 %r2, %r0, 33; mad.lo.u32 %r42, %r2, 4, %r40;
    @%p1 bra EVEN;
    mul.lo.u32 %r3, %r0, 3; st.shared.u32 [%r41], %r3; barrier.sync 1; bra JOIN;
    EVEN: st.shared.u32 [%r41], %r0; barrier.sync 1;
    JOIN: ld.shared.u32 %r4, [%r42]; st.global.u32 [%out_g], %r4;
    """
    )
    enter(gpu, body, 1, 64, out=out)
    thread = np.arange(64)
    assert np.array_equal(out.get(), np.where(thread % 2, 3 * thread, thread)[thread ^ 33])


def test_barrier_without_those_who_left(gpu: Gpu) -> None:
    """bar.sync of a whole block, some of whose threads have exited: the ISA waits for the others, CUDA C++ demands all.

    It is reported, as the mistake that it nearly always is. A count of those who come says that it is meant.
    """
    body = (
        TILE
        + """
    setp.ge.u32 %p1, %r0, 64; @%p1 exit;
    mad.wide.u32 %rd1, %r0, 4, %out; setp.ge.u32 %p2, %r0, 32; @%p2 bra LAST;
    bar.sync 0{count}; ld.shared.u32 %r1, [%r41+128]; st.global.u32 [%rd1], %r1; exit;
    LAST: st.shared.u32 [%r41], %r0; bar.sync 0{count};
    """
    )
    out = gpu.empty(32, np.uint32)
    enter(gpu, body.replace("{count}", ", 64"), 1, 128, out=out)
    assert np.array_equal(out.get(), np.arange(32) + 32)
    (fault,) = faults(gpu, body.replace("{count}", ""), 1, 128, out=gpu.empty(32, np.uint32))
    assert fault["kind"] == "barrier_divergence"


def test_bar_warp_sync(gpu: Gpu) -> None:
    """bar.warp.sync: orders shared memory among the threads of the mask, in both branches."""
    out = gpu.empty((64, 2), np.uint32)
    body = (
        TILE
        + """
    and.b32 %r1, %r0, 8; setp.ne.u32 %p1, %r1, 0; xor.b32 %r2, %r0, 7; mad.lo.u32 %r42, %r2, 4, %r40;
    mov.u32 %r3, 0xFF00FF00; st.shared.u32 [%r41], %r0;
    @%p1 bra HIGH;
    bar.warp.sync 0x00FF00FF; ld.shared.u32 %r4, [%r42]; bra JOIN;
    HIGH: bar.warp.sync %r3; ld.shared.u32 %r4, [%r42]; add.u32 %r4, %r4, 1000;
    JOIN: bar.warp.sync 0xffffffff;
    st.shared.u32 [%r41], %r4; bar.warp.sync -1; xor.b32 %r2, %r0, 31; mad.lo.u32 %r42, %r2, 4, %r40;
    ld.shared.u32 %r5, [%r42]; st.global.v2.u32 [%out_g], {%r4, %r5};
    """
    )
    enter(gpu, body, 1, 64, out=out)
    thread = np.arange(64)
    first = (thread ^ 7) + np.where(thread & 8, 1000, 0)
    assert np.array_equal(out.get(), np.stack([first, first[thread ^ 31]], 1))


# --- mbarrier -------------------------------------------------------------------------------------------------------

BARRIERS = """
.shared .align 8 .b64 ready; .shared .align 8 .b64 free;
mov.u32 %r43, ready; mov.u32 %r44, free; setp.ne.u32 %p9, %r0, 0;
@%p9 bra MADE; mbarrier.init.shared.b64 [%r43], COUNT; mbarrier.init.shared::cta.b64 [%r44], COUNT;
MADE: bar.sync 0;
"""
WAITS = {
    "test_wait": "mbarrier.test_wait.shared.b64 %p1, [{bar}], {state};",
    "test_wait.acquire": "mbarrier.test_wait.acquire.cta.shared::cta.b64 %p1, [{bar}], {state};",
    "test_wait.parity": "mbarrier.test_wait.parity.shared.b64 %p1, [{bar}], {parity};",
    "try_wait": "mbarrier.try_wait.shared.b64 %p1, [{bar}], {state};",
    "try_wait.parity": "mbarrier.try_wait.parity.shared.b64 %p1, [{bar}], {parity};",
    "try_wait.parity.hint": "mbarrier.try_wait.parity.shared::cta.b64 %p1, [{bar}], {parity}, 1000;",
}


def wait(form: str, bar: str, label: str, state: str = "%rd5", parity: str = "%r9") -> str:
    text = WAITS[form].format(bar=bar, state=state, parity=parity)
    return f"{label}: {text} @!%p1 bra {label};"


@pytest.mark.parametrize("form", WAITS)
def test_mbarrier_phases(gpu: Gpu, form: str) -> None:
    """mbarrier.arrive and waits: five phases of an exchange through shared memory, and another to end each."""
    out = gpu.empty((96, 5), np.uint32)
    body = (
        TILE
        + BARRIERS.replace("COUNT", "96")
        + """
    add.u32 %r1, %r0, 41; rem.u32 %r1, %r1, 96; mad.lo.u32 %r42, %r1, 4, %r40; mov.u32 %r2, 0; mov.u64 %rd1, %out_g;
    LOOP: and.b32 %r9, %r2, 1; mad.lo.u32 %r3, %r2, 1000, %r0; st.shared.u32 [%r41], %r3;
    mbarrier.arrive.shared.b64 %rd5, [%r43];
    """
    )
    body += wait(form, "%r43", "W1") + "ld.shared.u32 %r4, [%r42]; st.global.u32 [%rd1], %r4; add.u64 %rd1, %rd1, 4;"
    body += "mbarrier.arrive.release.cta.shared::cta.b64 %rd5, [%r44];" + wait(form, "%r44", "W2")
    body += """add.u32 %r2, %r2, 1; setp.lt.u32 %p2, %r2, 5; @%p2 bra LOOP;
    bar.sync 0; @%p9 bra END; mbarrier.inval.shared.b64 [%r43]; mbarrier.inval.shared.b64 [%r44]; END:"""
    enter(gpu, body, 1, 96, out=out)
    assert np.array_equal(out.get(), ((np.arange(96) + 41) % 96)[:, None] + 1000 * np.arange(5))


def test_mbarrier_counts(gpu: Gpu) -> None:
    """mbarrier by one thread: what state and parity say of each phase, arrivals by several, inval."""
    out = gpu.array(np.full((1, 24), 77, np.uint32))
    steps: list[str] = []
    expected: list[int] = []

    def waits(wait: str, done: bool) -> None:
        steps.append(
            f"mbarrier.test_wait{wait}; selp.u32 %r5, 1, 0, %p1; st.global.u32 [%out+{4 * len(expected)}], %r5;"
        )
        expected.append(int(done))

    steps.append(".shared .align 8 .b64 bar; mov.u32 %r1, bar; mov.u32 %r2, 3; mbarrier.init.shared.b64 [%r1], %r2;")
    waits(".parity.shared.b64 %p1, [%r1], 0", False)
    waits(".parity.shared.b64 %p1, [%r1], 1", True)
    steps.append("mbarrier.arrive.shared.b64 %rd1, [%r1];")
    steps.append("mbarrier.arrive.noComplete.shared.b64 %rd2, [%r1], 1;")
    waits(".shared.b64 %p1, [%r1], %rd1", False)
    steps.append("mbarrier.arrive.shared.b64 %rd3, [%r1];")
    waits(".shared.b64 %p1, [%r1], %rd1", True)
    waits(".shared.b64 %p1, [%r1], %rd3", True)
    waits(".parity.shared.b64 %p1, [%r1], 0", True)
    waits(".parity.shared.b64 %p1, [%r1], 1", False)
    # The next phase expects as many again; arrivals by two and by one, through a generic address.
    steps.append("cvt.u64.u32 %rd8, %r1; cvta.shared.u64 %rd8, %rd8; mbarrier.arrive.shared::cta.b64 %rd4, [%r1], 2;")
    waits(".shared.b64 %p1, [%r1], %rd4", False)
    steps.append("mbarrier.arrive.b64 %rd5, [%rd8];")
    waits(".b64 %p1, [%rd8], %rd4", True)
    waits(".parity.b64 %p1, [%rd8], 1", True)
    # One who drops out is not expected again.
    steps.append("mbarrier.arrive_drop.shared.b64 %rd6, [%r1]; mbarrier.arrive.shared.b64 _, [%r1], 2;")
    waits(".shared.b64 %p1, [%r1], %rd6", True)
    steps.append("mbarrier.arrive.shared.b64 %rd7, [%r1];")
    steps.append("mbarrier.inval.shared.b64 [%r1]; mbarrier.init.shared.b64 [%r1], 1;")
    steps.append("mbarrier.arrive.shared.b64 %rd7, [%r1];")
    waits(".shared.b64 %p1, [%r1], %rd7", True)
    enter(gpu, "\n".join(steps), 1, 1, out=out)
    assert out.get()[0, : len(expected)].tolist() == expected


@pytest.mark.parametrize("noinc", [True, False])
def test_cp_async_mbarrier(gpu: Gpu, noinc: bool) -> None:
    """cp.async.mbarrier.arrive: the phase ends when all copies are there; without .noinc it counts itself in first."""
    data = np.arange(128 * 2, dtype=np.uint32).reshape(2, 128) + 500
    out = gpu.empty((128, 2), np.uint32)
    body = TILE + BARRIERS.replace("COUNT", "128") + "xor.b32 %r1, %r0, 97; mad.lo.u32 %r42, %r1, 4, %r40;"
    body += "mad.lo.u64 %rd1, %g, 4, %source;"
    for phase in range(2):
        body += f"mov.u32 %r9, {phase}; cp.async.ca.shared.global [%r41], [%rd1+{512 * phase}], 4;"
        body += f"cp.async.mbarrier.arrive{'.noinc' * noinc}.shared.b64 [%r43];"
        body += "" if noinc else "mbarrier.arrive.shared.b64 _, [%r43];"
        body += wait("try_wait.parity", "%r43", f"W{phase}")
        body += f"ld.shared.u32 %r2, [%r42]; st.global.u32 [%out_g+{4 * phase}], %r2; bar.sync 0;"
    enter(gpu, body, 1, 128, source=gpu.array(data), out=out)
    assert np.array_equal(out.get(), data[:, np.arange(128) ^ 97].T)


# --- fences and order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fence",
    ["membar.gl", "membar.sys", "fence.acq_rel.gpu", "fence.acq_rel.sys", "fence.sc.gpu", "fence.sc.sys", "fence.gpu"],
)
def test_fences(gpu: Gpu, fence: str) -> None:
    """membar, fence: what a block wrote before its ticket, the block with the last ticket reads after it."""
    partial, ticket, out = gpu.empty((8, 64), np.uint32), gpu.array(np.zeros(1, np.uint32)), gpu.empty(64, np.uint32)
    body = f"""
    .shared .align 4 .u32 mine; mul.lo.u32 %r1, %r0, 3; st.global.u32 [%partial_g], %r1; {fence}; bar.sync 0;
    mov.u32 %r2, %tid.x; setp.ne.u32 %p1, %r2, 0; @%p1 bra WAIT;
    atom.global.add.u32 %r3, [%ticket], 1; st.shared.u32 [mine], %r3;
    WAIT: bar.sync 0; ld.shared.u32 %r3, [mine]; setp.ne.u32 %p1, %r3, 7; @%p1 exit;
    {fence}; mad.wide.u32 %rd1, %r2, 4, %partial; mad.wide.u32 %rd2, %r2, 4, %out; mov.u32 %r4, 0; mov.u32 %r5, 0;
    LOOP: ld.global.u32 %r6, [%rd1]; add.u32 %r4, %r4, %r6; add.u64 %rd1, %rd1, 256; add.u32 %r5, %r5, 1;
    setp.lt.u32 %p1, %r5, 8; @%p1 bra LOOP; st.global.u32 [%rd2], %r4;
    """
    if fence == "fence.gpu":
        body = body.replace("fence.gpu", "fence.acq_rel.gpu").replace("atom.global", "atom.acq_rel.gpu.global")
    enter(gpu, body, 8, 64, partial=partial, ticket=ticket, out=out)
    assert np.array_equal(out.get(), 3 * np.arange(512).reshape(8, 64).sum(0))


def test_other_fences(gpu: Gpu) -> None:
    """membar, fence, nanosleep: the forms for smaller scopes and for other proxies do nothing to values."""
    out = gpu.empty(64, np.uint32)
    forms = """membar.cta fence.acq_rel.cta fence.sc.cta fence.acq_rel.cluster fence.sc.cluster
    fence.mbarrier_init.release.cluster fence.proxy.alias fence.proxy.async fence.proxy.async.global
    fence.proxy.async.shared::cta nanosleep.u32=100 nanosleep.u32=%r3"""
    body = TILE + "mov.u32 %r3, 40; xor.b32 %r1, %r0, 1; mad.lo.u32 %r42, %r1, 4, %r40; st.shared.u32 [%r41], %r0;"
    body += "".join(form.replace("=", " ") + ";" for form in forms.split())
    body += "bar.warp.sync -1; ld.shared.u32 %r2, [%r42]; st.global.u32 [%out_g], %r2;"
    enter(gpu, body, 1, 64, out=out)
    assert np.array_equal(out.get(), np.arange(64) ^ 1)


@pytest.mark.parametrize("seed", range(4))
def test_griddepcontrol(gpu: Gpu, seed: int) -> None:
    """griddepcontrol: the next launch may begin early, and sees all of this one after griddepcontrol.wait."""
    gpu.seed(seed)
    middle, out = gpu.empty(512, np.uint32), gpu.empty(512, np.uint32)
    first = "griddepcontrol.launch_dependents; mul.lo.u32 %r1, %r0, 5; st.global.u32 [%middle_g], %r1;"
    second = """xor.b32 %r1, %r0, 511; mad.wide.u32 %rd1, %r1, 4, %middle; griddepcontrol.wait;
    ld.global.u32 %r2, [%rd1]; st.global.u32 [%out_g], %r2;"""
    before = kernel(gpu, first, 8, 64, middle=middle)
    after = kernel(gpu, second, 8, 64, middle=middle, out=out)
    stream = gpu.stream()
    gpu.launch(before, 8, 64, middle, stream=stream)
    gpu.launch(after, 8, 64, middle, out, programmatic=True, stream=stream)
    gpu.try_call("cuCtxSynchronize")
    assert gpu.faults() == []
    assert np.array_equal(out.get(), 5 * (np.arange(512) ^ 511))
