"""Whole programs on the executor against the reference, in every weight format; and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import numpy as np
import pytest
import tolerances
from models import (
    BLOCK_FORMATS,
    FLOAT_FORMATS,
    FORMATS,
    CpuSession,
    build,
    build_in_blocks,
    deviation,
    llama4_config,
    plain_logits,
    random_ids,
    random_weights,
    tiny_config,
    variants,
)

from llama_ext import _core
from llama_ext.config import LlamaConfig
from llama_ext.program import Program
from llama_ext.reference import ReferenceSession

LEVELS = _core.simd_levels()


def config_for(format: str) -> LlamaConfig:
    """Sizes that the format's blocks allow, with a last group of 16 outputs that is not full wherever possible."""
    if format.endswith("K"):
        return tiny_config(
            hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=32
        )
    if format in FLOAT_FORMATS:
        return tiny_config(
            intermediate_size=45, hidden_size=35, head_dim=24, num_attention_heads=3, num_key_value_heads=1
        )
    return tiny_config(hidden_size=96, intermediate_size=160, head_dim=8, num_attention_heads=12, num_key_value_heads=3)


def program_in(format: str) -> Program:
    config = config_for(format)
    if format in FLOAT_FORMATS:
        return build(config, random_weights(config, seed=1), format=format, kv_cache="f32")
    return build_in_blocks(config, format, seed=1, kv_cache="f32")


def tolerance(format: str) -> float:
    return tolerances.EXECUTOR_FLOAT if format in FLOAT_FORMATS else tolerances.EXECUTOR_Q15


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_programs_in_every_format(format: str, simd: str) -> None:
    program = program_in(format)
    ids = random_ids(program.config, 40)
    expected = ReferenceSession(program).logits(ids)
    session = CpuSession(program, threads=2, simd=simd)
    together = session.logits(ids)
    assert deviation(together, expected) < tolerance(format)
    session.reset()
    for rows in (1, 5, 16, 17):
        assert np.array_equal(session.logits(ids, rows), together)
        session.reset()
    assert session.executor.simd == simd


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_coarse_prompts(format: str, simd: str) -> None:
    """Steps of more than 16 rows are within their bound, and the same however many more; 16 and fewer stay exact."""
    program = program_in(format)
    ids = random_ids(program.config, 40)
    exact = CpuSession(program, threads=2, simd=simd).logits(ids)
    session = CpuSession(program, threads=2, simd=simd, exact_prompt=False)
    coarse = session.logits(ids)
    session.reset()
    assert np.array_equal(session.logits(ids, 20), coarse)
    session.reset()
    assert np.array_equal(session.logits(ids, 16), exact)
    if format in BLOCK_FORMATS or (format == "BF16" and simd == "avx512_bf16"):
        off = deviation(coarse, exact)
        assert tolerance(format) < off < tolerances.COARSE["integers" if format in BLOCK_FORMATS else format]
    else:
        assert np.array_equal(coarse, exact)


@pytest.mark.parametrize("name", variants())
def test_float_programs_against_the_plain_implementation(name: str) -> None:
    """Past the reference: straight to float64."""
    config = variants()[name]
    weights = random_weights(config, seed=12)
    ids = random_ids(config, 45)
    session = CpuSession(build(config, weights, kv_cache="f32", max_rows=16), threads=3)
    assert deviation(session.logits(ids, 16), plain_logits(config, weights, ids)) < tolerances.REFERENCE


@pytest.mark.parametrize("format", [f for f in BLOCK_FORMATS if f != "Q8_0"])
def test_8_bit_activations_would_not_pass(format: str) -> None:
    """The tolerance of q15 tells it from the usual 8 bits: the same model with its inputs rounded to 8 is further
    off.
    """
    config = config_for(format)
    program = build_in_blocks(config, format, seed=1, kv_cache="f32")
    ids = random_ids(config, 40)
    session = ReferenceSession(program)
    expected = session.logits(ids)
    rounded = ReferenceSession(program)
    original = rounded._matrix

    class Rounding:
        """A matrix that rounds what it is multiplied with, in blocks of 32."""

        def __init__(self, values: object) -> None:
            self.T = self
            self.values = values

        def __rmatmul__(self, x: object) -> object:
            import torch

            assert isinstance(x, torch.Tensor) and isinstance(self.values, torch.Tensor)
            blocks = x.unflatten(-1, (-1, 32))
            scale = blocks.abs().amax(-1, keepdim=True) / 127
            return (torch.round(blocks / scale) * scale).flatten(-2) @ self.values.T

    def matrix(weight: _core.Weight) -> object:
        values = original(weight)
        return values if weight.rows == 1 or weight.name == "embed" else Rounding(values)

    rounded._matrix = matrix  # type: ignore[method-assign, assignment]
    assert deviation(rounded.logits(ids), expected) > 2 * tolerances.EXECUTOR_Q15


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_logit_rows(rows: int) -> None:
    program = build(tiny_config(), random_weights(tiny_config()))
    executor = _core.Executor(program.native, threads=2, poison=True)
    ids = np.array(random_ids(program.config, rows), np.int32)
    every = executor.run(_core.Cache(executor), ids, rows)
    for wanted in range(rows + 1):
        some = executor.run(_core.Cache(executor), ids, wanted)
        assert some.shape == (wanted, 61) and some.dtype == np.float32
        assert np.array_equal(some, every[rows - wanted :])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def running() -> CpuSession:
    config = llama4_config(4, max_position_embeddings=30)
    session = CpuSession(build(config, random_weights(config), max_rows=8), threads=2)
    session.logits(random_ids(config, 10), 8)
    return session


REFUSED: dict[str, Callable[[CpuSession], object]] = {
    "an id past the vocabulary": lambda s: s.executor.run(s.cache, np.array([1, 61], np.int32), 1),
    "a negative id": lambda s: s.executor.run(s.cache, np.array([1, -1, 2], np.int32), 1),
    "the smallest id": lambda s: s.executor.run(s.cache, np.array([-(2**31)], np.int32), 1),
    "too many rows": lambda s: s.executor.run(s.cache, np.zeros(9, np.int32), 1),
    "no rows": lambda s: s.executor.run(s.cache, np.zeros(0, np.int32), 0),
    "more logits than rows": lambda s: s.executor.run(s.cache, np.zeros(2, np.int32), 3),
    "negative logits": lambda s: s.executor.run(s.cache, np.zeros(2, np.int32), -1),
    "two dimensions": lambda s: s.executor.run(s.cache, np.zeros((1, 2), np.int32), 1),
    "no dimension": lambda s: s.executor.run(s.cache, np.array(3, np.int32), 1),
    "rollback past the beginning": lambda s: s.rollback(11),
    "negative rollback": lambda s: s.rollback(-1),
    "another executor's cache": lambda s: _other().executor.run(s.cache, np.zeros(1, np.int32), 1),
}


def _other() -> CpuSession:
    return CpuSession(build(tiny_config(), random_weights(tiny_config())))


@pytest.mark.parametrize("what", REFUSED)
def test_refused_and_nothing_changed(running: CpuSession, what: str) -> None:
    with pytest.raises(ValueError):
        REFUSED[what](running)
    assert running.position == 10
    program = running.executor
    again = CpuSession(_program_of(), threads=2)
    ids = random_ids(_program_of().config, 14)
    expected = again.logits(ids, 5)[10:]
    assert np.array_equal(running.logits(ids[10:]), expected)
    assert program.threads == 2


def _program_of() -> Program:
    config = llama4_config(4, max_position_embeddings=30)
    return build(config, random_weights(config), max_rows=8)


@pytest.mark.parametrize(
    "ids", [np.array([1, 2], np.int64), np.array([1.0], np.float32), np.zeros(6, np.int32)[::2], [1, 2], None]
)
def test_ids_of_another_type(running: CpuSession, ids: object) -> None:
    with pytest.raises(TypeError):
        running.executor.run(running.cache, ids, 1)  # type: ignore[arg-type]
    assert running.position == 10


def test_the_end_of_the_context(running: CpuSession) -> None:
    ids = random_ids(tiny_config(), 20)
    running.logits(ids[:16], 8)
    with pytest.raises(ValueError, match="position 26 plus 5 tokens is past max_context 30"):
        running.logits(ids[:5])
    running.logits(ids[:4])
    assert running.position == 30
    with pytest.raises(ValueError, match="past max_context"):
        running.logits([1])


def test_messages(running: CpuSession) -> None:
    with pytest.raises(ValueError, match="token id 61 is outside the vocabulary of 61"):
        running.logits([61])
    with pytest.raises(ValueError, match="1 to 8 rows"):
        running.logits([1] * 9)
    with pytest.raises(ValueError, match="cannot roll back 11 of 10"):
        running.rollback(11)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ["chunked8", "sliding5", "mixed"])
def test_rollback_on_the_executor(name: str, rows: int) -> None:
    """The rings as on the reference: the furthest rollback works and is right, one more is refused, and what was
    overwritten stays lost after a first rollback."""
    config = variants()[name]
    weights = random_weights(config, seed=8)
    program = build(config, weights, kv_cache="f32", max_rows=4)
    ids, others = random_ids(config, 40), random_ids(config, 9, seed=1)
    session = CpuSession(program, threads=2)
    for length in (3, 8, 9, 12, 13, 16, 17, 24, 35):
        furthest = program.native.max_rollback(length)
        for first in {0, 1, furthest // 2, furthest}:
            session.reset()
            session.logits(ids[:length], rows)
            session.rollback(first)
            with pytest.raises(ValueError, match="cannot roll back"):
                session.rollback(furthest - first + 1)
            session.rollback(furthest - first)
            assert session.position == length - furthest
            text = ids[: length - furthest] + others
            expected = plain_logits(config, weights, text)[length - furthest :]
            assert deviation(session.logits(others, 4), expected) < tolerances.REFERENCE, (length, first)


@pytest.mark.parametrize("kv_cache", ["f16", "q8_0"])
def test_cache_bytes(kv_cache: str) -> None:
    config = llama4_config(8, head_dim=32)
    program = build(config, random_weights(config), kv_cache=kv_cache, max_rows=4)
    session = CpuSession(program)
    for count in (0, 5, 7, 20):
        session.logits(random_ids(config, count), 4) if count else None
        assert session.cache.bytes_used == program.cache_bytes(session.position)
    assert session.cache.bytes_reserved >= program.cache_bytes(128)


def test_threads_and_levels() -> None:
    program = build(tiny_config(), random_weights(tiny_config()))
    for threads in (0, -1):
        with pytest.raises(ValueError, match=f"threads must be 1 or more, is {threads}"):
            _core.Executor(program.native, threads=threads)
    with pytest.raises(ValueError, match=f"simd='sse9' is no SIMD level.*{', '.join(LEVELS)}"):
        _core.Executor(program.native, threads=1, simd="sse9")
    assert _core.Executor(program.native, threads=3).threads == 3


def test_progress_and_weight_bytes() -> None:
    program = build(tiny_config(), random_weights(tiny_config()))
    seen: list[tuple[int, int]] = []
    executor = _core.Executor(program.native, threads=1, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {executor.weight_bytes} and seen[-1][0] == executor.weight_bytes
    assert executor.read_seconds(1_000_000) > 0

    def fails(done: int, total: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        _core.Executor(program.native, threads=2, progress=fails)


def test_two_python_threads_take_turns() -> None:
    """Two sessions of one executor, used at once from two threads, get what each gets alone."""
    program = build(tiny_config(), random_weights(tiny_config()))
    executor = _core.Executor(program.native, threads=2)
    ids = [np.array(random_ids(program.config, 60, seed), np.int32) for seed in range(2)]

    def decode(which: int) -> np.ndarray:
        cache = _core.Cache(executor)
        return np.concatenate([executor.run(cache, ids[which][i : i + 1], 1) for i in range(60)])

    alone = [decode(0), decode(1)]
    together: dict[int, np.ndarray] = {}
    workers = [threading.Thread(target=lambda w=w: together.setdefault(w, decode(w))) for w in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(together[w], alone[w]) for w in range(2))


def _in_child(job: Callable[[], object]) -> str:
    """What `job` raises in a forked child; the child is ended by SIGALRM when it hangs."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        try:
            job()
            said = "nothing"
        except BaseException as error:  # whatever it is, the parent is told
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}: it hung"
    return said


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_is_told_and_does_not_hang(threads: int) -> None:
    program = build(tiny_config(), random_weights(tiny_config()))
    session = CpuSession(program, threads=threads)
    session.logits([1, 2, 3])
    said = _in_child(lambda: session.logits([4]))
    assert said.startswith("RuntimeError: ") and "fork" in said and "load it again" in said
    # A model that the child loads for itself works there, and the parent's goes on.
    assert _in_child(lambda: CpuSession(program, threads=2).logits([4])) == "nothing"
    assert session.logits([4]).shape == (1, 61)


def test_a_child_forked_in_the_middle_of_a_step() -> None:
    """Another thread holds the executor while this one forks: the child must not wait for it for ever."""
    program = build(tiny_config(), random_weights(tiny_config()))
    session = CpuSession(program, threads=2)
    ids = np.array(random_ids(program.config, 100), np.int32)
    stop = False

    def decode() -> None:
        cache = _core.Cache(session.executor)
        while not stop:
            cache.reset()
            session.executor.run(cache, ids, 0)

    worker = threading.Thread(target=decode)
    worker.start()
    try:
        for _ in range(8):
            said = _in_child(lambda: session.logits([4]))
            assert said.startswith("RuntimeError: ") and "fork" in said
    finally:
        stop = True
        worker.join()


def test_a_system_without_threads_is_an_error() -> None:
    """Threads that cannot be started: an exception, not the end of the process; and fewer threads work after it."""
    code = """
        import sys
        from models import build, random_weights, tiny_config, CpuSession
        from llama_ext import _core
        import resource
        program = build(tiny_config(), random_weights(tiny_config()))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))
        try:
            _core.Executor(program.native, threads=200)
        except RuntimeError as error:
            print(error)
        print(CpuSession(program, threads=2).logits([1]).shape)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert "of 200 threads" in first and "ask for fewer" in first
    assert last == "(1, 61)"
