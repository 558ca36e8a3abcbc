"""Correlation: does the dynamics δ of the base model tell where putting layers back hurts the tuned one?

Joins δ at window centres with losses after substitution, over layers; the sampling is over examples, both sides together.
The statistics are numerics/correlation.py's. Shapes: L layers, N examples, R resamples, C centres.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raysweep.numerics.correlation import (
    delta_at,
    kendall,
    partial_depth,
    precision_at_k,
    spearman,
    spearman_rows,
)
from raysweep.numerics.dynamics import local_dynamics
from raysweep.numerics.measures.registry import DEFAULTS, Parameters
from raysweep.numerics.nulls import (
    CALIBRATED_FEWEST,
    SHIFT_FEWEST,
    autocorrelated_p,
    chance_precision,
    circular_shift_p,
    permutation_p,
)
from raysweep.numerics.resampling import half_samples, halfway_interval
from raysweep.studies.health import finite_examples
from raysweep.studies.layer_names import layers_text
from raysweep.studies.similarity import FEWEST_TO_RESAMPLE, dynamics_halves, similarity_matrix

if TYPE_CHECKING:
    import torch

_WITHHELD = ("no decoder layer differs", "only layer")
_LEVEL = 0.05  # a p that can never be as low tells nothing


def correlate_curves(delta: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    """All figures of δ [C] against loss [C] at the same centres, without an interval.

    `p_value` is `autocorrelated_p`'s, the one that keeps its level where neighbours are alike and both sides drift with
    depth, with the `effective_layers` it counts; NaN below 10 centres, for which that was not found to hold. `p_shift`,
    the share of circular shifts, is NaN below 20, where it could not be below 0.05. `p_permutation` is ρ's as if layers
    were exchangeable. `precision_at_k` takes a fifth of the centres; blind choice gives `precision_chance`, and so much or more
    with the probability `p_precision` (as if centres were exchangeable), NaN where even all k right would not be below 0.05.
    """
    n = len(delta)
    test = autocorrelated_p(delta, loss)
    told = n >= CALIBRATED_FEWEST
    precision = precision_at_k(delta, loss)
    k = _fifth(n)
    chance, p_precision = (np.nan, np.nan) if np.isnan(precision) else chance_precision(round(precision * k), k, n)
    return {
        "n_layers": n,
        "spearman": spearman(delta, loss),
        "p_shift": circular_shift_p(delta, loss) if n >= SHIFT_FEWEST else np.nan,
        "partial_depth": partial_depth(delta, loss),
        "kendall": kendall(delta, loss),
        "precision_at_k": precision,
        "p_value": test.p if told else np.nan,
        "effective_layers": test.effective if told else np.nan,
        "p_permutation": permutation_p(delta, loss),
        "precision_chance": chance,
        "p_precision": p_precision if chance_precision(k, k, n)[1] <= _LEVEL else np.nan,
    }


def untold(figures: dict[str, float]) -> str | None:
    """Why figures of `correlate_curves` are NaN, in words; None where none is."""
    n, reasons = int(figures["n_layers"]), []
    if np.isnan(figures["spearman"]):
        return "δ or the loss is undefined somewhere, or the same at all centres"
    if np.isnan(figures["partial_depth"]):
        return "δ or the loss is a straight line in depth, so nothing remains to test after depth is taken out"
    if n < CALIBRATED_FEWEST:
        reasons.append(f"no p with {n} centres: the test keeps its level only from {CALIBRATED_FEWEST} centres on")
    elif np.isnan(figures["p_value"]):
        reasons.append("no p: neighbouring layers are so similar that too few independent centres remain")
    if n < SHIFT_FEWEST:
        reasons.append(
            f"no share of shifts with {n} centres: it is never below 1/{n}, so it could not be below {_LEVEL}"
        )
    if np.isnan(figures["p_precision"]):
        k = _fifth(n)
        reasons.append(
            f"no p of precision with {n} centres: getting {k} of {k} right by chance is more likely than {_LEVEL}"
        )
    return "; ".join(reasons) or None


def why_withheld(untrained: Collection[int], n_layers: int) -> str:
    """Why δ is not scored against the losses of a tuned model that has these layers in common with its base, in words."""
    trained = [layer for layer in range(n_layers) if layer not in untrained]
    if not trained:
        return f"{_WITHHELD[0]} between base and tuned, so every window costs 0"
    return (
        f"only {layers_text(trained)} of {n_layers} {'was' if len(trained) == 1 else 'were'} trained, so a window's "
        "cost follows from that choice, not from δ"
    )


def is_withheld(reason: str | None) -> bool:
    """Whether the reason of a row is that δ is not scored, and not that a figure is undefined."""
    return reason is not None and reason.startswith(_WITHHELD)


def _fifth(n: int) -> int:
    """The k of precision at k; see `change_points`."""
    return max(1, round(n / 5))


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
    untrained: Collection[int] = (),
) -> pd.DataFrame:
    """One row a metric and width: δ of states [L, N, D] against the mean loss of each window, with a 95 % interval of ρ.

    `losses` are rows of the substitution table of one model and data set (of several estimators, the exact ones count);
    the mean of a window leaves NaN losses out, and δ the examples whose states are not finite; an infinite loss counts as
    the largest. The interval (`halfway_interval`) is that of ρ over half-samples of the examples that have both a state
    and a finite loss under every window of the width, both sides recomputed together; NaN with fewer than 8 such
    examples. `drop_ends` centres are left out at each end; a width of which fewer than 3 are left has no row.

    Layers in `untrained` are the same in base and tuned. If there are any, every figure is NaN, with the reason: windows of
    such layers cost 0 by construction, and the others' costs lie where the training was allowed to put them.
    """
    withheld = why_withheld(untrained, len(states)) if untrained else None
    finite_N = finite_examples(states).all(axis=0)
    if not finite_N.all():
        import torch

        states, example_ids = states[:, torch.from_numpy(finite_N).to(states.device)], example_ids[finite_N]
    place = pd.Index(example_ids)

    def dynamics(states: torch.Tensor, metric: str) -> np.ndarray:
        return local_dynamics(similarity_matrix(states, metric, parameters), neighbourhood, diagonal)

    deltas = {metric: dynamics(states, metric) for metric in metrics}
    resampled: dict[tuple[str, tuple[int, ...]], tuple[np.ndarray, np.ndarray] | None] = {}
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
        enough = len(common) >= FEWEST_TO_RESAMPLE and withheld is None
        keep = half_samples(len(common), resamples, seed) if enough else None
        for metric in metrics:
            interval = (np.nan, np.nan)
            if keep is not None:
                key = (metric, tuple(common))
                if key not in resampled:  # the widths mostly have the same examples
                    chosen = states[:, place.get_indexer(common)]
                    halves = dynamics_halves(chosen, metric, neighbourhood, keep, diagonal)
                    resampled[key] = None if halves is None else (dynamics(chosen, metric), halves)
                found = resampled[key]
                if found is not None:
                    loss_RC = keep @ loss_CN.T / keep.sum(axis=1, keepdims=True)
                    delta_RC = np.stack([delta_at(delta_L, centres) for delta_L in found[1]])
                    rho = spearman(delta_at(found[0], centres), loss_CN.mean(axis=1))
                    interval = halfway_interval(rho, spearman_rows(delta_RC, loss_RC))
            figures = correlate_curves(delta_at(deltas[metric], centres), mean_loss)
            if withheld is not None:
                figures = {name: value if name == "n_layers" else np.nan for name, value in figures.items()}
            rows.append(
                {
                    "metric": metric,
                    "width": width,
                    "neighbourhood": neighbourhood,
                    **figures,
                    "ci_low": interval[0],
                    "ci_high": interval[1],
                    "reason": withheld or untold(figures),
                }
            )
    columns = ["metric", "width", "neighbourhood", "n_layers", "spearman", "ci_low", "ci_high"]
    columns += ["p_shift", "partial_depth", "kendall", "precision_at_k", "p_value", "effective_layers"]
    columns += ["p_permutation", "precision_chance", "p_precision", "reason"]
    return pd.DataFrame(rows, columns=columns).astype({"reason": "string"})
