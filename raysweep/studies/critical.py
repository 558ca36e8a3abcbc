"""Critical layers of one base model, how stable that choice is, and the lists that go to PEFT or a trainer.

Shapes: L layers, N examples, D width, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from raysweep.numerics.dynamics import change_points, local_dynamics
from raysweep.numerics.resampling import half_samples
from raysweep.studies.capture import Pooling, capture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raysweep.data.examples import Example
    from raysweep.models.adapter import Adapter

from raysweep.studies.health import finite_examples
from raysweep.studies.similarity import FEWEST_TO_RESAMPLE, dynamics_halves, similarity_matrix


@dataclass(frozen=True)
class Critical:
    """Critical layers of one base model: the layers with the smallest δ, and how stable that choice is.

    `delta` [L]; `stability` [L] is the share of half-samples of the examples in which a layer is among the chosen (NaN with
    fewer than 8 examples). `shared` names the chosen layers' weights that an earlier layer has too, and that go by its name.
    """

    layers: list[int]
    delta: np.ndarray
    stability: np.ndarray
    block_path: str
    layers_pattern: str = ""
    shared: tuple[str, ...] = ()

    def peft_config(self) -> dict[str, object]:
        """Keyword arguments for a PEFT config that trains the critical layers only."""
        pattern = self.layers_pattern or self.block_path.rpartition(".")[2]
        return {"layers_to_transform": self.layers, "layers_pattern": pattern}

    def freeze_list(self) -> list[str]:
        """Prefixes of the parameters that belong to the critical layers, as `named_parameters` names them."""
        return [*(f"{self.block_path}.{layer}." for layer in self.layers), *self.shared]


def critical_layers(
    model: PreTrainedModel | Adapter,
    examples: Sequence[Example],
    *,
    top: int | None = None,
    metric: str = "cka_linear",
    pooling: Pooling = "last",
    neighbourhood: int = 3,
    resamples: int = 1000,
    seed: int = 0,
) -> Critical:
    """The layers of a base model where representations change most (smallest δ); `top` of them, a fifth by default.

    Examples whose states are not finite are left out.
    """
    from raysweep.models.adapter import Adapter

    adapter = model if isinstance(model, Adapter) else Adapter(model)
    states = capture(adapter, examples, pooling)
    finite_N = finite_examples(states).all(axis=0)
    if not finite_N.all():
        states = states[:, torch.from_numpy(finite_N).to(states.device)]
    n_examples = states.shape[1]
    delta = local_dynamics(similarity_matrix(states, metric), neighbourhood)
    chosen = change_points(delta, top)
    keep = half_samples(n_examples, resamples, seed) if n_examples >= FEWEST_TO_RESAMPLE else None
    halves = None if keep is None else dynamics_halves(states, metric, neighbourhood, keep)
    stability = np.full(len(delta), np.nan)
    if halves is not None:
        counts = np.zeros(len(delta))
        for row in halves:
            counts[change_points(row, top)] += 1
        stability = counts / len(halves)
    layers = [int(layer) for layer in chosen]
    return Critical(
        layers, delta, stability, adapter.block_path, adapter.layers_pattern, adapter.names_elsewhere(layers)
    )
