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
    """Similarity between the base model's layers on every data set, and the local dynamics δ that follows from it."""

    metrics: Annotated[list[Metric], Field(min_length=1)] = Field(
        default=["cka_linear"],
        description="Measures of similarity between two layers' states. The first one decides which layers are critical.",
    )
    pooling: Literal["first", "last", "mean"] = Field(
        default="last",
        description=(
            "Which state represents an example: that of its `last` prompt token, of its `first` token ([CLS] of "
            "an encoder), or the `mean` over the prompt."
        ),
    )
    neighbourhood: Positive = Field(
        default=3, description="δ of a layer is its mean similarity to this many layers around it. An odd number."
    )
    components: Positive = Field(
        default=10, description="For cca_top_k: how many principal components of each layer are compared."
    )
    neighbours: Positive = Field(
        default=10, description="For mutual_knn and cknna: how many nearest examples are compared."
    )
    variance: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.99, description="For svcca and pwcca: the share of each layer's variance that its components keep."
    )
    diagonal: bool = Field(
        default=True, description="Count a layer's similarity to itself in its δ, as the paper does."
    )

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
