"""The part of a config that asks for principal components to be taken out of layers; config.py has the rest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from raysweep.config_fields import Positive, Section, distinct
from raysweep.errors import shown

_INDICES = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True}
LAYERS = {"anyOf": [{"enum": ["critical", "all"]}, _INDICES]}
COMPONENTS = {"anyOf": [{"type": "integer", "minimum": 1}, _INDICES]}


def _are_indices(value: Any) -> bool:
    """Whether it is a list of distinct whole numbers from 0, with one at least."""
    known = isinstance(value, list) and all(type(index) is int and 0 <= index <= 10**9 for index in value)
    return known and 0 < len(value) == len(set(value))


def _layers(value: Any) -> Any:
    if value in ("critical", "all") or _are_indices(value):
        return value
    raise ValueError(f"give critical, all, or a list of distinct layers counted from 0, not {shown(value)}")


def _components(value: Any) -> Any:
    if type(value) is int and 1 <= value <= 10**9:
        return value
    if not _are_indices(value):
        raise ValueError(
            f"give how many of the first components (1 or more), or a list of distinct ones counted from 0, not {shown(value)}"
        )
    return len(value) if sorted(value) == list(range(len(value))) else sorted(value)


class RemovalConfig(Section):
    """Principal components removed from one layer's states at a time, and the text and the loss with and without them."""

    layers: Annotated[str | list[int], BeforeValidator(_layers), WithJsonSchema(LAYERS)] = Field(
        default="critical",
        description=(
            "The layers, one at a time: `critical` (the layers with the smallest δ), `all`, or a list, counted from 0."
        ),
    )
    top: Positive | None = Field(
        default=None, description="With `layers: critical`: how many layers. By default a fifth of them."
    )
    components: Annotated[
        list[Annotated[int | list[int], BeforeValidator(_components), WithJsonSchema(COMPONENTS)]], Field(min_length=1)
    ] = Field(
        default=[
            1,
            3,
            10,
        ],
        description="What to remove: each entry is a number of first components, or a list of component indices from 0.",
    )
    modes: Annotated[list[Literal["project", "paper"]], Field(min_length=1)] = Field(
        default=["project"],
        description=(
            "`project` removes each state's own part in the components; `paper` subtracts the part of the "
            "example's stored state at every token."
        ),
    )
    positions: Annotated[list[Literal["last", "all"]], Field(min_length=1)] = Field(
        default=["last"],
        description=(
            "The tokens to change: `last` is the prompt's last token and every token after it; `all` is every token."
        ),
    )
    mean: Literal["removed", "kept"] = Field(
        default="removed",
        description="`removed`: the mean state loses its part too. `kept`: parts are taken from the mean, which stays.",
    )
    of: Literal["base", "tuned"] = Field(
        default="base", description="Which models: the `base` models or the `tuned` ones."
    )
    examples: Positive = Field(default=3, description="How many examples of each data set to generate text for.")
    tokens: Positive = Field(default=32, description="New tokens of each text, at most.")

    @field_validator("components", "modes", "positions")
    @classmethod
    def _distinct(cls, value: list[Any]) -> list[Any]:
        return distinct(value, "each")

    @model_validator(mode="after")
    def _of_critical(self) -> RemovalConfig:
        if self.top is not None and self.layers != "critical":
            raise ValueError("top applies only to layers: critical, and layers are listed; remove one of them")
        return self

    @property
    def chosen(self) -> list[tuple[int, ...]]:
        """The indices of the components of each entry."""
        return [tuple(range(entry)) if isinstance(entry, int) else tuple(entry) for entry in self.components]
