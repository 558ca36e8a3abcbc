"""The part of a config that asks for principal components to be taken out of layers; config.py has the rest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from raysweep.config_fields import Positive, Section, distinct
from raysweep.errors import shown


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
    """Principal components taken out of one layer's states at a time: the text and the loss with and without them.

    `layers`: `critical` (the `top` with the smallest δ of the first of similarity's metrics, by default a fifth), `all`, or
    a list. `components`: each entry is so many of the first components, or a list of indices from 0. `modes`: `project`
    removes each state's own part in them, `paper` that of the example's stored state at its last prompt token. `positions`:
    `last` (the prompt's last token and all behind it) or `all`. `mean: kept` takes parts from the mean of the stored states,
    which then stays; else its share goes too. `of`: the base model, or the tuned ones. Text is `tokens`
    long, for the first `examples`.
    """

    layers: Annotated[str | list[int], BeforeValidator(_layers)] = "critical"
    top: Positive | None = None
    components: Annotated[list[Annotated[int | list[int], BeforeValidator(_components)]], Field(min_length=1)] = [
        1,
        3,
        10,
    ]
    modes: Annotated[list[Literal["project", "paper"]], Field(min_length=1)] = ["project"]
    positions: Annotated[list[Literal["last", "all"]], Field(min_length=1)] = ["last"]
    mean: Literal["removed", "kept"] = "removed"
    of: Literal["base", "tuned"] = "base"
    examples: Positive = 3
    tokens: Positive = 32

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
