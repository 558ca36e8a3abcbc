"""State of the whole process that a training changes, restored when it ends: what runs next computes as if there had been none.

transformers' arguments and trainer set precision and determinism flags, seeds and environment variables, and reset
accelerate's shared state. None of them is set back by its library.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

# (backend, operation) of torch's precision of float32, parents first: an operation whose value is "none" has its parent's.
_PRECISIONS = (
    *(("generic", "all"), ("cuda", "all"), ("mkldnn", "all")),
    *((backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")),
)
_FLAGS: Mapping[Any, tuple[str, ...]] = {
    torch.backends.cudnn: ("enabled", "benchmark", "deterministic"),
    torch.backends.cuda.matmul: ("allow_fp16_accumulation",),
    torch.utils.deterministic: ("fill_uninitialized_memory",),
}
_REDUCTIONS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Restore the process's state on leaving, also after an error.

    That is: torch's flags (precision of float32, determinism, attention kernels, anomaly detection, default dtype, number of
    threads), the states of all random generators, environment variables, and accelerate's shared state.
    """
    with ExitStack() as stack:
        for save in (_environment, _accelerate, _random, _flags, _precision):
            stack.callback(save())
        yield


def _environment() -> Callable[[], None]:
    before = dict(os.environ)

    def restore() -> None:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})

    return restore


def _accelerate() -> Callable[[], None]:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kinds = (PartialState, AcceleratorState, GradientState)
    before = [dict(kind._shared_state) for kind in kinds]

    def restore() -> None:
        for kind, state in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)

    return restore


def _random() -> Callable[[], None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    return restore


def _flags() -> Callable[[], None]:
    flags = [(owner, name, getattr(owner, name)) for owner, names in _FLAGS.items() for name in names]
    matmul = torch.backends.cuda.matmul
    reductions = [(name, (getattr(matmul, name), getattr(matmul, f"{name}_split_k"))) for name in _REDUCTIONS]
    attention = [(name, getattr(torch.backends.cuda, f"{name}_sdp_enabled")()) for name in _ATTENTION]
    deterministic, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    anomalies, checks_nan = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()

    def restore() -> None:
        for owner, name, value in flags:
            setattr(owner, name, value)
        for name, pair in reductions:
            setattr(matmul, name, pair)
        for name, enabled in attention:
            getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.autograd.set_detect_anomaly(anomalies, checks_nan)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    return restore


def _precision() -> Callable[[], None]:
    """Save the precision of float32; torch has no public way to set all of it without mixing two APIs, which it refuses."""
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    before = {key: get(*key) for key in _PRECISIONS}

    def restore() -> None:
        from transformers.utils import import_utils

        for key, value in before.items():
            if get(*key) != value:  # one that follows its parent is left to it
                put(*key, value)
        # transformers sets tf32 in a cached function: without this, the next training that asks for it would not get it.
        getattr(getattr(import_utils, "enable_tf32", None), "cache_clear", lambda: None)()

    return restore
