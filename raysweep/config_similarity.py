"""The part of a config that asks for similarity between layers; config.py has the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raysweep.config_fields import Positive, Section, distinct

Metric = Literal[
    "cka_linear", "cka_linear_debiased", "cka_rbf", "svcca", "pwcca", "cca_top_k", "procrustes", "rsa",
    "mutual_knn", "cknna", "angular", "block_influence", "cosine",
]  # fmt: skip


class SimilarityConfig(Section):
    """Similarity of the base model's layers on every data set, and the dynamics δ that follows from it.

    `components` is for the metric cca_top_k, `neighbours` for mutual_knn and cknna, and `variance`, the share of a layer's
    variance that is kept, for svcca and pwcca.
    `diagonal` counts a layer's similarity to itself in its δ, as the paper does.
    """

    metrics: Annotated[list[Metric], Field(min_length=1)] = ["cka_linear"]
    pooling: Literal["first", "last", "mean"] = "last"
    neighbourhood: Positive = 3
    components: Positive = 10
    neighbours: Positive = 10
    variance: Annotated[float, Field(gt=0, le=1)] = 0.99
    diagonal: bool = True

    @field_validator("metrics")
    @classmethod
    def _distinct(cls, value: list[Metric]) -> list[Metric]:
        return distinct(value, "each metric")

    @field_validator("neighbourhood")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"the neighbourhood must be odd, because it is centred on a layer; {value} is even")
        return value

    @model_validator(mode="after")
    def _has_neighbours(self) -> SimilarityConfig:
        if self.neighbourhood == 1 and not self.diagonal:
            raise ValueError("a neighbourhood of 1 contains only the layer itself; with diagonal: false give 3 or more")
        return self
