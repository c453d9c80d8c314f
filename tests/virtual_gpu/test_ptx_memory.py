"""Loads, stores, atomics, asynchronous copies, calls and jumps, by their definitions in the PTX ISA 9.0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import Gpu
from numpy.typing import NDArray
from ptx_entry import enter, faults

Bits = NDArray[Any]


def some_bytes(count: int) -> Bits:
    """Every byte value, high bits and all."""
    return np.random.default_rng(count).integers(0, 256, count).astype(np.uint8)


# --- widths and spaces ----------------------------------------------------------------------------------------------

SPACES = {
    "global": ("", "mov.u64 %rd1, %scratch_g;"),
    "shared": (".shared .align 16 .b8 tile[1024];", "mov.u64 %rd1, tile; mad.lo.u64 %rd1, %g, 16, %rd1;"),
    "local": (".local .align 16 .b8 own[16];", "mov.u64 %rd1, own;"),
}


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_widths_and_vectors(gpu: Gpu, space: str, generic: bool) -> None:
    """ld, st: 8 to 128 bits, .v2 and .v4, into one space and back, by its own addresses and by generic ones (cvta)."""
    declared, address = SPACES[space]
    where = "" if generic else "." + space
    if generic and space != "global":
        address += f"cvta.{space}.u64 %rd1, %rd1;"
    forms = [(f"b{w}", n) for w in (8, 16, 32, 64) for n in (1, 2, 4) if w * n <= 128] + [("b128", 1)]
    data = some_bytes(64 * 16).reshape(64, 16)
    source, scratch, out = gpu.array(data), gpu.empty((64, 16), np.uint8), gpu.empty((64, len(forms), 16), np.uint8)
    out.set(0)
    body = declared + address
    for place, (kind, count) in enumerate(forms):
        register = {"b8": "%h", "b16": "%h", "b32": "%r", "b64": "%rd1", "b128": "%q"}[kind]
        names = [f"{register}{i}" for i in range(1, 1 + count)]
        vector, many = (f"{{{', '.join(names)}}}", f".v{count}") if count > 1 else (names[0], "")
        body += f"""
        ld.global{many}.{kind} {vector}, [%source_g];
        st{where}{many}.{kind} [%rd1], {vector};
        ld{where}{many}.{kind} {vector}, [%rd1];
        st.global{many}.{kind} [%out_g+{16 * place}], {vector};
        """
    enter(gpu, body, 1, 64, source=source, scratch=scratch, out=out)
    expected = np.zeros((64, len(forms), 16), np.uint8)
    for place, (kind, count) in enumerate(forms):
        size = int(kind[1:]) // 8 * count
        expected[:, place, :size] = data[:, :size]
    assert np.array_equal(out.get(), expected)


def test_extension(gpu: Gpu) -> None:
    """ld: a wider register gets the sign of .s, zeros for .u and .b; st: a wider register gives its low bits."""
    data = some_bytes(256)
    source, out = gpu.array(data), gpu.empty((16, 12), np.uint64)
    low = gpu.empty((16, 3), np.uint64)
    low.set(0)
    kinds: list[tuple[str, int]] = []
    body = "mad.lo.u64 %rd9, %g, 16, %source;"
    for size in (1, 2, 4):
        for sign in "sub":
            body += f"ld.global.{sign}{8 * size} %rd1, [%rd9]; st.global.b64 [%out_g+{8 * len(kinds)}], %rd1;"
            kinds.append((sign, size))
    for sign, size in (("s", 1), ("u", 1), ("s", 2)):
        body += f"ld.global.{sign}{8 * size} %r1, [%rd9]; st.global.b32 [%out_g+{8 * len(kinds)}], %r1;"
        body += f"st.global.b32 [%out_g+{8 * len(kinds) + 4}], 0;"
        kinds.append((sign, size))
    body += "ld.global.b64 %rd1, [%rd9];"
    body += "st.global.u8 [%low_g], %rd1; st.global.u16 [%low_g+8], %rd1; st.global.u32 [%low_g+16], %rd1;"
    enter(gpu, body, 1, 16, source=source, out=out, low=low)
    words = data.reshape(16, 16)[:, :8].copy().view(np.uint64)[:, 0]
    for place, (sign, size) in enumerate(kinds):
        expected = words & np.uint64((1 << 8 * size) - 1)
        if sign == "s":
            expected = expected.astype(f"i{size}").astype(np.int64).view(np.uint64)
        if place >= 9:
            expected = expected & np.uint64(0xFFFFFFFF)
        assert np.array_equal(out.get()[:, place], expected), (sign, size)
    masks = np.array([0xFF, 0xFFFF, 0xFFFFFFFF], np.uint64)
    assert np.array_equal(low.get(), words[:, None] & masks)


LOADS = [
    "ld.global",
    "ld.global.nc",
    "ld.volatile.global",
    "ld.relaxed.gpu.global",
    "ld.relaxed.sys.global",
    "ld.relaxed.cta.global",
    "ld.acquire.gpu.global",
    "ld.acquire.cta.global",
    "ld.weak.global",
    "ld.global.ca",
    "ld.global.cg",
    "ld.global.cs",
    "ld.global.cv",
    "ld.global.lu",
    "ld.global.L1::no_allocate",
    "ld.global.nc.L1::no_allocate",
    "ld.global.L1::evict_first",
    "ld.global.L1::evict_last",
    "ld.global.L2::64B",
    "ld.global.L2::128B",
    "ld.global.L2::256B",
    "ld.global.nc.L1::no_allocate.L2::128B",
    "ld.global.nc.L2::256B",
    "ld.volatile",
    "ld.relaxed.gpu",
    "ld.acquire.sys",
    "ld.global.nc.ca",
    "ldu.global",
]
STORES = [
    "st.global",
    "st.volatile.global",
    "st.relaxed.gpu.global",
    "st.relaxed.cta.global",
    "st.release.gpu.global",
    "st.release.sys.global",
    "st.weak.global",
    "st.global.wb",
    "st.global.cg",
    "st.global.cs",
    "st.global.wt",
    "st.global.L1::no_allocate",
    "st.global.L1::evict_first",
    "st",
    "st.volatile",
    "st.release.cta",
]


def test_qualifiers(gpu: Gpu) -> None:
    """ld, st: .volatile, .relaxed, .acquire, .release, .nc and the cache's hints change no value."""
    data = np.arange(32 * 4, dtype=np.uint32).reshape(32, 4) * np.uint32(0x01234567)
    out = gpu.empty((32, len(LOADS), 2), np.uint32)
    put = gpu.empty((32, len(STORES)), np.uint32)
    body = ""
    for place, load in enumerate(LOADS):
        body += f"{load}.u32 %r1, [%source_g+4]; "
        body += f"{load}{'' if 'relaxed' in load or 'acquire' in load else '.v2'}.u32 "
        body += "%r2, [%source_g+8];" if "relaxed" in load or "acquire" in load else "{%r2, %r3}, [%source_g+8];"
        body += f"st.global.v2.u32 [%out_g+{8 * place}], {{%r1, %r2}};\n"
    for place, store in enumerate(STORES):
        body += f"add.u32 %r1, %r0, {1000 * place}; {store}.u32 [%put_g+{4 * place}], %r1;\n"
    body += """
    prefetch.global.L1 [%source_g]; prefetch.global.L2 [%source_g]; prefetch.L1 [%source_g];
    prefetch.global.L2::evict_last [%source_g]; prefetchu.L1 [%source_g];
    """
    enter(gpu, body, 1, 32, source=gpu.array(data), out=out, put=put)
    for place, load in enumerate(LOADS):
        assert np.array_equal(out.get()[:, place], data[:, 1:3]), load
    for place, store in enumerate(STORES):
        assert np.array_equal(put.get()[:, place], np.arange(32) + 1000 * place), store


def test_parameters(gpu: Gpu) -> None:
    """Kernel parameters: every width, and a struct by a register's address, its elements and vectors; cvta.param."""
    struct = some_bytes(48).tobytes()
    out = gpu.empty((1, 12), np.uint64)
    out.set(0)
    body = """
    ld.param.s8 %r1, [p_c]; st.global.u32 [%out], %r1;
    ld.param.u8 %r1, [p_c]; st.global.u32 [%out+8], %r1;
    ld.param.s16 %r1, [p_h]; st.global.u32 [%out+16], %r1;
    ld.param.u32 %r1, [p_w]; st.global.u32 [%out+24], %r1;
    ld.param.f64 %fd1, [p_d]; st.global.f64 [%out+32], %fd1;
    ld.param.u64 %rd1, [p_s+8]; st.global.u64 [%out+40], %rd1;
    ld.param.v4.u32 {%r1, %r2, %r3, %r4}, [p_s+16]; st.global.v4.u32 [%out+48], {%r1, %r2, %r3, %r4};
    mov.b64 %rd2, p_s; ld.param.u16 %h1, [%rd2+34]; st.global.u16 [%out+64], %h1;
    add.u64 %rd2, %rd2, %step; ld.param.u8 %h1, [%rd2+1]; st.global.u8 [%out+72], %h1;
    mov.b64 %rd2, p_s; cvta.param.u64 %rd3, %rd2; ld.u64 %rd1, [%rd3+40]; st.global.u64 [%out+80], %rd1;
    cvta.to.param.u64 %rd4, %rd3; ld.param.u64 %rd1, [%rd4]; st.global.u64 [%out+88], %rd1;
    """
    enter(
        gpu,
        body,
        1,
        1,
        out=out,
        c=np.int8(-3),
        s=struct,
        h=np.int16(-30000),
        w=np.uint32(0xFEDCBA98),
        d=np.float64(-0.1),
        step=np.uint64(7),
    )
    words = np.frombuffer(struct, np.uint64)
    expected = [
        0xFFFFFFFD, 0xFD, 0xFFFF8AD0, 0xFEDCBA98, int(np.float64(-0.1).view(np.uint64)), words[1], words[2], words[3],
        int.from_bytes(struct[34:36], "little"), struct[8], words[5], words[0],
    ]  # fmt: skip
    assert out.get()[0].tolist() == [int(e) for e in expected]


MODULE = """
.global .align 8 .u32 words[5] = {1, 2, 0xFFFFFFFF, 4};
.global .s8 bytes[4] = {-1, 2, -128, 127};
.global .f32 floats[3] = {1.5, 0f3DCCCCCD, -2.0};
.global .f64 doubles[2] = {0d3FB999999999999A, 1e10};
.const .align 4 .s16 constant[4] = {-7, 8, 9, 10};
.global .u64 pointer = words;
.global .u64 pointers[3] = {words+8, generic(words)+12, generic(constant)};
.const .u64 far[2] = {generic(words), 0x123456789ABCDEF0};
.global .align 4 .b32 grid[2][2] = {{1, 2}, {3}};
.global .align 4 .u32 zeros[4];
.global .u32 packed = 0xA1B2C3D4;
"""


def test_module_variables(gpu: Gpu) -> None:
    """Variables and initializers: numbers, zeros past their end, addresses of others (plain, generic, offset)."""
    out = gpu.empty((1, 28), np.uint64)
    out.set(0)
    loads = [
        *(f"ld.global.u32 %r1, [words+{4 * i}]" for i in range(5)),
        *(f"ld.global.s8 %r1, [bytes+{i}]" for i in range(4)),
    ]
    loads += [f"ld.global.b32 %r1, [floats+{4 * i}]" for i in range(3)]
    loads += [f"ld.global.u32 %r1, [grid+{4 * i}]" for i in range(4)] + ["ld.global.u32 %r1, [zeros+12]"]
    loads += [f"ld.const.s16 %r1, [constant+{2 * i}]" for i in (0, 3)] + ["ld.global.u32 %r1, [packed]"]
    loads += ["ld.global.u64 %rd1, [pointer]; ld.global.u32 %r1, [%rd1+12]"]
    loads += [
        f"ld.global.u64 %rd1, [pointers+{8 * i}]; {load}"
        for i, load in enumerate(("ld.global.u32 %r1, [%rd1]", "ld.u32 %r1, [%rd1]", "ld.u16 %r1, [%rd1+2]"))
    ]
    loads += ["ld.const.u64 %rd1, [far]; ld.u32 %r1, [%rd1+4]"]
    body = "".join(f"{load}; st.global.u32 [%out+{8 * i}], %r1;\n" for i, load in enumerate(loads))
    place = len(loads)
    body += f"ld.global.f64 %fd1, [doubles]; st.global.f64 [%out+{8 * place}], %fd1;"
    body += f"ld.global.f64 %fd1, [doubles+8]; st.global.f64 [%out+{8 * place + 8}], %fd1;"
    body += f"ld.const.u64 %rd1, [far+8]; st.global.u64 [%out+{8 * place + 16}], %rd1;"
    enter(gpu, body, 1, 1, outside=MODULE, out=out)
    expected = [
        1,
        2,
        0xFFFFFFFF,
        4,
        0,
        0xFFFFFFFF,
        2,
        0xFFFFFF80,
        127,
        0x3FC00000,
        0x3DCCCCCD,
        0xC0000000,
        1,
        2,
        3,
        0,
        0,
    ]
    expected += [0xFFFFFFF9, 10, 0xA1B2C3D4, 4, 0xFFFFFFFF, 4, 8, 2]
    expected += [0x3FB999999999999A, int(np.float64(1e10).view(np.uint64)), 0x123456789ABCDEF0]
    assert [hex(v) for v in out.get()[0].tolist()] == [hex(v) for v in expected]


def test_module_variables_from_the_host(gpu: Gpu) -> None:
    """Variables: one copy a module, which kernels and the host share; .const by an address in a register."""
    module = gpu.module(
        """.version 9.0
        .target sm_80
        .address_size 64
        .visible .global .align 4 .u32 counter = 5;
        .visible .const .align 4 .u32 table[4];
        .visible .entry one() {
        .reg .b32 %r<3>; .reg .b64 %rd1;
        mov.u64 %rd1, table; ld.const.u32 %r1, [%rd1+8]; atom.global.add.u32 %r2, [counter], %r1; ret; }"""
    )
    module.variable("table", 4, np.uint32).set([1, 2, 30, 4])
    for _ in range(2):
        gpu.launch(module.kernel("one"), 1, 1)
    assert module.variable("counter", 1, np.uint32).get()[0] == 65


def test_generic_addresses(gpu: Gpu) -> None:
    """cvta, cvta.to, isspacep: generic addresses into every space, and which space one is in (.const not asked)."""
    out = gpu.array(np.full((32, 5, 6), 9, np.uint32))
    spaces = ("global", "shared", "local", "const", "param")
    body = """
    .shared .align 4 .u32 tile[32]; .local .align 4 .u32 own[2];
    mad.lo.u64 %rd1, %g, 4, %source; cvta.global.u64 %rd11, %rd1;
    mov.u64 %rd2, tile; mad.lo.u64 %rd2, %g, 4, %rd2; cvta.shared.u64 %rd12, %rd2; st.shared.u32 [%rd2], 101;
    mov.u64 %rd3, own; add.u64 %rd3, %rd3, 4; cvta.local.u64 %rd13, %rd3; st.local.u32 [%rd3], 102;
    mov.u64 %rd4, table; cvta.const.u64 %rd14, %rd4;
    mov.u64 %rd5, p_word; cvta.param.u64 %rd15, %rd5;
    """
    for i, space in enumerate(spaces, 1):
        body += f"cvta.to.{space}.u64 %rd2{i}, %rd1{i}; ld{'.' + space}.u32 %r1, [%rd2{i}];"
        body += f"ld.u32 %r2, [%rd1{i}]; add.u32 %r1, %r1, %r2; st.global.u32 [%out_g+{24 * (i - 1)}], %r1;"
        for j, other in enumerate(spaces, 1):
            if other == "const" or (space, other) == ("const", "global"):
                continue
            body += f"isspacep.{other} %p1, %rd1{i}; selp.u32 %r1, 1, 0, %p1;"
            body += f"st.global.u32 [%out_g+{24 * (i - 1) + 4 * j}], %r1;"
    source = gpu.array(np.full(32, 100, np.uint32))
    enter(gpu, body, 1, 32, ".const .align 4 .u32 table[1] = {103};", source=source, word=np.uint32(104), out=out)
    found = out.get()
    assert (found[:, :, 0] == 2 * np.arange(100, 105)).all()
    asked = found[:, [0, 1, 2, 4]][:, :, [1, 2, 3, 5]]
    assert (asked == np.eye(4)).all()
    assert (found[:, 3, [2, 3, 5]] == 0).all()


# --- atomics --------------------------------------------------------------------------------------------------------


def signed(value: int, width: int) -> int:
    return value - (value >> (width - 1) << width)


def bf16(value: np.float32) -> int:
    """To nearest even."""
    bits = int(value.view(np.uint32))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def add_float(kind: str, a: int, b: int) -> int:
    """One sum of two of `kind`."""
    if kind.endswith("x2"):
        halves = [add_float(kind[:-2], a >> s & 0xFFFF, b >> s & 0xFFFF) << s for s in (0, 16)]
        return halves[0] | halves[1]
    if kind == "bf16":
        return bf16(np.uint32(a << 16).view(np.float32) + np.uint32(b << 16).view(np.float32))
    unsigned, floating = np.dtype(f"u{int(kind[1:]) // 8}"), np.dtype(f"f{int(kind[1:]) // 8}")
    total = np.array(a, unsigned).view(floating) + np.array(b, unsigned).view(floating)
    return int(total.view(unsigned))


def changed(op: str, kind: str, old: int, b: int) -> int:
    """What the instruction leaves in memory."""
    if kind[0] in "fb" and op == "add":
        return add_float(kind, old, b)
    width = int(kind[1:])
    if op in ("min", "max") and kind[0] == "s":
        return (min if op == "min" else max)(old, b, key=lambda v: signed(v, width))
    return {
        "add": (old + b) & ((1 << width) - 1),
        "min": min(old, b),
        "max": max(old, b),
        "inc": 0 if old >= b else old + 1,
        "dec": b if old == 0 or old > b else old - 1,
        "exch": b,
        "and": old & b,
        "or": old | b,
        "xor": old ^ b,
    }[op]


INTEGERS = [("add", k) for k in ("u32", "s32", "u64")] + [(o, "u32") for o in ("inc", "dec")]
INTEGERS += [(o, k) for o in ("min", "max") for k in ("u32", "s32", "u64", "s64")]
INTEGERS += [(o, k) for o in ("exch", "and", "or", "xor") for k in ("b32", "b64")]
FLOATS = [("add", k) for k in ("f32", "f64", "f16", "f16x2", "bf16", "bf16x2")]


def width_of(kind: str) -> int:
    return 32 if kind.endswith("x2") else int(kind.lstrip("usbf"))


def named(op: str, kind: str) -> str:
    return f"{op}.noftz.{kind}" if "16" in kind and op == "add" else f"{op}.{kind}"


def cells(op: str, kind: str, count: int, seed: int) -> Bits:
    """Operands: floats of moderate size, integers of any, often equal ones."""
    random, width = np.random.default_rng(seed), width_of(kind)
    if (op, kind) in FLOATS:
        values = random.normal(0, 100, 2 * count).astype(np.float32)
        if "bf16" in kind:
            halves = np.array([bf16(v) for v in values], np.uint16)
        elif "f16" in kind:
            halves = values.astype(np.float16).view(np.uint16)
        else:
            return values[:count].astype(f"f{width // 8}").view(f"u{width // 8}")
        return halves.view(np.uint32) if width == 32 else halves[:count]
    values = random.integers(0, (1 << width) - 1, count, np.uint64, True)
    return np.where(np.arange(count) % 2, values, values % np.uint64(5)).astype(f"u{width // 8}")


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize(("op", "kind"), INTEGERS + FLOATS)
def test_atom_and_red(gpu: Gpu, op: str, kind: str, space: str) -> None:
    """atom, red: what was there before, and what is there after, each thread with a cell of its own."""
    count, width = 64, width_of(kind)
    old, b = cells(op, kind, count, 1), cells(op, kind, count, 2)
    register = {16: "%h", 32: "%r", 64: "%rd"}[width] + "4"
    where, size, before = "" if space == "generic" else "." + space, width // 8, register + "1"
    target = f"""
    mov.u64 %rd1, %{{0}}_g; ld.global.b{width} {before}, [%rd1]; ld.global.b{width} {register}, [%b_g];"""
    if space == "shared":
        target += f"mov.u64 %rd1, tile; mad.lo.u64 %rd1, %g, {size}, %rd1; st.shared.b{width} [%rd1], {before};"
    body = f".shared .align 8 .b8 tile[{count * size}];" + target.format("x")
    body += f"atom{where}.{named(op, kind)} {before}, [%rd1], {register}; st.global.b{width} [%found_g], {before};"
    body += f"ld{where}.b{width} {before}, [%rd1]; st.global.b{width} [%x_g], {before};"
    body += target.format("y")
    if op != "exch":
        body += f"red.relaxed.gpu{where}.{named(op, kind)} [%rd1], {register};"
        body += f"ld{where}.b{width} {before}, [%rd1]; st.global.b{width} [%y_g], {before};"
    x, y, found = gpu.array(old), gpu.array(old), gpu.empty(count, old.dtype)
    enter(gpu, body, 1, count, x=x, y=y, b=gpu.array(b), found=found)
    expected = np.array([changed(op, kind, int(o), int(v)) for o, v in zip(old, b, strict=True)], old.dtype)
    assert np.array_equal(found.get(), old)
    assert np.array_equal(x.get(), expected)
    if op != "exch":
        assert np.array_equal(y.get(), expected)


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("op", "kind"), INTEGERS + FLOATS)
def test_contention(gpu: Gpu, op: str, kind: str, space: str) -> None:
    """atom, red: of 3 blocks of 4 warps none gets lost; half of the threads by atom, half by red."""
    blocks, threads, width = 3, 128, width_of(kind)
    register, where = {16: "%h4", 32: "%r4", 64: "%rd4"}[width], "." + space
    b: Bits
    if op in ("inc", "dec"):
        b, start = np.full(blocks * threads, 100, np.uint32), 50
    elif (op, kind) in FLOATS:
        # Small whole numbers: no order of them rounds.
        b, start = np.resize([1, -1, 2, 0], blocks * threads), 3
        if kind == "bf16" or kind == "bf16x2":
            b = np.array([bf16(np.float32(v)) for v in b], np.uint16)
            start = bf16(np.float32(3))
        else:
            floating = np.dtype(f"f{2 if '16' in kind else width // 8}")
            b, start = (
                b.astype(floating).view(f"u{floating.itemsize}"),
                int(np.array(3, floating).view(f"u{floating.itemsize}")),
            )
        if kind.endswith("x2"):
            b, start = b.astype(np.uint32) << 16 | np.roll(b, 1), start << 16 | start
    else:
        b, start = cells(op, kind, blocks * threads, 3), 1
    b = b.astype(f"u{width // 8}")
    cell = gpu.array(np.full(blocks, start, b.dtype))
    begin = f"ld.global.b{width} {register}, [%b_g]; mov.u32 %r5, %ctaid.x; mov.u32 %r6, %tid.x; and.b32 %r7, %r6, 1;"
    begin += f"setp.eq.u32 %p1, %r7, 0; setp.eq.u32 %p2, %r6, 0; mad.wide.u32 %rd2, %r5, {width // 8}, %cell;"
    if space == "shared":
        begin += ".shared .align 8 .b8 tile[8]; mov.u64 %rd1, tile; @!%p2 bra FILLED;"
        begin += f"ld.global.b{width} {register}1, [%rd2]; st.shared.b{width} [%rd1], {register}1; FILLED: bar.sync 0;"
    else:
        begin += "mov.u64 %rd1, %cell;"
    both = f"@%p1 atom{where}.{named(op, kind)} {register}1, [%rd1], {register};"
    got = f"{register}1, " if op == "exch" else ""
    both += f"@!%p1 {'atom' if got else 'red'}{where}.{named(op, kind)} {got}[%rd1], {register};"
    end = ""
    if space == "shared":
        end = f"bar.sync 0; @!%p2 bra DONE; ld.shared.b{width} {register}, [%rd1];"
        end += f"st.global.b{width} [%rd2], {register}; DONE:"
    enter(gpu, begin + both + end, blocks, threads, b=gpu.array(b), cell=cell)
    groups = [b] if space == "global" else list(b.reshape(blocks, threads))
    for found, values in zip(cell.get().tolist(), groups, strict=False):
        if op == "exch":
            assert found in values.tolist()
            continue
        expected = start
        for value in values.tolist():
            expected = changed(op, kind, expected, value)
        assert found == expected


@pytest.mark.parametrize("space", ["global", "shared"])
def test_tickets(gpu: Gpu, space: str) -> None:
    """atom: what comes back is a total order: every ticket once, and an exchange loses nothing."""
    out = gpu.empty((256, 2), np.uint32)
    cell = gpu.array(np.array([10, 5000], np.uint32))
    blocks = 2 if space == "global" else 1
    start = "mov.u64 %rd1, %cell;"
    if space == "shared":
        start = ".shared .align 4 .u32 tile[2]; mov.u64 %rd1, tile; setp.ne.u32 %p1, %r0, 0; @%p1 bra READY;"
        start += "st.shared.u32 [%rd1], 10; st.shared.u32 [%rd1+4], 5000; READY: bar.sync 0;"
    body = (
        start
        + f"""
    atom.{space}.add.u32 %r1, [%rd1], 1; atom.acq_rel.gpu.{space}.exch.b32 %r2, [%rd1+4], %r0;
    st.global.v2.u32 [%out_g], {{%r1, %r2}};
    bar.sync 0; ld.relaxed.gpu.{space}.u32 %r3, [%rd1+4]; st.relaxed.gpu.global.u32 [%cell+4], %r3;
    """
    )
    enter(gpu, body, blocks, 256 // blocks, out=out, cell=cell)
    found = out.get()
    assert sorted(found[:, 0]) == list(range(10, 266))
    assert len(set(found[:, 1])) == 256
    assert {*found[:, 1].tolist()} < {*range(256), 5000}


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_cas(gpu: Gpu, width: int) -> None:
    """atom.cas: stores where it is equal; gives what was there; a loop of it adds 1 for every thread. exch.b128."""
    register = {16: "%h", 32: "%r", 64: "%rd", 128: "%q"}[width]
    old, new, out = register + "4", register + "5", register + "6"
    cell = gpu.array(np.zeros(16, np.uint8))
    if width == 128:
        step = f"mov.b128 {{%rd10, %rd11}}, {old}; add.u64 %rd10, %rd10, 1; sub.u64 %rd11, %rd11, 2;"
        step += f"mov.b128 {new}, {{%rd10, %rd11}};"
        same = f"mov.b128 {{%rd12, %rd13}}, {out}; mov.b128 {{%rd10, %rd11}}, {old}; setp.eq.u64 %p1, %rd10, %rd12;"
        same += "setp.eq.and.u64 %p1, %rd11, %rd13, %p1;"
        first = f"mov.u64 %rd10, 0; mov.b128 {old}, {{%rd10, %rd10}};"
    else:
        step, first = f"add.u{width} {new}, {old}, 1;", f"mov.b{width} {old}, 0;"
        same = f"setp.eq.b{width} %p1, {out}, {old};"
    body = f"{first} AGAIN: {step} atom.global.cas.b{width} {out}, [%cell], {old}, {new}; {same}"
    body += f"mov.b{width} {old}, {out}; @!%p1 bra AGAIN;"
    enter(gpu, body, 2, 96, cell=cell)
    number = cell.get().view(np.uint64)
    assert number.tolist() == [192, (1 << 64) - 384 if width == 128 else 0]
    if width == 128:
        out_cell = gpu.empty(2, np.uint64)
        body = "mov.u64 %rd1, 7; mov.u64 %rd2, 8; mov.b128 %q1, {%rd1, %rd2}; atom.global.exch.b128 %q2, [%cell], %q1;"
        body += "mov.b128 {%rd3, %rd4}, %q2; st.global.v2.u64 [%seen], {%rd3, %rd4};"
        enter(gpu, body, 1, 1, cell=cell, seen=out_cell)
        assert np.array_equal(out_cell.get(), number)
        assert cell.get().view(np.uint64).tolist() == [7, 8]


def test_subnormal_sums(gpu: Gpu) -> None:
    """atom.add.f32 flushes subnormals, with their sign, in global memory; it keeps them in shared memory."""
    tiny = np.array([1, 0x80000001, 0x00800000], np.uint32)
    other = np.array([1, 0x80000001, 0x807FFFFF], np.uint32)
    cell, out = gpu.array(tiny), gpu.empty(3, np.uint32)
    body = """
    .shared .align 4 .u32 tile[3]; mov.u64 %rd1, tile; mad.lo.u64 %rd1, %g, 4, %rd1;
    ld.global.b32 %r1, [%cell_g]; st.shared.b32 [%rd1], %r1; ld.global.f32 %f1, [%other_g];
    red.shared.add.f32 [%rd1], %f1; ld.shared.b32 %r1, [%rd1]; st.global.b32 [%out_g], %r1;
    red.global.add.f32 [%cell_g], %f1;
    """
    enter(gpu, body, 1, 3, cell=cell, other=gpu.array(other), out=out)
    assert out.get().tolist() == [2, 0x80000002, 1]
    assert cell.get().tolist() == [0, 0x80000000, 0x00800000]


# --- asynchronous copies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache", "size"), [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)])
def test_cp_async(gpu: Gpu, cache: str, size: int) -> None:
    """cp.async: a copy; src-size bytes of it and zeros; both ways to wait."""
    data = some_bytes(64 * 16).reshape(64, 16)
    out = gpu.array(np.full((64, 4, 16), 0xEE, np.uint8))
    copy = f"cp.async.{cache}.shared.global"
    body = f""".shared .align 16 .b8 tile[4096]; mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, 64, %r1;
    rem.u32 %r2, %r0, {size + 1};
    {copy} [%r1], [%source_g], {size};
    {copy} [%r1+16], [%source_g], {size}, %r2;
    cp.async.wait_all;
    {copy}.L2::128B [%r1+32], [%source_g], {size}, {size // 2};
    {copy} [%r1+48], [%source_g], {size}, 0;
    cp.async.commit_group; cp.async.wait_group 0;
    """
    kind = f"v2.u{size * 4}" if size > 4 else "u32"
    register = {4: "%r3", 8: "{%r3, %r4}", 16: "{%rd3, %rd4}"}[size]
    for i in range(4):
        body += f"ld.shared.{kind} {register}, [%r1+{16 * i}]; st.global.{kind} [%out_g+{16 * i}], {register};"
    enter(gpu, body, 1, 64, source=gpu.array(data), out=out)
    thread = np.arange(64)
    for place, kept in enumerate((size + 0 * thread, thread % (size + 1), size // 2 + 0 * thread, 0 * thread)):
        expected = np.where(np.arange(16) < kept[:, None], data, 0)
        expected[:, size:] = 0xEE
        assert np.array_equal(out.get()[:, place], expected)


def test_cp_async_groups(gpu: Gpu) -> None:
    """cp.async.wait_group N: all but the N latest groups are there."""
    data = np.arange(32 * 4, dtype=np.uint32).reshape(32, 4)
    out = gpu.empty((32, 4), np.uint32)
    body = ".shared .align 16 .b8 tile[512]; mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, 16, %r1;"
    for i in range(4):
        body += f"cp.async.ca.shared.global [%r1+{4 * i}], [%source_g+{4 * i}], 4; cp.async.commit_group;"
    for i in range(4):
        body += f"cp.async.wait_group {3 - i}; ld.shared.u32 %r2, [%r1+{4 * i}]; st.global.u32 [%out_g+{4 * i}], %r2;"
    enter(gpu, body, 1, 32, source=gpu.array(data), out=out)
    assert np.array_equal(out.get(), data)


# --- where a thread goes --------------------------------------------------------------------------------------------

FUNCTIONS = """
.func (.param .b32 out) square (.param .b32 in)
{ .reg .b32 %r1; ld.param.u32 %r1, [in]; mul.lo.u32 %r1, %r1, %r1; st.param.b32 [out], %r1; ret; }
.func (.param .b64 out) sum (.param .align 8 .b8 pair[16], .param .b32 more)
{
    .reg .b32 %r1; .reg .b64 %rd<4>; .reg .pred %p1;
    ld.param.u64 %rd1, [pair]; ld.param.u64 %rd2, [pair+8]; ld.param.u32 %r1, [more];
    setp.gt.u32 %p1, %r1, 100; st.param.b64 [out], %rd1; @%p1 ret;
    { .param .b32 a; .param .b32 b; st.param.b32 [a], %r1; call.uni (b), square, (a); ld.param.b32 %r1, [b]; }
    cvt.u64.u32 %rd3, %r1; add.u64 %rd1, %rd1, %rd2; add.u64 %rd1, %rd1, %rd3; st.param.b64 [out], %rd1; ret;
}
.func write (.param .b64 where, .param .b32 what)
{ .reg .b32 %r1; .reg .b64 %rd1; ld.param.u64 %rd1, [where]; ld.param.u32 %r1, [what]; st.global.u32 [%rd1], %r1; ret; }
"""


def test_calls(gpu: Gpu) -> None:
    """call, ret: parameters and results, a struct, a call in a call, guarded, from branches, early returns, loops."""
    out = gpu.array(np.zeros((64, 4), np.uint32))
    body = """
    and.b32 %r1, %r0, 3; setp.eq.u32 %p1, %r1, 0; setp.lt.u32 %p2, %r0, 40;
    mov.u32 %r2, 0;
    @%p1 bra WRITES;
    { .param .align 8 .b8 pair[16]; .param .b32 more; .param .b64 total; .reg .b32 mine;
      st.param.b64 [pair], %g; st.param.b64 [pair+8], 1000; mul.lo.u32 mine, %r0, 2; st.param.b32 [more], mine;
      call (total), sum, (pair, more); ld.param.b64 %rd1, [total]; }
    st.global.u64 [%out_g+8], %rd1;
    bra JOIN;
    WRITES:
    { .param .b64 where; .param .b32 what; st.param.b64 [where], %out_g; st.param.b32 [what], 77;
      @%p2 call write, (where, what); }
    JOIN:
    mov.u32 %r3, 0; mov.u32 %r4, 0; mov.u32 %r6, %r0;
    LOOP:
    { .param .b32 a; .param .b32 b; st.param.b32 [a], %r3; call (b), square, (a); ld.param.b32 %r5, [b]; }
    add.u32 %r4, %r4, %r5; add.u32 %r3, %r3, 1; setp.le.u32 %p3, %r3, %r1; @%p3 bra LOOP;
    st.global.u32 [%out_g+4], %r4;
    """
    enter(gpu, body, 1, 64, FUNCTIONS, out=out)
    found, thread = out.get(), np.arange(64)
    writes = thread % 4 == 0
    assert np.array_equal(found[:, 0], np.where(writes & (thread < 40), 77, 0))
    assert np.array_equal(found[:, 1], np.array([0, 1, 5, 14])[thread % 4])
    sums = np.where(2 * thread > 100, thread, thread + 1000 + (2 * thread) ** 2)
    assert np.array_equal(found[:, 2], np.where(writes, 0, sums))


def test_brx_idx(gpu: Gpu) -> None:
    """brx.idx: each thread to the label of its index, of .branchtargets."""
    out = gpu.empty(64, np.uint32)
    body = """
    mul.lo.u32 %r1, %r0, 7; rem.u32 %r1, %r1, 5; mov.u32 %r2, 1000;
    targets: .branchtargets A, B, C, B, D;
    brx.idx %r1, targets;
    A: add.u32 %r2, %r2, 1;
    B: add.u32 %r2, %r2, 10; bra JOIN;
    C: add.u32 %r2, %r2, 100; bra JOIN;
    D: mov.u32 %r2, %r0;
    JOIN: st.global.u32 [%out_g], %r2;
    """
    enter(gpu, body, 1, 64, out=out)
    thread = np.arange(64)
    expected = np.array([1011, 1010, 1100, 1010, 0])[thread * 7 % 5]
    assert np.array_equal(out.get(), np.where(thread * 7 % 5 == 4, thread, expected))


def test_loops_and_exits(gpu: Gpu) -> None:
    """bra, exit: nested loops that every lane leaves at its own trip, and guarded exits in them."""
    out = gpu.array(np.full(96, 999, np.uint32))
    body = """
    add.u32 %r1, %r0, 1; mov.u32 %r2, 0;
    LOOP:
    setp.eq.u32 %p1, %r1, 1; @%p1 bra DONE;
    HALVE:
    and.b32 %r3, %r1, 1; setp.eq.u32 %p2, %r3, 1; @%p2 bra ODD;
    shr.u32 %r1, %r1, 1; add.u32 %r2, %r2, 1; bra HALVE;
    ODD:
    setp.eq.u32 %p1, %r1, 1; @%p1 bra DONE;
    setp.gt.u32 %p3, %r2, 100; @%p3 exit;
    mad.lo.u32 %r1, %r1, 3, 1; add.u32 %r2, %r2, 1; bra.uni LOOP;
    DONE:
    st.global.u32 [%out_g], %r2;
    """
    enter(gpu, body.replace("bra.uni", "bra"), 1, 96, out=out)
    expected = []
    for number in range(1, 97):
        steps, given_up = 0, False
        while number != 1 and not given_up:
            given_up = bool(number % 2) and steps > 100
            number, steps = (3 * number + 1 if number % 2 else number // 2), steps + 1
        expected.append(999 if given_up else steps)
    assert 999 in expected
    assert out.get().tolist() == expected


def test_trap(gpu: Gpu) -> None:
    """trap: the launch ends with an error, of the thread that ran it."""
    found = faults(
        gpu, "setp.eq.u32 %p1, %r0, 37; @%p1 trap; st.global.u32 [%out_g], %r0;", 1, 64, out=gpu.empty(64, "u4")
    )
    assert found[0]["kind"] == "trap"
    assert found[0]["thread"] == [37, 0, 0]
