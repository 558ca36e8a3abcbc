"""Errors of the machine, not of the input: memory ran out, or a device failed.

Much of raysweep catches what a library raises and reports bad input. A checkpoint that does not fit now may fit on another
worker, or once memory is free again, so such code lets these errors pass.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

# What an allocation that fails is called, in lower case.
_NO_MEMORY = (
    "out of memory",  # CUDA's, HIP's, XPU's and MPS's allocators, their drivers, pinned memory, NCCL
    "outofmemory",  # hipErrorOutOfMemory, Metal's …ErrorOutOfMemory, the name of torch's error in another one's text
    "out_of_device_memory",  # XPU
    "out_of_host_memory",
    "not enough memory",  # torch on Windows, oneMKL
    "can't allocate memory",  # torch on Linux
    "cannot allocate memory",  # the system: files that are mapped
    "_alloc_failed",  # cuBLAS, cuSOLVER, cuSPARSE, cuDNN before version 9, hipBLAS
    "allocation_failed",  # cuDNN from version 9 on
    "resource allocation failed",  # cuSPARSE in words
    "rocblas_status_memory_error",
    "invalid buffer size",  # MPS, for more than one buffer may have
    "bad_alloc",  # C++
)
_DEVICE_FAILED = (
    *(
        "cuda error",
        "cuda driver error",
        "cuda failure",
        "hip error",
        "cudnn error",
        "cublas_status_",
        "cusolver error",
    ),
    *("nccl error", "miopen error"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it comes from, means that memory ran out, on a device or on the host."""
    return any(map(_is_out_of_memory, causes(error)))


def is_machine_error(error: BaseException) -> bool:
    """Whether an exception, or one that it comes from, is the machine's: memory ran out, or a device failed."""
    return any(_is_out_of_memory(each) or _is_of_device(each) for each in causes(error))


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return _names(error, _NO_MEMORY)


def _is_of_device(error: BaseException) -> bool:
    import torch

    if isinstance(error, getattr(torch, "AcceleratorError", ())):  # torch 2.8 has it
        return True
    return _names(error, _DEVICE_FAILED)


def _names(error: BaseException, words: Iterable[str]) -> bool:
    """Whether a library's error says one of these. A ValueError's text, or one of raysweep's own, may quote anything."""
    from safetensors import SafetensorError

    text = str(error).lower() if isinstance(error, RuntimeError | OSError | SafetensorError) else ""
    return any(word in text for word in words)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it comes from: as Python prints them, a group's own, and what a Ray task raised."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        context = None if each.__suppress_context__ else each.__context__
        others = (each.__cause__, context, getattr(each, "cause", None))
        waiting += [other for other in others if isinstance(other, BaseException)]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
