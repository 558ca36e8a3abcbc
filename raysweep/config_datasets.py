"""The part of a config that says which records are measured or trained on; config.py has the rest."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raysweep.config_exclude import ExcludeConfig
from raysweep.config_expected import ExpectedConfig
from raysweep.config_fields import Named, Place, Positive, Section


class RecordsConfig(Section):
    """A source of records, and which of them to use."""

    path: Place = Field(
        description=(
            "Where the records are: a JSONL, JSON, CSV, TSV, Parquet or Arrow file (also compressed), a folder of "
            "such files or of Hugging Face `datasets`, a hub data set, or a laboratory name."
        )
    )
    format: str | None = Field(
        default=None,
        description=(
            "How a record is read: dolly, alpaca, gsm8k, boolq, openbookqa, messages, sharegpt, "
            "prompt_completion, preference, or columns."
        ),
    )
    split: str | None = Field(
        default=None, description="The split to read from a hub data set or a `datasets` folder that has several."
    )
    exclude: ExcludeConfig | None = Field(
        default=None, description="Records to skip. They are skipped before `last`, `all_but_last` and `limit` apply."
    )
    last: Positive | None = Field(default=None, description="Use only this many records at the end of the source.")
    all_but_last: Positive | None = Field(default=None, description="Skip this many records at the end of the source.")
    limit: Positive | None = Field(default=None, description="Use at most this many records, from the first on.")
    max_tokens: Positive | None = Field(
        default=None,
        description=(
            "Cut examples to this many tokens. Examples that keep no response token are skipped; the plan and the "
            "report count both."
        ),
    )
    too_long: Literal["refuse", "cut"] = Field(
        default="refuse",
        description=(
            "What happens to examples that are still longer than the model's context: `refuse` stops the run "
            "before it starts, `cut` shortens and counts them."
        ),
    )
    prompt: str | None = Field(
        default=None,
        description="With the format `columns`: the column of the prompt, or a Jinja template over a record's columns.",
    )
    response: str | None = Field(
        default=None,
        description=(
            "With the format `columns`: the column of the response, or a Jinja template over a record's columns. "
            "Not needed if only states are measured."
        ),
    )
    expected: ExpectedConfig | None = Field(
        default=None,
        description=(
            "What `raysweep plan` assumes about the records if they, or the tokenizer, are not on this machine. A "
            "run does not use it."
        ),
    )

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.last is not None and self.all_but_last is not None:
            raise ValueError(f"last is {self.last} and all_but_last is {self.all_but_last}; give only one of them")
        return self


class TrainSource(RecordsConfig):
    """Records from another source, which have the data set's format and texts unless you name others."""

    too_long: Literal["refuse", "cut"] = Field(
        default="cut",
        description=(
            "What happens to examples that are still longer than the model's context: `cut` shortens and counts "
            "them, `refuse` stops the run before it starts."
        ),
    )


class DatasetConfig(RecordsConfig, Named):
    """A data set to measure on, and the records to fine-tune on for it."""

    format: str = Field(
        description=(
            "How a record is read: dolly, alpaca, gsm8k, boolq, openbookqa, messages, sharegpt, "
            "prompt_completion, preference, or columns."
        )
    )
    train: TrainSource | None = Field(
        default=None,
        description=(
            "The records that models are fine-tuned on for this data set. The studies finetune, adaptation and "
            "backdoor need it."
        ),
    )
