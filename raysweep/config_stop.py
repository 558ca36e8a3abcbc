"""The part of a config that says when a sweep has seen enough examples; config.py has the rest."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from raysweep.config_fields import Section
from raysweep.errors import shown

HALF_WIDTH = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}
CONFIDENCE = {"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}


class StopConfig(Section):
    """When a sweep has measured enough examples. Give either `half_width` or `top`."""

    half_width: Annotated[float | None, WithJsonSchema(HALF_WIDTH)] = Field(
        default=None,
        description="Stop when the interval of every change's paired loss difference is within ± this many nats.",
    )
    top: Annotated[int, Field(ge=1, le=10**9, strict=True)] | None = Field(
        default=None,
        description=(
            "Stop when a confidence set for this many costliest windows (of the first of `widths`) has no other "
            "members."
        ),
    )
    confidence: Annotated[float, WithJsonSchema(CONFIDENCE)] = Field(
        default=0.95, description="The confidence of the intervals, or of the confidence set."
    )
    seed: Annotated[int, Field(ge=0, le=2**63, strict=True)] = Field(
        default=0, description="The seed of the order in which examples are measured."
    )

    @field_validator("half_width", "confidence", mode="before")
    @classmethod
    def _in_range(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.field_name == "half_width":
            return value
        try:
            number = math.nan
            if isinstance(value, (int, float, str)) and not isinstance(value, bool):
                number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if info.field_name == "confidence" and not 0.5 <= number < 1:
            raise ValueError(f"give a confidence from 0.5 to below 1, such as 0.95, not {shown(value)}")
        if not 0 < number < math.inf:
            raise ValueError(f"give a number of nats above 0, such as 0.02, not {shown(value)}")
        return number

    @model_validator(mode="after")
    def _one_rule(self) -> StopConfig:
        if self.half_width is None and self.top is None:
            raise ValueError(
                "has neither half_width nor top; give one: {half_width: 0.02} in nats, or {top: 3}, a number of windows"
            )
        if self.half_width is not None and self.top is not None:
            raise ValueError(f"half_width is {self.half_width:g} and top is {self.top}; give only one of them")
        return self
