"""The part of a config that asks for training: which layers, by which arguments; config.py has the rest."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from raysweep.config_fields import Positive, Section, distinct
from raysweep.errors import shown

_RANGE = re.compile(r"(\d{1,4})-(\d{1,4})")
FOUND = ("critical", "non_critical")  # choices that a similarity task makes


def _layers(value: Any) -> Any:
    """`all`, `critical`, `non_critical`, or a tuple of layers from a list or a range such as `8-12`."""
    if value == "all" or value in FOUND:
        return value
    if isinstance(value, str) and (found := _RANGE.fullmatch(value)) and int(found[1]) <= int(found[2]):
        return tuple(range(int(found[1]), int(found[2]) + 1))
    known = isinstance(value, (list, tuple)) and all(type(layer) is int and 0 <= layer <= 10**9 for layer in value)
    if not known or not value or len(set(value)) < len(value):
        raise ValueError(
            f"give all, critical, non_critical, a range such as 8-12, or a list of distinct layers counted from 0, not {shown(value)}"
        )
    return tuple(sorted(value))


Layers = Annotated[str | tuple[int, ...], BeforeValidator(_layers)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]


class LoraConfig(Section):
    """Low-rank updates in place of the layers' own weights, in PEFT's words; `target_modules` are PEFT's own by default."""

    r: Positive = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | str | None = None


class Training(Section):
    """How models are trained. `trainer` are arguments of transformers' trainer, in its own names.

    `dtype` is that of the weights while they are trained: the checkpoint's own on a GPU, float32 on a CPU. `processes` of one
    GPU each train one model, sharded (`fsdp`) or each with the whole of it (`ddp`). `top` is how many layers are critical (by
    default a fifth), by the first of similarity's metrics; as many that are not are drawn with the run's seed.
    """

    trainer: dict[str, Any] = {}
    lora: LoraConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    processes: Positive = 1
    strategy: Literal["fsdp", "ddp"] = "fsdp"
    top: Positive | None = None

    @property
    def found(self) -> str | None:
        """The first of its choices of layers that a similarity task makes; None where there is none."""
        return None


class FinetuneConfig(Training):
    """Fine-tuned checkpoints for every model and data set with `train`, for which models[].tuned names none.

    `layers` are the decoder layers that are trained, and nothing else is, unless they are `all`; or all is trained but the
    layers in `freeze`. `along`: steps whose checkpoints are kept and measured too.
    """

    layers: Layers = "all"
    freeze: Layers | None = None
    seed: Seed = 42
    along: list[Positive] = []

    @property
    def found(self) -> str | None:
        """The choice that a similarity task makes; None where layers are given."""
        return next((str(each) for each in (self.layers, self.freeze) if each in FOUND), None)

    @field_validator("along")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        return sorted(distinct(value, "each step"))

    @model_validator(mode="after")
    def _one_choice(self) -> FinetuneConfig:
        if self.freeze is not None and self.layers != "all":
            raise ValueError(
                f"layers is {shown(self.layers)} and freeze is {shown(self.freeze)}; give either the layers to train "
                "or the layers to freeze"
            )
        if self.freeze == "all":
            raise ValueError("freeze is all, so nothing would be trained; leave at least one layer out")
        if self.freeze is not None and self.lora is not None:
            raise ValueError("lora trains only chosen layers; give layers instead of freeze")
        if self.along and self.lora is not None:
            raise ValueError("along stores full checkpoints, and lora makes adapters; remove one of them")
        return self


class AdaptationConfig(Training):
    """Test loss over steps where only critical layers are trained, only as many others, or all, for several seeds."""

    arms: Annotated[list[Literal["critical", "non_critical", "all"]], Field(min_length=1)] = [
        "critical",
        "non_critical",
        "all",
    ]
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]

    @property
    def found(self) -> str | None:
        """The first arm whose layers a similarity task chooses."""
        return next((arm for arm in self.arms if arm in FOUND), None)

    @field_validator("arms", "seeds")
    @classmethod
    def _distinct(cls, value: list[Any]) -> list[Any]:
        return distinct(value, "each")
