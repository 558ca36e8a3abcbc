"""One model on one data set: its rows of the result tables, and the facts that the report states of them.

A fact is a number, a choice of layers, a verdict, or the reason why there is none. The sentences made of them are answer.py's,
the tables page_tables.py's, the figures and their captions pictures.py's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysweep.engine.shared import Shared
from raysweep.numerics.correlation import delta_at
from raysweep.report import summaries
from raysweep.report.summaries import Window, rows_of
from raysweep.report.words import interval, layers_text, likeness_name, runs_text
from raysweep.studies.correlation import is_withheld

# How much a loss may differ from one batching to another, in nats: smaller differences are not significant.
_RESOLUTION = {"bfloat16": 1e-3, "float16": 1e-3}
_FINEST = 1e-5

WIDTHS = 4  # of more widths than these only some are shown one by one

SIGNIFICANT = 0.05  # the p at which agreement is no longer put down to chance

# Whether the base model predicts which layers fine-tuning depends on; see `Cell.verdict`.
Verdict = Literal["predicts", "maybe", "unclear", "wrong", "idle", "withheld"]


class Setting(NamedTuple):
    """What δ depends on: the metric and how many layers a neighbourhood has."""

    metric: str
    neighbourhood: int

    def __str__(self) -> str:
        return f"{likeness_name(self.metric)}, neighbourhood {self.neighbourhood}"


@dataclass(frozen=True)
class Correlation:
    """A row of the correlation table."""

    metric: str
    neighbourhood: int
    width: int
    n_layers: int
    spearman: float
    ci_low: float
    ci_high: float
    p_shift: float
    partial_depth: float
    kendall: float
    precision_at_k: float
    p_value: float
    effective_layers: float
    p_permutation: float
    precision_chance: float
    p_precision: float
    reason: str | None

    @property
    def setting(self) -> Setting:
        """What its δ depends on."""
        return Setting(self.metric, self.neighbourhood)

    @property
    def limits(self) -> str:
        """The interval of ρ, in words."""
        return interval(self.ci_low, self.ci_high)

    @property
    def p(self) -> str:
        """The p-value, in words."""
        return "p n/a" if math.isnan(self.p_value) else f"p = {self.p_value:.3f}"

    @property
    def withheld(self) -> str | None:
        """Why δ is not scored against the losses, if it is not; None also for a ρ that is undefined."""
        return self.reason if is_withheld(self.reason) else None


@dataclass(frozen=True)
class Rival:
    """The window that the costliest is compared with: the next costliest that shares no layer with it, if there is one.

    mean, low, high: the paired difference (costliest − rival) on the same examples, with its interval.
    """

    window: Window
    separate: bool
    mean: float
    low: float
    high: float
    told_apart: bool
    alike: Sequence[Window]  # all windows that the examples do not tell apart from the costliest


@dataclass(frozen=True)
class Cell:
    """One model on one data set: its rows of every table that has some, and the smallest difference of losses that counts.

    `title` names it to a reader, `anchor` within the page; `resolution` is in nats; `sets` has the names of sets by their
    layers, as the table writes them. `shared` is what base and tuned are known to have in common, `record` what the run's plan
    says of the data set (engine/origins.py).
    """

    model: str
    dataset: str
    title: str
    anchor: str
    tables: Mapping[str, pd.DataFrame]
    resolution: float
    sets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shared: Shared | None = None
    record: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @cached_property
    def n_layers(self) -> int:
        """The decoder layers that the tables know of."""
        ends = (
            ("substitution", "stop", 0),
            ("dynamics", "layer", 1),
            ("similarity", "layer_i", 1),
            ("spectrum", "layer", 1),
        )
        return max((int(self.tables[t][c].max()) + more for t, c, more in ends if t in self.tables), default=0)

    # Substitution

    @cached_property
    def paired(self) -> pd.DataFrame:
        """Losses by example and window; see `summaries.paired_losses`."""
        return summaries.paired_losses(self.tables["substitution"]) if "substitution" in self.tables else pd.DataFrame()

    @cached_property
    def windows(self) -> pd.DataFrame:
        """Losses by window; see `summaries.window_losses`."""
        return summaries.window_losses(self.paired, self.n_layers)

    @cached_property
    def widths(self) -> list[int]:
        """The widths swept, in the order in which the table has them."""
        if "substitution" not in self.tables:
            return []
        swept = set(self.windows.loc[self.windows["role"] == "window", "width"])
        return [int(width) for width in self.tables["substitution"]["width"].dropna().unique() if width in swept]

    @cached_property
    def shown_widths(self) -> list[int]:
        """The widths that have pictures and tables of their own: all of a few; else the first, and others each at least twice
        the one before.
        """
        if len(self.widths) <= WIDTHS:
            return self.widths
        shown = self.widths[:1]
        for width in self.widths:
            if width >= 2 * shown[-1] and len(shown) < WIDTHS:
                shown.append(width)
        return shown

    # Changes that are no complete windows

    @cached_property
    def untouched(self) -> pd.Series[float]:
        """The tuned model's own losses by example; empty where they were not measured."""
        return self.paired[(0, 0)] if (0, 0) in self.paired.columns else pd.Series(dtype=float)

    @cached_property
    def changed(self) -> pd.DataFrame:
        """Losses by example and change; see `summaries.paired_changes`."""
        return (
            summaries.paired_changes(self.tables["substitution"]) if "substitution" in self.tables else pd.DataFrame()
        )

    @cached_property
    def changes(self) -> pd.DataFrame:
        """Losses by change, costs being over the tuned model's; see `summaries.change_losses`."""
        return summaries.change_losses(self.changed, self.untouched)

    @cached_property
    def gains(self) -> pd.DataFrame:
        """The rows of `changes` that put tuned layers into the base, with costs over the base's own losses in their place."""
        own = ("reverse", "", 1.0)
        chosen: list[Any] = [column for column in self.changed.columns if column[0] == own[0]]
        base_E = self.changed[own] if own in chosen else pd.Series(dtype=float)
        return summaries.change_losses(self.changed[chosen], base_E)

    def losses_of(self, window: Window) -> pd.Series[float]:
        """A window's losses by example."""
        return self.paired[(window.start, window.stop)]

    def set_name(self, layers: str) -> str:
        """A set as the page names it: "early (3, 5–6)", or its layers where the config has no name for it."""
        text = runs_text(summaries.layers_in(layers))
        return f"{self.sets[layers]} ({text})" if layers in self.sets else text

    @cached_property
    def main_width(self) -> int | None:
        """The width that the answer is about: the first shown whose costliest window has a cost that the examples tell from 0,
        else the first; None where no window was swept.
        """
        return next((width for width in self.shown_widths if self.leans(width)), next(iter(self.widths), None))

    def top(self, width: int | None = None) -> Window | None:
        """The costliest window of a width (the main one, unless given)."""
        width = width or self.main_width
        return None if width is None else summaries.costliest(self.windows, width)

    def leans(self, width: int) -> bool:
        """Whether the costliest window of a width has a cost that the examples tell from 0."""
        top = self.top(width)
        return top is not None and top.cost_low > self.resolution

    def rival(self, top: Window) -> Rival | None:
        """What `top`, the costliest window of its width, is compared with; None where no other one has a cost."""
        swept = summaries.windows_of(summaries.swept(self.windows, top.width))
        others = [window for window in swept if window.start != top.start and not math.isnan(window.cost)]
        if not others:
            return None
        others.sort(key=lambda window: -window.cost)
        top_E = self.paired[(top.start, top.stop)]
        differences = {w: summaries.mean_difference(top_E, self.paired[(w.start, w.stop)]) for w in others}
        separate = [window for window in others if window.stop <= top.start or window.start >= top.stop]
        chosen = (separate or others)[0]
        mean, low, high = differences[chosen]
        alike = [window for window in others if not differences[window][1] > self.resolution]
        return Rival(chosen, bool(separate), mean, low, high, chosen not in alike, alike)

    # Similarity and dynamics

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics of similarity measured."""
        if "similarity" not in self.tables:
            return []
        return [str(metric) for metric in self.tables["similarity"]["metric"].unique()]

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings that δ was computed for."""
        if "dynamics" not in self.tables:
            return []
        pairs = self.tables["dynamics"][["metric", "neighbourhood"]].drop_duplicates()
        return [Setting(str(row.metric), int(row.neighbourhood)) for row in rows_of(pairs)]

    def similarity(self, metric: str) -> pd.DataFrame:
        """The rows of the similarity table for one metric."""
        return self.tables["similarity"][self.tables["similarity"]["metric"] == metric]

    def dynamics(self, setting: Setting) -> pd.DataFrame:
        """The rows of the dynamics table for one setting, by layer."""
        rows = self.tables["dynamics"]
        chosen = (rows["metric"] == setting.metric) & (rows["neighbourhood"] == setting.neighbourhood)
        return rows[chosen].sort_values("layer")

    def change_points(self, setting: Setting) -> list[int]:
        """The change-point layers of one setting; see `summaries.change_points`."""
        return summaries.change_points(self.dynamics(setting))

    def delta_reason(self, setting: Setting, layer: int) -> str:
        """Why δ of a layer is NaN: the reason given for a similarity that it is the mean of."""
        if setting.metric in self.metrics:
            rows = self.similarity(setting.metric)
            near = (rows["layer_i"] == layer) & ((rows["layer_j"] - layer).abs() <= setting.neighbourhood // 2)
            for reason in rows.loc[near, "reason"].dropna():
                return str(reason)
        return "a similarity that it averages is undefined"

    # Correlation

    @cached_property
    def correlations(self) -> list[Correlation]:
        """ρ for every setting and width."""
        if "correlation" not in self.tables:
            return []
        rows = self.tables["correlation"][[field.name for field in dataclasses.fields(Correlation)]]
        told = rows["reason"].astype(object).where(rows["reason"].notna(), None)
        return [Correlation(*row) for row in rows_of(rows.assign(reason=told))]

    def correlation(self, setting: Setting, width: int) -> Correlation | None:
        """ρ for one setting and width, if it was asked for."""
        return next((c for c in self.correlations if (c.setting, c.width) == (setting, width)), None)

    @property
    def first_correlation(self) -> Correlation | None:
        """ρ for the first setting and the main width: the one that the answer is about."""
        return self.correlation(self.settings[0], self.main_width) if self.settings and self.main_width else None

    def curves(self, found: Correlation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """δ and mean loss at the centres that a correlation is over."""
        rows = summaries.swept(self.windows, found.width)
        dropped = (len(rows) - found.n_layers) // 2
        rows = rows.iloc[dropped : len(rows) - dropped]
        delta_L = self.dynamics(found.setting)["delta"].to_numpy(dtype=float)
        return delta_at(delta_L, rows["centre"]), rows["loss"].to_numpy(dtype=float)

    def verdict(self, found: Correlation) -> Verdict:
        """Whether the base model's δ predicts the critical layers.

        `predicts` needs both the interval (over examples) wholly below 0 and p ≤ 0.05 (`p_value`, over layers); with the
        interval alone it is `maybe`. `wrong`: the interval is wholly above 0. `unclear`: it includes 0, or there is none.
        `idle`: no window's cost is significantly different from 0, so that ρ ranks noise. `withheld`: which windows have a cost
        follows from what was trained.
        """
        if not self.leans(found.width):
            return "idle"
        if found.withheld:
            return "withheld"
        if found.ci_high < 0:
            return "predicts" if found.p_value <= SIGNIFICANT else "maybe"
        return "wrong" if found.ci_low > 0 else "unclear"

    def rho_reason(self, found: Correlation) -> str:
        """Why a correlation is NaN, in words, as far as the tables tell."""
        if found.withheld:
            return found.withheld
        if found.setting in self.settings:
            rows = self.dynamics(found.setting)
            undefined = rows.loc[rows["delta"].isna(), "layer"].astype(int).to_list()
            if undefined:
                return f"δ is undefined at {layers_text(undefined)}: {self.delta_reason(found.setting, undefined[0])}"
        if self.windows["loss"].isna().any():
            return "some window has no loss"
        return "δ or the loss is the same at all centres"


def cells_of(
    tables: Mapping[str, pd.DataFrame],
    checkpoints: Sequence[Mapping[str, str]],
    sets: Mapping[str, str] | None = None,
    *,
    shared: Sequence[Mapping[str, Any]] = (),
    datasets: Sequence[Mapping[str, str]] = (),
) -> list[Cell]:
    """Every model and data set that some table has, in order of appearance.

    `checkpoints` tell by `model` and `dtype` what precision a model's losses were computed in; float32 where they do not.
    `sets` has the names of sets by their layers; `shared` and `datasets` are the records of the run's plan.
    """
    in_common = {(each.model, each.dataset): each for each in map(Shared.from_json, shared)}
    records = {(row.get("model"), row.get("dataset")): row for row in datasets}
    found = dict.fromkeys(
        (str(row.model), str(row.dataset))
        for table in tables.values()
        for row in rows_of(table[["model", "dataset"]].drop_duplicates())
    )
    one_model = len({model for model, _ in found}) == 1
    cells = []
    for place, (model, dataset) in enumerate(found):
        rows = {name: t[(t["model"] == model) & (t["dataset"] == dataset)] for name, t in tables.items()}
        dtypes = [record.get("dtype", "") for record in checkpoints if record.get("model") == model]
        cells.append(
            Cell(
                model=model,
                dataset=dataset,
                title=dataset if one_model and len(found) > 1 else f"{model} · {dataset}",
                anchor=f"cell-{place + 1}",
                tables={name: part for name, part in rows.items() if len(part)},
                resolution=max((_RESOLUTION.get(dtype, _FINEST) for dtype in dtypes), default=_FINEST),
                sets=sets or {},
                shared=in_common.get((model, dataset)),
                record=records.get((model, dataset), {}),
            )
        )
    return cells
