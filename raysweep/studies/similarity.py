"""Similarity: how alike the layers' representations are, and the dynamics δ that follows, as tables.

Takes states that were captured (or any array [L, N, D]); the arithmetic is numerics/'s. Shapes: L layers,
N examples, D width, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from raysweep.errors import InputError, nearest
from raysweep.numerics.cka import cka_matrix, constant_layers
from raysweep.numerics.dynamics import local_dynamics, without_diagonal
from raysweep.numerics.resampling import half_samples, recentred_interval
from raysweep.numerics.subsets import dynamics_resamples
from raysweep.studies.choices import choice_table
from raysweep.studies.health import finite_examples, health_table

KERNELS = {"cka_linear": "linear", "cka_rbf": "rbf", "cka_linear_debiased": "linear"}
FEWEST_TO_RESAMPLE = 8


def similarity_matrix(states: torch.Tensor, metric: str) -> np.ndarray:
    """The L × L matrix of one metric, float64, NaN where a layer's states are all identical.

    Raises InputError for an unknown metric.
    """
    if metric not in KERNELS:
        raise InputError(f"unknown metric '{metric}'; {nearest(metric, KERNELS)}")
    if metric == "cka_rbf":
        return cka_matrix(states, kernel="rbf")
    return cka_matrix(states, debiased=metric == "cka_linear_debiased")


def dynamics_halves(
    states: torch.Tensor, metric: str, neighbourhood: int, keep: np.ndarray, diagonal: bool = True
) -> np.ndarray | None:
    """δ [R, L] on the half-samples `keep` [R, N]; None for the debiased metric, which has no cheap resampling."""
    if metric == "cka_linear_debiased":
        return None
    halves = dynamics_resamples(states, keep, neighbourhood, "rbf" if metric == "cka_rbf" else "linear")
    return halves if diagonal else without_diagonal(halves, neighbourhood)


def similarity_tables(
    states: torch.Tensor,
    *,
    metrics: Sequence[str],
    neighbourhood: int,
    resamples: int,
    seed: int,
    diagonal: bool = True,
    example_ids: np.ndarray | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables similarity, dynamics, critical and health of states [L, N, D] (without model and dataset).

    Intervals of δ are 95 % from half-samples of the examples, re-centred on δ of all; NaN where there are fewer than 8
    examples, or for the debiased metric. `rank` 1 is the smallest δ; NaN δ has no rank. Examples whose states are not finite
    at some layer are left out of everything, and counted in the table health as the measure `not_finite`; the table names
    examples by `example_ids`, or counts them. δ counts a layer's similarity to itself unless `diagonal` is False.
    """
    finite_LN = finite_examples(states)
    if not finite_LN.all():
        states = states[:, torch.from_numpy(finite_LN.all(axis=0)).to(states.device)]
    n_layers, n_examples = states.shape[:2]
    constant = constant_layers(states)
    pairs = np.stack(np.meshgrid(np.arange(n_layers), np.arange(n_layers), indexing="ij")).reshape(2, -1)
    enough = n_examples >= FEWEST_TO_RESAMPLE
    keep = half_samples(n_examples, resamples, seed) if enough else None
    matrices, dynamics, choices = [], [], []
    for metric in metrics:
        S = similarity_matrix(states, metric)
        delta = local_dynamics(S, neighbourhood, diagonal)
        halves = None if keep is None else dynamics_halves(states, metric, neighbourhood, keep, diagonal)
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
        choices.append(choice_table(delta, halves).assign(metric=metric, neighbourhood=neighbourhood))
    return {
        "similarity": pd.concat(matrices, ignore_index=True),
        "dynamics": pd.concat(dynamics, ignore_index=True),
        "critical": pd.concat(choices, ignore_index=True),
        "health": health_table(states, finite_LN, example_ids),
    }


def _reason(value: float, constant: np.ndarray, i: int, j: int) -> str | None:
    if not np.isnan(value):
        return None
    same = [int(layer) for layer in sorted({i, j}) if constant[layer]]
    if same:
        return f"all examples have the same state at layer {' and '.join(map(str, same))}, so its similarity is 0/0"
    return "the unbiased variance of a layer is not positive: too few examples for its width"
