"""What tuned checkpoints have in common with their bases, as reports and warnings state it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.engine.facts import ModelFacts
from raysweep.models.same import NOTHING


@dataclass(frozen=True)
class Shared:
    """Decoder layers (of so many `layers`) that are identical in base and tuned, and whether the rest of the model is.

    `base` and `tuned` are the checkpoints' sources.
    """

    model: str
    dataset: str
    base: str
    tuned: str
    layers: int
    identical: tuple[int, ...]
    rest: bool

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Shared:
        """Make one of plain values, as `dataclasses.asdict` gives them."""
        return cls(**{**values, "identical": tuple(values["identical"])})

    @property
    def every_layer(self) -> bool:
        """Whether all decoder layers are identical."""
        return len(self.identical) == self.layers

    @property
    def whole(self) -> bool:
        """Whether the two checkpoints are identical."""
        return self.every_layer and self.rest

    @property
    def sentence(self) -> str:
        """What this means for a sweep, in one line, if all layers are identical; empty otherwise."""
        if self.whole:
            return (
                f"the tuned checkpoint of {self.model} on {self.dataset} is identical to its base: every window costs "
                "0, and the sweep shows nothing about fine-tuning. Check that the base was not given twice, and that "
                "the checkpoint was not saved or merged without its changes"
            )
        if self.every_layer:
            return (
                f"all {self.layers} decoder layers of {self.model}, tuned on {self.dataset}, are identical to the base's: only the "
                "embedding, the final norm or the head differs, and every window costs 0"
            )
        return ""


def shared_by(models: Mapping[str, ModelFacts]) -> list[Shared]:
    """The pairs that have anything in common, by model and data set; not those whose tuned checkpoint a run is still to make."""
    found = []
    for name, model in models.items():
        for dataset, tuned in model.tuned.items():
            same, n_layers = model.same.get(dataset, NOTHING), model.base.n_layers
            identical, rest = sorted(same.layers), same.rest
            if tuned.fingerprint == model.base.fingerprint:  # .bin files have no digests by tensor
                identical, rest = list(range(n_layers)), True
            if (identical or rest) and dataset not in model.promised:
                sources = model.base.source, tuned.source
                found.append(Shared(name, dataset, *sources, n_layers, tuple(identical), rest))
    return found
