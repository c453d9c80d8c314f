"""What the compiler made of each CUDA kernel: registers, stack, spills, shared memory, and the occupancy they allow.

    python bench/cuda_figures.py [--cards sm_80,sm_90] [--match product] [--dynamic attention_split=36864] [--json]
    python bench/cuda_figures.py --compile [--jobs 2]        from the sources, with the bytes that spill

The figures are read out of the built extension, from the code objects of its fatbins, as `cuobjdump
--dump-resource-usage` would. Those do not say what spills; but what spills lies on the stack, so where `stack` is 0
nothing does. With --compile nvcc compiles csrc/cuda/kernels for each card and ptxas says it all.

`threads` are those that the kernel's launch bounds allow. `blocks` and `warps` are how many of a multiprocessor fit
beside each other with so many threads, by registers, shared memory and the card's limits; dynamic shared memory counts
where --dynamic tells it for kernels of a name's beginning. Static figures: no figure here is a time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import zstandard

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "cuda" / "kernels"


@dataclass(frozen=True)
class Card:
    """A multiprocessor's limits ("Technical Specifications per Compute Capability", CUDA C++ Programming Guide)."""

    threads: int
    blocks: int
    shared: int  # bytes


KIB = 1024
CARDS = {
    "sm_80": Card(2048, 32, 164 * KIB),
    "sm_86": Card(1536, 16, 100 * KIB),
    "sm_89": Card(1536, 24, 100 * KIB),
    "sm_90": Card(2048, 32, 228 * KIB),
    "sm_100": Card(2048, 32, 228 * KIB),
    "sm_120": Card(1536, 24, 100 * KIB),
}
# Of every card above: registers of a quarter of a multiprocessor, which a warp takes in units of 256; shared memory is
# taken in units of 128 bytes, and a block takes 1 KiB more than it asks for.
QUARTER_REGISTERS, REGISTER_UNIT, SHARED_UNIT, SHARED_RESERVED = 16384, 256, 128, KIB


@dataclass(frozen=True)
class Figures:
    """Of one kernel on one card. spill: bytes stored and loaded, None where it is not known."""

    kernel: str
    card: str
    registers: int
    stack: int
    spill: int | None
    shared: int  # bytes, static
    threads: int  # a block at the most

    def blocks(self, dynamic: int = 0) -> int:
        """Blocks of `threads` threads that a multiprocessor holds, with so many bytes of dynamic shared memory each."""
        card = CARDS[self.card]
        warps = -(-self.threads // 32)
        a_warp = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        by_registers = QUARTER_REGISTERS // a_warp * 4 // warps if a_warp else card.blocks
        shared = -(-(self.shared + dynamic + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
        return min(card.blocks, card.threads // (32 * warps), by_registers, card.shared // shared)


# --- code objects ---------------------------------------------------------------------------------------------------

FATBIN = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes behind it
MAGIC = 0xBA55ED50
# kind, version, bytes of the header, bytes behind it, those of them in use; the card's number; flags; bytes when plain
ENTRY = struct.Struct("<HHIQI8xI8xQ8xQ")
PTX, CODE = 1, 2
LZ4, ZSTD = 0x2000, 0x8000  # flags

# Attributes of .nv.info: of all kernels by symbol, and of one kernel in a section of its own.
REGISTERS, FRAME, MAX_THREADS, REQUIRED_THREADS = 0x2F, 0x11, 0x05, 0x10


def fatbin_entries(image: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, number of the card, content) of everything in every fatbin within `image`."""
    at = image.find(struct.pack("<I", MAGIC))
    while at >= 0:
        _, version, header, size = FATBIN.unpack_from(image, at)
        end = at + header + size
        if version == 1 and header == FATBIN.size and end <= len(image):
            entry = at + header
            while entry + ENTRY.size <= end:
                kind, _, head, body, used, number, flags, plain = ENTRY.unpack_from(image, entry)
                if kind not in (PTX, CODE) or head < ENTRY.size or entry + head + body > end:
                    break
                content = image[entry + head : entry + head + body]
                if flags & ZSTD:
                    content = zstandard.ZstdDecompressor().decompress(content[:used], max_output_size=plain)
                elif flags & LZ4:
                    raise ValueError("a fatbin is compressed by LZ4: build it with nvcc --compress-mode=size")
                yield kind, number, content
                entry += head + body
            at = image.find(struct.pack("<I", MAGIC), end)
        else:
            at = image.find(struct.pack("<I", MAGIC), at + 4)


def _attributes(section: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(section):
        form, attribute, size = struct.unpack_from("<BBH", section, at)
        at += 4
        if form == 4:  # a value of so many bytes
            yield attribute, section[at : at + size]
            at += size


def code_figures(code: bytes, card: str) -> list[Figures]:
    """Of every kernel in a code object (an ELF file)."""
    if code[:4] != b"\x7fELF":
        raise ValueError(f"no code object for {card}: it begins with {code[:4]!r}")
    (table,) = struct.unpack_from("<Q", code, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", code, 0x3A)
    headers = [struct.unpack_from("<IIQQQQII", code, table + i * size) for i in range(count)]

    def text(strings: tuple[int, ...], offset: int) -> str:
        begin = strings[4] + offset
        return code[begin : code.index(b"\0", begin)].decode()

    sections = {text(headers[names_at], header[0]): header for header in headers}

    def content(name: str) -> bytes:
        header = sections.get(name)
        return code[header[4] : header[4] + header[5]] if header else b""

    symbols, strings = sections[".symtab"], headers[sections[".symtab"][6]]
    of_symbol: dict[int, dict[int, int]] = {}
    for attribute, value in _attributes(content(".nv.info")):
        if attribute in (REGISTERS, FRAME) and len(value) == 8:
            symbol, number = struct.unpack("<II", value)
            of_symbol.setdefault(symbol, {})[attribute] = number
    found = []
    for symbol, values in of_symbol.items():
        (name_at,) = struct.unpack_from("<I", code, symbols[4] + 24 * symbol)
        name = text(strings, name_at)
        if f".nv.info.{name}" not in sections or REGISTERS not in values:
            continue  # a function that is no kernel
        threads = 1024
        for attribute, value in _attributes(content(f".nv.info.{name}")):
            if attribute in (MAX_THREADS, REQUIRED_THREADS):
                x, y, z = struct.unpack_from("<III", value)
                threads = x * y * z
        shared = sections.get(f".nv.shared.{name}", (0,) * 6)[5]
        if int(card[3:]) >= 90:  # there the section has the block's own kibibyte in it
            shared = max(0, shared - SHARED_RESERVED)
        found.append(Figures(name, card, values[REGISTERS], values.get(FRAME, 0), None, shared, threads))
    return found


def built(image: bytes) -> tuple[list[Figures], list[str]]:
    """The figures of a built extension, and what it holds: "sm_80", "compute_80", ..."""
    figures: list[Figures] = []
    holds: dict[str, None] = {}
    for kind, number, content in fatbin_entries(image):
        holds[f"{'sm' if kind == CODE else 'compute'}_{number}"] = None
        if kind == CODE and f"sm_{number}" in CARDS:
            figures += code_figures(content, f"sm_{number}")
    return figures, list(holds)


# --- nvcc -----------------------------------------------------------------------------------------------------------

SAYS = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '\w+'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads",
    re.DOTALL,
)


def compiled(nvcc: str, source: Path, card: str, flags: tuple[str, ...] = ()) -> list[Figures]:
    """nvcc compiles a file for a card; registers and the like from the code object, spills as ptxas says."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "code.cubin"
        command = [nvcc, "-cubin", f"-arch={card}", "-std=c++17", "-Xptxas", "-v", "-I", str(ROOT / "csrc"), *flags]
        done = subprocess.run([*command, "-o", str(target), str(source)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc says of {source.name} for {card}:\n{done.stdout}{done.stderr}")
        code = target.read_bytes()
    spills = {m["kernel"]: int(m["stores"]) + int(m["loads"]) for m in SAYS.finditer(done.stderr)}
    return [Figures(**{**asdict(f), "spill": spills[f.kernel]}) for f in code_figures(code, card)]


def find_nvcc() -> str:
    for candidate in (os.environ.get("CUDACXX"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if candidate and Path(candidate).exists():
            return candidate
    sys.exit("no nvcc: set CUDACXX, or leave --compile out")


def table(figures: list[Figures], dynamic: dict[str, int]) -> str:
    """Markdown."""
    lines = [
        "| kernel | card | registers | stack | spill | shared | dynamic | threads | blocks | warps |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for f in figures:
        more = _dynamic(f.kernel, dynamic)
        spill = ("0" if not f.stack else "?") if f.spill is None else str(f.spill)
        blocks = f.blocks(more)
        lines.append(
            f"| {f.kernel} | {f.card} | {f.registers} | {f.stack} | {spill} | {f.shared} | {more or ''} "
            f"| {f.threads} | {blocks} | {blocks * -(-f.threads // 32)} |"
        )
    return "\n".join(lines)


def _dynamic(kernel: str, dynamic: dict[str, int]) -> int:
    fitting = [name for name in dynamic if kernel.startswith(name)]
    return dynamic[max(fitting, key=len)] if fitting else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", default=",".join(CARDS), help="default: all six")
    parser.add_argument("--match", default="", metavar="TEXT", help="kernels whose name has this in it")
    parser.add_argument("--dynamic", action="append", default=[], metavar="NAME=BYTES", help="dynamic shared memory")
    parser.add_argument("--compile", action="store_true", help="compile the sources with nvcc instead")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at a time")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    cards = options.cards.split(",")
    if unknown := [card for card in cards if card not in CARDS]:
        parser.error(f"--cards {','.join(unknown)}: known are {', '.join(CARDS)}")
    try:
        dynamic = {name: int(size) for name, size in (text.split("=") for text in options.dynamic)}
    except ValueError:
        parser.error("--dynamic takes NAME=BYTES")
    if options.compile:
        nvcc = find_nvcc()
        work = [(source, card) for card in cards for source in sorted(KERNELS.glob("*.cu"))]
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            figures = [f for made in pool.map(lambda item: compiled(nvcc, *item), work) for f in made]
    else:
        from llama_ext import _core

        if not _core.cuda.built:
            sys.exit(f"this build has {_core.cuda.about}; build with CUDA, or use --compile")
        figures, holds = built(Path(str(_core.__file__)).read_bytes())
        if missing := [card for card in cards if card not in holds]:
            print(f"not in this build: {', '.join(missing)} (LLAMA_EXT_CUDA_ARCHITECTURES)", file=sys.stderr)
    order = list(CARDS)
    figures = sorted(
        (f for f in figures if f.card in cards and options.match in f.kernel),
        key=lambda f: (f.kernel, order.index(f.card)),
    )
    if options.json:
        rows = []
        for f in figures:
            more = _dynamic(f.kernel, dynamic)
            blocks = f.blocks(more)
            rows.append({**asdict(f), "dynamic": more, "blocks": blocks, "warps": blocks * -(-f.threads // 32)})
        print(json.dumps({"kernels": rows}))
    else:
        print(table(figures, dynamic))
    return 0


if __name__ == "__main__":
    sys.exit(main())
