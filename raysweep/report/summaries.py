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
    def layers(self) -> str:
        """The layers as the table has them: "8-12", "3"."""
        return str(self.start) if self.width == 1 else f"{self.start}-{self.stop - 1}"

    @property
    def name(self) -> str:
        """The layers put back, as a sentence names them: "layers 8–12"."""
        return layers_text(range(self.start, self.stop))

    def limits(self, decimals: int) -> str:
        """The interval of the cost, in words."""
        if math.isnan(self.cost_low) and self.examples == 1:
            return "[n/a: one example]"
        return interval(self.cost_low, self.cost_high, decimals)


def of_one_estimator(substitution: pd.DataFrame) -> pd.DataFrame:
    """The rows that a curve is made of: the estimates where there are any (the exact ones are a sample then), else all."""
    estimated = substitution["estimator"] != "exact"
    return substitution[estimated] if estimated.any() else substitution


def paired_losses(substitution: pd.DataFrame) -> pd.DataFrame:
    """Per-example losses side by side: index example_id, one column for each (start, stop), in nats.

    `substitution` holds one model and data set; only whole windows put back (coefficient 1) are taken.
    """
    substitution = of_one_estimator(substitution)
    whole = (substitution["kind"] == "window") & (substitution["coefficient"] == 1)
    rows = substitution.loc[whole, ["example_id", "start", "stop", "loss"]].astype({"start": int, "stop": int})
    rows = rows.drop_duplicates(["example_id", "start", "stop"])
    return rows.pivot(index="example_id", columns=["start", "stop"], values="loss").sort_index(axis="columns")


def paired_changes(substitution: pd.DataFrame) -> pd.DataFrame:
    """Per-example losses of what is no whole window put back: index example_id, a column for each (kind, layers, coefficient).

    `substitution` holds one model and data set; layers are as its column has them, columns in its order.
    """
    substitution = of_one_estimator(substitution)
    others = (substitution["kind"] != "window") | (substitution["coefficient"] != 1)
    rows = substitution.loc[others, ["example_id", "kind", "layers", "coefficient", "loss"]]
    rows = rows.drop_duplicates(["example_id", "kind", "layers", "coefficient"])
    wide = rows.pivot(index="example_id", columns=["kind", "layers", "coefficient"], values="loss")
    return wide[
        list(rows.drop_duplicates(["kind", "layers", "coefficient"])[wide.columns.names].itertuples(index=False))
    ]


class Changed(NamedTuple):
    """The losses of one change over the examples of one data set; also the columns of `change_losses`."""

    kind: str
    layers: str  # as the table has them: "8-12", "3,5,9", ""
    coefficient: float
    width: int
    centre: float  # NaN for a set, and where no layer is changed
    loss: float  # mean over the examples whose loss is not NaN, nats
    cost: float  # mean paired difference to the model it is compared with
    cost_low: float
    cost_high: float
    examples: int

    @property
    def chosen(self) -> list[int]:
        """The layers, ascending."""
        return layers_in(self.layers)

    @property
    def span(self) -> str:
        """The numbers of the layers: "8–12"."""
        return runs_text(self.chosen) or "none"

    @property
    def name(self) -> str:
        """The layers as a sentence names them: "layers 8–12"."""
        return layers_text(self.chosen) if self.chosen else "no layers"


def layers_in(text: str) -> list[int]:
    """The layers that the table's words stand for."""
    if not text:
        return []
    first, _, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if last else [int(layer) for layer in text.split(",")]


def change_losses(changed: pd.DataFrame, reference_E: pd.Series[float]) -> pd.DataFrame:
    """One row for each column of `paired_changes`: `Changed`s, whose costs are differences to the reference's losses."""
    names: Iterable[Any] = changed.columns
    rows = []
    for kind, layers, coefficient in names:
        loss_E, chosen = changed[(kind, layers, coefficient)], layers_in(layers)
        centre = math.nan if kind == "set" or not chosen else (chosen[0] + chosen[-1]) / 2
        difference = mean_difference(loss_E, reference_E)
        told = (kind, layers, float(coefficient), len(chosen), centre)
        rows.append(Changed(*told, float(loss_E.mean()), *difference, int(loss_E.notna().sum())))
    return pd.DataFrame(rows, columns=Changed._fields)


def changes_of(changes: pd.DataFrame) -> Iterator[Changed]:
    """The rows of `change_losses` as what they are."""
    return (Changed(*row) for row in rows_of(changes))


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
