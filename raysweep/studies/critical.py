"""Critical layers of one base model, how stable that choice is, and the lists that go to PEFT or a trainer.

Shapes: L layers, N examples, D width, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from raysweep.errors import InputError
from raysweep.numerics.dynamics import change_points, local_dynamics
from raysweep.numerics.gram import read_layers
from raysweep.numerics.health import outliers_anywhere
from raysweep.numerics.resampling import half_samples
from raysweep.numerics.segments import segment_starts
from raysweep.numerics.selection import Agreement, Choices, agreement_between
from raysweep.studies.capture import Pooling, capture_states
from raysweep.studies.choices import choice_table, choices_of
from raysweep.studies.health import finite_examples, health_table
from raysweep.studies.similarity import FEWEST_TO_RESAMPLE, dynamics_halves, similarity_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raysweep.data.examples import Example
    from raysweep.models.adapter import Adapter
    from raysweep.models.stream import StreamedModel

_SHOWN = 8  # layers in a repr


@dataclass(frozen=True, repr=False)
class DatasetChoice:
    """The choice of critical layers on one data set.

    Attributes:
        n_examples: Examples whose states are finite.
        layers: The chosen layers, those with the smallest δ.
        delta: δ [L].
        stability: Share of half-samples of the examples in which each layer [L] is chosen. NaN with fewer than 8 examples.
        starts: First layers of the segments of similar layers, as `ruptures` cuts the similarity matrix.
        outliers: How many dimensions vary far more than the others.
        trimmed: The choice without these dimensions.
        health: The table `health`.
    """

    n_examples: int
    layers: list[int]
    delta: np.ndarray
    stability: np.ndarray
    starts: list[int]
    outliers: int
    trimmed: list[int]
    health: pd.DataFrame

    def __repr__(self) -> str:
        chosen = _chosen_in_words(self.layers, self.delta, self.stability)
        warned = int(self.health["warning"].notna().sum())
        return f"DatasetChoice({chosen}; {self.n_examples} examples, {warned} health warnings)"


@dataclass(frozen=True, repr=False)
class Critical:
    """The critical layers of a base model, how stable the choice is, and the lists for PEFT and for freezing.

    Attributes:
        layers: The chosen layers, those with the smallest δ.
        delta: δ [L], the mean over data sets.
        stability: How often each layer [L] is chosen over half-samples of every data set, as a share. NaN if a data set has fewer
            than 8 examples.
        block_path: The path of the layers in the model.
        layers_pattern: The part of a module's path by which PEFT recognises a layer.
        shared: Weights of the chosen layers that `named_parameters` lists under an earlier layer, which shares them.
        parameters: All weights of the chosen layers.
        datasets: The choice on each data set, by name.
        agreement: How far the data sets agree; None for one.
        note: What the checkpoint's provenance file says about its weights.
    """

    layers: list[int]
    delta: np.ndarray
    stability: np.ndarray
    block_path: str
    layers_pattern: str = ""
    shared: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    datasets: Mapping[str, DatasetChoice] = field(default_factory=dict)
    agreement: Agreement | None = None
    note: str = ""

    def __repr__(self) -> str:
        chosen, sets = _chosen_in_words(self.layers, self.delta, self.stability), len(self.datasets)
        agreement = f", agreement {self.agreement.value:.2f}" if self.agreement else ""
        return f"Critical({chosen}; {sets} data set{'s' if sets != 1 else ''}{agreement})"

    def peft_config(self) -> dict[str, object]:
        """Return the keyword arguments of a PEFT config that trains the critical layers only."""
        pattern = self.layers_pattern or self.block_path.rpartition(".")[2]
        return {"layers_to_transform": self.layers, "layers_pattern": pattern}

    def freeze_list(self) -> list[str]:
        """Return the prefixes of the critical layers' parameters, as `named_parameters` lists them."""
        return [*(f"{self.block_path}.{layer}." for layer in self.layers), *self.shared]


def _chosen_in_words(layers: Sequence[int], delta_L: np.ndarray, stability_L: np.ndarray) -> str:
    """The layers with δ and stability, the first of them if there are many."""
    each = [f"{layer} (δ {delta_L[layer]:.3f}, stability {stability_L[layer]:.2f})" for layer in layers[:_SHOWN]]
    more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
    return f"layers {', '.join(each)}{more} of {len(delta_L)}"


def critical_layers(
    model: PreTrainedModel | Adapter | StreamedModel,
    examples: Sequence[Example] | Mapping[str, Sequence[Example]],
    *,
    top: int | None = None,
    metric: str = "cka_linear",
    pooling: Pooling = "last",
    neighbourhood: int = 3,
    diagonal: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    batch_tokens: int = 8192,
    progress: Callable[[str], None] | None = None,
) -> Critical:
    """The layers of a base model where representations change most (smallest δ); `top` of them, a fifth by default.

    `examples` may be of several data sets, by name: the choice is then by the mean of their δ, and their agreement is told.
    Examples whose states are not finite are left out. `progress` is told the name of each data set before it is captured.
    Raises InputError, naming the data set, where fewer than two examples are left.
    """
    from raysweep.models.adapter import Adapter
    from raysweep.models.stream import StreamedModel

    streamed = model if isinstance(model, StreamedModel) else None
    adapter = streamed.adapter if streamed else model if isinstance(model, Adapter) else Adapter(model)
    named = examples if isinstance(examples, Mapping) else {"examples": examples}
    if not named:
        raise InputError(
            "no data set is given; give at least one, because critical layers are found from the states of examples"
        )
    found: dict[str, tuple[DatasetChoice, Choices]] = {}
    for name, of_set in named.items():
        if progress:
            progress(name)
        layers = streamed.layers if streamed else None
        states = capture_states(adapter, of_set, pooling=pooling, batch_tokens=batch_tokens, layers=layers).states
        try:
            found[name] = _chosen_on(
                states,
                np.array([example.id for example in of_set]),
                top=top,
                metric=metric,
                neighbourhood=neighbourhood,
                diagonal=diagonal,
                resamples=resamples,
                seed=seed,
            )
        except InputError as error:
            raise InputError(f"data set '{name}': {error}" if len(named) > 1 else str(error)) from error
    datasets = {name: choice for name, (choice, _) in found.items()}
    delta = np.mean([choice.delta for choice in datasets.values()], axis=0)
    chosen = [int(layer) for layer in change_points(delta, top)]
    prefixes, shared = tuple(f"{adapter.block_path}.{layer}." for layer in chosen), adapter.names_elsewhere(chosen)
    own = (name for name, _ in adapter.model.named_parameters() if name.startswith(prefixes))
    return Critical(
        chosen,
        delta,
        np.mean([choice.stability for choice in datasets.values()], axis=0),
        adapter.block_path,
        adapter.layers_pattern,
        shared,
        (*own, *shared),
        datasets,
        agreement_between([choices for _, choices in found.values()], seed=seed) if len(found) > 1 else None,
    )


def _chosen_on(
    states: torch.Tensor,
    example_ids: np.ndarray,
    *,
    top: int | None,
    metric: str,
    neighbourhood: int,
    diagonal: bool,
    resamples: int,
    seed: int,
) -> tuple[DatasetChoice, Choices]:
    """The choice on one data set's states [L, N, D], and that on its half-samples."""
    finite_LN = finite_examples(states)
    if not finite_LN.all():
        states = states[:, torch.from_numpy(finite_LN.all(axis=0)).to(states.device)]
    n_examples = states.shape[1]
    S = similarity_matrix(states, metric)
    delta = local_dynamics(S, neighbourhood, diagonal)
    keep = half_samples(n_examples, resamples, seed) if n_examples >= FEWEST_TO_RESAMPLE else None
    halves = None if keep is None else dynamics_halves(states, metric, neighbourhood, keep, diagonal)
    choices = choices_of(choice_table(delta, halves, top), len(delta))
    layers = trimmed = [int(layer) for layer in change_points(delta, top)]
    outlying_D = outliers_anywhere(read_layers(states))[0]
    if outlying_D.any() and not outlying_D.all():
        others = similarity_matrix(states[:, :, torch.from_numpy(~outlying_D).to(states.device)], metric)
        trimmed = [int(layer) for layer in change_points(local_dynamics(others, neighbourhood, diagonal), top)]
    return (
        DatasetChoice(
            n_examples,
            layers,
            delta,
            choices.layer_shares,
            [int(layer) for layer in segment_starts(S)],
            int(outlying_D.sum()),
            trimmed,
            health_table(states, finite_LN, example_ids),
        ),
        choices,
    )
