"""The part of a config that asks for spectra; config.py has the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from raysweep.config_fields import Positive, Section, distinct


class SpectrumConfig(Section):
    """How the variance of each layer's states is spread, and what its first components share with neighbouring layers."""

    components: Annotated[list[Positive], Field(min_length=1)] = Field(
        default=[1, 3, 10], description="Numbers of first principal components to describe."
    )
    pooling: Literal["first", "last", "mean"] | None = Field(
        default=None,
        description=(
            "Which state represents an example. By default as in `similarity`, which must have the same; `last` "
            "without it."
        ),
    )

    @field_validator("components")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        return distinct(value, "each number of components")
