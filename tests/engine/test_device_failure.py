"""Which failures leave a process without a usable CUDA context: by code, by words, by a probe."""

from __future__ import annotations

import pytest
import torch

from raysweep.engine.device_failure import STICKY, dead_context, probe
from raysweep.errors import InputError

ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call …\nDevice-side assertions …"
NOT_STICKY = {
    1: "invalid argument",
    2: "out of memory",
    98: "invalid device function",
    701: "too many resources requested for launch",
}


def accelerator_error(code, words):
    error = torch.AcceleratorError(f"CUDA error: {words}{ADVICE}")
    error.error_code = code
    return error


@pytest.mark.parametrize("code", STICKY)
def test_sticky_codes(code):
    """Of each it is CUDA's documentation, or the hardware, that says that the process cannot go on."""
    assert (
        dead_context(accelerator_error(code, "in other words"), "cpu") == "AcceleratorError: CUDA error: in other words"
    )


@pytest.mark.parametrize(
    "template",
    [
        "CUDA error: {}" + ADVICE,
        "CUDA driver error: {}",
        "Triton Error [CUDA]: {}",
        "HIP error: {}",
        "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nLast error:\nCuda failure 700 '{}'",
    ],
)
@pytest.mark.parametrize("words", [words for words in STICKY.values() if words])
def test_sticky_words(template, words):
    assert words in dead_context(RuntimeError(template.format(words)), "cpu") or "NCCL" in template


@pytest.mark.parametrize(("code", "words"), NOT_STICKY.items())
def test_codes_that_leave_the_context_alive(code, words):
    assert dead_context(accelerator_error(code, words), "cpu") == ""
    assert dead_context(RuntimeError(f"CUDA error: {words}{ADVICE}"), "cpu") == ""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ValueError("an unknown error"),
        RuntimeError("unknown error"),
        InputError("record 3: 'CUDA error: misaligned address' is no number"),
    ],
)
def test_other_failures_leave_the_context_alive(error):
    assert dead_context(error, "cpu") == ""


def test_what_an_error_was_raised_from_counts():
    cause = RuntimeError("CUDA error: misaligned address")
    with pytest.raises(InputError) as raised:
        raise InputError("the checkpoint cannot be loaded") from cause
    assert dead_context(raised.value, "cpu") == "RuntimeError: CUDA error: misaligned address"


class Device:
    """Stands for torch.cuda of two devices, with memory on the second one only."""

    def __init__(self, monkeypatch, error=None):
        self.used, self.error = [], error
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda i: i == 1)
        monkeypatch.setattr(torch, "zeros", lambda n, device: self.used.append(device))
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def synchronize(self, device):
        if self.error:
            raise self.error


def test_an_unknown_failure_is_settled_by_a_probe(monkeypatch):
    unknown = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`")
    device = Device(monkeypatch)
    assert dead_context(unknown, "cuda") == ""
    assert device.used == ["cuda", "cuda:1"], "what the process has memory on, no other"
    Device(monkeypatch, RuntimeError("CUDA error: device kernel image is invalid" + ADVICE))
    assert dead_context(unknown, "cuda:0") == "RuntimeError: CUDA error: device kernel image is invalid"
    device = Device(monkeypatch, RuntimeError("never"))
    assert dead_context(unknown, "cpu") == ""
    assert device.used == []


def test_a_probe_that_runs_out_of_memory_finds_a_live_context(monkeypatch):
    Device(monkeypatch, torch.OutOfMemoryError("CUDA out of memory."))
    assert probe("cuda") == ""


def test_a_probe_is_not_misled_by_the_failure_that_led_to_it(monkeypatch):
    Device(monkeypatch, RuntimeError("CUDA error: initialization error"))
    found = []
    try:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    except RuntimeError as error:  # while it is handled, an error of the probe has it as its context
        found.append(dead_context(error, "cuda"))
    assert found == ["RuntimeError: CUDA error: initialization error"]


def test_without_cuda_nothing_is_probed():
    assert probe("cuda") == ""
    assert probe("cpu") == ""
