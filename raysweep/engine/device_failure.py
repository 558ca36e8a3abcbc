"""Tell a dead CUDA context from other failures.

Some CUDA errors are sticky: CUDA's documentation says that they leave the process in an inconsistent state, that any
further CUDA work returns the same error, and that the process must be terminated and relaunched. Out of memory is not one
of them (models/machine_errors.py). An error that the table does not know is settled by a probe: a tiny allocation and a synchronization.
"""

from __future__ import annotations

import re

from raysweep.errors import in_lines, shortened
from raysweep.models.machine_errors import causes, is_out_of_memory

# By cudaError_t: the text of cudaGetErrorString, which is all that torch before 2.8 gives; empty if only the code is used.
STICKY = {
    214: "uncorrectable ECC error encountered",
    220: "uncorrectable NVLink error detected during the execution",
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "",  # tensor memory leak
    810: "",  # the MPS server terminated this client
    911: "",  # an error of an external device
    999: "unknown error",
}
# c10's checks, of the runtime and of the driver, Triton's, and their names on ROCm; NCCL puts its own words in between.
_RAISED_BY = r"(?:CUDA|HIP)(?: driver)? error:|Triton Error \[(?:CUDA|HIP)\]:|Cuda failure(?: \d+)?"
_STICKY_TEXT = re.compile(f"(?:{_RAISED_BY})\\s*'?(?:{'|'.join(map(re.escape, filter(None, STICKY.values())))})", re.I)


def dead_context(error: BaseException, device: str) -> str:
    """Return why no call can run on the device in this process any more after `error`; empty if calls can.

    `device` is the failed call's. Known errors count on any; also one that `error` was raised from, or during. On `cpu`
    nothing is probed.
    """
    for each in causes(error):
        if _is_known(each):
            return _words(each)
    return "" if device == "cpu" else probe(device)


def probe(device: str) -> str:
    """Use every CUDA device that this process has memory on, and `device`; return the error of the first that fails, or nothing.

    Out of memory is no failure here: the context is alive.
    """
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return ""
    try:
        others = [f"cuda:{i}" for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i)]
        for each in dict.fromkeys([device, *others]):
            torch.zeros(1, device=each)
            torch.cuda.synchronize(each)
    except Exception as error:
        error.__context__ = None  # the failure that led here
        return "" if is_out_of_memory(error) else _words(error)
    return ""


def _is_known(error: BaseException) -> bool:
    import torch

    accelerator = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    if accelerator is not None and isinstance(error, accelerator) and getattr(error, "error_code", None) in STICKY:
        return True
    return isinstance(error, RuntimeError) and _STICKY_TEXT.search(str(error)) is not None


def _words(error: BaseException) -> str:
    """The exception's first line: torch appends several of general advice."""
    first = str(error).strip().partition("\n")[0]
    return shortened(in_lines(RuntimeError(f"{type(error).__name__}: {first}")), 300)
