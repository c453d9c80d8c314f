"""The memory planner: held against real programs, caches and executors, and against itself."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from models import build_in_blocks, llama4_config, tiny_config, variants

from llama_ext import _core, plan
from llama_ext.checkpoint.gguf import FORMATS
from llama_ext.config import LlamaConfig
from llama_ext.config.presets import PRESETS
from llama_ext.errors import CheckpointError, LlamaExtError, OptionError
from llama_ext.machine import available_memory
from llama_ext.program import MAX_ROWS

GB = 10**9
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 300}


@pytest.mark.parametrize("format", ["F32", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_a_real_program(format: str, tied: bool) -> None:
    config = tiny_config(**WIDE, tie_word_embeddings=tied)
    program = build_in_blocks(config, format)
    weights = {w.name: w.nbytes for step in program.code for w in _core.weights(step)}
    planned = plan.weight_bytes(config, format)
    assert planned.total == sum(weights.values())
    assert planned.per_token == program.weight_bytes_per_token
    assert planned.experts == 0
    assert plan.weight_bytes(config, format.lower()) == planned


def test_every_weight_format_has_its_bits() -> None:
    config = tiny_config(**WIDE)
    elements = sum(m.rows * m.cols * m.count for m in plan.matrices(config) if m.kind == "matrix")
    norms = 4 * 256 * 7
    for name in _core.formats:
        size, block = (33, 32) if name == "MXFP8" else (FORMATS[name].block_bytes, FORMATS[name].block_size)
        assert plan.weight_bytes(config, name).total == elements * size // block + norms


def test_rows_that_are_no_whole_blocks() -> None:
    """576 is no multiple of 256, 40 none of 32: Q8_0 and BF16 take their place."""
    smollm2 = PRESETS["smollm2-135m"].config
    total = plan.weight_bytes(smollm2, "Q4_K").total
    assert plan.weight_bytes(smollm2, "Q4_0").total < total < plan.weight_bytes(smollm2, "Q8_0").total
    config = tiny_config(hidden_size=40, head_dim=10, intermediate_size=72)
    assert plan.weight_bytes(config, "Q4_0") == plan.weight_bytes(config, "BF16")


def test_experts() -> None:
    config = tiny_config(**WIDE, num_local_experts=8, num_experts_per_tok=2, shared_expert=True)
    planned = plan.weight_bytes(config, "Q8_0")
    expert = 3 * 256 * 512 * 34 // 32
    assert planned.experts == 3 * 8 * expert
    dense = plan.weight_bytes(tiny_config(**WIDE), "Q8_0")  # its feed-forward is as large as an expert
    routers = 3 * 8 * 256 * 4
    assert planned.total == dense.total + 3 * 8 * expert + routers
    assert planned.per_token == dense.per_token + 3 * 2 * expert + routers


@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", variants())
def test_the_cache_of_a_real_program(name: str, format: str) -> None:
    config = replace(variants()[name], max_position_embeddings=2048)
    program = build_in_blocks(config, "F32", kv_cache=format)
    for tokens in (1, 3, 8, 255, 256, 257, 264, 300, 1000, 2048):
        sizes = plan.cache_bytes(config, tokens, format)
        assert set(sizes) == set(config.layer_kinds)
        assert sum(sizes.values()) == program.cache_bytes(tokens)


def test_a_chunked_layer_keeps_its_chunk_and_a_steps_rows() -> None:
    config = llama4_config(8, max_position_embeddings=10_000)
    slot = 2 * 2 * 8 * 2
    assert plan.cache_bytes(config, 10_000) == {"global": 10_000 * slot, "chunked": 3 * (8 + MAX_ROWS) * slot}
    scout = PRESETS["llama-4-scout"].config
    table = {n: plan.cache_bytes(scout, n) for n in plan.CONTEXTS}
    slot = 2 * 8 * 128 * 2
    assert [table[n]["global"] for n in plan.CONTEXTS] == [12 * n * slot for n in plan.CONTEXTS]
    assert [table[n]["chunked"] for n in plan.CONTEXTS] == [36 * min(n, 8192 + MAX_ROWS) * slot for n in plan.CONTEXTS]


def test_q8_0_takes_34_bytes_for_32_elements() -> None:
    config = PRESETS["llama-3.1-8b"].config
    assert plan.cache_bytes(config, 8192, "q8_0")["global"] == 32 * 2 * 8 * (128 // 32 * 34) * 8192
    assert plan.cache_bytes(tiny_config(head_dim=40), 1, "q8_0")["global"] == 3 * 2 * 2 * 2 * 34


def test_the_executor_takes_what_is_planned() -> None:
    config = tiny_config(**WIDE, max_position_embeddings=512)
    program = build_in_blocks(config, "Q4_0")
    executor = _core.Executor(program.native, threads=1)
    # The embedding is not packed: its rows are looked up where the file has them.
    planned = plan.weight_bytes(config, "Q4_0").total - config.vocab_size * 256 // 32 * 18
    # rows are packed in groups of 16
    assert planned <= executor.weight_bytes <= 1.1 * planned
    cache = _core.Cache(executor)
    assert sum(plan.cache_bytes(config, 512).values()) <= cache.bytes_reserved


def test_tables_end_with_the_models_context() -> None:
    assert plan.context_lengths(PRESETS["llama-4-scout"].config) == list(plan.CONTEXTS)
    assert plan.context_lengths(PRESETS["llama-3-8b"].config) == [8192]
    assert plan.context_lengths(PRESETS["llama-2-7b"].config) == [4096]
    assert plan.context_lengths(PRESETS["mixtral-8x22b"].config) == [8192, 65_536]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-4-scout", "mistral-7b-v0.1"])
@pytest.mark.parametrize("memory", [0, 1, 10**6, 3 * 10**8, 2 * GB, 20 * GB, 10**13])
def test_the_most_tokens(name: str, memory: int) -> None:
    config = PRESETS[name].config
    tokens = plan.fitting_tokens(config, memory)
    assert 0 <= tokens <= config.max_position_embeddings
    assert sum(plan.cache_bytes(config, tokens).values()) <= memory
    if tokens < config.max_position_embeddings:
        assert sum(plan.cache_bytes(config, tokens + 1).values()) > memory


def apply(config: LlamaConfig, wanted: plan.MemoryPlan, proposal: str, memory: int) -> plan.MemoryPlan:
    """Does what a proposal says."""
    changes = dict(re.findall(r"(\w+)='?([\w.]+)'?", proposal.replace(" with ", " ")))
    if converted := re.match(r"'llama-ext convert --weights (\w+)' and then ", proposal):
        assert "resident_limit" in changes
        changes["weights"] = converted[1]
    else:  # only a file's own bits can stay in it
        assert not {"weights", "resident_limit"} <= set(changes)
    assert set(changes) <= {"weights", "kv_cache", "max_context", "resident_limit"} and changes
    return plan.check_fits(
        config,
        weights=changes.get("weights", wanted.weights),
        kv_cache=changes.get("kv_cache", wanted.kv_cache),
        tokens=int(changes.get("max_context", wanted.tokens)),
        resident_limit=int(changes["resident_limit"]) if "resident_limit" in changes else None,
        memory=memory,
    )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("memory", [GB // 2, 2 * GB, 6 * GB, 16 * GB, 48 * GB, 128 * GB, 600 * GB])
@pytest.mark.parametrize(("weights", "cache"), [("bf16", "f16"), ("q4_0", "q8_0")])
def test_what_is_proposed_does_fit(name: str, memory: int, weights: str, cache: str) -> None:
    config = PRESETS[name].config
    wanted = plan.plan(config, weights=weights, kv_cache=cache)
    proposals = plan.proposals(config, wanted, memory)
    if wanted.total <= memory:
        assert proposals == []
        assert plan.check_fits(config, weights=weights, kv_cache=cache, memory=memory) == wanted
        return
    for proposal in proposals:
        assert apply(config, wanted, proposal, memory).total <= memory
    with pytest.raises(LlamaExtError) as caught:
        plan.check_fits(config, weights=weights, kv_cache=cache, memory=memory)
    assert isinstance(caught.value, OptionError if proposals else CheckpointError)
    message = str(caught.value)
    assert all(proposal in message for proposal in proposals) and message.endswith(".")
    if not proposals:
        # then the smallest that can be asked for does not fit either
        smallest = plan.weight_bytes(config, "Q4_K")
        layer = smallest.experts // max(1, sum(config.moe_layers))
        least = smallest.total - smallest.experts + layer + plan.buffer_bytes(config) + (256 * 10**6 if layer else 0)
        assert least + sum(plan.cache_bytes(config, 512, "q8_0").values()) > memory - 10**6


def test_single_changes_come_before_combinations() -> None:
    config = PRESETS["llama-3.1-8b"].config
    wanted = plan.plan(config)
    found = plan.proposals(config, wanted, 32 * GB)
    assert found[:2] == ["weights='q8_0'", "kv_cache='q8_0'"] and found[2].startswith("max_context=")
    assert len(plan.proposals(config, wanted, 8 * GB)) == 1
    mixtral = PRESETS["mixtral-8x7b"].config
    assert any(p.startswith("resident_limit=") for p in plan.proposals(mixtral, plan.plan(mixtral), 32 * GB))


def test_a_q8_0_cache_is_proposed_where_it_fits() -> None:
    """Heads of 100 (OpenLLaMA 3B) are no whole blocks of 32, and `load` refuses them."""
    llama = PRESETS["llama-1-7b"].config
    for config, fits in ((llama, True), (replace(llama, hidden_size=3200, head_dim=100), False)):
        wanted = plan.plan(config)
        for missing in (10**8, wanted.weight.total // 2):
            found = plan.proposals(config, wanted, wanted.total - missing)
            assert found and any("kv_cache" in proposal for proposal in found) == (fits and missing == 10**8)


def test_experts_that_have_to_be_written_first() -> None:
    """Those of a Llama 4 in a folder are transposed there, and `load` refuses to leave them in it."""
    for name, memory in (("llama-4-scout", 64 * GB), ("llama-4-maverick", 24 * GB), ("mixtral-8x7b", 8 * GB)):
        config = PRESETS[name].config
        exact = plan.weight_bytes(config, "bf16")
        for tokens in (512, 8192):
            with pytest.raises(OptionError, match="resident_limit=") as caught:
                plan.check_fits(config, weights=exact, tokens=tokens, memory=memory, convert="llama-ext convert")
            message = str(caught.value)
            begin = message[: message.index("resident_limit=")]
            assert re.search(r"'llama-ext convert( --weights \w+)?' and then [^']*$", begin.replace("='q8_0'", "")), (
                message
            )


def test_weights_of_a_file() -> None:
    config = PRESETS["smollm2-135m"].config
    exact = plan.WeightBytes(96_580_000, 96_580_000, 0)
    assert plan.check_fits(config, weights=exact, memory=10**9).weights == "file"
    with pytest.raises(OptionError, match=r"96\.58 MB of weights.*max_context="):
        plan.check_fits(config, weights=exact, memory=200 * 10**6)
    with pytest.raises(CheckpointError, match="use a smaller model"):
        plan.check_fits(config, weights=exact, memory=10**6)
    assert plan.check_fits(config, weights=exact, tokens=512, memory=200 * 10**6).tokens == 512


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "q9"}, "weights='q9' is unknown"),
        ({"weights": 4}, "weights=4 is unknown"),
        ({"kv_cache": "q4_0"}, "kv_cache='q4_0' is unknown"),
        ({"tokens": 0}, "max_context=0 is out of range"),
        ({"tokens": 8193}, "max_context=8193 is out of range"),
        ({"tokens": True}, "max_context=True"),
        ({"tokens": 10.5}, "max_context=10.5"),
        ({"resident_limit": -1}, "resident_limit"),
        ({"resident_limit": "8GB"}, "resident_limit"),
    ],
)
def test_wrong_options(options: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        plan.check_fits(PRESETS["llama-3-8b"].config, memory=2**60, **options)  # type: ignore[arg-type]


# available_memory


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       16000 kB\nMemFree:  100 kB\nMemAvailable:    8000 kB"}


def test_this_machine() -> None:
    free = available_memory()
    assert free is None or 0 <= free < 2**50


def test_the_machines_memory(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    assert available_memory(tree(tmp_path, MEMINFO)) == 8000 * 1024
    assert available_memory(tree(tmp_path, {"proc/meminfo": "MemAvailable: lots"})) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/memory.max": "4096000"}, 4096000),
        ({"sys/fs/cgroup/memory.max": "max"}, 8192000),
        ({"sys/fs/cgroup/memory.max": "99999999999"}, 8192000),
        ({"sys/fs/cgroup/memory.max": "nonsense"}, 8192000),
        (
            {
                "sys/fs/cgroup/memory.max": "4096000",
                "sys/fs/cgroup/memory.stat": "anon 90000\nfile 4000000\nshmem 6000",
            },
            4000000,
        ),
        ({"sys/fs/cgroup/memory.max": "4096", "sys/fs/cgroup/memory.stat": "anon 9000"}, 0),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/memory.max": "5000",
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
            5000,
        ),
        (
            {
                "proc/self/cgroup": "9:memory:/docker/x\n0::/",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000",
                "sys/fs/cgroup/memory/memory.stat": "cache 100\nrss 5\ntotal_rss 1000000",
            },
            2000000,
        ),
        (
            {
                "proc/self/cgroup": "9:memory:/",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            8192000,
        ),
    ],
)
def test_what_control_groups_grant(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_memory(tree(tmp_path, MEMINFO | files)) == expected
