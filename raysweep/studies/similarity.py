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
from raysweep.numerics.cka import Kernel
from raysweep.numerics.dynamics import chosen_layers, local_dynamics
from raysweep.numerics.left_out import LeftOut, cka_left_out
from raysweep.numerics.measures.layers import Compared
from raysweep.numerics.measures.registry import DEFAULTS, MEASURES, Parameters, compare
from raysweep.numerics.resampling import half_samples, jackknife_interval
from raysweep.numerics.subsets import dynamics_of, dynamics_resamples
from raysweep.studies.choices import choice_table
from raysweep.studies.health import finite_examples, health_table

KERNELS: dict[str, Kernel] = {"cka_linear": "linear", "cka_rbf": "rbf", "cka_linear_debiased": "linear"}
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
    """δ [R, L] on the half-samples `keep` [R, N], of at least 4 examples for the debiased metric; None for other than CKA, which
    has no cheap resampling."""
    if metric not in KERNELS:
        return None
    return dynamics_resamples(states, keep, neighbourhood, KERNELS[metric], metric == "cka_linear_debiased", diagonal)


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

    Intervals of similarities and of δ are 95 %, by the jackknife (`jackknife_interval`); they cover what as many examples
    give on average. δ of a measure of distance is the mean of 1 − value, and counts a layer's similarity to itself unless
    `diagonal` is False. `rank` 1 is the smallest δ; NaN δ has no rank. `rank_low` to `rank_high` hold 95 % of a layer's ranks
    over `resamples` half-samples, and `chosen` is the share of those in which it is among the fifth with the smallest δ. All
    are NaN where there are fewer than 8 examples, and for a metric without resampling: all but CKA. Examples whose states
    are not finite at some layer are left out of everything, and counted in the table health as the measure `not_finite`; the
    table names examples by `example_ids`, or counts them.
    """
    finite_LN = finite_examples(states)
    if not finite_LN.all():
        states = states[:, torch.from_numpy(finite_LN.all(axis=0)).to(states.device)]
    n_layers, n_examples = states.shape[:2]
    pairs = np.stack(np.meshgrid(np.arange(n_layers), np.arange(n_layers), indexing="ij")).reshape(2, -1)
    enough = n_examples >= FEWEST_TO_RESAMPLE
    keep = half_samples(n_examples, resamples, seed) if enough else None
    left_out: dict[str, tuple[LeftOut, LeftOut]] = {}
    matrices, dynamics, choices = [], [], []
    for metric in metrics:
        found = compared(states, metric, parameters)
        delta = local_dynamics(MEASURES[metric].likeness(found.values), neighbourhood, diagonal)
        halves = None if keep is None else dynamics_halves(states, metric, neighbourhood, keep, diagonal)
        limits, delta_limits = np.full((2, n_layers**2), np.nan), np.full((2, n_layers), np.nan)
        ranks, chosen = np.full((2, n_layers), np.nan), np.full(n_layers, np.nan)
        if halves is not None:
            kernel = KERNELS[metric]
            if kernel not in left_out:
                left_out[kernel] = cka_left_out(states, kernel)
            one, two = left_out[kernel][metric == "cka_linear_debiased"]
            limits = _limits(found.values.ravel(), one.reshape(len(one), -1), two.reshape(len(two), -1))
            delta_limits = _limits(
                delta, dynamics_of(one, neighbourhood, diagonal), dynamics_of(two, neighbourhood, diagonal)
            )
            ranks = _rank_limits(halves)
            chosen = np.where(np.isnan(delta), np.nan, chosen_layers(halves).mean(axis=0))
        matrices.append(
            pd.DataFrame(
                {
                    "other": pd.Series([None] * len(pairs[0]), dtype="string"),
                    "metric": metric,
                    "layer_i": pairs[0],
                    "layer_j": pairs[1],
                    "value": found.values.ravel(),
                    "ci_low": limits[0],
                    "ci_high": limits[1],
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
                    "ci_low": delta_limits[0],
                    "ci_high": delta_limits[1],
                    "rank": pd.Series(delta).rank(method="first").astype("Int64"),
                    "rank_low": ranks[0],
                    "rank_high": ranks[1],
                    "chosen": chosen,
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


def _limits(estimate: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Ends of 95 % intervals [2, E]."""
    return np.stack(jackknife_interval(estimate, one, two))


def _rank_limits(halves: np.ndarray) -> np.ndarray:
    """Ranks of δ [2, L] between which 95 % of the half-samples rank a layer; NaN where some gives it no δ."""
    ranks = pd.DataFrame(halves).rank(axis=1, method="first").to_numpy()
    return np.asarray(np.quantile(ranks, [0.025, 0.975], axis=0, method="inverted_cdf"))
