"""The result tables summed up for page and figures alike: losses by window, and the change-point layers.

Words: a window is the decoder layers [start, stop) put back to the base model's; its centre is start + (width − 1) / 2; its
cost is the mean over examples of (loss under the window − loss of the tuned model untouched), in nats; δ is a layer's mean
similarity to its neighbourhood, and change-point layers are those of smallest δ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from raysweep.numerics.resampling import mean_interval
from raysweep.report.words import interval, layers_text, runs_text


class Window(NamedTuple):
    """One window's losses over the examples of one data set; also the columns of `window_losses`."""

    role: str  # tuned: nothing put back; window; all: every layer put back
    start: int
    stop: int
    width: int
    centre: float  # NaN where nothing is put back
    loss: float  # mean over the examples whose loss is not NaN, nats
    cost: float  # mean paired difference to the tuned model; NaN where that was not measured
    cost_low: float
    cost_high: float
    examples: int
    left_out: int  # losses that are NaN

    @property
    def span(self) -> str:
        """The numbers of the layers put back: "8–12"."""
        return runs_text(range(self.start, self.stop))

    @property
    def name(self) -> str:
        """The layers put back, as a sentence names them: "layers 8–12"."""
        return layers_text(range(self.start, self.stop))

    def limits(self, decimals: int) -> str:
        """The interval of the cost, in words."""
        if math.isnan(self.cost_low) and self.examples == 1:
            return "[n/a: one example]"
        return interval(self.cost_low, self.cost_high, decimals)


def paired_losses(substitution: pd.DataFrame) -> pd.DataFrame:
    """Per-example losses side by side: index example_id, one column for each (start, stop), in nats.

    `substitution` holds one model and data set; only whole windows put back exactly (coefficient 1) are taken.
    """
    exact = (
        (substitution["kind"] == "window") & (substitution["coefficient"] == 1) & (substitution["estimator"] == "exact")
    )
    rows = substitution.loc[exact, ["example_id", "start", "stop", "loss"]].astype({"start": int, "stop": int})
    rows = rows.drop_duplicates(["example_id", "start", "stop"])
    return rows.pivot(index="example_id", columns=["start", "stop"], values="loss").sort_index(axis="columns")


def mean_difference(a_E: pd.Series[float], b_E: pd.Series[float]) -> tuple[float, float, float]:
    """Mean of a − b over the examples that have both, and its 95 % interval.

    All NaN without such an example; the interval is NaN for a single one, and where a difference is infinite.
    """
    difference_E = (a_E - b_E).dropna().to_numpy(dtype=float)
    if not len(difference_E):
        return math.nan, math.nan, math.nan
    low, high = mean_interval(difference_E) if np.isfinite(difference_E).all() else (math.nan, math.nan)
    return float(difference_E.mean()), low, high


def window_losses(paired: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    """One row for each column of `paired_losses`, from the tuned model untouched to all layers put back: `Window`s."""
    tuned_E = paired[(0, 0)] if (0, 0) in paired.columns else pd.Series(math.nan, index=paired.index)
    spans: Iterable[Any] = paired.columns
    windows = []
    for start, stop in spans:
        loss_E, width = paired[(start, stop)], stop - start
        windows.append(
            Window(
                "tuned" if width == 0 else "all" if width == n_layers else "window",
                start,
                stop,
                width,
                start + (width - 1) / 2 if width else math.nan,
                float(loss_E.mean()),
                *mean_difference(loss_E, tuned_E),
                int(loss_E.notna().sum()),
                int(loss_E.isna().sum()),
            )
        )
    return pd.DataFrame(windows, columns=Window._fields)


def windows_of(windows: pd.DataFrame) -> Iterator[Window]:
    """The rows of `window_losses` as what they are."""
    return (Window(*row) for row in rows_of(windows))


def swept(windows: pd.DataFrame, width: int) -> pd.DataFrame:
    """The rows of `window_losses` that are windows of `width`, by their centre."""
    return windows[(windows["role"] == "window") & (windows["width"] == width)].sort_values("centre")


def costliest(windows: pd.DataFrame, width: int) -> Window | None:
    """The window of `width` that costs most (by mean loss where there is no tuned model to compare with), or None."""
    rows = swept(windows, width)
    measure = rows["cost"] if rows["cost"].notna().any() else rows["loss"]
    if not measure.notna().any():
        return None
    return next(windows_of(rows.loc[[measure.idxmax()]]))


def change_points(dynamics: pd.DataFrame) -> list[int]:
    """The change-point layers of one model, data set, metric and neighbourhood: the fifth of the layers ranked first."""
    chosen = dynamics["rank"].astype(float) <= max(1, round(len(dynamics) / 5))
    return sorted(int(layer) for layer in dynamics.loc[chosen, "layer"])


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples; a data frame does not tell the types of its columns."""
    return frame.itertuples(index=False)
