"""The part of a config that asks for training: which layers, by which arguments; config.py has the rest."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

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


_LAYERS = {
    "anyOf": [
        {"enum": ["all", *FOUND]},
        {"type": "string", "pattern": r"^\d{1,4}-\d{1,4}$", "examples": ["8-12"]},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True},
    ]
}
Layers = Annotated[str | tuple[int, ...], BeforeValidator(_layers), WithJsonSchema(_LAYERS)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]


class LoraConfig(Section):
    """PEFT's LoRA: low-rank updates of the chosen layers instead of their own weights. Names are PEFT's."""

    r: Positive = Field(default=8, description="The rank of the updates.")
    lora_alpha: Annotated[float, Field(gt=0)] = Field(
        default=16.0, description="The scale of the updates; they are multiplied by lora_alpha / r."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="The share of the adapter's inputs that is dropped in training."
    )
    target_modules: list[str] | str | None = Field(
        default=None, description="The modules to adapt. By default PEFT's choice for the architecture."
    )


class Training(Section):
    """How models are trained. The trainer is the one of transformers."""

    trainer: dict[str, Any] = Field(
        default={},
        description=(
            "Arguments of transformers' trainer, under its own names, such as learning_rate, max_steps and "
            "per_device_train_batch_size. They are checked before anything runs."
        ),
    )
    lora: LoraConfig | None = Field(
        default=None, description="Train LoRA adapters on the chosen layers instead of the layers' weights."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description=(
            "The number format of the weights in training. `auto` is the checkpoint's own on a GPU and float32 on "
            "a CPU."
        ),
    )
    processes: Positive = Field(
        default=1, description="How many processes train one model, each on one GPU. More than 1 needs `executor: ray`."
    )
    strategy: Literal["fsdp", "ddp"] = Field(
        default="fsdp",
        description="How several processes share a model: `fsdp` shards it, `ddp` keeps a full copy in each.",
    )
    top: Positive | None = Field(
        default=None,
        description="How many layers are critical, by the first of similarity's metrics. By default a fifth of them.",
    )

    @property
    def found(self) -> str | None:
        """The first of its choices of layers that a similarity task makes; None where there is none."""
        return None


class FinetuneConfig(Training):
    """Fine-tuned checkpoints, for every model and data set that has `train` and no checkpoint in `models[].tuned`.

    Sweeps wait for them.
    """

    layers: Layers = Field(
        default="all",
        description=(
            "The decoder layers to train, and nothing else: a list, a range such as `8-12`, `critical` or "
            "`non_critical`. `all` trains every weight of the model."
        ),
    )
    freeze: Layers | None = Field(
        default=None,
        description=(
            "Train everything except these decoder layers: a list, a range such as `8-12`, `critical` or "
            "`non_critical`. Not together with `layers` or `lora`."
        ),
    )
    seed: Seed = Field(default=42, description="The seed of the training, and of the draw of non-critical layers.")
    along: list[Positive] = Field(default=[], description="Training steps whose checkpoints are kept and measured too.")

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
    """The test loss over training steps if only critical layers are trained, only as many others, or all of the model."""

    arms: Annotated[list[Literal["critical", "non_critical", "all"]], Field(min_length=1)] = Field(
        default=[
            "critical",
            "non_critical",
            "all",
        ],
        description="What to train: `critical` layers, as many `non_critical` ones, or `all` of the model.",
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        default=[0, 1, 2],
        description=(
            "Each arm is trained once per seed. The seed sets the order of the records and draws the non-critical "
            "layers."
        ),
    )

    @property
    def found(self) -> str | None:
        """The first arm whose layers a similarity task chooses."""
        return next((arm for arm in self.arms if arm in FOUND), None)

    @field_validator("arms", "seeds")
    @classmethod
    def _distinct(cls, value: list[Any]) -> list[Any]:
        return distinct(value, "each")
