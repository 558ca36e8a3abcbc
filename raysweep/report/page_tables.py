"""The tables that the page shows, every value in words; the result tables that they are made from are tables.py's."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from raysweep.config_renamed import OLD_NAMES
from raysweep.numerics.combined import mean_correlation
from raysweep.report.answer import answer_of
from raysweep.report.cells import Cell, Setting, Verdict
from raysweep.report.effect import Published, effect_sentence, published_sentence, tested_together
from raysweep.report.summaries import rows_of, windows_of
from raysweep.report.words import decimals_for, interval, metric_name, number, number_or_reason, runs_text

MOST = 60  # rows of a table that are shown where there may be very many


@dataclass(frozen=True)
class Table:
    """A table to show; `words` are the columns that hold text, the others hold figures."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: Collection[int] = ()


def summary_table(cells: Sequence[Cell]) -> Table:
    """The answer in one row a cell, for runs of many."""
    rows = []
    for cell in cells:
        top = cell.top()
        rival = None if top is None else cell.rival(top)
        decimals = 2 if top is None else decimals_for(top.cost_low, top.cost_high)
        changes = cell.change_points(cell.settings[0]) if cell.settings else []
        rows.append(
            (
                Markup('<a href="#{}"><bdi>{}</bdi></a>').format(cell.anchor, cell.title),
                "—" if top is None else top.span,
                "—" if top is None else f"{number(top.cost, decimals, signed=True)} {top.limits(decimals)}",
                "—" if rival is None else f"{rival.window.span}: {'yes' if rival.told_apart else 'no'}",
                runs_text(changes) or "—",
                answer_of(cell).label or "—",
            )
        )
    one_model = all(cell.title == cell.dataset for cell in cells)
    columns = (
        "data set" if one_model else "model · data set",
        "costliest layers",
        "cost (nats)",
        "differs from the next",
        "change-point layers",
        "base model alone",
    )
    return Table(
        "Layers that fine-tuning depends on, and what the base model alone shows", columns, rows, words={0, 4, 5}
    )


def windows_table(cell: Cell, width: int) -> Table:
    """The loss and cost of every window of a width, from no layer to all layers replaced."""
    chosen = cell.windows["role"].isin(["tuned", "all"]) | (cell.windows["width"] == width)
    halves = (cell.windows.loc[chosen, "cost_high"] - cell.windows.loc[chosen, "cost_low"]) / 2
    decimals = decimals_for(0, halves[halves > 0].median(), spare=1)
    rows = []
    for window in sorted(windows_of(cell.windows[chosen]), key=lambda w: (w.role == "all", w.start)):
        no_loss = f"none of {window.left_out} examples has a loss"
        no_cost = no_loss if math.isnan(window.loss) else "the tuned model has no loss"
        names = {"tuned": "none (tuned model)", "all": f"all {cell.n_layers}"}
        untouched = window.role == "tuned"
        rows.append(
            (
                names.get(window.role, window.span),
                f"{window.centre:g}" if window.role == "window" else "—",
                number_or_reason(window.loss, no_loss, decimals),
                "—" if untouched else number_or_reason(window.cost, no_cost, decimals, signed=True),
                "—" if untouched else window.limits(decimals),
                window.examples,
                window.left_out,
            )
        )
    columns = ("layers replaced", "centre", "mean loss", "cost", "95 % interval", "examples", "without a loss")
    return Table(f"Losses in nats, windows of width {width}", columns, rows, words={0})


def widths_table(cell: Cell) -> Table:
    """The costliest window of every width, where there are too many widths for a table of each."""
    rows = []
    for width in cell.widths:
        top = cell.top(width)
        n = int((cell.windows["width"] == width).sum())
        if top is None:
            rows.append((width, n, "n/a (no example has a loss)", "n/a", "n/a", "n/a"))
            continue
        decimals = decimals_for(top.cost_low, top.cost_high, spare=1)
        shown = number(top.loss, decimals), number(top.cost, decimals, signed=True), top.limits(decimals)
        rows.append((width, n, top.span, *shown))
    total = int((cell.windows["role"] == "window").sum())
    caption = f"The costliest window of every width, in nats. results/substitution.parquet has all {total} windows"
    columns = ("width", "windows", "costliest layers", "mean loss", "cost", "95 % interval")
    return Table(caption, columns, rows, words={2})


def dynamics_table(cell: Cell) -> Table:
    """δ of every layer in every setting."""
    columns = ["layer"]
    rows: list[list[object]] = [[layer] for layer in range(cell.n_layers)]
    for setting in cell.settings:
        columns += [f"δ ({setting})", "95 % interval", "rank"]
        found = {int(row.layer): row for row in rows_of(cell.dynamics(setting))}
        for layer, shown in enumerate(rows):
            row = found.get(layer)
            if row is None:
                shown += ["n/a (not measured)", "n/a", "n/a"]
            elif math.isnan(row.delta):
                shown += [f"n/a ({cell.delta_reason(setting, layer)})", "n/a", "n/a"]
            else:
                shown += [number(row.delta, 4), interval(row.ci_low, row.ci_high, 4), int(row.rank)]
    return Table("δ of the base model by layer (rank 1: smallest)", columns, rows)


def correlation_table(cell: Cell) -> Table:
    """Every row of the correlation table."""
    rows = []
    for found in cell.correlations[:MOST]:
        undefined = math.isnan(found.spearman)
        reason = cell.rho_reason(found) if undefined else found.reason or "undefined for these values"
        values = (found.partial_depth, found.p_value, found.effective_layers, found.p_shift, found.p_permutation)
        others = (found.kendall, found.precision_at_k, found.precision_chance, found.p_precision)
        shown = [number(value, 3) for value in (*values, *others)]
        setting = (metric_name(found.metric), found.neighbourhood, found.width, found.n_layers)
        rho = number_or_reason(found.spearman, reason, 3)
        limits = interval(found.ci_low, found.ci_high, 3)
        rows.append((*setting, rho, limits, *shown, "—" if undefined else found.reason or "—"))
    columns = ["metric", "neighbourhood", "window", "centres", "ρ", "95 % interval", "ρ given depth", "p"]
    columns += ["effective centres", "share of shifts", "p if exchangeable", "Kendall's τ", "precision at k"]
    columns += ["by chance", "p of precision", "why n/a"]
    caption = (
        "δ and loss, every setting. ρ given depth: the trend over depth is removed from both. p tests this ρ; it counts only as many "
        "independent centres as the similarity of neighbours leaves. The share of shifts along the layers that agree as well, and "
        "the p-values that treat layers or choices as exchangeable, are not calibrated tests. Precision at k: the share of "
        "the fifth of centres with the smallest δ that are also in the fifth with the highest loss, followed by the same share for a "
        "random choice."
    )
    if len(cell.correlations) > MOST:
        caption += f" These are the first {MOST} of {len(cell.correlations)} rows; results/correlation.parquet has all."
    return Table(caption, columns, rows, words={0, len(columns) - 1})


_HEALTH = {  # measures as the page names them, where the table's own word is not enough
    "mean_to_rms": "mean / rms",
    "n_over_d": "n / d",
    "cka_floor": "CKA floor",
    "longest_ratio": "longest / median",
    "massive_ratio": "largest / median value",
    "massive_dimension": "in dimension",
    "massive_example": "of example",
    "cka_next": "CKA with next",
    "cka_next_trimmed": "without outlier dimensions",
}
_OF_TWO = ("cka_next", "cka_next_trimmed")  # the last layer has no next


def health_table(cell: Cell) -> Table:
    """Every measure of the representations' health, by layer."""
    health = cell.tables["health"]
    measures = [str(measure) for measure in health["measure"].unique()]
    found = {(int(row.layer), str(row.measure)): row for row in rows_of(health)}
    caption = "Health of the representations by layer"
    if "cka_floor" in measures:
        caption += (
            ". CKA floor: biased CKA with an unrelated layer of the same spectrum (examples matched at random), about d / (n + d) for "
            "isotropic states. Effective numbers are 1 / Σ share². Top component weight: the CKA of two layers that share only that "
            "component. Outlier dimensions vary more than six times as much as the median dimension"
        )
    rows = []
    for layer in sorted({layer for layer, _ in found}):
        shown: list[object] = [layer]
        for measure in measures:
            row = found.get((layer, measure))
            if row is None:
                shown.append("—" if measure in _OF_TWO else "n/a (not measured)")
            elif math.isnan(row.value):
                shown.append(f"n/a ({row.warning if pd.notna(row.warning) else 'undefined'})")
            else:
                shown.append(f"{row.value:.3g}".replace("-", "−"))
        rows.append(shown)
    return Table(caption, ["layer", *(_HEALTH.get(m, m.replace("_", " ")) for m in measures)], rows)


def records_table(caption: str, records: Sequence[Mapping[str, str]]) -> Table:
    """Records of text, one a row; a column for every key that some record has, under its present name."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    rows = [[record.get(key, "—") for key in columns] for record in records]
    return Table(
        caption,
        [OLD_NAMES.get(column, column).replace("_", " ") for column in columns],
        rows,
        words=range(len(columns)),
    )


class Rho(NamedTuple):
    """One field of the ρ table."""

    value: str
    limits: str
    note: str
    verdict: Verdict | None
    published: str = ""


class RhoTable(NamedTuple):
    """ρ by model (rows) and data set (columns), for one metric, neighbourhood and width.

    `together` is about all cells, `effect` says whether they show what the paper found.
    """

    caption: str
    datasets: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Rho]]]
    together: str
    effect: str = ""


def rho_tables(cells: Sequence[Cell], published: Published | None = None) -> list[RhoTable]:
    """A table for each metric, neighbourhood and width; none for a single cell.

    The first has the `published` ρ next to those measured: they were found in one setting, which the config asks for first.
    """
    found = {(cell.model, cell.dataset): cell for cell in cells if cell.correlations}
    if len(found) < 2:
        return []
    asked = dict.fromkeys(
        (row.setting, row.width)
        for cell in found.values()
        for row in cell.correlations
        if row.width in cell.shown_widths or row.width not in cell.widths
    )
    models, datasets = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    return [
        RhoTable(
            f"{setting}, windows of width {width}",
            datasets,
            [
                (
                    model,
                    [
                        _rho(found.get((model, dataset)), setting, width)._replace(
                            published=_published(told, model, dataset)
                        )
                        for dataset in datasets
                    ],
                )
                for model in models
            ],
            _together(list(found.values()), setting, width),
            " ".join(
                text
                for text in (
                    effect_sentence(list(found.values()), setting, width),
                    published_sentence(list(found.values()), setting, width, told),
                )
                if text
            ),
        )
        for (setting, width), told in zip(asked, [published or {}, *[{}] * len(asked)], strict=False)
    ]


def _published(published: Published, model: str, dataset: str) -> str:
    rho = published.get(model, {}).get(dataset)
    return "" if rho is None else number(rho, 3)


def _together(cells: Sequence[Cell], setting: Setting, width: int) -> str:
    """Mean ρ over all cells with its interval, and the p of all together, with what is assumed."""
    asked = [(cell, row) for cell in cells if (row := cell.correlation(setting, width))]
    mean = mean_correlation([row.spearman for _, row in asked], [cell.model for cell, _ in asked])
    tested = tested_together(cells, setting, width)
    over = f"{mean.groups} models, each a mean over its data sets" if mean.groups > 1 else "the data sets of one model"
    p = f"p = {number(tested.p, 3)}" if tested.cells else "p n/a (no cell has one)"
    return (
        f"All {mean.cells} together: ρ = {number(mean.mean)} {interval(mean.low, mean.high)} (mean by Fisher's z; the interval "
        f"is over {over}, assumed independent). With the trend over depth removed, ρ is {number(tested.correlation)} on average, {p}; "
        "this p allows for the fact that cells of one model share its δ and have similar losses."
    )


def _rho(cell: Cell | None, setting: Setting, width: int) -> Rho:
    row = cell.correlation(setting, width) if cell else None
    if cell is None or row is None:
        return Rho("n/a", "", "(not measured)", None)
    if math.isnan(row.spearman):
        return Rho("n/a", "", f"({cell.rho_reason(row)})", None)
    verdict = cell.verdict(row)
    notes = {"idle": f"{row.p}, no significant cost"}
    if not math.isnan(row.ci_low):
        notes["unclear"] = f"{row.p}, interval includes 0"
    return Rho(number(row.spearman), row.limits, notes.get(verdict, row.p), verdict)
