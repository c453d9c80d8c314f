"""Experts that stay in their file: the same bits as packed ones, and no more resident than the budget allows."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import models
import numpy as np
import pytest

from llama_ext import _core
from llama_ext.config import LlamaConfig
from llama_ext.program import Program

PAGES_AROUND = 2 * mmap.PAGESIZE  # those that a matrix shares with its neighbours


def mapped_program(path: Path, config: LlamaConfig, format: str, seed: int = 0) -> tuple[Program, Program]:
    """The same model twice: all weights in memory, and with its experts in a file."""
    weights: dict[str, object] = dict(models.random_weights(config, seed))
    for number, (name, (rows, cols)) in enumerate(models.weight_shapes(config).items()):
        if ".experts." in name:
            weights[name] = models.random_weight(name, format, rows, cols, 1000 * seed + number, 1.5 / np.sqrt(cols))
    in_memory = models.build(config, weights)  # type: ignore[arg-type]

    experts = [(name, w) for name, w in weights.items() if isinstance(w, _core.Weight)]
    with path.open("wb") as file:
        file.write(b"head")  # so that nothing is aligned
        for _, w in experts:
            file.write(w.bytes().tobytes())
    view = np.frombuffer(memoryview(_core.FileMap(str(path))), np.uint8)
    at = 4
    for name, w in experts:
        weights[name] = _core.Weight(name, format, w.rows, w.cols, view[at : at + w.nbytes])
        at += w.nbytes
    return in_memory, models.build(config, weights)  # type: ignore[arg-type]


def session(program: Program, budget: int, threads: int = 2, exact_prompt: bool = True) -> models.CpuSession:
    made = models.CpuSession.__new__(models.CpuSession)
    made.executor = _core.Executor(
        program.native, threads=threads, poison=True, resident_experts=budget, exact_prompt=exact_prompt
    )
    made.cache = _core.Cache(made.executor, poison=True)
    return made


def expert_bytes(program: Program, instructions: type = _core.ExpertsGateUp) -> int:
    """What an expert's matrices of one kind of instruction count as in the budget."""
    i = next(i for i in program.code if isinstance(i, instructions))
    matrices = [i.gate[0], i.up[0]] if isinstance(i, _core.ExpertsGateUp) else [i.down[0]]
    return sum(w.nbytes + PAGES_AROUND for w in matrices)


CONFIGS = {
    "scout": models.scout_config(4),
    "maverick": models.maverick_config(4),
    "mixtral": models.mixtral_config(),
    "odd sizes": models.mixtral_config(intermediate_size=56, hidden_size=40, num_experts_per_tok=3),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("format", ["F32", "BF16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_mapped_experts_give_the_bits_of_packed_ones(tmp_path: Path, name: str, format: str, threads: int) -> None:
    config = CONFIGS[name]
    in_memory, mapped = mapped_program(tmp_path / "experts", config, format)
    ids = models.random_ids(config, 20)
    expected = models.CpuSession(in_memory).logits(ids)
    least = config.num_experts_per_tok * (expert_bytes(mapped) + expert_bytes(mapped, _core.ExpertsDown))
    for budget in (least, 3 * least, 1 << 40):
        for rows in (1, 2, 20):
            found = session(mapped, budget, threads).logits(ids, rows)
            assert np.array_equal(found, expected), (budget, rows)
        found = session(mapped, budget, threads, exact_prompt=False).logits(ids)
        assert np.array_equal(found, models.CpuSession(in_memory, exact_prompt=False).logits(ids)), budget


@pytest.mark.parametrize("format", models.BLOCK_FORMATS)
def test_mapped_experts_in_block_formats(tmp_path: Path, format: str) -> None:
    config = models.scout_config(4, hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64)
    in_memory, mapped = mapped_program(tmp_path / "experts", config, format)
    ids = models.random_ids(config, 12)
    expected = models.CpuSession(in_memory).logits(ids)
    for rows in (1, 12):
        assert np.array_equal(session(mapped, 1 << 40).logits(ids, rows), expected)


def test_no_more_is_resident_than_the_budget_allows(tmp_path: Path) -> None:
    """Read from the kernel's own account of the map (Rss in smaps): experts of some pages each, a budget of a few."""
    config = models.scout_config(
        4, hidden_size=256, intermediate_size=512, num_attention_heads=4, head_dim=64, num_local_experts=16
    )
    path = tmp_path / "experts"
    _, mapped = mapped_program(path, config, "F32")
    each = expert_bytes(mapped) + expert_bytes(mapped, _core.ExpertsDown)
    ids = models.random_ids(config, 60)
    unbounded = session(mapped, 1 << 40)
    unbounded.logits(ids, 1)
    total = path.stat().st_size
    assert resident(path) > 0.5 * total  # the measure sees what the budget is to prevent
    facts = unbounded.executor.residency
    assert facts is not None and facts["misses"] < facts["hits"] and facts["resident"] < facts["budget"]

    del unbounded
    assert resident(path) == 0
    for experts in (1, 3, 8):
        for rows in (1, 7):
            bounded = session(mapped, experts * each)
            assert resident(path) == 0
            most = 0
            for at in range(0, len(ids), 10 * rows):
                bounded.logits(ids[at : at + 10 * rows], rows)
                most = max(most, resident(path))
            assert 0 < most <= experts * each, (experts, rows)
            found = bounded.executor.residency
            assert found is not None and found["resident"] <= found["budget"] == experts * each
            del bounded
            assert resident(path) == 0  # though the file stays mapped


def resident(path: Path) -> int:
    """Bytes of the file's maps in this process's resident memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0]:
            inside = fields[-1] == str(path)
        elif inside and fields[0] == "Rss:":
            total += 1024 * int(fields[1])
    return total


def test_the_least_recently_used_is_given_back(tmp_path: Path) -> None:
    config = models.mixtral_config(num_hidden_layers=1, num_experts_per_tok=1, num_local_experts=4)
    _, mapped = mapped_program(tmp_path / "experts", config, "F32")
    each = expert_bytes(mapped) + expert_bytes(mapped, _core.ExpertsDown)
    route = next(i for i in mapped.code if isinstance(i, _core.Route))
    assert route.top_k == 1
    ids = models.random_ids(config, 120)
    misses = []
    for experts in (1, 2, 3, 4):
        made = session(mapped, experts * each)
        made.logits(ids, 1)
        facts = made.executor.residency
        assert facts is not None and facts["hits"] + facts["misses"] == 2 * len(ids)
        misses.append(facts["misses"])
    assert misses[0] > misses[1] > misses[2] > misses[3] and misses[3] <= 2 * 4


def test_packing_lets_go_of_the_files_pages(tmp_path: Path) -> None:
    """Weights that were packed do not stay resident a second time as pages of their file."""
    config = models.scout_config(4, hidden_size=256, intermediate_size=512, num_attention_heads=4, head_dim=64)
    path = tmp_path / "experts"
    in_memory, mapped = mapped_program(path, config, "F32")
    ids = models.random_ids(config, 5)
    packed = models.CpuSession(mapped)
    assert resident(path) < 0.05 * path.stat().st_size
    assert np.array_equal(packed.logits(ids), models.CpuSession(in_memory).logits(ids))


def test_what_cannot_stay_in_a_file_is_refused(tmp_path: Path) -> None:
    in_memory, mapped = mapped_program(tmp_path / "experts", models.scout_config(4), "F32")
    with pytest.raises(ValueError, match=r"'layers.0.experts.0.gate' is not in a file"):
        session(in_memory, 1 << 30)
    with pytest.raises(ValueError, match=r"the experts of one token in one layer take .* bytes, 1000 may be resident"):
        session(mapped, 1000)


def test_room_is_asked_for_before_anything_is_packed(tmp_path: Path) -> None:
    _, mapped = mapped_program(tmp_path / "experts", models.scout_config(4), "F32")
    seen: list[int] = []
    with pytest.raises(ValueError, match="may be resident"):
        _core.Executor(mapped.native, threads=1, resident_experts=1000, progress=lambda done, total: seen.append(total))
    assert seen == []


def test_norms_let_go_of_the_files_pages_too(tmp_path: Path) -> None:
    config = models.tiny_config(hidden_size=2048, num_hidden_layers=8)
    weights: dict[str, object] = dict(models.random_weights(config))
    path = tmp_path / "norms"
    norms = {name: w for name, w in weights.items() if isinstance(w, np.ndarray) and len(w) == 1}
    apart = 1 << 18  # so that none lies in the pages that another brings along
    with path.open("wb") as file:
        for number, w in enumerate(norms.values()):
            file.seek(number * apart)
            file.write(w.tobytes())
    view = np.frombuffer(memoryview(_core.FileMap(str(path))), np.uint8)
    for number, (name, w) in enumerate(norms.items()):
        weights[name] = _core.Weight(name, "F32", 1, w.size, view[number * apart :][: w.nbytes])
    made = models.CpuSession(models.build(config, weights))  # type: ignore[arg-type]
    assert resident(path) == 0
    plain = models.CpuSession(models.build(config, models.random_weights(config)))
    assert np.array_equal(made.logits([1, 2]), plain.logits([1, 2]))


def test_packing_holds_no_second_copy_of_a_large_matrix(tmp_path: Path) -> None:
    """The peak of resident memory (VmHWM) while a matrix of 96 MiB is packed from its file."""
    config = models.tiny_config(hidden_size=4096, vocab_size=6144, num_hidden_layers=1)
    path = tmp_path / "head"
    size = config.vocab_size * config.hidden_size * 4
    with path.open("wb") as file:
        file.truncate(size)
    view = np.frombuffer(memoryview(_core.FileMap(str(path))), np.uint8)
    weights: dict[str, object] = dict(models.random_weights(config))
    weights["head"] = _core.Weight("head", "F32", config.vocab_size, config.hidden_size, view)
    weights["embed"] = weights["head"]
    program = models.build(config, weights)  # type: ignore[arg-type]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmHWM")
    executor = _core.Executor(program.native, threads=2)
    assert executor.weight_bytes > size
    packed = executor.weight_bytes + (48 << 20)
    assert size < status("VmHWM") - before < packed


def test_a_fault_brings_along_no_neighbours(tmp_path: Path) -> None:
    """Where files are cached in large pieces, 2 MiB are mapped for one byte: experts are mappings of their own."""
    config = models.mixtral_config(num_hidden_layers=1, num_local_experts=8, hidden_size=256, intermediate_size=512)
    path = tmp_path / "experts"
    _, mapped = mapped_program(path, config, "F32")
    made = session(mapped, 1 << 40)
    gate = next(i for i in mapped.code if isinstance(i, _core.ExpertsGateUp)).gate
    assert resident(path) == 0
    assert gate[3].bytes()[7] >= 0
    assert 0 < resident(path) <= gate[3].nbytes + PAGES_AROUND
    del made


def status(name: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_a_file_map_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        _core.FileMap(str(tmp_path / "pipe"))
    with pytest.raises(FileNotFoundError, match="missing"):
        _core.FileMap(str(tmp_path / "missing"))
    with pytest.raises(OSError, match=tmp_path.name):
        _core.FileMap(str(tmp_path))
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ValueError, match="is empty"):
        _core.FileMap(str(empty))
