"""Which errors are the machine's, in every library's words, and that none of them is taken for bad input."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.machine_errors import is_machine_error, is_out_of_memory

Build = Callable[..., PreTrainedModel]
Save = Callable[..., Checkpoint]

SEARCH = (
    "\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/cuda-runtime-api for more information."
)
NO_MEMORY: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
    torch.AcceleratorError(f"CUDA error: out of memory{SEARCH}"),  # a context, pinned memory, a graph
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),  # expandable segments
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("CUDA error: resource allocation failed when calling `cusparseCreate(handle)`"),
    RuntimeError("HIP out of memory. Tried to allocate 16.00 MiB"),
    RuntimeError("HIP error: hipErrorOutOfMemory"),
    RuntimeError("rocblas error: rocblas_status_memory_error"),
    RuntimeError("MPS backend out of memory (MPS allocated: 7.64 GiB, max allowed: 9.07 GiB). Tried to allocate 1 GiB"),
    RuntimeError("Invalid buffer size: 21.61 GiB"),
    RuntimeError("XPU out of memory. Tried to allocate 1.00 GiB"),
    RuntimeError("UR backend failed. UR backend returns:39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
        "Last error:\nCuda failure 2 'out of memory'"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("unable to mmap 4096 bytes from file </w/model.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Caught OutOfMemoryError in DataLoader worker process 0."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    SafetensorError("Error while memory mapping: Cannot allocate memory (os error 12)"),
]
OF_A_DEVICE: list[BaseException] = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("HIP error: unspecified launch failure"),
    torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled system error"),
]
OTHERS: list[BaseException] = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("not enough memory"),
    InputError("records.jsonl: line 3: CUDA error: out of memory"),
    KeyError("model.layers.0"),
    OSError(errno.ENOENT, "No such file or directory"),
    SafetensorError("Error while deserializing header: header too large"),
]


def in_words(error: object) -> str:
    return str(error)[:50]


@pytest.mark.parametrize("error", NO_MEMORY, ids=in_words)
def test_memory_that_runs_out_in_the_words_of_each_library(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert is_machine_error(error)


@pytest.mark.parametrize("error", OF_A_DEVICE, ids=in_words)
def test_a_device_that_failed_is_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert is_machine_error(error)


@pytest.mark.parametrize("error", OTHERS, ids=in_words)
def test_other_errors_are_neither(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert not is_machine_error(error)


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**60)], ids=["torch", "Python"]
)
def test_what_this_machine_raises(allocate: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    assert is_out_of_memory(raised.value)


class TaskError(Exception):
    """As Ray raises what a task raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a task failed")
        self.cause = cause


def test_an_error_that_comes_from_one_is_one() -> None:
    short = torch.OutOfMemoryError("CUDA out of memory")
    from_cause, in_context = RuntimeError("conversion failed"), RuntimeError("conversion failed")
    from_cause.__cause__, in_context.__context__ = ValueError("a"), ValueError("b")
    from_cause.__cause__.__cause__ = in_context.__context__.__context__ = short
    for error in (from_cause, in_context, TaskError(short), ExceptionGroup("threads", [ValueError("c"), short])):
        assert is_out_of_memory(error), error


def test_what_an_error_hides_on_purpose_does_not_count_and_a_circle_ends() -> None:
    hidden, circle = RuntimeError("other"), RuntimeError("circle")
    hidden.__context__, hidden.__suppress_context__ = MemoryError(), True
    circle.__cause__ = circle
    assert not is_out_of_memory(hidden)
    assert not is_out_of_memory(circle)
