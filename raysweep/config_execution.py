"""The part of a config that says how and where to compute; config.py has the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from raysweep.config_fields import Place, Positive, Section, distinct
from raysweep.errors import shown


def _bytes(value: object) -> int | None:
    """A size such as `1.5GB` in bytes (also kB, MB, TB, GiB, …; a plain number is bytes), or None for what is none."""
    found = (
        re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?) ?([kKMGT]?)(i?)B?", str(value)) if not isinstance(value, bool) else None
    )
    size = float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " ") if found else 0
    return int(size) if 1 <= size < 2**62 else None


class ExecutionConfig(Section):
    """How to compute it; nothing here changes a result beyond rounding, except `chunk`, which decides what is committed together."""

    executor: Literal["local", "ray"] = "local"
    address: str | None = None
    dashboard_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    workers: Positive | Literal["auto"] = "auto"
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    attempts: Positive = 3
    call_deadline: Annotated[
        float | None,
        Field(
            ge=1,
            le=10**9,
            description="Seconds that a call may always run; 20 times its expected seconds, if that is more. A worker on Ray that "
            "takes longer is replaced. null or never: no deadline.",
        ),
    ] = 1800.0
    resident: Annotated[int, Field(ge=2, le=1000, strict=True)] = 2
    device: str = "auto"
    device_map: str | dict[str, Any] | None = None
    batch_tokens: Positive | Literal["auto"] = "auto"
    chunk: Positive = 32
    fuse: bool = True
    residency: Literal["auto", "resident", "stream"] = "auto"
    memory: str | int | float = "auto"
    spill: Place | None = None
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = []

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
