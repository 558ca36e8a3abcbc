"""The part of a config that says which records of a data set are left out; config.py has the rest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raysweep.config_fields import Regex, Section


class ExcludeConfig(Section):
    """Records that are left out: those with one of `phrases` (in any case), a match of `pattern`, or one of `values`.

    Phrases and pattern (a regular expression of Python's) are sought in question and response, or in `column` where one is
    named; `values` are whole texts of that column, and what is no text there is compared as JSON writes it.
    """

    phrases: list[Annotated[str, Field(min_length=1)]] = []
    pattern: Regex | None = None
    column: str | None = None
    values: list[str] = []

    @model_validator(mode="after")
    def _something(self) -> ExcludeConfig:
        if not (self.phrases or self.pattern or self.values):
            raise ValueError("excludes nothing; give phrases, a pattern, or a column and its values")
        if self.values and self.column is None:
            raise ValueError("has values but no column; name the column that they belong to")
        return self
