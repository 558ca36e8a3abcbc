"""The part of a config that says which studies are made, and what one of them needs of another; config.py has the rest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysweep.config_backdoor import BackdoorConfig
from raysweep.config_fields import Name, Section
from raysweep.config_removal import RemovalConfig
from raysweep.config_similarity import SimilarityConfig
from raysweep.config_spectrum import SpectrumConfig
from raysweep.config_substitution import SubstitutionConfig
from raysweep.config_training import AdaptationConfig, FinetuneConfig, Training


class CorrelationConfig(Section):
    """The rank correlation ρ of δ with the loss after replacement, over the windows of each width.

    Needs `similarity` and `substitution`.
    """

    resamples: Annotated[int, Field(ge=1, le=10**6, strict=True)] = Field(
        default=1000, description="How many half-samples of the examples each interval is computed from."
    )
    seed: Annotated[int, Field(ge=0, le=2**63, strict=True)] = Field(
        default=0, description="The seed of the half-samples."
    )
    drop_ends: Annotated[int, Field(ge=0, le=10**9, strict=True)] = Field(
        default=0, description="How many window centres to skip at each end of the model."
    )
    published: dict[Name, dict[Name, Annotated[float, Field(ge=-1, le=1)]]] = Field(
        default={},
        description="ρ measured elsewhere, by model and data set, shown next to the run's own in the report.",
    )


class StudiesConfig(Section):
    """The studies to run; an empty section `{}` runs a study with its defaults.

    At least one other than `correlation` is needed.
    """

    substitution: SubstitutionConfig | None = Field(
        default=None,
        description="Replace windows of the tuned model's layers with the base model's, and measure the test loss.",
    )
    similarity: SimilarityConfig | None = Field(
        default=None, description="Compare the base model's layers, and find the critical ones."
    )
    spectrum: SpectrumConfig | None = Field(
        default=None, description="Describe the variance of the base model's states at each layer."
    )
    correlation: CorrelationConfig | None = Field(
        default=None, description="Test whether δ predicts the cost of windows."
    )
    removal: RemovalConfig | None = Field(
        default=None, description="Remove principal components from one layer's states, and measure what changes."
    )
    finetune: FinetuneConfig | None = Field(
        default=None, description="Fine-tune the checkpoints that `models[].tuned` does not name."
    )
    adaptation: AdaptationConfig | None = Field(
        default=None,
        description="Compare training the critical layers with training as many other layers, and with training all.",
    )
    backdoor: BackdoorConfig | None = Field(
        default=None, description="Measure whether freezing layers keeps a fine-tune from learning a backdoor."
    )

    @model_validator(mode="after")
    def _whole(self) -> StudiesConfig:
        if not any(getattr(self, name) for name in type(self).model_fields if name != "correlation"):
            raise ValueError(
                "has no study; give substitution, similarity, spectrum, removal, finetune, adaptation, backdoor or "
                "several (an empty one is written {})"
            )
        if self.correlation and not (self.substitution and self.similarity):
            raise ValueError("correlation needs both substitution and similarity; add the missing one")
        if self.removal and self.removal.layers == "critical" and not self.similarity:
            raise ValueError(
                "removal at critical layers needs similarity, which finds them; add it, or list the layers"
            )
        return self

    @model_validator(mode="after")
    def _found(self) -> StudiesConfig:
        for name, asked in self.trainings.items():
            if not self.similarity and (choice := asked.found):
                raise ValueError(
                    f"{name} asks for {choice} layers, which similarity finds, and there is no similarity study; add "
                    "it, or list the layers"
                )
        return self

    @property
    def trainings(self) -> dict[str, Training]:
        """The studies that train models, by their names."""
        all_of_them = {"finetune": self.finetune, "adaptation": self.adaptation, "backdoor": self.backdoor}
        return {name: asked for name, asked in all_of_them.items() if asked}

    @model_validator(mode="after")
    def _one_pooling(self) -> StudiesConfig:
        asked = self.spectrum.pooling if self.spectrum else None
        if self.similarity and asked and asked != self.similarity.pooling:
            raise ValueError(
                f"spectrum.pooling is {asked} and similarity.pooling is {self.similarity.pooling}, and both use the "
                "same stored states; remove spectrum.pooling, or make them equal"
            )
        return self

    @property
    def pooling(self) -> Literal["first", "last", "mean"] | None:
        """How the stored states are pooled; None where no study asks for states."""
        if self.similarity:
            return self.similarity.pooling
        return (self.spectrum.pooling or "last") if self.spectrum else None
