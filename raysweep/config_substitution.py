"""The part of a config that asks for windows of layers to be replaced with the base model's; config.py has the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from raysweep.config_fields import Name, Positive, Section
from raysweep.config_stop import StopConfig


class GenerationConfig(Section):
    """Text that the changed models generate, greedily."""

    examples: Positive = Field(
        default=3, description="How many examples of each data set to generate text for, from the first on."
    )
    tokens: Positive = Field(default=32, description="New tokens of each text, at most.")
    changes: Literal["windows", "all"] = Field(
        default="windows",
        description=(
            "`windows` generates text for the tuned model and under each window; `all` also under sets, modules, "
            "coefficients and reverse."
        ),
    )


class _OrAll:
    """Widths, or `all`. Anything else is reported as a wrong list; a plain union would report each value twice."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def read(value: object, as_list: core_schema.ValidatorFunctionWrapHandler) -> object:
            return value if value == "all" else as_list(value)

        return core_schema.no_info_wrap_validator_function(
            read,
            handler.generate_schema(Annotated[list[Positive], Field(min_length=1)]),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"const": "all"}]}


class SubstitutionConfig(Section):
    """The test loss with each window of layers replaced with the base model's layers.

    Width 0 (the untouched tuned model) and the window of all layers are always measured.
    """

    widths: Annotated[list[int] | Literal["all"], _OrAll()] = Field(
        default=[5],
        description="Widths of the windows: every window of this many consecutive layers. `all`: every width.",
    )
    sets: dict[Name, Annotated[list[Annotated[int, Field(ge=0, le=10**9, strict=True)]], Field(min_length=1)]] = Field(
        default={}, description="Sets of layers, by name, that are replaced together. Layers count from 0."
    )
    modules: list[Literal["attention", "mlp"]] = Field(
        default=[], description="Also replace only this part of each window's layers."
    )
    coefficients: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[],
        description=(
            "Also measure windows and sets with weights between tuned (0) and base (1): (1 − c) · tuned + c · "
            "base. 1 is always measured."
        ),
    )
    reverse: bool = Field(
        default=False, description="Also measure the base model with each window of the tuned model's layers."
    )
    verify: Annotated[int, Field(ge=0, le=10**6, strict=True)] = Field(
        default=0,
        description=(
            "How many changes, drawn at random, to recompute by actually swapping the modules. A difference "
            "beyond rounding fails the run."
        ),
    )
    estimator: Literal["exact", "gradient"] = Field(
        default="exact",
        description=(
            "`exact` measures every loss. `gradient` estimates losses to first order in the weights: cheaper, and "
            "only as good as the measured `sample` shows."
        ),
    )
    points: Annotated[int, Field(ge=1, le=64, strict=True)] = Field(
        default=1,
        description=(
            "With `estimator: gradient`: the number of points between the tuned and the base model at which "
            "gradients are computed."
        ),
    )
    sample: Annotated[int, Field(ge=0, le=10**6, strict=True)] = Field(
        default=8,
        description="With `estimator: gradient`: how many changes, drawn at random, to measure exactly for comparison.",
    )
    stop: StopConfig | None = Field(
        default=None, description="Stop an exact sweep as soon as enough examples were measured."
    )
    generate: GenerationConfig | None = Field(default=None, description="Generate text under the changes.")

    @model_validator(mode="after")
    def _exact_only(self) -> SubstitutionConfig:
        if self.stop and self.estimator != "exact":
            raise ValueError(f"stop needs exact losses, and estimator is {self.estimator}; remove one of them")
        return self

    @model_validator(mode="after")
    def _estimated(self) -> SubstitutionConfig:
        for key in ("points", "sample"):
            if (
                self.estimator == "exact"
                and key in self.model_fields_set
                and getattr(self, key) != type(self).model_fields[key].default
            ):
                raise ValueError(
                    f"{key} applies only to estimator: gradient, and estimator is exact; remove {key}, or set "
                    "estimator: gradient"
                )
        return self

    @field_validator("sets")
    @classmethod
    def _distinct(cls, value: dict[str, list[int]]) -> dict[str, list[int]]:
        seen: dict[frozenset[int], str] = {}
        for name, layers in value.items():
            other = seen.setdefault(frozenset(layers), name)
            if other != name:
                raise ValueError(f"the sets '{other}' and '{name}' have the same layers; remove one")
        return value
