"""Lists what a cuda.h declares: the entry points with the version each came with, and the error codes.

    python entries.py INCLUDE_FOLDER OUTPUT

The output is C++ for the preprocessor: ENTRY(symbol, name, version, per_thread) and ERROR(code).
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path


def symbols(header: str) -> list[str]:
    """Every exported symbol: today's behind the macros that rename it, older ones and per-thread ones as they stand."""
    older_from = header.index("#if defined(__CUDA_API_VERSION_INTERNAL)", header.index("cuGetExportTable"))
    renamed = dict(
        re.findall(r"^#define\s+(cu[A-Z]\w+)\s+(?:__CUDA_API_PT[DS][SZ]\()?(cu\w+)", header[:older_from], re.M)
    )
    found: list[str] = []
    for at in re.finditer(r"CUDAAPI\s+(cu\w+)\s*\(", header):
        name = str(at.group(1))
        found.append(renamed.get(name, name) if at.start() < older_from else name)
    return list(dict.fromkeys(found))


def split(symbol: str) -> tuple[str, int, str]:
    """A symbol's name, the number of its ABI, and "_ptsz", "_ptds" or nothing."""
    at = re.fullmatch(r"(cu\w+?)(?:_v(\d))?(_ptsz|_ptds)?", symbol)
    assert at
    return str(at.group(1)), int(at.group(2) or 1), at.group(3) or ""


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    header = (folder / "cuda.h").read_text(errors="replace")
    typedefs = (folder / "cudaTypedefs.h").read_text(errors="replace")
    versions: dict[tuple[str, bool], set[int]] = defaultdict(set)
    for name, version, thread in re.findall(r"PFN_(cu\w+?)_v(\d+)(_ptsz|_ptds)?\)", typedefs):
        versions[name, bool(thread)].add(int(version))
    groups: dict[tuple[str, bool], list[tuple[int, str]]] = defaultdict(list)
    for symbol in symbols(header):
        name, abi, thread = split(symbol)
        groups[name, bool(thread)].append((abi, symbol))
    lines = []
    for (name, thread), found in sorted(groups.items()):
        # The newest ABI came with the newest version, and so on down.
        known = sorted(versions[name, thread], reverse=True) or [0]
        for place, (_, symbol) in enumerate(sorted(found, reverse=True)):
            lines.append(f"ENTRY({symbol}, {name}, {known[min(place, len(known) - 1)]}, {str(thread).lower()})")
    lines += [f"ERROR({code})" for code in re.findall(r"^\s*(CUDA_(?:SUCCESS|ERROR_\w+))\s*=\s*\d+", header, re.M)]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
