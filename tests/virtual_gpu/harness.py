"""Drives the virtual GPU from Python, for its own tests and those of the kernels: numpy and ctypes alone.

    gpu = Gpu(card="sm_90", seed=1)
    kernel = gpu.module(compile_cuda(SOURCE)).kernel("add")
    x, out = gpu.array(np.ones(64, np.float32)), gpu.empty(64, np.float32)
    gpu.launch(kernel, 1, 64, x, out, np.uint32(64))
    gpu.synchronize()
    out.get()

As on a card, a launch is asynchronous: what goes wrong inside a kernel comes out of the next `synchronize` or `get`, as
a DriverError that sticks until `reset`. `faults_of` does all of that at once, for a kernel that should be wrong.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ROOT = Path(__file__).resolve().parents[2]

# CUlaunchAttributeID
_COOPERATIVE = 2
_PROGRAMMATIC = 6
# CUfunction_attribute
_MAX_DYNAMIC_SHARED = 8


class DriverError(RuntimeError):
    """A driver call that gave something else than CUDA_SUCCESS."""

    def __init__(self, call: str, code: int, name: str, detail: str = "") -> None:
        super().__init__(f"{call}: {name} ({code})" + (f": {detail}" if detail else ""))
        self.call, self.code, self.name, self.detail = call, code, name, detail


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: an id, padding, and a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint32 * 16))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("count", ctypes.c_uint),
    )


def library_path() -> Path:
    """The libcuda.so.1 that LLAMA_EXT_LIBCUDA names, or the one that `make virtual-gpu` built."""
    named = os.environ.get("LLAMA_EXT_LIBCUDA")
    return Path(named) if named else ROOT / "build" / "virtual_gpu" / "libcuda.so.1"


_library: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The virtual GPU, loaded once a process."""
    global _library
    if _library is None:
        path = library_path()
        if not path.exists():
            raise FileNotFoundError(f"no virtual GPU at {path}: run `make virtual-gpu`")
        loaded = ctypes.CDLL(str(path))
        if not hasattr(loaded, "vgpuReset"):
            raise RuntimeError(f"{path} is a driver, but not the virtual GPU: unset LLAMA_EXT_LIBCUDA")
        for name in ("vgpuFaults", "vgpuLastError", "vgpuReport"):
            getattr(loaded, name).restype = ctypes.c_char_p
        loaded.vgpuSetSeed.argtypes = (ctypes.c_uint64,)
        loaded.vgpuSetSeed.restype = None
        loaded.vgpuReset.restype = None
        _library = loaded
    return _library


def _argument(value: Any) -> Any:
    """A Python int fills a whole register: right for every width of integer and for a pointer."""
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, bool | int | np.integer):
        return ctypes.c_uint64(int(value) & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, Buffer):
        return ctypes.c_uint64(value.address)
    if isinstance(value, Stream | Event | Kernel | Module):
        return ctypes.c_void_p(value.handle)
    if isinstance(value, str):
        return ctypes.c_char_p(value.encode())
    return value


def _three(size: int | Sequence[int]) -> tuple[int, int, int]:
    values = (size,) if isinstance(size, int | np.integer) else tuple(size)
    x, y, z = (*values, 1, 1, 1)[:3]
    return int(x), int(y), int(z)


class Kernel:
    """A CUfunction."""

    def __init__(self, gpu: Gpu, module: Module, name: str, handle: int) -> None:
        self.gpu, self.module, self.name, self.handle = gpu, module, name, handle
        self.parameters = self._parameters()

    def _parameters(self) -> list[int]:
        sizes: list[int] = []
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        while True:
            code = self.gpu.try_call(
                "cuFuncGetParamInfo", self.handle, len(sizes), ctypes.byref(offset), ctypes.byref(size)
            )
            if code != 0:
                return sizes
            sizes.append(size.value)

    def allow_shared(self, dynamic_bytes: int) -> None:
        """CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: needed beyond 48 KB."""
        self.gpu.call("cuFuncSetAttribute", self.handle, _MAX_DYNAMIC_SHARED, dynamic_bytes)

    def attribute(self, attribute: int) -> int:
        value = ctypes.c_int()
        self.gpu.call("cuFuncGetAttribute", ctypes.byref(value), attribute, self.handle)
        return value.value

    def load(self) -> None:
        """Needed before the kernel's first launch into a stream that is being captured."""
        self.gpu.call("cuFuncLoad", self.handle)


class Module:
    """A CUmodule; it lives as long as the card that it was loaded on."""

    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu, self.handle = gpu, handle

    def kernel(self, name: str) -> Kernel:
        handle = ctypes.c_void_p()
        self.gpu.call("cuModuleGetFunction", ctypes.byref(handle), self.handle, name)
        return Kernel(self.gpu, self, name, handle.value or 0)

    def variable(self, name: str, shape: int | tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """A .global or .const variable, seen as an array."""
        address, size = ctypes.c_uint64(), ctypes.c_size_t()
        self.gpu.call("cuModuleGetGlobal", ctypes.byref(address), ctypes.byref(size), self.handle, name)
        return Buffer(self.gpu, address.value, shape, np.dtype(dtype), owned=False)


class Buffer:
    """An array on the device."""

    def __init__(
        self, gpu: Gpu, address: int, shape: int | tuple[int, ...], dtype: np.dtype[Any], owned: bool = True
    ) -> None:
        self.gpu, self.address, self.dtype, self._owned = gpu, address, dtype, owned
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * dtype.itemsize
        self._generation = gpu.generation

    def get(self) -> NDArray[Any]:
        """A copy on the host; waits for the work that is under way."""
        out = np.empty(self.shape, self.dtype)
        if self.nbytes:
            self.gpu.call("cuMemcpyDtoH", ctypes.c_void_p(out.ctypes.data), self.address, self.nbytes)
        return out

    def set(self, values: Any) -> None:
        source = np.ascontiguousarray(np.broadcast_to(np.asarray(values, self.dtype), self.shape))
        if self.nbytes:
            self.gpu.call("cuMemcpyHtoD", self.address, ctypes.c_void_p(source.ctypes.data), self.nbytes)

    def at(self, element: int) -> np.uint64:
        """The address of an element, as a kernel's argument: `buffer.at(4)` is `pointer + 4` in the kernel."""
        return np.uint64(self.address + element * self.dtype.itemsize)

    def free(self) -> None:
        if self._owned and self._generation == self.gpu.current_generation():
            self._owned = False
            self.gpu.call("cuMemFree", self.address)

    def __del__(self) -> None:
        if sys is not None and not sys.is_finalizing() and self._owned:
            self._owned = False
            if self._generation == self.gpu.current_generation():
                self.gpu.try_call("cuMemFree", self.address)


class Stream:
    """A CUstream."""

    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu, self.handle = gpu, handle

    def synchronize(self) -> None:
        self.gpu.call("cuStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        self.gpu.call("cuStreamWaitEvent", self.handle, event.handle, 0)


class Event:
    """A CUevent."""

    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu, self.handle = gpu, handle

    def record(self, stream: Stream | None = None) -> None:
        self.gpu.call("cuEventRecord", self.handle, stream.handle if stream else None)

    def synchronize(self) -> None:
        self.gpu.call("cuEventSynchronize", self.handle)


class Gpu:
    """A card of one's own. A process has one at a time: a new one takes the memory of the last one with it."""

    _generation = 0

    def __init__(self, card: str = "sm_90", seed: int = 0) -> None:
        self.library = library()
        self._pointers: dict[str, Any] = {}
        Gpu._generation += 1
        self.generation = Gpu._generation
        self.card = card
        self.library.vgpuReset()
        if self.library.vgpuSetCard(card.encode()) != 0:
            raise ValueError(f"the virtual GPU cannot be {card!r}: {self.last_error()}")
        self.seed(seed)
        self.call("cuInit", 0)
        self.context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), 0)
        self.call("cuCtxSetCurrent", self.context)

    @staticmethod
    def current_generation() -> int:
        return Gpu._generation

    # --- calls ----------------------------------------------------------------------------------------------------

    def pointer(self, name: str) -> Any:
        """The entry point: through cuGetProcAddress at 13.0, so of today's ABI; a versioned name by its symbol.

        Three names mean in cuda.h what they meant before, and at 13.0 something with one more argument.
        """
        if name not in self._pointers:
            found = None
            same = name in ("cuCtxSynchronize", "cuCtxGetDevice", "cuStreamGetCtx", "cuGetProcAddress")
            if "_v" not in name and not same:
                address, status = ctypes.c_void_p(), ctypes.c_int()
                code = self.library.cuGetProcAddress_v2(
                    name.encode(), ctypes.byref(address), 13000, ctypes.c_uint64(0), ctypes.byref(status)
                )
                if code == 0 and address.value:
                    found = ctypes.CFUNCTYPE(ctypes.c_int)(address.value)
            self._pointers[name] = found or getattr(self.library, name)
        return self._pointers[name]

    def try_call(self, name: str, *args: Any) -> int:
        """The CUresult of a driver call."""
        return int(self.pointer(name)(*map(_argument, args)))

    def call(self, name: str, *args: Any) -> None:
        code = self.try_call(name, *args)
        if code != 0:
            raise DriverError(name, code, error_name(code), self.last_error())

    # --- memory ---------------------------------------------------------------------------------------------------

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> Buffer:
        """Memory that was never written: to read it is a fault."""
        kind = np.dtype(dtype)
        buffer = Buffer(self, 0, shape, kind, owned=False)
        address = ctypes.c_uint64()
        self.call("cuMemAlloc", ctypes.byref(address), max(buffer.nbytes, 1))
        buffer.address, buffer._owned = address.value, True
        return buffer

    def array(self, values: Any, dtype: DTypeLike | None = None) -> Buffer:
        source = np.asarray(values, dtype)
        buffer = self.empty(source.shape, source.dtype)
        buffer.set(source)
        return buffer

    # --- code -----------------------------------------------------------------------------------------------------

    def module(self, image: str | bytes) -> Module:
        """From PTX, a fatbin or a cubin; a DriverError carries what the parser says."""
        data = image.encode() if isinstance(image, str) else image
        if data[:1] in (b".", b"/", b"\n", b" ", b"\t"):
            data += b"\0"
        log = ctypes.create_string_buffer(4096)
        # CU_JIT_ERROR_LOG_BUFFER and its size
        options = (ctypes.c_int * 2)(5, 6)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        handle = ctypes.c_void_p()
        code = self.try_call("cuModuleLoadDataEx", ctypes.byref(handle), ctypes.c_char_p(data), 2, options, values)
        if code != 0:
            detail = log.value.decode(errors="replace") or self.last_error()
            raise DriverError("cuModuleLoadDataEx", code, error_name(code), detail)
        return Module(self, handle.value or 0)

    def launch(
        self,
        kernel: Kernel,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        *args: Buffer | np.generic | bytes,
        shared: int = 0,
        cooperative: bool = False,
        programmatic: bool = False,
        stream: Stream | None = None,
    ) -> None:
        """Arguments are Buffers, numpy scalars of the parameter's very type, or the bytes of a struct."""
        packed = [_packed(value) for value in args]
        if [len(value) for value in packed] != kernel.parameters:
            raise TypeError(
                f"{kernel.name} takes parameters of {kernel.parameters} bytes, not {[len(value) for value in packed]}"
            )
        storage = [ctypes.create_string_buffer(value, max(len(value), 1)) for value in packed]
        pointers = (ctypes.c_void_p * max(len(storage), 1))(*map(ctypes.addressof, storage))
        attributes = (LaunchAttribute * 2)()
        count = 0
        for wanted, attribute in ((cooperative, _COOPERATIVE), (programmatic, _PROGRAMMATIC)):
            if wanted:
                attributes[count].id = attribute
                attributes[count].value[0] = 1
                count += 1
        config = LaunchConfig(
            (ctypes.c_uint * 3)(*_three(grid)),
            (ctypes.c_uint * 3)(*_three(block)),
            shared,
            stream.handle if stream else None,
            attributes,
            count,
        )
        self.call("cuLaunchKernelEx", ctypes.byref(config), kernel.handle, pointers, None)

    def faults_of(
        self, kernel: Kernel, grid: int | Sequence[int], block: int | Sequence[int], *args: Any, **options: Any
    ) -> list[dict[str, Any]]:
        """Launches a kernel that is expected to be wrong, waits, and gives its faults; the card is as new after it."""
        self.launch(kernel, grid, block, *args, **options)
        self.try_call("cuCtxSynchronize")
        found = self.faults()
        self.reset()
        return found

    # --- streams --------------------------------------------------------------------------------------------------

    def stream(self, flags: int = 1) -> Stream:
        """A new stream; by default one that does not wait for the default stream (CU_STREAM_NON_BLOCKING)."""
        handle = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(handle), flags)
        return Stream(self, handle.value or 0)

    def event(self, flags: int = 2) -> Event:
        handle = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(handle), flags)
        return Event(self, handle.value or 0)

    def synchronize(self) -> None:
        self.call("cuCtxSynchronize")

    # --- what the virtual GPU saw ---------------------------------------------------------------------------------

    def faults(self) -> list[dict[str, Any]]:
        """Every fault since the last reset, after the work that is under way has run."""
        found: list[dict[str, Any]] = json.loads(self.library.vgpuFaults())
        return found

    def report(self) -> list[dict[str, Any]]:
        """The counters of every launch since the last call."""
        found: list[dict[str, Any]] = json.loads(self.library.vgpuReport())
        return found

    def reset(self) -> None:
        """Drops pending work, clears faults and the error that sticks. Memory and modules stay."""
        self.library.vgpuReset()

    def seed(self, seed: int) -> None:
        """The order of blocks and warps, and of a graph's nodes, from here on."""
        self.library.vgpuSetSeed(seed)

    def last_error(self) -> str:
        """Why the last call was refused."""
        return (self.library.vgpuLastError() or b"").decode(errors="replace")


def _packed(value: Buffer | np.generic | bytes) -> bytes:
    if isinstance(value, Buffer):
        return value.address.to_bytes(8, "little")
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"an argument of a kernel has a width: write np.int32({value!r}) or the like, not {value!r}")


def error_name(code: int) -> str:
    """ "CUDA_ERROR_INVALID_VALUE" """
    text = ctypes.c_char_p()
    if library().cuGetErrorName(code, ctypes.byref(text)) != 0 or text.value is None:
        return f"CUresult {code}"
    return text.value.decode()


# --- nvcc -------------------------------------------------------------------------------------------------------------


def find_nvcc() -> str | None:
    """nvcc: CUDACXX, then PATH, then the package nvidia-cuda-nvcc of the Python that runs."""
    named = os.environ.get("CUDACXX")
    if named:
        return named
    found = shutil.which("nvcc")
    if found:
        return found
    for key in ("purelib", "platlib"):
        packaged = Path(sysconfig.get_path(key)) / "nvidia" / "cu13" / "bin" / "nvcc"
        if packaged.exists():
            return str(packaged)
    return None


_compiled: dict[str, bytes] = {}


def nvcc(source: str | Path, flags: Sequence[str], include: Sequence[str | Path] = ()) -> bytes:
    """What nvcc makes of a source. Cached by all that goes in: the text, the headers beside it, the flags."""
    compiler = find_nvcc()
    if compiler is None:
        raise FileNotFoundError("no nvcc: set CUDACXX or PATH, or install nvidia-cuda-nvcc")
    path = Path(source) if isinstance(source, Path) or source.endswith(".cu") else None
    text = path.read_bytes() if path else str(source).encode()
    folders = [Path(folder) for folder in include] + ([path.parent] if path else [])
    digest = hashlib.sha256()
    parts = [compiler.encode(), repr(tuple(flags)).encode(), str(path.resolve()).encode() if path else b"", text]
    for folder in folders:
        for header in sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cuh", ".cu", ".inc")):
            parts += [str(header).encode(), header.read_bytes()]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    key = digest.hexdigest()
    if key in _compiled:
        return _compiled[key]
    cache = Path(tempfile.gettempdir()) / f"llama_ext_virtual_gpu-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    kept = cache / key
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            unit, out = path or Path(scratch) / "kernel.cu", Path(scratch) / "out"
            if path is None:
                unit.write_bytes(text)
            includes = [f"-I{folder}" for folder in include]
            done = subprocess.run(
                [compiler, *flags, *includes, "-o", str(out), str(unit)], capture_output=True, text=True
            )
            if done.returncode != 0:
                raise RuntimeError(f"nvcc says:\n{done.stdout}{done.stderr}")
            # In place at once: another process may look for it.
            os.replace(out, kept)
    _compiled[key] = kept.read_bytes()
    return _compiled[key]


def _defined(defines: Sequence[str]) -> list[str]:
    return [f"-D{define}" for define in defines]


def compile_cuda(
    source_or_path: str | Path,
    arch: str = "compute_90",
    defines: Sequence[str] = (),
    lineinfo: bool = True,
    include: Sequence[str | Path] = (),
    flags: Sequence[str] = (),
) -> str:
    """PTX of CUDA C++: of the source itself, or of a file (a Path, or a str that ends in .cu)."""
    options = ["-ptx", f"-arch={arch}", "-std=c++17", *(["-lineinfo"] if lineinfo else []), *_defined(defines), *flags]
    return nvcc(source_or_path, options, include).decode()


def compile_fatbin(
    source_or_path: str | Path,
    codes: Sequence[str] = ("compute_80,code=compute_80",),
    flags: Sequence[str] = ("--compress-mode=none",),
    defines: Sequence[str] = (),
    include: Sequence[str | Path] = (),
) -> bytes:
    """A fatbin; `codes` as in -gencode arch=..., for instance "compute_90,code=[compute_90,sm_90]"."""
    gencode = [f"-gencode=arch={code}" for code in codes]
    return nvcc(source_or_path, ["-fatbin", *gencode, "-std=c++17", *flags, *_defined(defines)], include)
