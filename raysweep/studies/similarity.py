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
from raysweep.numerics.cka import Kernel, cka_matrix, constant_layers
from raysweep.numerics.dynamics import local_dynamics
from raysweep.numerics.left_out import LeftOut, cka_left_out
from raysweep.numerics.resampling import chosen_share, half_samples, jackknife_interval
from raysweep.numerics.subsets import dynamics_of, dynamics_resamples
from raysweep.studies.health import finite_examples, health_table

KERNELS: dict[str, Kernel] = {"cka_linear": "linear", "cka_rbf": "rbf", "cka_linear_debiased": "linear"}
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


def dynamics_halves(states: torch.Tensor, metric: str, neighbourhood: int, keep: np.ndarray) -> np.ndarray:
    """δ [R, L] on the half-samples `keep` [R, N], of at least 4 examples for the debiased metric."""
    return dynamics_resamples(states, keep, neighbourhood, KERNELS[metric], metric == "cka_linear_debiased")


def similarity_tables(
    states: torch.Tensor, *, metrics: Sequence[str], neighbourhood: int, resamples: int, seed: int
) -> dict[str, pd.DataFrame]:
    """The tables similarity, dynamics and health of states [L, N, D] (without model and dataset).

    Intervals of similarities and of δ are 95 %, by the jackknife (`jackknife_interval`); they cover what as many examples
    give on average. `rank` 1 is the smallest δ; NaN δ has no rank. `rank_low` to `rank_high` hold 95 % of a layer's ranks
    over `resamples` half-samples, and `chosen` is the share of those in which it is among the fifth with the smallest δ.
    All are NaN where there are fewer than 8 examples. Examples whose states are not finite
    at some layer are left out of everything, and counted in the table health as the measure `not_finite`.
    """
    finite_LN = finite_examples(states)
    if not finite_LN.all():
        states = states[:, torch.from_numpy(finite_LN.all(axis=0)).to(states.device)]
    n_layers, n_examples = states.shape[:2]
    constant = constant_layers(states)
    pairs = np.stack(np.meshgrid(np.arange(n_layers), np.arange(n_layers), indexing="ij")).reshape(2, -1)
    enough = n_examples >= FEWEST_TO_RESAMPLE
    keep = half_samples(n_examples, resamples, seed) if enough else None
    left_out: dict[str, tuple[LeftOut, LeftOut]] = {}
    matrices, dynamics = [], []
    for metric in metrics:
        S = similarity_matrix(states, metric)
        delta = local_dynamics(S, neighbourhood)
        limits, delta_limits = np.full((2, n_layers**2), np.nan), np.full((2, n_layers), np.nan)
        ranks, chosen = np.full((2, n_layers), np.nan), np.full(n_layers, np.nan)
        if keep is not None:
            kernel = KERNELS[metric]
            if kernel not in left_out:
                left_out[kernel] = cka_left_out(states, kernel)
            one, two = left_out[kernel][metric == "cka_linear_debiased"]
            limits = _limits(S.ravel(), one.reshape(len(one), -1), two.reshape(len(two), -1))
            delta_limits = _limits(delta, dynamics_of(one, neighbourhood), dynamics_of(two, neighbourhood))
            halves = dynamics_halves(states, metric, neighbourhood, keep)
            ranks, chosen = _rank_limits(halves), np.where(np.isnan(delta), np.nan, chosen_share(halves))
        matrices.append(
            pd.DataFrame(
                {
                    "other": pd.Series([None] * len(pairs[0]), dtype="string"),
                    "metric": metric,
                    "layer_i": pairs[0],
                    "layer_j": pairs[1],
                    "value": S.ravel(),
                    "ci_low": limits[0],
                    "ci_high": limits[1],
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
                    "ci_low": delta_limits[0],
                    "ci_high": delta_limits[1],
                    "rank": pd.Series(delta).rank(method="first").astype("Int64"),
                    "rank_low": ranks[0],
                    "rank_high": ranks[1],
                    "chosen": chosen,
                }
            )
        )
    return {
        "similarity": pd.concat(matrices, ignore_index=True),
        "dynamics": pd.concat(dynamics, ignore_index=True),
        "health": health_table(states, finite_LN),
    }


def _limits(estimate: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Ends of 95 % intervals [2, E]."""
    return np.stack(jackknife_interval(estimate, one, two))


def _rank_limits(halves: np.ndarray) -> np.ndarray:
    """Ranks of δ [2, L] between which 95 % of the half-samples rank a layer; NaN where some gives it no δ."""
    ranks = pd.DataFrame(halves).rank(axis=1, method="first").to_numpy()
    return np.asarray(np.quantile(ranks, [0.025, 0.975], axis=0, method="inverted_cdf"))


def _reason(value: float, constant: np.ndarray, i: int, j: int) -> str | None:
    if not np.isnan(value):
        return None
    same = [int(layer) for layer in sorted({i, j}) if constant[layer]]
    if same:
        return f"all examples have the same state at layer {' and '.join(map(str, same))}, so its similarity is 0/0"
    return "the unbiased variance of a layer is not positive: too few examples for its width"
