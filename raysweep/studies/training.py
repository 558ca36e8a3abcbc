"""What a training is told, the layers that are trained or frozen and the recipe, and how it went. Values only; finetune.py does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysweep.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Trained:
    """Which decoder layers are trained: `all` of the model, `only` these layers (and nothing else), or all but these (`freeze`)."""

    mode: Literal["all", "only", "freeze"] = "all"
    layers: tuple[int, ...] = ()

    def trains(self, layer: int) -> bool:
        """Whether the decoder layer of this number is trained."""
        return self.mode == "all" or (layer in self.layers) == (self.mode == "only")

    @property
    def trains_rest(self) -> bool:
        """Whether embeddings, norm and head (all that is no layer) are trained."""
        return self.mode != "only"


@dataclass(frozen=True)
class Lora:
    """PEFT's LoRA on the chosen layers, in PEFT's words."""

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | str | None = None


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. `arguments` are transformers.TrainingArguments' own, by name, checked (trainer_arguments.py)."""

    trained: Trained = Trained()
    seed: int = 42
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lora: Lora | None = None
    dtype: str = "float32"
    keep: tuple[int, ...] = ()  # steps whose weights are kept beside the last


@dataclass(frozen=True)
class Progress:
    """Where a training stands: `step` of `of`, a loss of the `train` or `test` split, seconds since it (re)started."""

    step: int
    of: int
    split: str
    loss: float
    seconds: float


@dataclass(frozen=True)
class Course:
    """How a training went.

    `rows` have step, split (`train` or `test`) and loss; before the first step, and after the last, there is a test loss.
    `frozen` tensors are bit for bit the base's, `changed` ones are not, `unchanged` ones were trained and did not move.
    `resumed_from` is the step after which an interrupted training was taken up.
    """

    rows: pd.DataFrame
    steps: int
    resumed_from: int | None
    frozen: int
    changed: int
    unchanged: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {each.name: getattr(self, each.name) for each in fields(Course)}
        return {**told, "rows": self.rows.to_dict(orient="list")}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Course:
        """The course whose plain values these are."""
        import pandas as pd

        rows = pd.DataFrame(told["rows"]).astype({"step": "int64", "loss": float})
        return Course(**{**told, "rows": rows, "unchanged": tuple(told["unchanged"])})


def layers_words(layers: str | tuple[int, ...]) -> str:
    """A choice of layers as tables name it: a word as it is, `8-12` for a run, `3,5,9` for others."""
    if isinstance(layers, str) or not layers:
        return layers if isinstance(layers, str) else ""
    run = tuple(range(layers[0], layers[-1] + 1))
    if layers == run:
        return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def drawn_beside(chosen: Sequence[int], n_layers: int, seed: int) -> tuple[int, ...]:
    """As many other layers of `n_layers` as are chosen, drawn at random. Raises InputError where there are fewer others."""
    others = [layer for layer in range(n_layers) if layer not in chosen]
    if len(others) < len(chosen):
        raise InputError(
            f"{len(chosen)} of {n_layers} layers are critical, and {len(others)} others are fewer than that; set top to "
            f"{n_layers // 2} or less"
        )
    drawn = np.random.default_rng(seed).choice(others, len(chosen), replace=False)
    return tuple(sorted(int(layer) for layer in drawn))
