"""The part of a config that asks for spectra; config.py has the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from raysweep.config_fields import Positive, Section, distinct


class SpectrumConfig(Section):
    """Spectrum of the base model's states at each layer, on every data set, and what the first components share with the
    layers beside it, for each number of `components`. `pooling` is that of similarity unless given: they share their states.
    """

    components: Annotated[list[Positive], Field(min_length=1)] = [1, 3, 10]
    pooling: Literal["first", "last", "mean"] | None = None

    @field_validator("components")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        return distinct(value, "each number of components")
