"""The answer in a few plain lines, as commands print it: the same means and the same costliest windows as the page's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.report.along import without_steps
from raysweep.report.cells import Cell, Correlation, cells_of
from raysweep.report.changes import verification_lines
from raysweep.report.estimates import estimate_lines
from raysweep.report.evidence import is_unmoved, void_sentences
from raysweep.report.stopping import stopping_lines
from raysweep.report.summaries import Window, windows_of
from raysweep.report.training_summary import training_lines

if TYPE_CHECKING:
    import pandas as pd


def summary_lines(tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any] | None = None) -> list[str]:
    """ρ of every cell, or the costliest window of each where nothing was correlated; losses left out are told with both.

    Before that, sweeps that say nothing, because of what base and tuned are; `about` is what the run's plan says of its
    origins. Then what came of trainings, how good estimates are, where sweeps stopped early, and what came of losses that were taken
    again.
    """
    tables = without_steps(tables)
    of_cells = {name: rows for name, rows in tables.items() if len(rows) and name not in ("attack", "answers")}
    told = about or {}
    shared, datasets = told.get("shared", ()), told.get("datasets", ())
    cells = cells_of(of_cells, told.get("checkpoints", ()), shared=shared, datasets=datasets)
    lines = [str(sentence.striptags()) for sentence in void_sentences(cells)]
    lines += [*_answers(tables, cells), *training_lines(tables, cells)]
    return [*lines, *estimate_lines(tables), *stopping_lines(tables), *verification_lines(tables)]


def _answers(tables: Mapping[str, pd.DataFrame], cells: Sequence[Cell]) -> list[str]:
    if len(tables.get("correlation", ())):
        return [
            f"{cell.model} on {cell.dataset}: Spearman {_rho(cell, row)} between "
            f"{row.metric} dynamics and the loss after substitution, over {row.n_layers} windows of width {row.width}"
            f"{_not_finite(cell)}"
            for cell in cells
            for row in cell.correlations
        ]
    return [_costliest_line(cell) for cell in cells if "substitution" in cell.tables and not is_unmoved(cell)]


def _rho(cell: Cell, row: Correlation) -> str:
    """ρ with its interval, or why there is none."""
    if math.isnan(row.spearman):
        return f"n/a ({cell.rho_reason(row)})"
    limits = "n/a" if math.isnan(row.ci_low) else f"{row.ci_low:+.3f}, {row.ci_high:+.3f}"
    return f"{row.spearman:+.3f} [{limits}]"


def _costliest_line(cell: Cell) -> str:
    windows = [window for window in windows_of(cell.windows) if window.role == "window"]
    known = [window for window in windows if not math.isnan(_measure(window))]
    if not known:
        return f"{cell.model} on {cell.dataset}: no window has a loss{_not_finite(cell)}"
    top = max(known, key=_measure)
    if top.cost <= 0:
        return f"{cell.model} on {cell.dataset}: no layers put back raise the loss{_not_finite(cell)}"
    layers = str(top.start) if top.width == 1 else f"{top.start}-{top.stop - 1}"
    return f"{cell.model} on {cell.dataset}: layers {layers} put back cost most, loss {top.loss:.4f}{_not_finite(cell)}"


def _measure(window: Window) -> float:
    """The cost, or the mean loss where there is no tuned model's to compare with."""
    return window.loss if math.isnan(window.cost) else window.cost


def _not_finite(cell: Cell) -> str:
    """How many losses are NaN (and left out) or infinite (and count as the largest), in brackets; nothing for none."""
    if "substitution" not in cell.tables:
        return ""
    losses = cell.tables["substitution"]["loss"]
    missing, infinite = int(losses.isna().sum()), int(np.isinf(losses).sum())
    said = [f"{missing} of {len(losses)} losses are NaN and left out"] if missing else []
    said += [f"{infinite} of {len(losses)} losses are infinite"] if infinite else []
    return f" ({'; '.join(said)})" if said else ""
