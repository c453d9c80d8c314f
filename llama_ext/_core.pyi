"""Types of the compiled module; what each thing means stands in csrc/."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

version: Final[str]
build: Final[str]
formats: Final[dict[str, tuple[int, int, str]]]
"""Weight format -> (weights a block, bytes a block, form of the activations it meets on a CPU)."""

class FileMap:
    """A file mapped into memory, read-only; `np.frombuffer(map, np.uint8)` is a view that keeps it alive."""

    def __init__(self, path: str | bytes) -> None:
        """A str is taken as UTF-8. Raises: OSError; ValueError for an empty file."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

def give_back(values: npt.NDArray[Any]) -> None:
    """Takes the pages of an array in a `FileMap` out of resident memory; they come back when they are touched."""

class Weight:
    def __init__(
        self,
        name: str,
        format: str,
        rows: int,
        cols: int,
        data: npt.NDArray[np.uint8] | Callable[[], npt.NDArray[np.uint8]],
    ) -> None:
        """data: the format's bytes; or what makes them, called whenever they are needed, and not kept."""
    @property
    def name(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def in_file(self) -> bool:
        """Whether the bytes lie in a `FileMap` as they are."""
    def bytes(self) -> npt.NDArray[np.uint8]:
        """[nbytes], read-only: a view where there are bytes, else made for this call."""
    def dequantize(self) -> npt.NDArray[np.float32]: ...

class Mask:
    def __init__(self, kind: str, extent: int = 0) -> None: ...
    @property
    def kind(self) -> str: ...
    @property
    def extent(self) -> int: ...
    def first_key(self, position: int) -> int: ...

class Embed:
    table: Final[Weight]
    def __init__(self, *, table: Weight) -> None: ...

class Qkv:
    layer: Final[int]
    norm: Final[Weight]
    q: Final[Weight]
    k: Final[Weight]
    v: Final[Weight]
    eps: Final[float]
    heads: Final[int]
    kv_heads: Final[int]
    head_dim: Final[int]
    rope: Final[int]
    rope_chunk: Final[int]
    def __init__(
        self,
        *,
        layer: int,
        norm: Weight,
        q: Weight,
        k: Weight,
        v: Weight,
        eps: float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: int,
        rope_chunk: int = 0,
    ) -> None: ...

class Attention:
    layer: Final[int]
    cache: Final[int]
    heads: Final[int]
    kv_heads: Final[int]
    head_dim: Final[int]
    scale: Final[float]
    mask: Final[Mask]
    qk_norm: Final[bool]
    qk_norm_eps: Final[float]
    temperature_scale: Final[float]
    temperature_floor: Final[int]
    def __init__(
        self,
        *,
        layer: int,
        cache: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        mask: Mask,
        qk_norm: bool = False,
        qk_norm_eps: float = 0.0,
        temperature_scale: float = 0.0,
        temperature_floor: int = 0,
    ) -> None: ...

class Output:
    layer: Final[int]
    weight: Final[Weight]
    def __init__(self, *, layer: int, weight: Weight) -> None: ...

class GateUp:
    layer: Final[int]
    norm: Final[Weight]
    gate: Final[Weight]
    up: Final[Weight]
    eps: Final[float]
    def __init__(self, *, layer: int, norm: Weight, gate: Weight, up: Weight, eps: float) -> None: ...

class Down:
    layer: Final[int]
    weight: Final[Weight]
    def __init__(self, *, layer: int, weight: Weight) -> None: ...

class Route:
    layer: Final[int]
    norm: Final[Weight]
    router: Final[Weight]
    eps: Final[float]
    top_k: Final[int]
    def __init__(self, *, layer: int, norm: Weight, router: Weight, eps: float, top_k: int, scoring: str) -> None: ...
    @property
    def scoring(self) -> str: ...

class ExpertsGateUp:
    layer: Final[int]
    gate: Final[list[Weight]]
    up: Final[list[Weight]]
    shared_gate: Final[Weight | None]
    shared_up: Final[Weight | None]
    scale_input: Final[bool]
    def __init__(
        self,
        *,
        layer: int,
        gate: list[Weight],
        up: list[Weight],
        shared_gate: Weight | None = None,
        shared_up: Weight | None = None,
        scale_input: bool = False,
    ) -> None: ...

class ExpertsDown:
    layer: Final[int]
    down: Final[list[Weight]]
    shared_down: Final[Weight | None]
    scale_output: Final[bool]
    def __init__(
        self, *, layer: int, down: list[Weight], shared_down: Weight | None = None, scale_output: bool = False
    ) -> None: ...

class Head:
    norm: Final[Weight]
    weight: Final[Weight]
    eps: Final[float]
    def __init__(self, *, norm: Weight, weight: Weight, eps: float) -> None: ...

class Sample:
    def __init__(self) -> None: ...

_Instruction = Embed | Qkv | Attention | Output | GateUp | Down | Route | ExpertsGateUp | ExpertsDown | Head | Sample

class CacheLayer:
    kv_heads: Final[int]
    head_dim: Final[int]
    capacity: Final[int]
    def __init__(self, *, kv_heads: int, head_dim: int, capacity: int, format: str) -> None: ...
    @property
    def format(self) -> str: ...
    @property
    def bytes_per_slot(self) -> int: ...

class Cost:
    weight_bytes: Final[int]
    cache_bytes: Final[int]
    operations: Final[int]

class Program:
    vocab: Final[int]
    hidden: Final[int]
    max_context: Final[int]
    max_rows: Final[int]
    ropes: Final[list[list[float]]]
    caches: Final[list[CacheLayer]]
    code: Final[list[_Instruction]]
    def __init__(
        self,
        *,
        vocab: int,
        hidden: int,
        max_context: int,
        max_rows: int,
        ropes: Sequence[Sequence[float]],
        caches: Sequence[CacheLayer],
        code: Sequence[_Instruction],
    ) -> None: ...
    def max_rollback(self, position: int, highest: int = 0) -> int: ...
    def cost(self, index: int, rows: int = 1, position: int = 0, logit_rows: int = 1) -> Cost: ...

def name(instruction: _Instruction) -> str: ...
def weights(instruction: _Instruction) -> list[Weight]: ...
def cache_capacity(mask: Mask, max_context: int, max_rows: int) -> int: ...

class Executor:
    def __init__(
        self,
        program: Program,
        *,
        threads: int,
        simd: str = "",
        poison: bool = False,
        progress: Callable[[int, int], None] | None = None,
        resident_experts: int = 0,
        exact_prompt: bool = False,
    ) -> None:
        """resident_experts: experts stay in their files, as many bytes of them resident; 0: all weights are packed.
        exact_prompt: steps of more than 16 rows give the bits of single rows, too.
        """
    @staticmethod
    def measure(program: Program, *, threads: int, experts_in_file: bool = False) -> dict[str, int]:
        """What an executor would take, bytes: packed weights, kept ones, buffers."""
    @property
    def simd(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def residency(self) -> dict[str, int] | None:
        """Of experts in their files: budget and resident (bytes), hits and misses; None where all are packed."""
    def run(self, cache: Cache, ids: npt.NDArray[np.int32], logit_rows: int = 0) -> npt.NDArray[np.float32]: ...
    def run_and_draw(
        self, cache: Cache, ids: npt.NDArray[np.int32], params: SamplingParams, history: npt.NDArray[np.int32]
    ) -> int: ...
    def make_cache(self, poison: bool = False, *, start: int = 0) -> Cache: ...
    def read_seconds(self, bytes: int) -> float: ...

class Cache:
    def __init__(self, executor: Executor, poison: bool = False, *, start: int = 0) -> None: ...
    @property
    def start(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def max_rollback(self) -> int: ...
    @property
    def bytes_used(self) -> int: ...
    @property
    def bytes_reserved(self) -> int: ...
    def rollback(self, n: int) -> None: ...
    def reset(self) -> None: ...

def simd_levels() -> list[str]: ...
def quantize(weight: Weight, format: str, threads: int = 1, *, simd: str = "") -> npt.NDArray[np.uint8]: ...
def quantize_array(
    values: npt.NDArray[np.float32], format: str, threads: int = 1, *, simd: str = ""
) -> npt.NDArray[np.uint8]: ...

class SamplingParams:
    temperature: Final[float]
    top_k: Final[int]
    top_p: Final[float]
    min_p: Final[float]
    repetition_penalty: Final[float]
    seed: Final[int]
    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None: ...

class SampleLevel:
    portable: Final[SampleLevel]
    avx2: Final[SampleLevel]
    avx512: Final[SampleLevel]

def sample(
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    history: npt.NDArray[np.int32],
    position: int,
    draw: int = 0,
    *,
    level: SampleLevel | None = None,
) -> int: ...
def philox(seed: int, position: int, draw: int) -> tuple[int, int, int, int]: ...
def sampling_weights(z: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]: ...

class testing:
    """Single kernels of one SIMD level, for tests (csrc/bindings/kernels.cpp)."""

    @staticmethod
    def e4m3(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]: ...
    @staticmethod
    def product(
        weight: Weight, x: npt.NDArray[np.float32], simd: str, coarse: bool = False, first: int = 0
    ) -> npt.NDArray[np.float32]: ...
    @staticmethod
    def quantize_q15(
        x: npt.NDArray[np.float32], simd: str, coarse: bool = False
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int32]]: ...
    @staticmethod
    def rms_norm(
        x: npt.NDArray[np.float32], weight: npt.NDArray[np.float32] | None, eps: float, simd: str
    ) -> npt.NDArray[np.float32]: ...
    @staticmethod
    def silu_times(
        gate: npt.NDArray[np.float32], up: npt.NDArray[np.float32], simd: str
    ) -> npt.NDArray[np.float32]: ...

class cuda:
    """Single operations on a CUDA device (csrc/bindings/cuda.cpp); only `built` and `about` where CUDA is not built.

    What the driver says against a call is a RuntimeError, what is wrong with an argument a ValueError.
    """

    built: Final[bool]
    about: Final[str]
    calls_address: Final[int]
    """Of the table of functions that the torch operators call (csrc/cuda/calls.h)."""

    class calls:
        """Those functions, each with the fields of its struct by name; arrays are addresses, null is None or 0.

        Work in the stream is not waited for. Whatever is refused is a RuntimeError. `..._plan` is what would be
        launched.
        """

        @staticmethod
        def rms_norm(*, device: int = 0, stream: int, scratch: int, scratch_bytes: int, **call: Any) -> None: ...
        @staticmethod
        def rms_norm_scratch_bytes(*, device: int = 0, **call: Any) -> int: ...
        @staticmethod
        def rms_norm_plan(*, device: cuda.Device, scratch: int, **call: Any) -> cuda.Plan: ...
        @staticmethod
        def rope(*, device: int = 0, stream: int, scratch: int, scratch_bytes: int, **call: Any) -> None: ...
        @staticmethod
        def rope_scratch_bytes(*, device: int = 0, **call: Any) -> int: ...
        @staticmethod
        def rope_plan(*, device: cuda.Device, scratch: int, **call: Any) -> cuda.Plan: ...
        @staticmethod
        def attention(*, device: int = 0, stream: int, scratch: int, scratch_bytes: int, **call: Any) -> None: ...
        @staticmethod
        def attention_scratch_bytes(*, device: int = 0, **call: Any) -> int: ...
        @staticmethod
        def attention_plan(*, device: cuda.Device, scratch: int, **call: Any) -> cuda.Plan: ...
        @staticmethod
        def linear(*, device: int = 0, stream: int, scratch: int, scratch_bytes: int, **call: Any) -> None: ...
        @staticmethod
        def linear_scratch_bytes(*, device: int = 0, **call: Any) -> int: ...
        @staticmethod
        def linear_plan(*, device: cuda.Device, scratch: int, **call: Any) -> cuda.Plan: ...
        @staticmethod
        def moe_route(*, device: int = 0, stream: int, scratch: int, scratch_bytes: int, **call: Any) -> None: ...
        @staticmethod
        def moe_route_scratch_bytes(*, device: int = 0, **call: Any) -> int: ...
        @staticmethod
        def moe_route_plan(*, device: cuda.Device, scratch: int, **call: Any) -> cuda.Plan: ...
        @staticmethod
        def moe_dispatch(*, device: int = 0, stream: int, scratch: int, scratch_bytes: int, **call: Any) -> None: ...
        @staticmethod
        def moe_dispatch_scratch_bytes(*, device: int = 0, **call: Any) -> int: ...
        @staticmethod
        def moe_dispatch_plan(*, device: cuda.Device, scratch: int, **call: Any) -> cuda.Plan: ...
        @staticmethod
        def moe_combine(*, device: int = 0, stream: int, scratch: int, scratch_bytes: int, **call: Any) -> None: ...
        @staticmethod
        def moe_combine_scratch_bytes(*, device: int = 0, **call: Any) -> int: ...
        @staticmethod
        def moe_combine_plan(*, device: cuda.Device, scratch: int, **call: Any) -> cuda.Plan: ...

    class Device:
        def __init__(self, ordinal: int = 0) -> None: ...
        @property
        def name(self) -> str: ...
        @property
        def compute_capability(self) -> tuple[int, int]: ...
        @property
        def multiprocessors(self) -> int: ...
        @property
        def shared_bytes(self) -> int: ...
        @property
        def memory_bytes(self) -> int: ...
        @property
        def free_bytes(self) -> int: ...

    class Buffer:
        def __init__(self, device: cuda.Device, nbytes: int) -> None: ...
        @property
        def address(self) -> int: ...
        @property
        def nbytes(self) -> int: ...
        def part(self, offset: int, nbytes: int) -> cuda.Buffer: ...

    class Module:
        """Kernels: those of this build, or those of an image (a fatbin, a cubin or PTX)."""

        def __init__(self, device: cuda.Device, image: bytes | None = None) -> None: ...

    class Plan:
        """What shall run, as data: `str` lists the launches, `+` puts one plan behind another."""

        @property
        def labels(self) -> list[str]:
            """Of each launch the instruction that it is part of, such as "layers.3.qkv"; "" where there is none."""

        def repeated(self, launch: int, times: int) -> cuda.Plan:
            """One launch, so many times."""

        def __add__(self, other: cuda.Plan) -> cuda.Plan: ...
        @property
        def kernels(self) -> list[str]: ...

    class Executable:
        def __init__(self, module: cuda.Module, plan: cuda.Plan) -> None: ...

    class HostBuffer(Buffer):
        """Pinned memory of the host that kernels reach too: as a buffer, and as `array`, which shares its bytes."""

        def __init__(self, device: cuda.Device, nbytes: int) -> None: ...
        @property
        def array(self) -> npt.NDArray[np.uint8]: ...

    class Graph: ...

    class Executor:
        """Runs a program on a device, a captured graph a step."""

        def __init__(
            self,
            program: Program,
            *,
            ordinal: int = 0,
            threads: int = 1,
            poison: bool = False,
            graphs: bool = True,
            memory_limit: int = 0,
            progress: Callable[[int, int], None] | None = None,
            image: bytes | None = None,
        ) -> None:
            """threads: that prepare weights.  graphs: False launches one by one.  memory_limit: bytes of the card for
            weights and buffers, 0: what is free.  image: kernels that take the place of those built in."""
        @property
        def device(self) -> cuda.Device: ...
        @property
        def weight_bytes(self) -> int:
            """Of weights on the card."""
        @property
        def host_bytes(self) -> int:
            """Of experts in the host's memory."""
        @property
        def residency(self) -> dict[str, int] | None:
            """Of experts in the host's memory: slots on the card, hits and misses; None where all are on the card."""
        @property
        def captures(self) -> int:
            """Graphs captured so far."""
        def plan(self, rows: int = 1) -> cuda.Plan:
            """The launches of a step of so many rows."""
        def make_cache(self, poison: bool = False, *, start: int = 0) -> cuda.Cache: ...
        def run(
            self, cache: cuda.Cache, ids: npt.NDArray[np.int32], logit_rows: int = 0
        ) -> npt.NDArray[np.float32]: ...
        def run_and_draw(
            self,
            cache: cuda.Cache,
            ids: npt.NDArray[np.int32],
            params: SamplingParams,
            history: npt.NDArray[np.int32],
        ) -> int: ...
        def read_seconds(self, bytes: int) -> float: ...

    class Cache:
        """Keys and values in device memory; `Executor.make_cache` makes one."""

        @property
        def start(self) -> int: ...
        @property
        def position(self) -> int: ...
        @property
        def max_rollback(self) -> int: ...
        @property
        def bytes_used(self) -> int: ...
        @property
        def bytes_reserved(self) -> int: ...
        def rollback(self, n: int) -> None: ...
        def reset(self) -> None: ...

    class Event:
        def __init__(self, device: cuda.Device) -> None: ...
        def milliseconds_since(self, earlier: cuda.Event) -> float: ...

    class Stream:
        """foreign: the handle of another library's stream in the device's primary context; 0 is the default stream.

        The buffers of write_async, read_async, copy and fill must live until the stream has come to them; those of a
        captured graph as long as the graph.
        """

        def __init__(self, device: cuda.Device, foreign: int | None = None) -> None: ...
        def write_async(self, buffer: cuda.Buffer, host: cuda.HostBuffer) -> None: ...
        def read_async(self, host: cuda.HostBuffer, buffer: cuda.Buffer) -> None: ...
        def copy(self, to: cuda.Buffer, source: cuda.Buffer) -> None: ...
        def record(self, event: cuda.Event) -> None: ...
        def write(self, buffer: cuda.Buffer, array: npt.NDArray[Any]) -> None: ...
        def read(self, buffer: cuda.Buffer) -> npt.NDArray[np.uint8]: ...
        def fill(self, buffer: cuda.Buffer, byte: int) -> None: ...
        def run(self, executable: cuda.Executable | cuda.Graph) -> None: ...
        def capture(self, work: cuda.Executable | Callable[[], None]) -> cuda.Graph: ...
        def synchronize(self) -> None: ...

    @staticmethod
    def pack(*, format: str, rows: int, cols: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A checkpoint's bytes of a matrix in the layout of the device (csrc/cuda/kernels/packed.h)."""
    @staticmethod
    def repack(*, format: str, rows: int, cols: int, source: cuda.Buffer, packed: cuda.Buffer) -> cuda.Plan:
        """A checkpoint's bytes into what `pack` gives, on the device."""
    @staticmethod
    def rms_norm(
        *, x: cuda.Buffer, weight: cuda.Buffer | None, y: cuda.Buffer, rows: int, n: int, eps: float
    ) -> cuda.Plan: ...
    @staticmethod
    def rope(*, x: cuda.Buffer, table: cuda.Buffer, rows: int, stride: int, heads: int, pairs: int) -> cuda.Plan: ...
    @staticmethod
    def attention_append(
        *,
        qkv: cuda.Buffer,
        step: cuda.Buffer,
        cache: cuda.Buffer,
        max_rows: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        format: str,
        qk_norm: bool = False,
        qk_norm_eps: float = 0.0,
    ) -> cuda.Plan:
        """Any number of rows. What `cache` (CacheState) points to must outlive the plan."""

    @staticmethod
    def attention_prefill(
        *,
        qkv: cuda.Buffer,
        step: cuda.Buffer,
        cache: cuda.Buffer,
        out: cuda.Buffer,
        max_rows: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        format: str,
        mask: Mask,
        scale: float,
        qk_norm: bool = False,
        qk_norm_eps: float = 0.0,
        temperature_scale: float = 0.0,
        temperature_floor: int = 0,
    ) -> cuda.Plan:
        """Any number of rows, whose keys and values the cache holds already; as for attention_append."""

    @staticmethod
    def product(
        *,
        weight: cuda.Buffer | None = None,
        format: str,
        rows: int,
        cols: int,
        step: cuda.Buffer,
        max_rows: int,
        which: Literal["all", "logits"] = "all",
        x: cuda.Buffer,
        norm: cuda.Buffer | None = None,
        eps: float = 0.0,
        epilogue: Literal["store", "add", "silu_times_up", "rotate"] = "store",
        y: cuda.Buffer,
        y_stride: int | None = None,
        table: cuda.Buffer | None = None,
        rotated: int = 0,
        pairs: int = 0,
        groups: dict[str, cuda.Buffer | int] | None = None,
        experts: cuda.Buffer | None = None,
        offset: int = 0,
        gathered: bool = False,
        scaled: bool = False,
    ) -> cuda.Plan:
        """weight: packed [rows, cols], or None with experts, the addresses of theirs.

        groups: "count", "expert", "first", "row", "score" and the number "max_groups" (csrc/cuda/product.h).
        """
    @staticmethod
    def product_tiles(
        *,
        weight: cuda.Buffer | None = None,
        format: str,
        rows: int,
        cols: int,
        step: cuda.Buffer,
        max_rows: int,
        which: Literal["all", "logits"] = "all",
        x: cuda.Buffer,
        norm: cuda.Buffer | None = None,
        eps: float = 0.0,
        epilogue: Literal["store", "add", "silu_times_up", "rotate"] = "store",
        y: cuda.Buffer,
        y_stride: int | None = None,
        table: cuda.Buffer | None = None,
        rotated: int = 0,
        pairs: int = 0,
        groups: dict[str, cuda.Buffer | int] | None = None,
        experts: cuda.Buffer | None = None,
        offset: int = 0,
        gathered: bool = False,
        scaled: bool = False,
    ) -> cuda.Plan:
        """The same for any number of rows, on tensor cores: no norm, no rotation, no F32."""
    @staticmethod
    def attention(
        *,
        qkv: cuda.Buffer,
        step: cuda.Buffer,
        cache: cuda.Buffer,
        out: cuda.Buffer,
        scratch: cuda.Buffer,
        max_rows: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        format: str,
        mask: Mask,
        scale: float,
        qk_norm: bool = False,
        qk_norm_eps: float = 0.0,
        temperature_scale: float = 0.0,
        temperature_floor: int = 0,
        splits: int,
    ) -> cuda.Plan:
        """Up to 16 rows. What `cache` (CacheState) points to must outlive the plan; `scratch` is zeroed once."""

    @staticmethod
    def attention_scratch_bytes(*, max_rows: int, heads: int, head_dim: int, splits: int) -> int: ...
    @staticmethod
    def route(
        *,
        router: cuda.Buffer,
        format: str,
        experts: int,
        hidden: int,
        step: cuda.Buffer,
        max_rows: int,
        x: cuda.Buffer,
        norm: cuda.Buffer,
        eps: float,
        top_k: int,
        scoring: str,
        shared: bool,
        n: cuda.Buffer,
        logits: cuda.Buffer,
        count: cuda.Buffer,
        expert: cuda.Buffer,
        first: cuda.Buffer,
        row: cuda.Buffer,
        score: cuda.Buffer,
        max_groups: int,
        entry: cuda.Buffer,
        scratch: cuda.Buffer,
    ) -> cuda.Plan: ...
    @staticmethod
    def route_groups(*, max_rows: int, top_k: int, experts: int, shared: bool) -> int: ...
    @staticmethod
    def route_scratch_bytes(*, max_rows: int, experts: int) -> int: ...
    @staticmethod
    def combine(
        *,
        y: cuda.Buffer,
        entry: cuda.Buffer,
        step: cuda.Buffer,
        x: cuda.Buffer,
        max_rows: int,
        passes: int,
        hidden: int,
    ) -> cuda.Plan: ...
    @staticmethod
    def fetch(
        *,
        count: cuda.Buffer,
        expert: cuda.Buffer,
        max_groups: int,
        experts: cuda.Buffer,
        home: cuda.Buffer,
        cards: cuda.Buffer,
        layer: int,
        layers: int,
        expert_count: int,
        slots: int,
        pool: cuda.Buffer,
        slot_bytes: int,
        bytes: int,
    ) -> cuda.Plan: ...
    @staticmethod
    def fetch_state(*, slots: int, layers: int) -> bytes: ...
    @staticmethod
    def fetch_facts(state: bytes) -> dict[str, int]: ...
    @staticmethod
    def moe_route(
        *,
        type: str,
        rows: int,
        experts: int,
        top_k: int,
        scoring: str,
        logits: cuda.Buffer,
        chosen: cuda.Buffer,
        scores: cuda.Buffer,
    ) -> cuda.Plan: ...
    @staticmethod
    def moe_dispatch(
        *,
        type: str,
        rows: int,
        top_k: int,
        hidden: int,
        num_experts: int,
        x: cuda.Buffer,
        experts: cuda.Buffer,
        scores: cuda.Buffer | None,
        gathered: cuda.Buffer,
        offsets: cuda.Buffer,
        source: cuda.Buffer,
    ) -> cuda.Plan: ...
    @staticmethod
    def moe_combine(
        *,
        type: str,
        rows: int,
        top_k: int,
        hidden: int,
        y: cuda.Buffer,
        source: cuda.Buffer,
        scores: cuda.Buffer | None,
        place: cuda.Buffer,
        out: cuda.Buffer,
    ) -> cuda.Plan: ...
