"""Correlation: does the dynamics δ of the base model tell where putting layers back hurts the tuned one?

Joins δ at window centres with losses after substitution, over layers; the sampling is over examples, both sides together.
The statistics are numerics/correlation.py's. Shapes: L layers, N examples, R resamples, C centres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from raysweep.numerics.correlation import (
    circular_shift_p,
    delta_at,
    kendall,
    partial_depth,
    precision_at_k,
    spearman,
    spearman_rows,
)
from raysweep.numerics.dynamics import local_dynamics
from raysweep.numerics.measures.registry import DEFAULTS, Parameters
from raysweep.numerics.resampling import half_samples, percentile_interval
from raysweep.studies.health import finite_examples
from raysweep.studies.similarity import dynamics_halves, similarity_matrix

_FEWEST_TO_RESAMPLE = 8


def correlate_curves(delta: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    """All figures of δ [C] against loss [C] at the same centres, without an interval.

    `p_shift` is never below 1/C; `precision_at_k` takes a fifth of the centres.
    """
    return {
        "n_layers": len(delta),
        "spearman": spearman(delta, loss),
        "p_shift": circular_shift_p(delta, loss),
        "partial_depth": partial_depth(delta, loss),
        "kendall": kendall(delta, loss),
        "precision_at_k": precision_at_k(delta, loss),
    }


def correlate_cell(
    states: torch.Tensor,
    example_ids: np.ndarray,
    losses: pd.DataFrame,
    *,
    metrics: Sequence[str],
    neighbourhood: int,
    resamples: int,
    seed: int,
    drop_ends: int = 0,
    parameters: Parameters = DEFAULTS,
    diagonal: bool = True,
) -> pd.DataFrame:
    """One row a metric and width: δ of states [L, N, D] against the mean loss of each window, with a 95 % interval of ρ.

    `losses` are rows of the substitution table of one model and data set (of several estimators, the exact ones count); the mean of a window leaves NaN losses out, and δ the
    examples whose states are not finite; an infinite loss counts as the largest. The interval is that of ρ over half-samples of the examples that have both a state and a finite loss under every window of
    the width, both sides recomputed together; NaN with fewer than 8 such examples. `drop_ends` centres are left out at
    each end; a width of which fewer than 3 are left has no row.
    """
    finite_N = finite_examples(states).all(axis=0)
    if not finite_N.all():
        states, example_ids = states[:, torch.from_numpy(finite_N).to(states.device)], example_ids[finite_N]
    place = pd.Index(example_ids)
    deltas = {
        metric: local_dynamics(similarity_matrix(states, metric, parameters), neighbourhood, diagonal)
        for metric in metrics
    }
    resampled: dict[tuple[str, tuple[int, ...]], np.ndarray | None] = {}
    whole = (losses["kind"] == "window") & (losses["coefficient"] == 1)
    if losses["estimator"].nunique() > 1:
        whole &= losses["estimator"] == "exact"
    losses = losses[whole]  # sets, parts of layers and steps between the models have widths and centres as well
    rows = []
    for width in sorted(int(w) for w in losses["width"].unique() if 0 < w < len(states)):
        of_width = losses[losses["width"] == width].pivot_table(
            index="centre", columns="example_id", values="loss", dropna=False
        )
        of_width = of_width.iloc[drop_ends : len(of_width) - drop_ends]
        if len(of_width) < 3:
            continue
        centres = of_width.index.to_numpy(dtype=float)
        mean_loss = of_width.mean(axis=1).to_numpy()
        finite = of_width.columns[np.isfinite(of_width.to_numpy()).all(axis=0)]
        common = finite.intersection(place)
        loss_CN = of_width[common].to_numpy()
        keep = half_samples(len(common), resamples, seed) if len(common) >= _FEWEST_TO_RESAMPLE else None
        for metric in metrics:
            interval = (np.nan, np.nan)
            if keep is not None:
                key = (metric, tuple(common))
                if key not in resampled:  # the widths mostly have the same examples
                    chosen = states[:, place.get_indexer(common)]
                    resampled[key] = dynamics_halves(chosen, metric, neighbourhood, keep, diagonal)
                halves = resampled[key]
                if halves is not None:
                    loss_RC = keep @ loss_CN.T / keep.sum(axis=1, keepdims=True)
                    delta_RC = np.stack([delta_at(delta_L, centres) for delta_L in halves])
                    interval = percentile_interval(spearman_rows(delta_RC, loss_RC))
            rows.append(
                {
                    "metric": metric,
                    "width": width,
                    "neighbourhood": neighbourhood,
                    **correlate_curves(delta_at(deltas[metric], centres), mean_loss),
                    "ci_low": interval[0],
                    "ci_high": interval[1],
                }
            )
    columns = ["metric", "width", "neighbourhood", "n_layers", "spearman", "ci_low", "ci_high"]
    columns += ["p_shift", "partial_depth", "kendall", "precision_at_k"]
    return pd.DataFrame(rows, columns=columns)
