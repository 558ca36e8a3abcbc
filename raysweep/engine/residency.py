"""Where a model's weights are while it is measured: all in memory, or two layers at a time from disk; and why.

Decided once, when a run is inspected, from the checkpoints' sizes and the memory that a worker has. A budget that holds not
even two layers, and a checkpoint that cannot be streamed though it was asked for, are refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raysweep.config import Config
from raysweep.engine.measuring import Measure
from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.sizes import SIZES, layer_sizes


@dataclass(frozen=True)
class Residency:
    """`stream` or `resident`, and the reason in words; `room` is what states may take of `memory`, in bytes (None: what is free)."""

    mode: Literal["resident", "stream"]
    why: str
    least: int = 0
    room: int = 0
    memory: int | None = None


RESIDENT = Residency("resident", "as asked")


@dataclass(frozen=True)
class WorkerMemory:
    """What weights, states and the program may take of a worker's device in all, in bytes; None if not known, and `why` not."""

    device: str
    bytes: int | None = None
    why: str = ""


UNKNOWN = WorkerMemory("cpu", why="it was not measured")


def find_memory(config: Config, device: str, measure: Measure) -> WorkerMemory:
    """Return `execution.memory`, else what is free where the workers will be: on machines that differ, the least."""
    if (asked := config.execution.memory_bytes) is not None:
        return WorkerMemory(device, asked)
    found = measure(usable_bytes, device, config.execution.spread_on(device))
    known = [size for size in found.values if size is not None]
    if not known:
        return WorkerMemory(device, why=found.why or f"{device} is not available on {found.where}")
    return WorkerMemory(device, min(known))


def usable_bytes(device: str, device_map: str | dict[str, Any] | None = None) -> int | None:
    """Return the bytes that this process may use in all; None if the device is not here.

    A model that a `device_map` spreads may use all GPUs that this process sees.
    """
    import torch

    from raysweep.models.memory import free_bytes, private_bytes

    if not device.startswith("cuda"):
        return free_bytes(device) + private_bytes()
    if not torch.cuda.is_available():
        return None
    devices = [device] if device_map is None else [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return sum(map(free_bytes, devices))


def choose_residency(
    config: Config, name: str, base: Checkpoint, tuned: Sequence[Checkpoint], dtype: str, room: WorkerMemory
) -> Residency:
    """The residency of the model `name`, for the largest of its pairs, if a worker has `room`.

    Raises InputError where streaming is asked for and cannot be, or the budget is too small for two layers.
    """
    from raysweep.models.memory import private_bytes
    from raysweep.models.skeleton import refuse_if_not_streamable

    asked, memory, device = config.execution.residency, config.execution.memory_bytes, room.device
    if asked == "resident":
        return RESIDENT
    free = room.bytes
    if free is None:
        if asked == "auto":
            why = f"the workers' memory is not known, because {room.why}; set execution.memory to allow streaming"
            return Residency("resident", why)
        free = 0
    taken = private_bytes() if device == "cpu" else 0
    other = max(tuned, key=lambda checkpoint: checkpoint.n_parameters, default=None)
    pair = [base, *([other] if other is not None else [])]
    whole = sum(checkpoint.n_parameters for checkpoint in pair) * SIZES[dtype]
    if asked == "auto" and taken + whole <= free:
        return Residency("resident", f"its weights ({_gb(whole)}) fit in {_gb(free)}")
    try:
        _refuse_what_needs_all(config, name, bool(tuned), device)
        for checkpoint in (base, *tuned):
            refuse_if_not_streamable(checkpoint)
    except InputError as error:
        if asked == "auto":
            return Residency("resident", f"its weights ({_gb(whole)}) do not fit in {_gb(free)}, but {error}")
        raise
    sizes = [layer_sizes(checkpoint, dtype) for checkpoint in pair]
    least = taken + sum(2 * layer + rest for layer, rest in sizes)
    if free and least >= free:
        raise InputError(
            f"model '{name}': a memory budget of {_gb(free)} (execution.memory) cannot hold two layers of each "
            f"checkpoint ({_gb(2 * sum(layer for layer, _ in sizes))}), its embeddings and head "
            f"({_gb(sum(rest for _, rest in sizes))}) "
            f"and the program ({_gb(taken)}); the minimum is {_gb(least + 10**7)}, plus the states"
        )
    why = "as asked" if asked == "stream" else f"its weights ({_gb(whole)}) do not fit in {_gb(free)}"
    return Residency("stream", why, least, max(0, free - least), memory)


def _refuse_what_needs_all(config: Config, name: str, tuned: bool, device: str) -> None:
    substitution = config.studies.substitution
    if substitution and substitution.generate and tuned:
        raise InputError(
            f"model '{name}' cannot be streamed: studies.substitution.generate generates token by token, which would "
            "read every layer for each token; remove it, or set execution.residency to resident"
        )
    if substitution and substitution.verify and tuned:
        raise InputError(
            f"model '{name}' cannot be streamed: studies.substitution.verify runs the full model; remove it, or set "
            "execution.residency to resident"
        )
    removal = config.studies.removal
    if removal and (removal.of == "base" or tuned):
        raise InputError(
            f"model '{name}' cannot be streamed: studies.removal generates token by token, which would read every "
            "layer for each token; remove it, or set execution.residency to resident"
        )
    if config.execution.spread_on(device) is not None:
        raise InputError(
            f"model '{name}' cannot be streamed: execution.device_map spreads its layers over devices (auto does so if "
            "a worker has several GPUs); remove it, or set execution.residency to resident"
        )


def _gb(size: float) -> str:
    return f"{-(-size // 10**7) / 100:.2f} GB"
