"""The virtual GPU's driver: error codes and order, as a real one gives them."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Buffer, DriverError, Gpu, LaunchAttribute, LaunchConfig, Stream, compile_cuda, compile_fatbin
from harness import library_path as libcuda

Card = Callable[..., Gpu]

SOURCE = r"""
extern "C" __global__ void store(int *out, int value) { out[blockIdx.x * blockDim.x + threadIdx.x] = value; }
extern "C" __global__ void add(int *out, const int *in, int value) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = in[i] + value;
}
extern "C" __global__ void __launch_bounds__(64) bounded(int *out) { out[threadIdx.x] = 1; }
extern "C" __global__ void fixed_shared(int *out) {
    __shared__ int tile[1024];
    tile[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
extern "C" __global__ void dynamic_shared(int *out) {
    extern __shared__ int tile[];
    tile[threadIdx.x] = 1;
    out[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void wild(int *out) { out[1 << 20] = 1; }
struct Pair { int a; double b; };
extern "C" __global__ void pair(double *out, Pair p, char c) { *out = p.a + p.b + c; }
extern "C" __global__ void trigger(int *out, int value) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
    out[threadIdx.x] = value;
}
extern "C" __global__ void dependent(int *out, const int *in) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    out[threadIdx.x] = in[threadIdx.x] + 1;
}
__device__ int answer[4] = {1, 2, 3, 42};
extern "C" __global__ void global_answer(int *out) { *out = answer[3]; }
"""


@pytest.fixture(scope="module")
def ptx() -> str:
    return compile_cuda(SOURCE, "compute_90")


@pytest.fixture(scope="module")
def old_ptx() -> str:
    return compile_cuda(SOURCE, "compute_80")


def refused(name: str, call: Callable[[], Any]) -> DriverError:
    """The call fails with this code."""
    with pytest.raises(DriverError) as caught:
        call()
    assert caught.value.name == "CUDA_ERROR_" + name, str(caught.value)
    return caught.value


def ints(n: int = 32) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(n, dtype=np.int32)


# --- start ------------------------------------------------------------------------------------------------------------


def in_new_process(code: str, **environment: str) -> str:
    """What a Python that has loaded the library prints."""
    lines = ["import ctypes, sys", f"cuda = ctypes.CDLL({str(libcuda())!r})", "out = ctypes.c_int()"]
    program = "\n".join([*lines, *code.splitlines()])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_before_init(gpu: Gpu) -> None:
    code = "print(cuda.cuDeviceGetCount(ctypes.byref(out)), cuda.cuCtxSynchronize(), cuda.cuInit(1), cuda.cuInit(0))"
    assert in_new_process(code) == "3 3 1 0"


def test_no_device(gpu: Gpu) -> None:
    assert in_new_process("print(cuda.cuInit(0))", LLAMA_EXT_VGPU_DEVICES="0") == "100"


def test_older_driver(gpu: Gpu) -> None:
    code = """cuda.cuDriverGetVersion(ctypes.byref(out))
pointer, status = ctypes.c_void_p(), ctypes.c_int()
rest = ctypes.c_uint64(0), ctypes.byref(status)
find = lambda version: cuda.cuGetProcAddress_v2(b"cuMemAlloc", ctypes.byref(pointer), version, *rest)
print(out.value, find(13000), find(12080), bool(pointer.value), status.value)"""
    assert in_new_process(code, LLAMA_EXT_VGPU_DRIVER="12080") == "12080 1 0 True 0"


def test_card_from_environment(gpu: Gpu) -> None:
    code = """cuda.cuInit(0)
name = ctypes.create_string_buffer(64)
cuda.cuDeviceGetName(name, 64, 0)
print(name.value.decode())"""
    assert "sm_86" in in_new_process(code, LLAMA_EXT_VGPU_CARD="sm_86")
    assert in_new_process("print(cuda.cuInit(0))", LLAMA_EXT_VGPU_CARD="sm_75") == "101"


def test_version(gpu: Gpu) -> None:
    version = ctypes.c_int()
    gpu.call("cuDriverGetVersion", ctypes.byref(version))
    assert version.value == 13000


@pytest.mark.parametrize(
    ("name", "major", "minor", "optin"),
    [
        ("sm_80", 8, 0, 163),
        ("sm_86", 8, 6, 99),
        ("sm_89", 8, 9, 99),
        ("sm_90", 9, 0, 227),
        ("sm_100", 10, 0, 227),
        ("sm_120", 12, 0, 99),
    ],
)
def test_cards(card: Card, name: str, major: int, minor: int, optin: int) -> None:
    gpu = card(name)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        gpu.call("cuDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    assert (attribute(75), attribute(76)) == (major, minor)
    assert attribute(97) == optin * 1024
    assert attribute(8) == 48 * 1024
    assert attribute(10) == 32
    assert attribute(16) > 50
    refused("INVALID_VALUE", lambda: attribute(100000))


def test_one_device(gpu: Gpu) -> None:
    device = ctypes.c_int()
    refused("INVALID_DEVICE", lambda: gpu.call("cuDeviceGet", ctypes.byref(device), 1))
    refused("INVALID_VALUE", lambda: gpu.call("cuDeviceGet", None, 0))


def test_no_context(gpu: Gpu) -> None:
    gpu.call("cuCtxSetCurrent", None)
    refused("INVALID_CONTEXT", gpu.synchronize)
    refused("INVALID_CONTEXT", lambda: gpu.empty(1))
    gpu.call("cuCtxSetCurrent", gpu.context)
    gpu.synchronize()


def test_destroyed_context(gpu: Gpu) -> None:
    context = ctypes.c_void_p()
    gpu.call("cuCtxCreate", ctypes.byref(context), None, 0, 0)
    gpu.call("cuCtxPushCurrent", context)
    gpu.call("cuCtxDestroy", context)
    gpu.call("cuCtxPopCurrent", None)
    refused("INVALID_CONTEXT", lambda: gpu.call("cuCtxPushCurrent", context))
    gpu.call("cuCtxSetCurrent", gpu.context)


def test_primary_context_takes_its_memory_along(gpu: Gpu) -> None:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    x = gpu.empty(1 << 20)
    x._owned = False
    gpu.call("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    assert free.value < total.value
    gpu.call("cuDevicePrimaryCtxRelease", 0)
    refused("CONTEXT_IS_DESTROYED", gpu.synchronize)
    gpu.call("cuDevicePrimaryCtxRetain", ctypes.byref(gpu.context), 0)
    gpu.call("cuCtxSetCurrent", gpu.context)
    gpu.call("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    assert free.value == total.value


# --- entry points -----------------------------------------------------------------------------------------------------


def look_up(gpu: Gpu, name: str, version: int = 13000, flags: int = 0) -> tuple[int, bool, int]:
    pointer, status = ctypes.c_void_p(1), ctypes.c_int(-1)
    code = gpu.library.cuGetProcAddress_v2(
        name.encode(), ctypes.byref(pointer), version, ctypes.c_uint64(flags), ctypes.byref(status)
    )
    return code, bool(pointer.value), status.value


def test_get_proc_address(gpu: Gpu) -> None:
    assert look_up(gpu, "cuMemAlloc") == (0, True, 0)
    # What cuda.h does not know: a success without a pointer.
    assert look_up(gpu, "cuMemAllocate") == (0, False, 1)
    assert look_up(gpu, "cuMemAlloc_v2") == (0, False, 1)
    assert look_up(gpu, "cuGraphInstantiateWithFlags", 11000) == (0, False, 2)
    assert look_up(gpu, "cuGraphInstantiateWithFlags", 11040) == (0, True, 0)
    assert look_up(gpu, "cuMemAlloc", 13010)[0] == 1
    assert gpu.faults() == []


def test_get_proc_address_gives_the_abi_of_the_version(gpu: Gpu) -> None:
    def address(name: str, version: int) -> int | None:
        pointer = ctypes.c_void_p()
        gpu.library.cuGetProcAddress_v2(name.encode(), ctypes.byref(pointer), version, ctypes.c_uint64(0), None)
        return pointer.value

    def symbol(name: str) -> int | None:
        return ctypes.cast(getattr(gpu.library, name), ctypes.c_void_p).value

    assert address("cuMemAlloc", 2000) == symbol("cuMemAlloc")
    assert address("cuMemAlloc", 13000) == symbol("cuMemAlloc_v2") != symbol("cuMemAlloc")
    assert address("cuCtxCreate", 3020) == symbol("cuCtxCreate_v2")
    assert address("cuCtxCreate", 12050) == symbol("cuCtxCreate_v4")
    assert address("cuStreamGetCaptureInfo", 12000) == symbol("cuStreamGetCaptureInfo_v2")
    assert address("cuStreamGetCaptureInfo", 12030) == symbol("cuStreamGetCaptureInfo_v3")
    # A trap: since 13.0 it takes a context, which cuda.h's name does not.
    assert address("cuCtxSynchronize", 12000) == symbol("cuCtxSynchronize")
    assert address("cuCtxSynchronize", 13000) == symbol("cuCtxSynchronize_v2")
    assert address("cuGraphInstantiate", 12000) == symbol("cuGraphInstantiateWithFlags")


def test_old_get_proc_address(gpu: Gpu) -> None:
    pointer = ctypes.c_void_p()
    old = gpu.library.cuGetProcAddress
    assert old(b"cuInit", ctypes.byref(pointer), 11030, ctypes.c_uint64(0)) == 0 and pointer.value
    assert old(b"cuNothing", ctypes.byref(pointer), 11030, ctypes.c_uint64(0)) == 500 and not pointer.value


def test_unknown_call(gpu: Gpu) -> None:
    """To look for an entry point is no fault; to call one that is not served is."""
    assert look_up(gpu, "cuTexObjectCreate") == (0, True, 0)
    assert gpu.faults() == []
    refused("NOT_SUPPORTED", lambda: gpu.call("cuTexObjectCreate", None, None, None, None))
    (fault,) = gpu.faults()
    assert fault["kind"] == "unknown_call" and "cuTexObjectCreate" in fault["message"]


def test_old_abi_is_an_unknown_call(gpu: Gpu) -> None:
    """The symbol without a version is the ABI of CUDA 2, with addresses of 32 bits."""
    assert gpu.library.cuMemAlloc(None, 4) == 801
    assert gpu.faults()[0]["kind"] == "unknown_call"


def test_error_names(gpu: Gpu) -> None:
    text = ctypes.c_char_p()
    gpu.call("cuGetErrorName", 700, ctypes.byref(text))
    assert text.value == b"CUDA_ERROR_ILLEGAL_ADDRESS"
    gpu.call("cuGetErrorString", 700, ctypes.byref(text))
    assert text.value == b"illegal address"
    refused("INVALID_VALUE", lambda: gpu.call("cuGetErrorName", 12345, ctypes.byref(text)))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_copies(gpu: Gpu) -> None:
    x, y = gpu.array(ints()), gpu.empty(32, np.int32)
    gpu.call("cuMemcpyDtoD", y, x, x.nbytes)
    assert np.array_equal(y.get(), ints())
    gpu.call("cuMemsetD32", y.at(1), 7, 2)
    gpu.call("cuMemsetD8", y.at(3), 1, 4)
    gpu.call("cuMemsetD16", y.at(4), 2, 2)
    assert y.get()[:6].tolist() == [0, 7, 7, 0x01010101, 0x00020002, 5]
    host = np.zeros(32, np.int32)
    gpu.call("cuMemcpy", ctypes.c_void_p(host.ctypes.data), x, x.nbytes)
    assert np.array_equal(host, ints())


def test_copies_out_of_range(gpu: Gpu) -> None:
    x = gpu.array(ints())
    host = np.zeros(64, np.int32)
    where = ctypes.c_void_p(host.ctypes.data)
    error = refused("INVALID_VALUE", lambda: gpu.call("cuMemcpyHtoD", x, where, x.nbytes + 1))
    assert "128 bytes" in error.detail
    refused("INVALID_VALUE", lambda: gpu.call("cuMemcpyDtoH", where, x.at(1), x.nbytes))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemcpyDtoH", where, 0x1234, 4))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemsetD32", x.at(31), 0, 2))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemsetD32", x.address + 2, 0, 1))
    gpu.call("cuMemcpyHtoD", 0, None, 0)


def test_free(gpu: Gpu) -> None:
    x = gpu.array(ints())
    refused("INVALID_VALUE", lambda: gpu.call("cuMemFree", x.at(1)))
    x.free()
    refused("INVALID_VALUE", lambda: gpu.call("cuMemFree", x.address))
    refused("INVALID_VALUE", x.get)
    gpu.call("cuMemFree", 0)


def test_allocations(gpu: Gpu) -> None:
    address = ctypes.c_uint64()
    refused("INVALID_VALUE", lambda: gpu.call("cuMemAlloc", ctypes.byref(address), 0))
    refused("OUT_OF_MEMORY", lambda: gpu.call("cuMemAlloc", ctypes.byref(address), 1 << 40))
    refused("NOT_SUPPORTED", lambda: gpu.call("cuMemAllocManaged", ctypes.byref(address), 4, 1))
    x = gpu.empty(100, np.uint8)
    assert x.address % 256 == 0
    begin, size = ctypes.c_uint64(), ctypes.c_size_t()
    gpu.call("cuMemGetAddressRange", ctypes.byref(begin), ctypes.byref(size), x.at(50))
    assert (begin.value, size.value) == (x.address, 100)
    refused("NOT_FOUND", lambda: gpu.call("cuMemGetAddressRange", ctypes.byref(begin), ctypes.byref(size), 64))


def test_read_of_uninitialised_memory(gpu: Gpu) -> None:
    x = gpu.empty(4, np.int32)
    gpu.try_call("cuMemcpyDtoH", ctypes.create_string_buffer(16), x, 16)
    assert [fault["kind"] for fault in gpu.faults()] == ["uninitialised"]


def test_pointer_attributes(gpu: Gpu) -> None:
    x = gpu.array(ints())
    kind = ctypes.c_uint()
    gpu.call("cuPointerGetAttribute", ctypes.byref(kind), 2, x)
    assert kind.value == 2
    host = ctypes.c_void_p()
    gpu.call("cuMemAllocHost", ctypes.byref(host), 64)
    gpu.call("cuPointerGetAttribute", ctypes.byref(kind), 2, host)
    assert kind.value == 1
    refused("INVALID_VALUE", lambda: gpu.call("cuPointerGetAttribute", ctypes.byref(kind), 2, 0x1000))
    gpu.call("cuMemFreeHost", host)
    refused("INVALID_VALUE", lambda: gpu.call("cuMemFreeHost", host))


DEVICEMAP, PORTABLE = 2, 1


def host_memory(
    gpu: Gpu, n: int, flags: int = DEVICEMAP | PORTABLE
) -> tuple[Buffer, np.ndarray[Any, np.dtype[np.int32]]]:
    """int32 [n] of the host that kernels reach: as a kernel's argument, and as the host's array."""
    host, address = ctypes.c_void_p(), ctypes.c_uint64()
    gpu.call("cuMemHostAlloc", ctypes.byref(host), 4 * n, DEVICEMAP | PORTABLE)
    gpu.call("cuMemHostGetDevicePointer", ctypes.byref(address), host, 0)
    assert address.value == host.value
    array = np.frombuffer((ctypes.c_int32 * n).from_address(address.value), np.int32)
    return Buffer(gpu, address.value, n, np.dtype(np.int32), owned=False), array


def test_host_memory_that_kernels_reach(gpu: Gpu, ptx: str) -> None:
    """It is read and written in place, beside the card's own memory, and the host's writes need no call."""
    add = gpu.module(ptx).kernel("add")
    free, then, total = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_size_t()
    gpu.call("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    source, values = host_memory(gpu, 32)
    target, results = host_memory(gpu, 32)
    gpu.call("cuMemGetInfo", ctypes.byref(then), ctypes.byref(total))
    assert then.value == free.value
    for value in (1, 2):
        values[:] = ints() * value
        gpu.launch(add, 1, 32, target, source, np.int32(value))
        gpu.synchronize()
        assert np.array_equal(results, ints() * value + value)
    x = gpu.array(ints())
    gpu.launch(add, 1, 32, x, source, np.int32(0))  # between the two kinds
    assert np.array_equal(x.get(), ints() * 2)
    assert gpu.faults() == []
    for buffer in (source, target):
        gpu.call("cuMemFreeHost", ctypes.c_void_p(buffer.address))


def test_copies_of_host_memory_that_kernels_reach(gpu: Gpu) -> None:
    memory, array = host_memory(gpu, 32)
    host = ctypes.c_void_p(memory.address)
    x, y = gpu.array(ints()), gpu.empty(32, np.int32)
    array[:] = ints() + 5
    gpu.call("cuMemcpyHtoD", x, host, x.nbytes)
    gpu.call("cuMemcpyDtoD", y, memory, y.nbytes)  # it is an address of the device as well
    assert np.array_equal(x.get(), ints() + 5) and np.array_equal(y.get(), ints() + 5)
    gpu.call("cuMemsetD32", x, 3, 32)
    gpu.call("cuMemcpyDtoH", host, x, x.nbytes)
    assert (array == 3).all()
    gpu.call("cuMemcpy", memory, y, y.nbytes)
    assert np.array_equal(array, ints() + 5)
    gpu.call("cuMemsetD32", memory, 9, 32)
    assert (array == 9).all()
    refused("INVALID_VALUE", lambda: gpu.call("cuMemcpyDtoH", host, x, x.nbytes + 1))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemcpyHtoD", gpu.empty(64), host, 4 * 33))
    assert gpu.faults() == []
    # What nobody wrote does not reach the host in silence.
    gpu.try_call("cuMemcpy", memory, gpu.empty(32, np.int32), 128)
    assert [fault["kind"] for fault in gpu.faults()] == ["uninitialised"]


def test_what_host_memory_refuses(gpu: Gpu, ptx: str) -> None:
    add = gpu.module(ptx).kernel("add")
    memory, _ = host_memory(gpu, 32)
    address = ctypes.c_uint64()
    plain = ctypes.c_void_p()
    gpu.call("cuMemHostAlloc", ctypes.byref(plain), 128, PORTABLE)  # not asked for
    refused("INVALID_VALUE", lambda: gpu.call("cuMemHostGetDevicePointer", ctypes.byref(address), plain, 0))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemHostGetDevicePointer", ctypes.byref(address), memory.address, 1))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemHostGetDevicePointer", ctypes.byref(address), 0x1000, 0))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemFree", memory.address))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemFreeHost", ctypes.c_void_p(memory.address + 4)))
    refused("INVALID_VALUE", lambda: gpu.call("cuMemHostAlloc", ctypes.byref(plain), 0, DEVICEMAP))
    mine = np.zeros(1024, np.int32)
    refused(
        "NOT_SUPPORTED",
        lambda: gpu.call("cuMemHostRegister", ctypes.c_void_p(mine.ctypes.data), mine.nbytes, DEVICEMAP),
    )
    out = gpu.empty(64, np.int32)
    (fault,) = gpu.faults_of(add, 1, 1, out, memory.at(32), np.int32(1))
    assert fault["kind"] == "out_of_bounds" and "host allocation" in fault["allocation"]
    (fault,) = gpu.faults_of(add, 1, 1, memory.at(-1), out, np.int32(1))[-1:]
    assert fault["kind"] == "out_of_bounds"
    gpu.call("cuMemFreeHost", ctypes.c_void_p(memory.address))
    (fault,) = gpu.faults_of(add, 1, 1, out, memory, np.int32(1))
    assert fault["kind"] == "use_after_free" and "freed" in fault["allocation"]
    refused("INVALID_VALUE", lambda: gpu.call("cuMemFreeHost", ctypes.c_void_p(memory.address)))
    (fault,) = gpu.faults_of(add, 1, 1, out, np.uint64(plain.value or 0), np.int32(1))  # pinned, and not for kernels
    assert fault["kind"] == "out_of_bounds"


def test_attributes_of_host_memory(gpu: Gpu) -> None:
    memory, _ = host_memory(gpu, 32)
    value = ctypes.c_uint64()

    def attribute(number: int) -> int:
        value.value = 0
        gpu.call("cuPointerGetAttribute", ctypes.byref(value), number, memory.at(1))
        return value.value

    # MEMORY_TYPE: the host's; DEVICE_POINTER, HOST_POINTER: one address; RANGE_START_ADDR, RANGE_SIZE, MAPPED
    assert [attribute(number) for number in (2, 3, 4, 11, 12, 13)] == [
        *(1, memory.address + 4, memory.address + 4, memory.address, 128, 1)
    ]
    flags, can = ctypes.c_uint(), ctypes.c_int()
    gpu.call("cuMemHostGetFlags", ctypes.byref(flags), memory.address)
    assert flags.value == DEVICEMAP | PORTABLE
    gpu.call("cuDeviceGetAttribute", ctypes.byref(can), 19, 0)  # CAN_MAP_HOST_MEMORY
    assert can.value == 1


# --- modules ----------------------------------------------------------------------------------------------------------


def test_module_errors(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    refused("NOT_FOUND", lambda: module.kernel("nobody"))
    refused("INVALID_IMAGE", lambda: gpu.module(b"\x01\x02\x03 garbage\0"))
    refused("INVALID_IMAGE", lambda: gpu.module(b"\0"))
    refused("INVALID_PTX", lambda: gpu.module(".visible"))
    refused("UNSUPPORTED_PTX_VERSION", lambda: gpu.module(ptx.replace(".version 9.0", ".version 9.9")))
    refused("INVALID_PTX", lambda: gpu.module(ptx.replace(".target sm_90", ".target sm_100")))
    refused("INVALID_PTX", lambda: gpu.module(ptx.replace(".target sm_90", ".target sm_89a")))
    error = refused("INVALID_PTX", lambda: gpu.module(ptx.replace("bar.sync", "bar.frobnicate")))
    assert "frobnicate" in error.detail
    refused("NO_BINARY_FOR_GPU", lambda: gpu.module(b"\x7fELF" + bytes(60)))


def test_functions(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    kernel = module.kernel("pair")
    assert kernel.parameters == [8, 16, 1]
    assert module.kernel("bounded").attribute(0) == 64
    assert module.kernel("fixed_shared").attribute(1) == 4096
    assert module.kernel("fixed_shared").attribute(8) == 48 * 1024 - 4096
    name = ctypes.c_char_p()
    gpu.call("cuFuncGetName", ctypes.byref(name), kernel.handle)
    assert name.value == b"pair"
    assert module.variable("answer", 4, np.int32).get().tolist() == [1, 2, 3, 42]
    out = gpu.empty(1, np.float64)
    gpu.launch(kernel, 1, 1, out, struct.pack("ixxxxd", 3, 0.5), np.int8(2))
    assert out.get()[0] == 5.5


def test_parameter_buffer(gpu: Gpu, ptx: str) -> None:
    kernel = gpu.module(ptx).kernel("store")
    out = gpu.empty(32, np.int32)
    buffer = ctypes.create_string_buffer(struct.pack("Qi", out.address, 9))

    def launch(size: int) -> None:
        length = ctypes.c_size_t(size)
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(length), 0)
        gpu.call("cuLaunchKernel", kernel.handle, 1, 1, 1, 32, 1, 1, 0, None, None, extra)

    launch(12)
    assert (out.get() == 9).all()
    refused("INVALID_VALUE", lambda: launch(8))


def test_handles(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    kernel = module.kernel("store")
    out = gpu.empty(32, np.int32)
    stream = gpu.stream()
    gpu.call("cuStreamDestroy", stream)
    refused("INVALID_HANDLE", lambda: gpu.launch(kernel, 1, 32, out, np.int32(1), stream=stream))
    refused("INVALID_HANDLE", stream.synchronize)
    refused("INVALID_HANDLE", lambda: gpu.call("cuStreamDestroy", stream))
    refused("INVALID_HANDLE", lambda: gpu.call("cuFuncLoad", module.handle))
    refused("INVALID_HANDLE", lambda: gpu.call("cuFuncLoad", None))
    gpu.call("cuModuleUnload", module.handle)
    refused("INVALID_HANDLE", lambda: gpu.launch(kernel, 1, 32, out, np.int32(1)))
    refused("INVALID_HANDLE", lambda: gpu.call("cuModuleUnload", module.handle))


def test_library(gpu: Gpu, ptx: str) -> None:
    library, kernel, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    image = ctypes.c_char_p(ptx.encode())
    gpu.call("cuLibraryLoadData", ctypes.byref(library), image, None, None, 0, None, None, 0)
    gpu.call("cuLibraryGetKernel", ctypes.byref(kernel), library, "store")
    gpu.call("cuKernelGetFunction", ctypes.byref(function), kernel)
    gpu.call("cuFuncLoad", function)
    gpu.call("cuLibraryUnload", library)
    refused("INVALID_HANDLE", lambda: gpu.call("cuFuncLoad", function))


# --- fatbins ----------------------------------------------------------------------------------------------------------

BOTH = ("compute_80,code=compute_80", "compute_90,code=[compute_90,sm_90]")


def which(gpu: Gpu, image: bytes) -> int:
    """The architecture of the PTX that the driver has picked."""
    return gpu.module(image).kernel("store").attribute(5)


def test_fatbin_picks_the_best_ptx(card: Card) -> None:
    image = compile_fatbin(SOURCE, BOTH)
    assert which(card("sm_86"), image) == 80
    assert which(card("sm_120"), image) == 90
    gpu = card("sm_90")
    assert which(gpu, image) == 90
    # The cubin beside it tells the registers.
    assert 0 < gpu.module(image).kernel("store").attribute(4) <= 255
    assert gpu.module(compile_cuda(SOURCE)).kernel("store").attribute(4) == 0


def test_fatbin_runs(gpu: Gpu) -> None:
    out = gpu.empty(32, np.int32)
    gpu.launch(gpu.module(compile_fatbin(SOURCE, BOTH)).kernel("store"), 1, 32, out, np.int32(5))
    assert (out.get() == 5).all()


def test_fatbin_without_code_for_the_card(card: Card) -> None:
    image = compile_fatbin(SOURCE, ("compute_90,code=compute_90",))
    refused("NO_BINARY_FOR_GPU", lambda: card("sm_89").module(image))
    error = refused(
        "NO_BINARY_FOR_GPU", lambda: card("sm_90").module(compile_fatbin(SOURCE, ("compute_90,code=sm_90",)))
    )
    assert "PTX" in error.detail


def test_fatbin_of_one_card_only(card: Card) -> None:
    image = compile_fatbin(SOURCE, ("compute_90a,code=compute_90a",))
    assert which(card("sm_90"), image) == 90
    refused("NO_BINARY_FOR_GPU", lambda: card("sm_100").module(image))


ZSTD = b"\x28\xb5\x2f\xfd"  # how a frame begins


def test_compressed_fatbin(card: Card) -> None:
    image = compile_fatbin(SOURCE, BOTH, flags=("--compress-mode=size",))
    assert image.count(ZSTD) == 3
    assert which(card("sm_86"), image) == 80
    gpu = card("sm_90")
    assert which(gpu, image) == 90
    assert 0 < gpu.module(image).kernel("store").attribute(4) <= 255
    for at in (image.index(ZSTD) + 20, image.index(ZSTD) + 5):  # what it says, and how long it says it is
        broken = bytearray(image)
        broken[at] ^= 0xFF
        refused("INVALID_IMAGE", lambda image=broken: card("sm_86").module(bytes(image)))


def test_fatbin_compressed_otherwise(gpu: Gpu) -> None:
    image = compile_fatbin(SOURCE, ("compute_80,code=compute_80",), flags=("--compress-mode=speed",))
    error = refused("NO_BINARY_FOR_GPU", lambda: gpu.module(image))
    assert "--compress-mode=size" in error.detail


def test_fatbin_wrapper(gpu: Gpu) -> None:
    image = ctypes.create_string_buffer(compile_fatbin(SOURCE, BOTH))
    wrapper = struct.pack("IIQQ", 0x466243B1, 1, ctypes.addressof(image), 0)
    assert which(gpu, wrapper) == 90


def test_damaged_fatbins(gpu: Gpu, tmp_path: Path) -> None:
    """From a file, whose size is known, and in memory, where the header says it: never a crash, never a module."""
    image = compile_fatbin(SOURCE, ("compute_80,code=compute_80",))
    header, payload = struct.unpack_from("<HQ", image, 6)
    refused("INVALID_IMAGE", lambda: gpu.module(image[:4] + b"\x09\0" + image[6:]))
    for size in (0, 10, 60, 70, payload // 2, payload - 1):
        shorter = image[:8] + struct.pack("<Q", size) + image[header:]
        name = "NO_BINARY_FOR_GPU" if size == 0 else "INVALID_IMAGE"
        refused(name, lambda data=shorter: gpu.module(data))  # type: ignore[misc]
    # An entry that is larger than the fatbin, and one with a header of no size.
    refused("INVALID_IMAGE", lambda: gpu.module(image[:24] + struct.pack("<Q", 1 << 63) + image[32:]))
    refused("INVALID_IMAGE", lambda: gpu.module(image[:20] + struct.pack("<I", 0) + image[24:]))
    path = tmp_path / "cut.fatbin"
    handle = ctypes.c_void_p()
    for size in (1, 3, 7, 15, 16, 40, len(image) // 2, len(image) - 1):
        path.write_bytes(image[:size])
        assert gpu.try_call("cuModuleLoad", ctypes.byref(handle), str(path)) in (200, 218)
    path.write_bytes(image)
    gpu.call("cuModuleLoad", ctypes.byref(handle), str(path))
    refused("FILE_NOT_FOUND", lambda: gpu.call("cuModuleLoad", ctypes.byref(handle), str(tmp_path / "none")))


def test_mutated_fatbins(gpu: Gpu, tmp_path: Path) -> None:
    """Any byte of the headers may be wrong."""
    image = bytearray(compile_fatbin(SOURCE, BOTH))
    random = np.random.default_rng(0)
    path, handle = tmp_path / "mutated.fatbin", ctypes.c_void_p()
    for _ in range(150):
        changed = bytearray(image)
        for at in random.integers(0, 96, 2):
            changed[at] = random.integers(0, 256)
        path.write_bytes(changed)
        gpu.try_call("cuModuleLoad", ctypes.byref(handle), str(path))


# --- launches ---------------------------------------------------------------------------------------------------------


def test_launch_shapes(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    kernel, out = module.kernel("store"), gpu.empty(1024, np.int32)
    for grid, block in (
        (0, 32),
        (1, 0),
        (1, 1025),
        ((1, 65536), 1),
        ((1, 1, 65536), 1),
        (1, (1, 1, 65)),
        (1, (32, 33)),
        (1 << 31, 1),
    ):
        refused("INVALID_VALUE", lambda g=grid, b=block: gpu.launch(kernel, g, b, out, np.int32(1)))  # type: ignore[misc]
    refused("INVALID_VALUE", lambda: gpu.launch(module.kernel("bounded"), 1, 65, out))
    gpu.launch(module.kernel("bounded"), 1, 64, out)
    gpu.launch(kernel, 1, 1024, out, np.int32(1))
    gpu.synchronize()
    assert gpu.faults() == []


def test_launch_without_parameters(gpu: Gpu, ptx: str) -> None:
    kernel = gpu.module(ptx).kernel("store")
    refused("INVALID_VALUE", lambda: gpu.call("cuLaunchKernel", kernel.handle, 1, 1, 1, 1, 1, 1, 0, None, None, None))


@pytest.mark.parametrize(("name", "most"), [("sm_86", 99), ("sm_80", 163), ("sm_90", 227), ("sm_120", 99)])
def test_shared_memory(card: Card, old_ptx: str, name: str, most: int) -> None:
    gpu = card(name)
    module = gpu.module(old_ptx)
    kernel, out = module.kernel("dynamic_shared"), gpu.empty(32, np.int32)
    gpu.launch(kernel, 1, 32, out, shared=48 * 1024)
    error = refused("INVALID_VALUE", lambda: gpu.launch(kernel, 1, 32, out, shared=48 * 1024 + 1))
    assert "MAX_DYNAMIC_SHARED" in error.detail
    refused("INVALID_VALUE", lambda: kernel.allow_shared(most * 1024 + 1))
    kernel.allow_shared(most * 1024)
    gpu.launch(kernel, 1, 32, out, shared=most * 1024)
    refused("INVALID_VALUE", lambda: gpu.launch(kernel, 1, 32, out, shared=most * 1024 + 1))
    fixed = module.kernel("fixed_shared")
    refused("INVALID_VALUE", lambda: fixed.allow_shared(most * 1024 - 4095))
    fixed.allow_shared(most * 1024 - 4096)
    gpu.synchronize()
    assert (out.get() == 1).all()


def test_registers(gpu: Gpu) -> None:
    """The cubin says more than 128: 512 threads of them do not fit."""
    source = r"""
    extern "C" __global__ void hungry(float *out, const float *in) {
        float x[160];
    #pragma unroll
        for (int i = 0; i < 160; i++) x[i] = in[i * 1024 + threadIdx.x];
        __syncthreads();
        float sum = 0;
    #pragma unroll
        for (int i = 0; i < 160; i++) sum = sum * x[i] + x[159 - i];
        out[threadIdx.x] = sum;
    }"""
    kernel = gpu.module(compile_fatbin(source, ("compute_90,code=[compute_90,sm_90]",))).kernel("hungry")
    assert kernel.attribute(4) > 128
    x = gpu.empty(1024)
    refused("LAUNCH_OUT_OF_RESOURCES", lambda: gpu.launch(kernel, 1, 512, x, x))


def test_cooperative_launch(gpu: Gpu, ptx: str) -> None:
    kernel, out = gpu.module(ptx).kernel("store"), gpu.empty(2 * 132 * 1024 + 1024, np.int32)
    gpu.launch(kernel, 4, 32, out, np.int32(1), cooperative=True)
    pointer, number = ctypes.c_uint64(out.address), ctypes.c_int(3)
    parameters = (ctypes.c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(number))
    gpu.call("cuLaunchCooperativeKernel", kernel.handle, 4, 1, 1, 32, 1, 1, 0, None, parameters)
    gpu.synchronize()
    blocks = ctypes.c_int()
    gpu.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", ctypes.byref(blocks), kernel.handle, 1024, 0)
    assert blocks.value == 2
    refused(
        "COOPERATIVE_LAUNCH_TOO_LARGE",
        lambda: gpu.launch(kernel, 2 * 132 + 1, 1024, out, np.int32(1), cooperative=True),
    )


def test_occupancy(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)

    def blocks(name: str, threads: int, shared: int = 0) -> int:
        out = ctypes.c_int()
        handle = module.kernel(name).handle
        gpu.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", ctypes.byref(out), handle, threads, shared)
        return out.value

    assert blocks("store", 32) == 32
    assert blocks("store", 256) == 8
    assert blocks("store", 256, 100 * 1024) == 2
    assert blocks("bounded", 128) == 0
    refused("INVALID_VALUE", lambda: blocks("store", 0))


def launch_with(gpu: Gpu, kernel: Any, out: Buffer, attribute: int, *value: int) -> None:
    attributes = (LaunchAttribute * 1)()
    attributes[0].id = attribute
    for i, word in enumerate(value):
        attributes[0].value[i] = word
    one, three = (1, 1, 1), (ctypes.c_uint * 3)
    config = LaunchConfig(three(*one), three(32, 1, 1), 0, None, attributes, 1)
    pointer, number = ctypes.c_uint64(out.address), ctypes.c_int(3)
    parameters = (ctypes.c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(number))
    gpu.call("cuLaunchKernelEx", ctypes.byref(config), kernel.handle, parameters, None)


def test_launch_attributes(gpu: Gpu, ptx: str) -> None:
    kernel, out = gpu.module(ptx).kernel("store"), gpu.empty(32, np.int32)
    launch_with(gpu, kernel, out, 4, 1, 1, 1)
    launch_with(gpu, kernel, out, 8, 0)
    assert gpu.faults() == []
    refused("NOT_SUPPORTED", lambda: launch_with(gpu, kernel, out, 4, 2, 1, 1))
    refused("NOT_SUPPORTED", lambda: launch_with(gpu, kernel, out, 9, 0))
    assert {fault["kind"] for fault in gpu.faults()} == {"unknown_call"}


def test_programmatic_launch_is_for_some_cards(card: Card, old_ptx: str) -> None:
    gpu = card("sm_89")
    kernel, out = gpu.module(old_ptx).kernel("store"), gpu.empty(32, np.int32)
    refused("NOT_SUPPORTED", lambda: gpu.launch(kernel, 1, 32, out, np.int32(1), programmatic=True))


def test_a_fault_sticks(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    out = gpu.empty(32, np.int32)
    gpu.launch(module.kernel("wild"), 1, 1, out)
    refused("ILLEGAL_ADDRESS", gpu.synchronize)
    refused("ILLEGAL_ADDRESS", lambda: gpu.empty(1))
    refused("ILLEGAL_ADDRESS", lambda: gpu.launch(module.kernel("store"), 1, 32, out, np.int32(1)))
    assert [fault["kind"] for fault in gpu.faults()] == ["out_of_bounds"]
    gpu.reset()
    assert gpu.faults() == []
    gpu.launch(module.kernel("store"), 1, 32, out, np.int32(1))
    assert (out.get() == 1).all()


def test_faults_of(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    out = gpu.empty(32, np.int32)
    (fault,) = gpu.faults_of(module.kernel("wild"), 1, 1, out)
    assert fault["kind"] == "out_of_bounds"
    gpu.synchronize()


def test_argument_types(gpu: Gpu, ptx: str) -> None:
    kernel, out = gpu.module(ptx).kernel("store"), gpu.empty(32, np.int32)
    with pytest.raises(TypeError, match="width"):
        gpu.launch(kernel, 1, 32, out, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="parameters"):
        gpu.launch(kernel, 1, 32, out, np.int64(1))


def test_report(gpu: Gpu, ptx: str) -> None:
    kernel, out = gpu.module(ptx).kernel("store"), gpu.empty(64, np.int32)
    gpu.report()
    gpu.launch(kernel, 2, 32, out, np.int32(1))
    (entry,) = gpu.report()
    assert entry["kernel"] == "store"
    assert gpu.report() == []


def test_report_file(gpu: Gpu, old_ptx: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    here = Path(__file__).resolve().parent
    program = (
        f"import sys; sys.path.insert(0, {str(here)!r})\nimport numpy as np, harness\n"
        f"gpu = harness.Gpu('sm_86'); out = gpu.empty(32, np.int32)\n"
        f"kernel = gpu.module(open({str(tmp_path / 'k.ptx')!r}).read()).kernel('store')\n"
        "gpu.launch(kernel, 1, 32, out, np.int32(1)); out.get(); gpu.launch(kernel, 1, 32, out, np.int32(2))\n"
    )
    (tmp_path / "k.ptx").write_text(old_ptx)
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"LLAMA_EXT_VGPU_REPORT": str(path)}, check=True)
    report = json.loads(path.read_text())
    assert report["card"] == "sm_86"
    assert [entry["kernel"] for entry in report["launches"]] == ["store", "store"]
    assert report["faults"] == []


# --- streams and events -----------------------------------------------------------------------------------------------


def test_streams_and_events(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    store, add = module.kernel("store"), module.kernel("add")
    a, b = gpu.empty(32, np.int32), gpu.empty(32, np.int32)
    first, second, event = gpu.stream(), gpu.stream(), gpu.event()
    gpu.launch(store, 1, 32, a, np.int32(4), stream=first)
    event.record(first)
    second.wait(event)
    gpu.launch(add, 1, 32, b, a, np.int32(1), stream=second)
    second.synchronize()
    assert (b.get() == 5).all()
    assert gpu.faults() == []


def test_streams_without_an_event_race(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    store, add = module.kernel("store"), module.kernel("add")
    a, b = gpu.array(ints()), gpu.empty(32, np.int32)
    first, second = gpu.stream(), gpu.stream()
    gpu.launch(store, 1, 32, a, np.int32(4), stream=first)
    gpu.launch(add, 1, 32, b, a, np.int32(1), stream=second)
    gpu.try_call("cuCtxSynchronize")
    assert "race" in {fault["kind"] for fault in gpu.faults()}


def test_host_synchronisation_orders_streams(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    store, add = module.kernel("store"), module.kernel("add")
    a, b = gpu.array(ints()), gpu.empty(32, np.int32)
    first, second = gpu.stream(), gpu.stream()
    gpu.launch(store, 1, 32, a, np.int32(4), stream=first)
    first.synchronize()
    gpu.launch(add, 1, 32, b, a, np.int32(1), stream=second)
    gpu.synchronize()
    assert gpu.faults() == []
    assert (b.get() == 5).all()


def test_default_stream_waits_for_blocking_streams_alone(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    store, add = module.kernel("store"), module.kernel("add")
    a, b = gpu.array(ints()), gpu.empty(32, np.int32)
    for flags, racy in ((0, False), (1, True)):
        gpu.launch(store, 1, 32, a, np.int32(4), stream=gpu.stream(flags))
        gpu.launch(add, 1, 32, b, a, np.int32(1))
        gpu.try_call("cuCtxSynchronize")
        assert bool(gpu.faults()) == racy
        gpu.reset()


def test_a_read_that_does_not_wait_sees_the_old(gpu: Gpu, ptx: str) -> None:
    out = gpu.array(ints())
    stream = gpu.stream()
    gpu.launch(gpu.module(ptx).kernel("store"), 1, 32, out, np.int32(4), stream=stream)
    assert np.array_equal(out.get(), ints())
    stream.synchronize()
    assert (out.get() == 4).all()


def test_event_errors(gpu: Gpu) -> None:
    a, b = gpu.event(0), gpu.event(0)
    time = ctypes.c_float()
    refused("INVALID_HANDLE", lambda: gpu.call("cuEventElapsedTime", ctypes.byref(time), a, b))
    a.record()
    b.record()
    b.synchronize()
    gpu.call("cuEventElapsedTime", ctypes.byref(time), a, b)
    assert time.value >= 0
    gpu.call("cuEventDestroy", a)
    refused("INVALID_HANDLE", a.record)


def test_programmatic_chain(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    a, b = gpu.empty(32, np.int32), gpu.empty(32, np.int32)
    stream = gpu.stream()
    for _ in range(3):
        gpu.launch(module.kernel("trigger"), 1, 32, a, np.int32(6), stream=stream)
        gpu.launch(module.kernel("dependent"), 1, 32, b, a, stream=stream, programmatic=True)
    stream.synchronize()
    assert (b.get() == 7).all()
    assert gpu.faults() == []


def test_programmatic_chain_without_a_wait(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    a, b = gpu.array(ints()), gpu.empty(32, np.int32)
    gpu.launch(module.kernel("trigger"), 1, 32, a, np.int32(6))
    gpu.launch(module.kernel("add"), 1, 32, b, a, np.int32(1), programmatic=True)
    gpu.try_call("cuCtxSynchronize")
    assert "race" in {fault["kind"] for fault in gpu.faults()}


def test_reset_drops_what_is_pending(gpu: Gpu, ptx: str) -> None:
    store = gpu.module(ptx).kernel("store")
    out, other = gpu.array(ints()), gpu.empty(32, np.int32)
    stream = gpu.stream()
    gpu.launch(store, 1, 32, out, np.int32(4), stream=stream)
    gpu.reset()
    stream.synchronize()
    assert np.array_equal(out.get(), ints())
    # And the order of what comes later is still known.
    gpu.launch(store, 1, 32, other, np.int32(5), stream=stream)
    gpu.launch(store, 1, 32, other, np.int32(6), stream=stream)
    stream.synchronize()
    assert (other.get() == 6).all()
    assert gpu.faults() == []


def test_host_function(gpu: Gpu, ptx: str) -> None:
    seen: list[int] = []
    out = gpu.empty(32, np.int32)
    gpu.launch(gpu.module(ptx).kernel("store"), 1, 32, out, np.int32(4))
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: seen.append(data))
    gpu.call("cuLaunchHostFunc", None, call, 17)
    gpu.synchronize()
    assert seen == [17]


# --- capture ----------------------------------------------------------------------------------------------------------

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


def begin(gpu: Gpu, stream: Stream, mode: int = THREAD_LOCAL) -> None:
    gpu.call("cuStreamBeginCapture", stream, mode)


def end(gpu: Gpu, stream: Stream) -> ctypes.c_void_p:
    graph = ctypes.c_void_p()
    gpu.call("cuStreamEndCapture", stream, ctypes.byref(graph))
    return graph


def instantiate(gpu: Gpu, graph: ctypes.c_void_p) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    gpu.call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, 0)
    return made


def edges(gpu: Gpu, graph: ctypes.c_void_p) -> list[tuple[int, int, int]]:
    """(from, to, type) by the nodes' places."""
    count = ctypes.c_size_t()
    gpu.call("cuGraphGetNodes", graph, None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * max(count.value, 1))()
    gpu.call("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
    place = {nodes[i]: i for i in range(count.value)}
    gpu.call("cuGraphGetEdges", graph, None, None, None, ctypes.byref(count))
    size = max(count.value, 1)
    sources, targets, data = (ctypes.c_void_p * size)(), (ctypes.c_void_p * size)(), (ctypes.c_ubyte * 8 * size)()
    gpu.call("cuGraphGetEdges", graph, sources, targets, data, ctypes.byref(count))
    return sorted((place[sources[i]], place[targets[i]], data[i][2]) for i in range(count.value))


def status(gpu: Gpu, stream: Stream) -> int:
    value = ctypes.c_int()
    gpu.call("cuStreamIsCapturing", stream, ctypes.byref(value))
    return value.value


def test_capture_and_replay(gpu: Gpu, ptx: str) -> None:
    add = gpu.module(ptx).kernel("add")
    add.load()
    x = gpu.array(ints())
    stream = gpu.stream()
    begin(gpu, stream)
    assert status(gpu, stream) == 1
    for _ in range(3):
        gpu.launch(add, 1, 32, x, x, np.int32(1), stream=stream)
    graph = end(gpu, stream)
    assert status(gpu, stream) == 0
    assert edges(gpu, graph) == [(0, 1, 0), (1, 2, 0)]
    assert np.array_equal(x.get(), ints())
    made = instantiate(gpu, graph)
    gpu.call("cuGraphDestroy", graph)
    for _ in range(2):
        gpu.call("cuGraphLaunch", made, stream)
    stream.synchronize()
    assert np.array_equal(x.get(), ints() + 6)
    gpu.call("cuGraphExecDestroy", made)
    refused("INVALID_HANDLE", lambda: gpu.call("cuGraphLaunch", made, stream))
    refused("INVALID_HANDLE", lambda: instantiate(gpu, graph))
    assert gpu.faults() == []


def test_module_load_during_capture(gpu: Gpu, ptx: str) -> None:
    """A function that was never loaded is loaded by its first launch, which a capture does not permit."""
    kernel, out = gpu.module(ptx).kernel("store"), gpu.empty(32, np.int32)
    stream = gpu.stream()
    begin(gpu, stream, RELAXED)
    refused("STREAM_CAPTURE_UNSUPPORTED", lambda: gpu.launch(kernel, 1, 32, out, np.int32(1), stream=stream))
    assert status(gpu, stream) == 2
    refused("STREAM_CAPTURE_INVALIDATED", lambda: gpu.launch(kernel, 1, 32, out, np.int32(1), stream=stream))
    refused("STREAM_CAPTURE_INVALIDATED", lambda: end(gpu, stream))
    assert status(gpu, stream) == 0
    (fault,) = gpu.faults()
    assert "module load during capture" in fault["message"]


def test_eager_loading(gpu: Gpu, old_ptx: str, tmp_path: Path) -> None:
    """CUDA_MODULE_LOADING=EAGER loads every function with its module."""
    (tmp_path / "k.ptx").write_text(old_ptx)
    code = f"""cuda.cuInit(0)
context, module, kernel, state = (ctypes.c_void_p() for _ in range(4))
cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
cuda.cuCtxSetCurrent(context)
cuda.cuModuleLoad(ctypes.byref(module), {str(tmp_path / "k.ptx").encode()!r})
cuda.cuModuleGetFunction(ctypes.byref(kernel), module, b"store")
print(cuda.cuFuncIsLoaded(ctypes.byref(out), kernel), out.value)"""
    assert in_new_process(code, CUDA_MODULE_LOADING="EAGER") == "0 1"
    assert in_new_process(code, CUDA_MODULE_LOADING="LAZY") == "0 0"


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL])
@pytest.mark.parametrize("what", ["alloc", "free", "copy", "module", "stream", "context", "load", "query"])
def test_what_a_capture_forbids(gpu: Gpu, ptx: str, mode: int, what: str) -> None:
    x, host = gpu.array(ints()), ctypes.create_string_buffer(128)
    address, handle = ctypes.c_uint64(), ctypes.c_void_p()
    kernel = gpu.module(ptx).kernel("store")
    event = gpu.event()
    stream = gpu.stream()
    begin(gpu, stream, mode)
    calls: dict[str, Callable[[], Any]] = {
        "alloc": lambda: gpu.call("cuMemAlloc", ctypes.byref(address), 16),
        "free": lambda: gpu.call("cuMemFree", x),
        "copy": lambda: gpu.call("cuMemcpyDtoH", host, x, 128),
        "module": lambda: gpu.call("cuModuleLoadData", ctypes.byref(handle), ctypes.c_char_p(ptx.encode())),
        "stream": lambda: stream.synchronize(),
        "context": lambda: gpu.synchronize(),
        "load": lambda: kernel.load(),
        "query": lambda: gpu.call("cuEventQuery", event),
    }
    refused("STREAM_CAPTURE_UNSUPPORTED", calls[what])
    refused("STREAM_CAPTURE_INVALIDATED", lambda: end(gpu, stream))


def test_a_relaxed_capture_allows_allocations(gpu: Gpu, ptx: str) -> None:
    stream = gpu.stream()
    begin(gpu, stream, RELAXED)
    gpu.empty(4).free()
    gpu.module(ptx)
    end(gpu, stream)
    begin(gpu, stream, GLOBAL)
    mode = ctypes.c_int(RELAXED)
    gpu.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    assert mode.value == GLOBAL
    address = ctypes.c_uint64()
    gpu.call("cuMemAlloc", ctypes.byref(address), 4)
    gpu.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    end(gpu, stream)


def test_capture_states(gpu: Gpu) -> None:
    stream = gpu.stream()
    refused("ILLEGAL_STATE", lambda: end(gpu, stream))
    refused("STREAM_CAPTURE_UNSUPPORTED", lambda: gpu.call("cuStreamBeginCapture", None, THREAD_LOCAL))
    begin(gpu, stream)
    refused("ILLEGAL_STATE", lambda: begin(gpu, stream))
    end(gpu, stream)


def in_thread(gpu: Gpu, body: Callable[[], Any]) -> None:
    """Runs with the context current; what it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            gpu.call("cuCtxSetCurrent", gpu.context)
            body()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_captures_and_threads(gpu: Gpu) -> None:
    stream, address = gpu.stream(), ctypes.c_uint64()

    def allocate() -> None:
        gpu.call("cuMemAlloc", ctypes.byref(address), 4)

    begin(gpu, stream, THREAD_LOCAL)
    in_thread(gpu, allocate)
    in_thread(gpu, lambda: refused("STREAM_CAPTURE_WRONG_THREAD", lambda: end(gpu, stream)))
    end(gpu, stream)
    begin(gpu, stream, GLOBAL)
    in_thread(gpu, lambda: refused("STREAM_CAPTURE_UNSUPPORTED", allocate))
    refused("STREAM_CAPTURE_INVALIDATED", lambda: end(gpu, stream))
    begin(gpu, stream, RELAXED)
    in_thread(gpu, lambda: end(gpu, stream))


def test_a_thread_has_its_own_context(gpu: Gpu) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(gpu.try_call("cuCtxSynchronize")))
    thread.start()
    thread.join()
    assert codes == [201]


def test_default_stream_and_capture(gpu: Gpu, ptx: str) -> None:
    """The default stream would wait for a blocking stream that is being captured."""
    kernel, out = gpu.module(ptx).kernel("store"), gpu.empty(32, np.int32)
    kernel.load()
    stream = gpu.stream(0)
    begin(gpu, stream)
    refused("STREAM_CAPTURE_IMPLICIT", lambda: gpu.launch(kernel, 1, 32, out, np.int32(1)))
    refused("STREAM_CAPTURE_INVALIDATED", lambda: end(gpu, stream))


def fork(gpu: Gpu, origin: Stream, branch: Stream) -> None:
    event = gpu.event()
    event.record(origin)
    branch.wait(event)


def test_fork_and_join(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    store, add = module.kernel("store"), module.kernel("add")
    store.load()
    add.load()
    a, b, c = (gpu.empty(32, np.int32) for _ in range(3))
    origin, branch = gpu.stream(), gpu.stream()
    begin(gpu, origin)
    gpu.launch(store, 1, 32, a, np.int32(1), stream=origin)
    fork(gpu, origin, branch)
    gpu.launch(add, 1, 32, b, a, np.int32(1), stream=branch)
    gpu.launch(add, 1, 32, c, a, np.int32(2), stream=origin)
    fork(gpu, branch, origin)
    gpu.launch(add, 1, 32, a, b, np.int32(5), stream=origin)
    graph = end(gpu, origin)
    assert edges(gpu, graph) == [(0, 1, 0), (0, 2, 0), (1, 3, 0), (2, 3, 0)]
    made = instantiate(gpu, graph)
    for seed in range(4):
        gpu.seed(seed)
        gpu.call("cuGraphLaunch", made, origin)
        origin.synchronize()
        assert (a.get() == 7).all() and (c.get() == 3).all()
    assert gpu.faults() == []


def test_unjoined(gpu: Gpu, ptx: str) -> None:
    kernel, out = gpu.module(ptx).kernel("store"), gpu.empty(32, np.int32)
    kernel.load()
    origin, branch = gpu.stream(), gpu.stream()
    begin(gpu, origin)
    fork(gpu, origin, branch)
    gpu.launch(kernel, 1, 32, out, np.int32(1), stream=branch)
    refused("STREAM_CAPTURE_UNMATCHED", lambda: end(gpu, branch))
    refused("STREAM_CAPTURE_UNJOINED", lambda: end(gpu, origin))
    assert status(gpu, branch) == 0


def test_isolation_and_merge(gpu: Gpu) -> None:
    one, two, event = gpu.stream(), gpu.stream(), gpu.event()
    event.record()
    begin(gpu, one)
    refused("STREAM_CAPTURE_ISOLATION", lambda: one.wait(event))
    refused("STREAM_CAPTURE_INVALIDATED", lambda: end(gpu, one))
    begin(gpu, one)
    begin(gpu, two)
    event.record(one)
    refused("STREAM_CAPTURE_MERGE", lambda: two.wait(event))
    refused("STREAM_CAPTURE_INVALIDATED", lambda: end(gpu, two))
    refused("CAPTURED_EVENT", event.synchronize)
    refused("STREAM_CAPTURE_INVALIDATED", lambda: end(gpu, one))


def test_captured_copies_and_fills(gpu: Gpu) -> None:
    x, y = gpu.array(ints()), gpu.empty(32, np.int32)
    host = np.zeros(32, np.int32)
    stream = gpu.stream()
    begin(gpu, stream)
    gpu.call("cuMemcpyDtoDAsync", y, x, x.nbytes, stream)
    gpu.call("cuMemsetD32Async", y.at(1), 9, 1, stream)
    gpu.call("cuMemcpyDtoHAsync", ctypes.c_void_p(host.ctypes.data), y, y.nbytes, stream)
    made = instantiate(gpu, end(gpu, stream))
    assert not host.any()
    gpu.call("cuGraphLaunch", made, stream)
    stream.synchronize()
    assert host[:3].tolist() == [0, 9, 2]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_replay_reads_pinned_memory_then(gpu: Gpu, ptx: str, mapped: bool) -> None:
    """[a copy in, kernels, a copy out] as a graph: each replay takes what the host has written since."""
    module = gpu.module(ptx)
    add = module.kernel("add")
    add.load()
    host, out = ctypes.c_void_p(), ctypes.c_void_p()
    for memory in (host, out):
        gpu.call("cuMemHostAlloc", ctypes.byref(memory), 128, DEVICEMAP if mapped else 0)
    source, result = (
        np.frombuffer((ctypes.c_int32 * 32).from_address(memory.value or 0), np.int32) for memory in (host, out)
    )
    source[:], result[:] = -1, 0
    x, y = gpu.empty(32, np.int32), gpu.empty(32, np.int32)
    stream = gpu.stream()
    begin(gpu, stream)
    gpu.call("cuMemcpyHtoDAsync", x, host, 128, stream)
    gpu.launch(add, 1, 32, y, x, np.int32(1), stream=stream)
    gpu.launch(add, 1, 32, y, y, np.int32(1), stream=stream, cooperative=True)
    gpu.call("cuMemcpyDtoHAsync", out, y, 128, stream)
    graph = end(gpu, stream)
    assert edges(gpu, graph) == [(0, 1, 0), (1, 2, 0), (2, 3, 0)]
    made = instantiate(gpu, graph)
    assert not result.any()
    for turn in range(3):
        source[:] = ints() * turn
        gpu.call("cuGraphLaunch", made, stream)
        stream.synchronize()
        assert np.array_equal(result, ints() * turn + 2)
    assert gpu.faults() == []


def test_a_captured_launch_is_cooperative(gpu: Gpu) -> None:
    """A grid barrier in a captured launch: every block is resident, which an ordinary launch does not promise."""
    source = r"""
    extern "C" __global__ void meet(unsigned *count, int *out) {
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(count, 1u);
            while (atomicAdd(count, 0u) < gridDim.x) {}
            __threadfence();
        }
        __syncthreads();
        out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
    }"""
    meet = gpu.module(compile_cuda(source, "compute_90")).kernel("meet")
    meet.load()
    count, out = gpu.array(np.zeros(1, np.uint32)), gpu.empty(16 * 32, np.int32)
    stream = gpu.stream()
    made = {}
    for cooperative in (True, False):
        begin(gpu, stream)
        gpu.call("cuMemsetD32Async", count, 0, 1, stream)
        gpu.launch(meet, 16, 32, count, out, stream=stream, cooperative=cooperative)
        made[cooperative] = instantiate(gpu, end(gpu, stream))
    for _ in range(2):
        gpu.call("cuGraphLaunch", made[True], stream)
        stream.synchronize()
    assert (out.get() == 1).all() and gpu.faults() == []
    assert gpu.try_call("cuGraphLaunch", made[False], stream) != 0
    assert "livelock" in {fault["kind"] for fault in gpu.faults()}


def test_programmatic_edges_are_kept(gpu: Gpu, ptx: str) -> None:
    module = gpu.module(ptx)
    first, second = module.kernel("trigger"), module.kernel("dependent")
    first.load()
    second.load()
    a, b = gpu.empty(32, np.int32), gpu.empty(32, np.int32)
    stream = gpu.stream()
    begin(gpu, stream)
    gpu.launch(first, 1, 32, a, np.int32(1), stream=stream)
    gpu.launch(second, 1, 32, b, a, stream=stream, programmatic=True)
    graph = end(gpu, stream)
    assert edges(gpu, graph) == [(0, 1, 1)]
    made = instantiate(gpu, graph)
    for _ in range(2):
        gpu.call("cuGraphLaunch", made, stream)
    stream.synchronize()
    assert (b.get() == 2).all()
    assert gpu.faults() == []
    count = ctypes.c_size_t(4)
    nodes = (ctypes.c_void_p * 4)()
    # A query that cannot say what kind of edge it is.
    refused("LOSSY_QUERY", lambda: gpu.call("cuGraphGetEdges", graph, nodes, nodes, None, ctypes.byref(count)))


# --- graphs by hand ---------------------------------------------------------------------------------------------------


class KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("shape", ctypes.c_uint * 7),
        ("parameters", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class Arguments:
    """add(out, in, value) as node parameters, and what they point to."""

    def __init__(self, kernel: Any, out: Buffer, source: Buffer, value: int) -> None:
        self.values = (ctypes.c_uint64(out.address), ctypes.c_uint64(source.address), ctypes.c_int(value))
        self.pointers = (ctypes.c_void_p * 3)(*map(ctypes.addressof, self.values))
        shape = (ctypes.c_uint * 7)(1, 1, 1, 32, 1, 1, 0)
        self.node = KernelNode(kernel.handle, shape, ctypes.addressof(self.pointers), None, None, None)


def add_node(gpu: Gpu, graph: ctypes.c_void_p, arguments: Arguments, after: list[ctypes.c_void_p]) -> ctypes.c_void_p:
    node = ctypes.c_void_p()
    before = (ctypes.c_void_p * max(len(after), 1))(*[handle.value for handle in after])
    gpu.call("cuGraphAddKernelNode", ctypes.byref(node), graph, before, len(after), ctypes.byref(arguments.node))
    return node


def new_graph(gpu: Gpu) -> ctypes.c_void_p:
    graph = ctypes.c_void_p()
    gpu.call("cuGraphCreate", ctypes.byref(graph), 0)
    return graph


def test_graph_by_hand(gpu: Gpu, ptx: str) -> None:
    add = gpu.module(ptx).kernel("add")
    a, b, c = gpu.array(ints()), gpu.empty(32, np.int32), gpu.empty(32, np.int32)
    graph = new_graph(gpu)
    first = add_node(gpu, graph, Arguments(add, b, a, 1), [])
    second = add_node(gpu, graph, Arguments(add, c, b, 10), [first])
    made = instantiate(gpu, graph)
    gpu.call("cuGraphLaunch", made, None)
    assert np.array_equal(c.get(), ints() + 11)
    changed = Arguments(add, c, b, 20)
    gpu.call("cuGraphExecKernelNodeSetParams", made, second, ctypes.byref(changed.node))
    gpu.call("cuGraphLaunch", made, None)
    assert np.array_equal(c.get(), ints() + 21)
    # The graph itself is as it was.
    as_it_was = KernelNode()
    gpu.call("cuGraphKernelNodeGetParams", second, ctypes.byref(as_it_was))
    pointers = ctypes.cast(as_it_was.parameters, ctypes.POINTER(ctypes.c_void_p))
    assert ctypes.cast(pointers[2], ctypes.POINTER(ctypes.c_int))[0] == 10
    gpu.call("cuGraphLaunch", instantiate(gpu, graph), None)
    assert np.array_equal(c.get(), ints() + 11)
    other = add_node(gpu, new_graph(gpu), Arguments(add, c, b, 20), [])
    refused(
        "INVALID_VALUE",
        lambda: gpu.call("cuGraphExecKernelNodeSetParams", made, other, ctypes.byref(changed.node)),
    )
    too_wide = Arguments(add, c, b, 20)
    too_wide.node.shape[3] = 2048
    refused(
        "INVALID_VALUE",
        lambda: gpu.call("cuGraphExecKernelNodeSetParams", made, second, ctypes.byref(too_wide.node)),
    )
    refused("INVALID_VALUE", lambda: add_node(gpu, graph, too_wide, []))
    assert gpu.faults() == []


def test_a_missing_edge_is_a_race(gpu: Gpu, ptx: str) -> None:
    add = gpu.module(ptx).kernel("add")
    a, b, c = gpu.array(ints()), gpu.array(ints()), gpu.empty(32, np.int32)
    for seed in range(3):
        gpu.seed(seed)
        graph = new_graph(gpu)
        add_node(gpu, graph, Arguments(add, b, a, 1), [])
        add_node(gpu, graph, Arguments(add, c, b, 10), [])
        gpu.try_call("cuGraphLaunch", instantiate(gpu, graph), None)
        gpu.try_call("cuCtxSynchronize")
        assert "race" in {fault["kind"] for fault in gpu.faults()}
        gpu.reset()


def test_nodes_run_in_any_order(gpu: Gpu) -> None:
    """Two writers that nothing orders: over the seeds, each comes last at times."""
    out = gpu.empty(32, np.int32)
    graph = new_graph(gpu)
    for value in (1, 2):
        node = ctypes.c_void_p()
        fill = struct.pack("QQIIQQ", out.address, 0, value, 4, 32, 1)
        gpu.call("cuGraphAddMemsetNode", ctypes.byref(node), graph, None, 0, fill, None)
    made = instantiate(gpu, graph)
    seen = set()
    for seed in range(16):
        gpu.seed(seed)
        gpu.call("cuGraphLaunch", made, None)
        seen.add(int(out.get()[0]))
    assert seen == {1, 2}


def test_cycles(gpu: Gpu) -> None:
    graph = new_graph(gpu)
    nodes = [ctypes.c_void_p() for _ in range(3)]
    for node in nodes:
        gpu.call("cuGraphAddEmptyNode", ctypes.byref(node), graph, None, 0)

    def depend(source: int, target: int) -> None:
        one, other = (ctypes.c_void_p * 1)(nodes[source].value), (ctypes.c_void_p * 1)(nodes[target].value)
        gpu.call("cuGraphAddDependencies", graph, one, other, None, 1)

    depend(0, 1)
    depend(1, 2)
    refused("INVALID_VALUE", lambda: depend(2, 0))
    refused("INVALID_VALUE", lambda: depend(1, 1))
    refused("INVALID_VALUE", lambda: depend(0, 1))
    assert edges(gpu, graph) == [(0, 1, 0), (1, 2, 0)]
    stranger = ctypes.c_void_p()
    gpu.call("cuGraphAddEmptyNode", ctypes.byref(stranger), new_graph(gpu), None, 0)
    one, other = (ctypes.c_void_p * 1)(stranger.value), (ctypes.c_void_p * 1)(nodes[0].value)
    refused("INVALID_VALUE", lambda: gpu.call("cuGraphAddDependencies", graph, one, other, None, 1))
    gpu.call("cuGraphLaunch", instantiate(gpu, graph), None)


def test_update(gpu: Gpu, ptx: str) -> None:
    add = gpu.module(ptx).kernel("add")
    a, b = gpu.array(ints()), gpu.empty(32, np.int32)

    def one(value: int) -> ctypes.c_void_p:
        graph = new_graph(gpu)
        add_node(gpu, graph, Arguments(add, b, a, value), [])
        return graph

    made = instantiate(gpu, one(1))
    result = (ctypes.c_uint64 * 4)()
    gpu.call("cuGraphExecUpdate", made, one(2), result)
    gpu.call("cuGraphLaunch", made, None)
    assert np.array_equal(b.get(), ints() + 2)
    refused("GRAPH_EXEC_UPDATE_FAILURE", lambda: gpu.call("cuGraphExecUpdate", made, new_graph(gpu), result))
    assert result[0] & 0xFFFFFFFF == 2
