"""The answer of a run as plain values, for scripts: the costliest windows with their cost, and ρ, of every cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raysweep.report.along import without_steps
from raysweep.report.cells import Correlation, cells_of
from raysweep.report.summaries import Window

if TYPE_CHECKING:
    import pandas as pd

_NO_CELLS = ("attack", "answers")  # tables of trainings, with no windows


def answer_json(tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an entry for each model and data set: its costliest window of each width, and ρ of each setting and width.

    `about` is what the run's plan says of checkpoints and data sets. Costs and losses are in nats per response token. NaN is None.
    """
    of_cells = {name: rows for name, rows in without_steps(tables).items() if len(rows) and name not in _NO_CELLS}
    cells = cells_of(
        of_cells, about.get("checkpoints", ()), shared=about.get("shared", ()), datasets=about.get("datasets", ())
    )
    return [
        {
            "model": cell.model,
            "dataset": cell.dataset,
            "layers": cell.n_layers,
            "costliest": [_window(top) for width in cell.widths if (top := cell.top(width)) is not None],
            "correlations": [_correlation(found) for found in cell.correlations],
        }
        for cell in cells
    ]


def _window(top: Window) -> dict[str, Any]:
    """Return a window; `first` and `last` are its layers, `low` and `high` the 95% interval of its cost."""
    return {
        "width": int(top.width),
        "first": int(top.start),
        "last": int(top.stop) - 1,
        "cost": _number(top.cost),
        "low": _number(top.cost_low),
        "high": _number(top.cost_high),
        "loss": _number(top.loss),
        "examples": int(top.examples),
    }


def _correlation(found: Correlation) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "neighbourhood": int(found.neighbourhood),
        "width": int(found.width),
        "windows": int(found.n_layers),
        "rho": _number(found.spearman),
        "low": _number(found.ci_low),
        "high": _number(found.ci_high),
        "p": _number(found.p_value),
        "reason": found.reason,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
