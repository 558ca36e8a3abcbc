"""The part of a config that says how and where to compute; config.py has the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from raysweep.config_fields import Place, Positive, Section, distinct
from raysweep.errors import shown

# What editors are given for keys whose own checks say more than a type.
MEMORY = {
    "anyOf": [
        {"const": "auto"},
        {"type": "string", "pattern": r"^\d{1,12}(\.\d{1,9})? ?[kKMGT]?i?B?$", "examples": ["1.5GB"]},
        {"type": "number", "minimum": 1},
    ]
}
DEADLINE = {"anyOf": [{"type": "number", "minimum": 1, "maximum": 10**9}, {"const": "never"}, {"type": "null"}]}
DEVICE = {
    "anyOf": [
        {"enum": ["auto", "cpu", "mps", "cuda"]},
        {"type": "string", "pattern": "^cuda:[0-9]{1,4}$", "examples": ["cuda:1"]},
    ]
}


def _bytes(value: object) -> int | None:
    """A size such as `1.5GB` in bytes (also kB, MB, TB, GiB, …; a plain number is bytes), or None for what is none."""
    found = (
        re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?) ?([kKMGT]?)(i?)B?", str(value)) if not isinstance(value, bool) else None
    )
    size = float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " ") if found else 0
    return int(size) if 1 <= size < 2**62 else None


class ExecutionConfig(Section):
    """Where and how to compute. Nothing here changes a result beyond rounding."""

    executor: Literal["local", "ray"] = Field(
        default="local",
        description=(
            "`local` computes in this process, `ray` on the workers of a Ray cluster, or on Ray started on this "
            "machine."
        ),
    )
    address: str | None = Field(
        default=None,
        description=(
            "The Ray cluster to join, as `host:port`, or `auto`. By default the one that the variable RAY_ADDRESS names; "
            "without it, Ray is started on this machine."
        ),
    )
    dashboard_host: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1",
        description=(
            "The address on which the dashboard listens if raysweep starts Ray. An address other than loopback needs "
            "a Ray token."
        ),
    )
    workers: Positive | Literal["auto"] = Field(
        default="auto",
        description="How many Ray workers to use; `auto` is as many as fit on the cluster. A local run has one.",
    )
    cpus_per_worker: Positive = Field(default=1, description="CPU cores that each Ray worker reserves.")
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description=(
            "GPUs that each Ray worker reserves: a share of one (0.5) and of its memory, one or several. `auto` is 1 on nodes with "
            "GPUs. A worker with several GPUs spreads each model over them."
        ),
    )
    attempts: Positive = Field(
        default=3,
        description=(
            "A chunk whose call fails this many times, or loses its worker this many times, is marked failed; the "
            "rest of the run continues."
        ),
    )
    call_deadline: Annotated[float | None, Field(ge=1, le=10**9), WithJsonSchema(DEADLINE)] = Field(
        default=1800.0,
        description=(
            "Seconds that a call may always run; it may run 20 times its expected seconds if that is longer. A "
            "Ray worker that takes longer is replaced, and the call counts as a failed attempt. `never` or null: "
            "no limit."
        ),
    )
    resident: Annotated[int, Field(ge=2, le=1000, strict=True)] = Field(
        default=2,
        description=("How many checkpoints a worker keeps loaded. The least recently used one is unloaded first."),
    )
    device: Annotated[str, WithJsonSchema(DEVICE)] = Field(
        default="auto",
        description=(
            "The device to compute on. `auto` is cuda if there is a GPU, else cpu. On Ray, each worker gets its "
            "own GPU: write `cuda`, not `cuda:1`."
        ),
    )
    device_map: str | dict[str, Any] | None = Field(
        default=None,
        description=(
            "How to spread one model over several devices: `auto`, or a mapping of modules to devices as "
            "accelerate takes it. Not set: one device, or `auto` if a Ray worker has several GPUs."
        ),
    )
    batch_tokens: Positive | Literal["auto"] = Field(
        default="auto",
        description=(
            "Padded tokens in one batch. `auto` is 8192 on a GPU and 1024 on a CPU. Sweeps on a GPU use fewer if its "
            "free memory cannot hold a batch. A batch that runs out of memory is retried with half as many tokens."
        ),
    )
    chunk: Positive = Field(
        default=32,
        description=(
            "The number of examples that are computed and committed together. A stopped run repeats at most the chunks that "
            "were being computed."
        ),
    )
    fuse: bool = Field(
        default=True,
        description=(
            "Compute all windows of a model and data set in one pass through the layers. `false` computes one "
            "window after the other, for comparison."
        ),
    )
    residency: Literal["auto", "resident", "stream"] = Field(
        default="auto",
        description=(
            "Where weights are kept: `resident` loads complete models, `stream` reads two layers at a time from "
            "disk, `auto` streams only models that do not fit in memory."
        ),
    )
    memory: Annotated[str | int | float, WithJsonSchema(MEMORY)] = Field(
        default="auto",
        description=(
            "The memory that the program may use in total, such as `1.5GB` or `800MB`: on a GPU what its tensors use "
            "there, with everything that is already loaded; on Ray, each worker's. `auto` is what is free when the run "
            "starts. It decides about streaming and how many examples a streamed pass holds."
        ),
    )
    spill: Place | None = Field(
        default=None,
        description=(
            "A folder on the worker's machine for the states of a streamed sweep that do not fit in memory. It is "
            "used only if that moves fewer bytes than reading the weights again."
        ),
    )
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        default=[],
        description=(
            "Trackers that also log the run. They need `pip install 'raysweep[trackers]'`; logs are kept in the "
            "run folder's `trackers/`."
        ),
    )

    @property
    def spill_folder(self) -> Path | None:
        """Where states of a streamed sweep may wait on disk; None where they may not."""
        return None if self.spill is None else Path(self.spill).expanduser().absolute()

    def spread_on(self, device: str) -> str | dict[str, Any] | None:
        """`device_map`; where a worker has several GPUs and none was given, auto."""
        several = self.executor == "ray" and self.gpus_per_worker != "auto" and self.gpus_per_worker > 1
        return "auto" if self.device_map is None and several and device.startswith("cuda") else self.device_map

    @property
    def memory_bytes(self) -> int | None:
        """The budget in bytes; None for what is free."""
        return None if self.memory == "auto" else _bytes(self.memory)

    @field_validator("memory", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if value != "auto" and _bytes(value) is None:
            raise ValueError(f"give auto, or a size such as 1.5GB or 800MB, not {shown(value)}")
        return value

    @field_validator("call_deadline", mode="before")
    @classmethod
    def _deadline(cls, value: object) -> object:
        if value is None or value == "never":
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 10**9:
            raise ValueError(f"give a number of seconds, 1 or more, or never, not {shown(value)}")
        return float(value)

    @field_validator("batch_tokens", "workers", mode="before")
    @classmethod
    def _count(cls, value: object, info: ValidationInfo) -> object:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9):
            what = "tokens" if info.field_name == "batch_tokens" else "workers"
            raise ValueError(f"give auto or a number of {what}, 1 or more, not {shown(value)}")
        return value

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _share(cls, value: object) -> object:
        if value == "auto":
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (value > 1 and value % 1):
            raise ValueError(f"give auto, a share of a GPU between 0 and 1, or a whole number of them, not {value!r}")
        return float(value)

    @field_validator("report_to")
    @classmethod
    def _once(cls, value: list[Any]) -> list[Any]:
        return distinct(value, "each tracker")

    @model_validator(mode="after")
    def _ray_only(self) -> ExecutionConfig:
        if self.executor == "local" and self.address is not None:
            raise ValueError(f"address {self.address!r} needs executor ray, and executor is local")
        if self.dashboard_host != "127.0.0.1" and (self.executor == "local" or self.address is not None):
            other = (
                "executor is local" if self.executor == "local" else f"address {self.address!r} is a running cluster"
            )
            raise ValueError(
                f"dashboard_host applies only to a Ray cluster that raysweep starts, and {other}; remove it"
            )
        if self.executor == "ray" and self.device.startswith("cuda:"):
            raise ValueError(
                f"device {self.device} names one GPU, and Ray gives each worker its own; give cuda or auto"
            )
        return self

    @field_validator("spill")
    @classmethod
    def _spill(cls, value: str | None) -> str | None:
        if value is not None and (not value or "://" in value):
            raise ValueError(f"give a folder, not {shown(value)}; states are kept on a worker's own file system")
        return value

    @field_validator("device_map", mode="before")
    @classmethod
    def _map(cls, value: object) -> object:
        if not (value is None or isinstance(value, (str, dict))):
            raise ValueError(f"give auto, or a mapping of modules to devices, not {shown(value)}")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", value):
            raise ValueError(f"{shown(value)} is not a device; give auto, cpu, mps, cuda or cuda:N")
        return value
