"""The part of a config that says which records are measured or trained on; config.py has the rest."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from raysweep.config_exclude import ExcludeConfig
from raysweep.config_expected import ExpectedConfig
from raysweep.config_fields import Named, Place, Positive, Section


class RecordsConfig(Section):
    """Where records are, and which of them are taken; `prompt` and `response` belong to the format `columns`.

    `exclude` leaves records out; of the others `last` takes the last so many, `all_but_last` holds those back, as a
    split does that was made by counting; `limit` counts what remains.
    `too_long` says what becomes of examples longer than the model's context, after a cut to `max_tokens`. `expected` is what
    `raysweep plan` takes the records to be like where they are not on this machine.
    """

    path: Place
    format: str | None = None
    split: str | None = None
    exclude: ExcludeConfig | None = None
    last: Positive | None = None
    all_but_last: Positive | None = None
    limit: Positive | None = None
    max_tokens: Positive | None = None
    too_long: Literal["refuse", "cut"] = "refuse"
    prompt: str | None = None
    response: str | None = None
    expected: ExpectedConfig | None = None

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.last is not None and self.all_but_last is not None:
            raise ValueError(f"last is {self.last} and all_but_last is {self.all_but_last}; give only one of them")
        return self


class TrainSource(RecordsConfig):
    """The records that models are fine-tuned on for a data set, whose format and texts they have unless others are given."""

    too_long: Literal["refuse", "cut"] = "cut"


class DatasetConfig(RecordsConfig, Named):
    """Records to measure on; `train` are those that models are fine-tuned on for it."""

    format: str
    train: TrainSource | None = None
