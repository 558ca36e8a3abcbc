"""Similarity: how alike the layers' representations are, and the dynamics δ that follows, as tables.

Takes states that were captured (or any array [L, N, D]); the arithmetic is numerics/similarity.py's. Shapes: L layers,
N examples, D width, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from raysweep.errors import InputError, nearest
from raysweep.numerics.resampling import half_samples, recentred_interval
from raysweep.numerics.similarity import (
    change_points,
    cka_matrix,
    constant_layers,
    dynamics_resamples,
    health,
    local_dynamics,
)
from raysweep.studies.capture import Pooling, capture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raysweep.data.examples import Example
    from raysweep.models.adapter import Adapter

KERNELS = {"cka_linear": "linear", "cka_rbf": "rbf", "cka_linear_debiased": "linear"}
_FEWEST_TO_RESAMPLE = 8
_TRUST = {  # measure → (limit, words): above the limit, a layer's linear CKA says little
    "mean_to_rms": (0.999, "the states hardly differ between examples"),
    "top_component_share": (0.9, "one direction carries nearly all variance"),
    "top_dimension_share": (0.9, "one dimension carries nearly all variance"),
}


def similarity_matrix(states: torch.Tensor, metric: str) -> np.ndarray:
    """The L × L matrix of one metric, float64, NaN where a layer's states are all identical.

    Raises InputError for an unknown metric.
    """
    if metric not in KERNELS:
        raise InputError(f"unknown metric '{metric}'; {nearest(metric, KERNELS)}")
    if metric == "cka_rbf":
        return cka_matrix(states, kernel="rbf")
    return cka_matrix(states, debiased=metric == "cka_linear_debiased")


def finite_examples(states: torch.Tensor) -> np.ndarray:
    """Which examples of states [L, N, D] have only finite values at each layer, bool [L, N].

    Raises InputError where fewer than two have them at all layers, so that there is nothing to compare.
    """
    finite_LN = torch.stack([layer_ND.isfinite().all(dim=-1) for layer_ND in states]).cpu().numpy()
    n, left = finite_LN.shape[1], int(finite_LN.all(axis=0).sum())
    if n > 1 and left < 2:
        layer = int((~finite_LN).any(axis=1).argmax())
        raise InputError(
            f"{n - left} of {n} examples have states that are not finite (from layer {layer} on), so that no two can be "
            "compared; the model overflows in this dtype: choose another"
        )
    return finite_LN


def dynamics_halves(states: torch.Tensor, metric: str, neighbourhood: int, keep: np.ndarray) -> np.ndarray | None:
    """δ [R, L] on the half-samples `keep` [R, N]; None for the debiased metric, which has no cheap resampling."""
    if metric == "cka_linear_debiased":
        return None
    return dynamics_resamples(states, keep, neighbourhood, "rbf" if metric == "cka_rbf" else "linear")


def similarity_tables(
    states: torch.Tensor, *, metrics: Sequence[str], neighbourhood: int, resamples: int, seed: int
) -> dict[str, pd.DataFrame]:
    """The tables similarity, dynamics and health of states [L, N, D] (without model and dataset).

    Intervals of δ are 95 % from half-samples of the examples, re-centred on δ of all; NaN where there are fewer than 8
    examples, or for the debiased metric. `rank` 1 is the smallest δ; NaN δ has no rank. Examples whose states are not finite
    at some layer are left out of everything, and counted in the table health as the measure `not_finite`.
    """
    finite_LN = finite_examples(states)
    if not finite_LN.all():
        states = states[:, torch.from_numpy(finite_LN.all(axis=0)).to(states.device)]
    n_layers, n_examples = states.shape[:2]
    constant = constant_layers(states)
    pairs = np.stack(np.meshgrid(np.arange(n_layers), np.arange(n_layers), indexing="ij")).reshape(2, -1)
    enough = n_examples >= _FEWEST_TO_RESAMPLE
    keep = half_samples(n_examples, resamples, seed) if enough else None
    matrices, dynamics = [], []
    for metric in metrics:
        S = similarity_matrix(states, metric)
        delta = local_dynamics(S, neighbourhood)
        halves = None if keep is None else dynamics_halves(states, metric, neighbourhood, keep)
        low_high = [
            (np.nan, np.nan)
            if halves is None or np.isnan(delta[layer])
            else recentred_interval(delta[layer], halves[:, layer])
            for layer in range(n_layers)
        ]
        matrices.append(
            pd.DataFrame(
                {
                    "other": pd.Series([None] * len(pairs[0]), dtype="string"),
                    "metric": metric,
                    "layer_i": pairs[0],
                    "layer_j": pairs[1],
                    "value": S.ravel(),
                    "ci_low": np.nan,
                    "ci_high": np.nan,
                    "reason": pd.Series([_reason(S[i, j], constant, i, j) for i, j in pairs.T], dtype="string"),
                }
            )
        )
        dynamics.append(
            pd.DataFrame(
                {
                    "metric": metric,
                    "neighbourhood": neighbourhood,
                    "layer": np.arange(n_layers),
                    "delta": delta,
                    "ci_low": [low for low, _ in low_high],
                    "ci_high": [high for _, high in low_high],
                    "rank": pd.Series(delta).rank(method="first").astype("Int64"),
                }
            )
        )
    return {
        "similarity": pd.concat(matrices, ignore_index=True),
        "dynamics": pd.concat(dynamics, ignore_index=True),
        "health": _health_table(states, finite_LN),
    }


def _reason(value: float, constant: np.ndarray, i: int, j: int) -> str | None:
    if not np.isnan(value):
        return None
    same = [int(layer) for layer in sorted({i, j}) if constant[layer]]
    if same:
        return f"all examples have the same state at layer {' and '.join(map(str, same))}, so its similarity is 0/0"
    return "the unbiased variance of a layer is not positive: too few examples for its width"


def _health_table(states: torch.Tensor, finite_LN: np.ndarray) -> pd.DataFrame:
    rows = []
    if not finite_LN.all():
        n, out = finite_LN.shape[1], int((~finite_LN.all(axis=0)).sum())
        for layer, bad in enumerate((~finite_LN).sum(axis=1)):
            told = f"{bad} of {n} examples have states that are not finite; {out} are left out of every similarity"
            rows.append(
                {"layer": layer, "measure": "not_finite", "value": float(bad), "warning": told if bad else None}
            )
    for measure, values in health(states).items():
        limit, words = _TRUST.get(measure, (np.inf, ""))
        for layer, value in enumerate(values):
            warning = f"{measure} is {value:.4g}, above {limit}: {words}" if value > limit else None
            rows.append({"layer": layer, "measure": measure, "value": float(value), "warning": warning})
    return pd.DataFrame(rows).astype({"warning": "string"})


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
    keep = half_samples(n_examples, resamples, seed) if n_examples >= _FEWEST_TO_RESAMPLE else None
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
