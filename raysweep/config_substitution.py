"""The part of a config that asks for windows of layers to be put back to the base model's; config.py has the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, GetCoreSchemaHandler, field_validator, model_validator
from pydantic_core import core_schema

from raysweep.config_fields import Name, Positive, Section
from raysweep.config_stop import StopConfig


class GenerationConfig(Section):
    """Text generated under each window, or `all` changes: for the first `examples` of a data set, `tokens` new tokens each."""

    examples: Positive = 3
    tokens: Positive = 32
    changes: Literal["windows", "all"] = "windows"


class _OrAll:
    """Widths, or `all`: what is neither is told as a wrong list is (a plain union would tell two problems of each value)."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def read(value: object, as_list: core_schema.ValidatorFunctionWrapHandler) -> object:
            return value if value == "all" else as_list(value)

        return core_schema.no_info_wrap_validator_function(
            read,
            handler.generate_schema(Annotated[list[Positive], Field(min_length=1)]),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )


class SubstitutionConfig(Section):
    """Every window of each width is put back to the base model's, and the test loss measured; and what is asked for beside.

    `coefficients` are steps between tuned (0) and base (1) for windows and sets; `modules` put back a part of each window's
    layers alone; `reverse` puts each window of the tuned model into the base. 1 is always among the coefficients. `verify`
    of all these, drawn at random, are computed again by true substitution of modules. With `estimator: gradient` all are
    estimated to first order in the weights, from gradients at so many `points` between the models, and a `sample` of them, drawn
    at random, is measured exactly beside the tuned model and all layers put back. `stop` ends an exact sweep early.
    """

    widths: Annotated[list[int] | Literal["all"], _OrAll()] = [5]
    sets: dict[Name, Annotated[list[Annotated[int, Field(ge=0, le=10**9, strict=True)]], Field(min_length=1)]] = {}
    modules: list[Literal["attention", "mlp"]] = []
    coefficients: list[Annotated[float, Field(ge=0, le=1)]] = []
    reverse: bool = False
    verify: Annotated[int, Field(ge=0, le=10**6, strict=True)] = 0
    estimator: Literal["exact", "gradient"] = "exact"
    points: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    sample: Annotated[int, Field(ge=0, le=10**6, strict=True)] = 8
    stop: StopConfig | None = None
    generate: GenerationConfig | None = None

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
