"""The part of a config that says which records of a data set are left out; config.py has the rest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raysweep.config_fields import Regex, Section


class ExcludeConfig(Section):
    """Records to skip: those that contain a phrase, match the pattern, or have one of the values in a column."""

    phrases: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="Skip records that contain any of these phrases, in upper or lower case."
    )
    pattern: Regex | None = Field(
        default=None, description="Skip records in which this Python regular expression matches."
    )
    column: str | None = Field(
        default=None,
        description=(
            "Search phrases and pattern in this column only. Without it, question and response are searched. "
            "`values` needs a column."
        ),
    )
    values: list[str] = Field(
        default=[],
        description=(
            "Skip records whose `column` equals one of these texts. A column that is not text is compared as JSON "
            "writes it."
        ),
    )

    @model_validator(mode="after")
    def _something(self) -> ExcludeConfig:
        if not (self.phrases or self.pattern or self.values):
            raise ValueError("excludes nothing; give phrases, a pattern, or a column and its values")
        if self.values and self.column is None:
            raise ValueError("has values but no column; name the column that they belong to")
        return self
