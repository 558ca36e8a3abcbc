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
from raysweep.numerics.dynamics import local_dynamics, without_diagonal
from raysweep.numerics.measures.layers import Compared
from raysweep.numerics.measures.registry import DEFAULTS, MEASURES, Parameters, compare
from raysweep.numerics.resampling import half_samples, recentred_interval
from raysweep.numerics.subsets import dynamics_resamples
from raysweep.studies.choices import choice_table
from raysweep.studies.health import finite_examples, health_table

KERNELS = {"cka_linear": "linear", "cka_rbf": "rbf", "cka_linear_debiased": "linear"}
FEWEST_TO_RESAMPLE = 8


def compared(states: torch.Tensor, metric: str, parameters: Parameters = DEFAULTS) -> Compared:
    """One metric between every two layers [L, L], float64, and why a value is NaN. Raises InputError for an unknown metric."""
    if metric not in MEASURES:
        raise InputError(f"unknown metric '{metric}'; {nearest(metric, MEASURES)}")
    return compare(states, metric, parameters=parameters)


def similarity_matrix(states: torch.Tensor, metric: str, parameters: Parameters = DEFAULTS) -> np.ndarray:
    """One metric between every two layers [L, L] as δ takes it, larger where more alike: 1 − value of a measure of distance.

    Raises InputError for an unknown metric.
    """
    found = compared(states, metric, parameters)
    return MEASURES[metric].likeness(found.values)


def dynamics_halves(
    states: torch.Tensor, metric: str, neighbourhood: int, keep: np.ndarray, diagonal: bool = True
) -> np.ndarray | None:
    """δ [R, L] on the half-samples `keep` [R, N]; None for a metric that has no cheap resampling: all but biased CKA."""
    if metric not in KERNELS or metric == "cka_linear_debiased":
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
    parameters: Parameters = DEFAULTS,
    diagonal: bool = True,
    example_ids: np.ndarray | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables similarity, dynamics, critical and health of states [L, N, D] (without model and dataset).

    Intervals of δ are 95 % from half-samples of the examples, re-centred on δ of all; NaN where there are fewer than 8
    examples, or for a metric without resampling. δ of a measure of distance is the mean of 1 − value. `rank` 1 is the
    smallest δ; NaN δ has no rank. Examples whose states are not finite at some layer are left out of everything, and
    counted in the table health as the measure `not_finite`; the table names examples by `example_ids`, or counts them. δ
    counts a layer's similarity to itself unless `diagonal` is False.
    """
    finite_LN = finite_examples(states)
    if not finite_LN.all():
        states = states[:, torch.from_numpy(finite_LN.all(axis=0)).to(states.device)]
    n_layers, n_examples = states.shape[:2]
    pairs = np.stack(np.meshgrid(np.arange(n_layers), np.arange(n_layers), indexing="ij")).reshape(2, -1)
    enough = n_examples >= FEWEST_TO_RESAMPLE
    keep = half_samples(n_examples, resamples, seed) if enough else None
    matrices, dynamics, choices = [], [], []
    for metric in metrics:
        found = compared(states, metric, parameters)
        delta = local_dynamics(MEASURES[metric].likeness(found.values), neighbourhood, diagonal)
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
                    "value": found.values.ravel(),
                    "ci_low": np.nan,
                    "ci_high": np.nan,
                    "reason": pd.Series([found.reasons.get((i, j)) for i, j in pairs.T.tolist()], dtype="string"),
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
