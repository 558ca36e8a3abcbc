"""Checkpoints during a training: what windows cost, where representations change and how both agree, over steps, as one figure.

The table `along` says which model's name the rows of a step have (columns model, dataset, step, measured). Everything else treats
steps as models of their own; this module joins them, and removes them from the other parts of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from raysweep.report import along_figures
from raysweep.report.cells import Cell, Setting, cells_of
from raysweep.report.page_tables import MOST, Table
from raysweep.report.pictures import Drawings, Picture, heading
from raysweep.report.summaries import rows_of, swept
from raysweep.report.words import consecutive, decimals_for, interval, likeness_name, number, runs_text


@dataclass(frozen=True)
class Along:
    """The page's part on one model's training on one data set."""

    sentences: list[Markup]
    picture: Picture
    table: Table


@dataclass(frozen=True)
class _Steps:
    """Cells by step: those whose windows are shown, and those whose δ is."""

    windows: Mapping[int, Cell]
    dynamics: Mapping[int, Cell]

    @property
    def all(self) -> list[int]:
        """Every step that has either, ascending."""
        return sorted(self.windows.keys() | self.dynamics.keys())


def without_steps(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables without the rows that have a step's own name, and without `along`; `along_views` shows both."""
    if "along" not in tables:
        return dict(tables)
    along = tables["along"]
    steps = set(along.loc[along["measured"] != along["model"], "measured"].astype(str))
    kept = {name: rows[~rows["model"].astype(str).isin(steps)] for name, rows in tables.items() if name != "along"}
    return {name: rows for name, rows in kept.items() if len(rows)}


def along_views(tables: Mapping[str, pd.DataFrame], drawings: Drawings) -> dict[tuple[str, str], Along]:
    """By model and data set, what is shown of its training; nothing without a table `along`.

    A step's windows, δ and ρ are the rows of `measured`. Where that is the model's own name, its windows and ρ are those of
    the fine-tuned end, and shown at the last such step; its δ is the base model's, and shown at step 0.
    """
    if "along" not in tables:
        return {}
    others = {name: rows for name, rows in tables.items() if name not in ("along", "training", "adaptation")}
    cells = {(cell.model, cell.dataset): cell for cell in cells_of(others, [])}
    views = {}
    for (model, dataset), rows in tables["along"].groupby(["model", "dataset"], sort=False):
        steps = _steps(rows, cells)
        if steps.all:
            views[str(model), str(dataset)] = _view(str(model), str(dataset), steps, drawings)
    return views


def _steps(rows: pd.DataFrame, cells: Mapping[tuple[str, str], Cell]) -> _Steps:
    windows: dict[int, Cell] = {}
    dynamics: dict[int, Cell] = {}
    own = None
    for row in rows_of(rows.sort_values("step")):
        cell = cells.get((str(row.measured), str(row.dataset)))
        if cell is None:
            continue
        if row.measured == row.model:
            own = int(row.step), cell
            continue
        if cell.widths:
            windows[int(row.step)] = cell
        if cell.settings:
            dynamics[int(row.step)] = cell
    if own is not None:
        step, cell = own
        if cell.widths:
            windows[step] = cell
        if cell.settings:
            dynamics[0] = cell
    return _Steps(windows, dynamics)


def _view(model: str, dataset: str, steps: _Steps, drawings: Drawings) -> Along:
    ends = [*steps.windows.values()][::-1]  # the last first: what fine-tuning ends in decides what is shown
    width = next((cell.main_width for cell in sorted(ends, key=lambda c: c.model != model) if cell.main_width), None)
    setting = next((cell.settings[0] for cell in [*ends, *steps.dynamics.values()] if cell.settings), None)
    cost_PC = _by_step({step: _costs(cell, width) for step, cell in steps.windows.items()})
    delta_PL = _by_step({step: _delta(cell, setting) for step, cell in steps.dynamics.items()})
    rho_P = _rho(steps, width, setting)
    likeness = "" if setting is None else likeness_name(setting.metric)
    what = "" if width is None else consecutive(width)
    shown = steps.all
    first = next(iter([*steps.windows.values(), *steps.dynamics.values()]))
    title = heading(first).replace(first.model, model, 1)
    picture = drawings.add(
        along_figures.along_training(shown, cost_PC, delta_PL, rho_P, title, what, likeness),
        ("along", model, dataset),
        f"Heat maps over {len(shown)} steps of fine-tuning, from {shown[0]} to {shown[-1]}: cost of windows by their centre, and δ by "
        f"layer. Below them, ρ with its interval{_ends_of(rho_P)}.",
        "From left to right: the checkpoints kept during fine-tuning, evenly spaced regardless of the number of steps "
        "between them. Cost: how much the loss of a checkpoint rises when layers are replaced with the base model’s. δ: low (dark) "
        "where representations change fast; at step 0, that of the base model. ρ: rank correlation of δ and loss, with its 95 % "
        "interval over examples. The checkpoints of one training run are not independent, and the intervals do not cover other "
        "runs. A step’s costliest window was picked from many and may change places with its neighbours by chance.",
    )
    table = _table(steps, width, setting, rho_P)
    return Along(_sentences(cost_PC, rho_P), picture, table)


def _by_step(rows: Mapping[int, pd.Series[float]]) -> pd.DataFrame:
    """A row a step, ascending; a column wherever some step has a value."""
    known = {step: values for step, values in rows.items() if len(values)}
    return (
        pd.DataFrame.from_dict(known, orient="index").sort_index().sort_index(axis="columns")
        if known
        else pd.DataFrame()
    )


def _costs(cell: Cell, width: int | None) -> pd.Series[float]:
    rows = swept(cell.windows, width) if width in cell.widths and width is not None else cell.windows.iloc[:0]
    costs = pd.Series(rows["cost"].to_numpy(dtype=float), index=rows["centre"].to_numpy(dtype=float))
    return costs.where(np.isfinite(costs))


def _delta(cell: Cell, setting: Setting | None) -> pd.Series[float]:
    if setting is None or setting not in cell.settings:
        return pd.Series(dtype=float)
    return cell.dynamics(setting).set_index("layer")["delta"].astype(float)


def _rho(steps: _Steps, width: int | None, setting: Setting | None) -> pd.DataFrame:
    rows = {}
    for step, cell in steps.windows.items():
        found = cell.correlation(setting, width) if setting is not None and width is not None else None
        if found is not None and not math.isnan(found.spearman):
            rows[step] = {"spearman": found.spearman, "ci_low": found.ci_low, "ci_high": found.ci_high}
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def _ends_of(rho_P: pd.DataFrame) -> str:
    if not len(rho_P):
        return ""
    first, last = rho_P["spearman"].iloc[0], rho_P["spearman"].iloc[-1]
    return f", from {number(first)} at step {rho_P.index[0]} to {number(last)} at step {rho_P.index[-1]}"


def _sentences(cost_PC: pd.DataFrame, rho_P: pd.DataFrame) -> list[Markup]:
    """Whether the costliest place moves, and where ρ starts and ends."""
    said = []
    known = cost_PC.dropna(how="all")
    if len(known) > 1:
        tops = known.idxmax(axis="columns")
        moves = (
            f"moves between centres {tops.min():g} and {tops.max():g}"
            if tops.nunique() > 1
            else f"stays at centre {tops.iloc[0]:g}"
        )
        text = "From step {} to step {}, the costliest window {}, and its cost goes from {} to {} nats."
        costs = known.max(axis="columns")
        ends = number(costs.iloc[0], 3), number(costs.iloc[-1], 3)
        said.append(Markup(text).format(known.index[0], known.index[-1], moves, *ends))
    if len(rho_P) > 1:
        text = "ρ goes from {} {} at step {} to {} {} at step {}."
        told = [(number(rho), interval(low, high)) for rho, low, high in _limits(rho_P)]
        said.append(Markup(text).format(*told[0], rho_P.index[0], *told[-1], rho_P.index[-1]))
    return said


def _limits(rho_P: pd.DataFrame) -> list[tuple[float, float, float]]:
    """ρ and its interval at each step."""
    return [(float(row.spearman), float(row.ci_low), float(row.ci_high)) for row in rows_of(rho_P)]


def _table(steps: _Steps, width: int | None, setting: Setting | None, rho_P: pd.DataFrame) -> Table:
    rows = []
    rhos = dict(zip(rho_P.index, _limits(rho_P), strict=True))
    for step in steps.all[:MOST]:
        swept_cell, delta_cell = steps.windows.get(step), steps.dynamics.get(step)
        top = None if swept_cell is None or width is None else swept_cell.top(width)
        decimals = 3 if top is None or math.isnan(top.cost_low) else decimals_for(top.cost_low, top.cost_high, spare=1)
        changes = delta_cell.change_points(setting) if delta_cell and setting in delta_cell.settings and setting else []
        rho = rhos.get(step)
        rows.append(
            [
                str(step),
                "—" if top is None else top.span,
                "—" if top is None else f"{number(top.cost, decimals, signed=True)} {top.limits(decimals)}",
                runs_text(changes) or "—",
                "—" if rho is None else f"{number(rho[0])} {interval(*rho[1:])}",
            ]
        )
    caption = "Fine-tuning, step by step"
    if len(steps.all) > MOST:
        caption += f". These are the first {MOST} of {len(steps.all)} steps"
    return Table(caption, ["step", "costliest layers", "cost (nats)", "change-point layers", "ρ"], rows, words={1, 3})
