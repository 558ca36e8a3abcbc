"""The device of a training: exactly the one that was asked for, and no other.

Left to itself, transformers trains a single process on `cuda:0`, split over all visible GPUs (`nn.DataParallel`), and
accelerate picks a GPU by the process's rank on its node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from transformers import TrainingArguments

from raysweep.errors import RunError
from raysweep.studies import sharding

_VARIABLE = "ACCELERATE_TORCH_DEVICE"  # where accelerate looks first


@contextmanager
def training_device(name: str) -> Iterator[torch.device]:
    """Make the device the default of this process and of accelerate, and restore both defaults on leaving.

    Gives it with its index: `cuda` is the process's current GPU.
    """
    device, before, variable = torch.device(name), None, os.environ.get(_VARIABLE)
    if device.type == "cuda":
        before = torch.cuda.current_device()
        device = torch.device(f"cuda:{before if device.index is None else device.index}")
        torch.cuda.set_device(device)
    os.environ[_VARIABLE] = str(device)
    try:
        yield device
    finally:
        os.environ.pop(_VARIABLE, None)
        if variable is not None:
            os.environ[_VARIABLE] = variable
        if before is not None:
            torch.cuda.set_device(before)


class DeviceArguments(TrainingArguments):  # type: ignore[misc]
    """transformers' arguments, whose device is that of `training_device`; they are to be made inside it."""

    @cached_property
    def _setup_devices(self) -> torch.device:
        """Return the device; the trainer's own code would take `cuda:0` and count all visible GPUs."""
        if sharding.processes() > 1 or not os.environ.get(_VARIABLE, "").startswith("cuda"):
            return super()._setup_devices  # type: ignore[no-any-return]
        AcceleratorState._reset_state(reset_partial_state=True)
        self.distributed_state: Any = PartialState()
        self._n_gpu = 1
        return self.distributed_state.device  # type: ignore[no-any-return]


def check_device(trainer: Any, device: torch.device) -> None:
    """Raise RunError unless the trainer and its accelerator use the device, and it alone."""
    for what, found in (("transformers' trainer", trainer.args.device), ("accelerate", trainer.accelerator.device)):
        if (found.type, found.index or 0) != (device.type, device.index or 0):
            raise RunError(f"the training was to run on {device}, but {what} chose {found}; report this as a bug")
    if trainer.args.n_gpu > 1:
        raise RunError(
            f"the training was to run on {device} alone, but transformers' trainer would split batches over "
            f"{trainer.args.n_gpu} GPUs; report this as a bug"
        )
