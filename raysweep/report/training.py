"""What the page shows of trainings: loss over steps, and whether critical layers trained alone adapt faster; see training_figures.py."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from raysweep.numerics.curves import mean_curve
from raysweep.report import training_figures
from raysweep.report.cells import Cell
from raysweep.report.page_tables import MOST, Table
from raysweep.report.pictures import Drawings, Picture, heading
from raysweep.report.summaries import rows_of
from raysweep.report.training_figures import ArmCurve
from raysweep.report.words import decimals_for, interval, number, number_or_reason
from raysweep.studies.adaptation import loss_curves

NAMES = {"critical": "critical layers", "non_critical": "as many others", "all": "all layers"}
_FINETUNES = 4  # curves of fine-tunings that are drawn, a cell


@dataclass(frozen=True)
class Adapted:
    """The page's part on domain adaptation."""

    sentences: Sequence[Markup]
    pictures: Sequence[Picture]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Tuned:
    """The page's part on fine-tuning: a figure and a table for each, and how many more there are."""

    sentences: Sequence[Markup]
    parts: Sequence[tuple[Picture, Table]]


def adapted_view(cell: Cell, drawings: Drawings) -> Adapted | None:
    """What a cell has of domain adaptation; None without any."""
    training, compared = _rows(cell, "adaptation"), cell.tables.get("adaptation")
    if training is None and compared is None:
        return None
    pictures: list[Picture] = []
    tables: list[Table] = []
    if training is not None and (curves := _curves(training)):
        seeds = int(training.loc[training["split"] == "test", "seed"].nunique())
        pictures.append(_curves_picture(cell, curves, seeds, drawings))
        tables.append(_curves_table(curves, seeds))
    if compared is not None:
        pictures.append(_areas_picture(cell, compared, drawings))
        tables.insert(0, _compared_table(compared))
    sentences = [] if compared is None else adapted_sentences(cell)
    return Adapted([*sentences, *([] if training is None else _layers_sentence(training))], pictures, tables)


def tuned_view(cell: Cell, drawings: Drawings) -> Tuned | None:
    """What a cell has of fine-tuning; None without any."""
    training = _rows(cell, "finetune")
    if training is None:
        return None
    groups = [rows for _, rows in training.groupby(["arm", "seed"], sort=False)]
    parts = [(_tuned_picture(cell, rows, drawings), _tuned_table(rows)) for rows in groups[:_FINETUNES]]
    more = len(groups) - len(parts)
    text = "results/training.parquet has {} more fine-tunings."
    return Tuned(
        [_tuned_sentence(rows) for rows in groups[:_FINETUNES]] + ([Markup(text).format(more)] if more else []), parts
    )


def tuned_sentences(cell: Cell) -> list[Markup]:
    """What came of each fine-tuning of a cell."""
    training = _rows(cell, "finetune")
    if training is None:
        return []
    return [_tuned_sentence(rows) for _, rows in training.groupby(["arm", "seed"], sort=False)]


def adapted_sentences(cell: Cell) -> list[Markup]:
    """For each pair of arms, which of them has the lower test loss on its way; nothing where they were not compared."""
    if "adaptation" not in cell.tables:
        return []
    rows = cell.tables["adaptation"]
    final = {(row.arm, row.versus): row for row in rows_of(rows[rows["measure"] == "final"])}
    return [
        _pair_sentence(row, final.get((row.arm, row.versus)), cell.resolution)
        for row in rows_of(rows[rows["measure"] == "area"])
    ]


def adapted_headline(cells: Sequence[Cell]) -> list[Markup]:
    """In how many cells critical layers trained alone adapt faster than as many others; nothing where none compares them."""
    told: list[bool | None] = []
    for cell in cells:
        if "adaptation" in cell.tables:
            rows = cell.tables["adaptation"]
            asked = rows[(rows["arm"] == "critical") & (rows["versus"] == "non_critical") & (rows["measure"] == "area")]
            told += [_faster(row.ci_low, row.ci_high, cell.resolution) for row in rows_of(asked)]
    if not told:
        return []
    text = "Training only the critical layers lowers the test loss <strong>{}</strong> than training as many other layers{}."
    words: list[tuple[bool | None, str]] = [(True, "faster"), (False, "more slowly")]
    found = [(word, told.count(verdict)) for verdict, word in words if verdict in told]
    undecided = told.count(None)
    if not found:
        text = (
            "It is <strong>undecided</strong> whether training only the critical layers lowers the test loss faster than training as "
            "many other layers."
        )
        return [Markup(text)]
    if len(told) == 1:
        return [Markup(text).format(found[0][0], "")]
    of = f"; undecided in {undecided}" if undecided else ""
    counted = ", ".join(f"{word} in {n}" for word, n in found)
    return [Markup("Of {} cases, " + text[0].lower() + text[1:]).format(len(told), counted, of)]


def arm_name(arm: str) -> str:
    """An arm as the page calls it: the layers that were trained."""
    return NAMES.get(arm, arm)


def _rows(cell: Cell, study: str) -> pd.DataFrame | None:
    training = cell.tables.get("training")
    rows = None if training is None else training[training["study"] == study]
    return rows if rows is not None and len(rows) else None


def _faster(low: float, high: float, resolution: float) -> bool | None:
    """Whether the first arm's loss falls faster (True) or slower (False) by an interval; None where that is undecided."""
    if high < -resolution:
        return True
    return False if low > resolution else None


def _pair_sentence(area: Any, final: Any, resolution: float) -> Markup:
    arm, versus = arm_name(str(area.arm)), arm_name(str(area.versus))
    if math.isnan(area.value):
        reason = "no reason was recorded" if pd.isna(area.reason) else area.reason
        return Markup("Training {} cannot be compared with training {}: {}.").format(arm, versus, reason)
    decimals = 3 if math.isnan(area.ci_low) else decimals_for(area.ci_low, area.ci_high, spare=1)
    below = "lower" if area.value < 0 else "higher"
    amount = f"{number(abs(area.value), decimals)} nats {below}"
    seeds = "one seed" if area.seeds == 1 else f"{area.seeds} seeds"
    told = Markup("on average over {} steps {} (area {} {}, {})").format(
        area.steps,
        amount,
        number(area.value, decimals, signed=True),
        interval(area.ci_low, area.ci_high, decimals),
        seeds,
    )
    faster = _faster(area.ci_low, area.ci_high, resolution)
    if math.isnan(area.ci_low):
        text = Markup(
            "It is <strong>undecided</strong> whether the test loss falls faster when training {} than when training {}: it is {}, and {}."
        )
        why = "one seed is not enough" if area.seeds == 1 else f"there is no interval ({area.reason})"
        sentence = text.format(arm, versus, told, why)
    elif faster is None:
        text = Markup(
            "It is <strong>undecided</strong> whether the test loss falls faster when training {} than when training {}: it is {}, and the "
            "interval includes 0."
        )
        sentence = text.format(arm, versus, told)
    else:
        text = Markup("When training {}, the test loss falls <strong>{}</strong> than when training {}: it is {}.")
        sentence = text.format(arm, "faster" if faster else "more slowly", versus, told)
    return sentence + _at_the_end(final, resolution)


def _at_the_end(final: Any, resolution: float) -> Markup:
    """What is left of the difference at the last step."""
    if final is None or math.isnan(final.value):
        return Markup("")
    decimals = 3 if math.isnan(final.ci_low) else decimals_for(final.ci_low, final.ci_high, spare=1)
    told = Markup(" At the last step the difference is {} {}").format(
        number(final.value, decimals, signed=True), interval(final.ci_low, final.ci_high, decimals)
    )
    undecided = not math.isnan(final.ci_low) and _faster(final.ci_low, final.ci_high, resolution) is None
    return told + Markup(", not significantly different from 0." if undecided else ".")


def _layers_sentence(training: pd.DataFrame) -> list[Markup]:
    """Which layers each arm trained; those of an arm that differ by seed, too."""
    said = []
    for arm, rows in training.groupby("arm", sort=False):
        chosen = [str(layers) or "none" for layers in rows["layers"].unique()]
        if arm != "all":
            said.append(Markup("{}: {}").format(arm_name(str(arm)), "; ".join(chosen)))
    return [Markup("Layers trained: {}.").format(Markup(", ").join(said))] if said else []


def _curves(training: pd.DataFrame) -> list[ArmCurve]:
    """Every arm's mean curve over the seeds that were measured at all of its steps."""
    curves = []
    for arm in training["arm"].unique():
        losses = loss_curves(training, str(arm))
        if len(losses):
            curve = mean_curve(losses.to_numpy(dtype=float))
            curves.append(ArmCurve(str(arm), arm_name(str(arm)), losses.columns.to_numpy(dtype="int64"), *curve))
    return curves


def _curves_picture(cell: Cell, curves: Sequence[ArmCurve], seeds: int, drawings: Drawings) -> Picture:
    ends = "; ".join(f"{curve.name} from {number(curve.mean[0])} to {number(curve.mean[-1])}" for curve in curves)
    band = (
        "With one seed there is no interval."
        if seeds == 1
        else "Bands are each step’s own 95 % interval over seeds (Student’s t, cut at the ends of the scale). They may overlap "
        "even if two arms differ significantly, because arms are compared seed by seed, with the same order of data in both. The next "
        "figure shows that comparison."
    )
    return drawings.add(
        training_figures.arm_curves(curves, seeds, heading(cell)),
        ("adaptation", cell.model, cell.dataset),
        f"Line chart of mean test loss over steps of training, a line for each choice of layers: {ends} nats.",
        f"Mean test loss while only these layers are trained. {band}",
    )


def _areas_picture(cell: Cell, compared: pd.DataFrame, drawings: Drawings) -> Picture:
    rows = compared[compared["measure"] == "area"]
    names = [f"{arm_name(str(row.arm))} against {arm_name(str(row.versus))}" for row in rows_of(rows)]
    told = "; ".join(f"{name} {number(float(value), 3)}" for name, value in zip(names, rows["value"], strict=True))
    return drawings.add(
        training_figures.area_dots(rows, names, heading(cell)),
        ("area", cell.model, cell.dataset),
        f"Dot plot of the area between the test losses of two choices of layers, in nats: {told}.",
        "The area between two test-loss curves, divided by the range of steps: how much lower (left of 0) or higher the loss of one "
        "choice is on average during training. Bars are 95 % intervals of the mean over seeds, paired by seed; grey means not "
        "significantly different from 0. They assume independent seeds with nearly normal areas, and do not cover other learning "
        "rates, schedules or lengths.",
    )


def _compared_table(compared: pd.DataFrame) -> Table:
    rows = []
    for row in rows_of(compared[:MOST]):
        decimals = 3 if math.isnan(row.ci_low) else decimals_for(row.ci_low, row.ci_high, spare=1)
        reason = "" if pd.isna(row.reason) else str(row.reason)
        what = {"area": "mean over the steps", "final": "at the last step"}.get(row.measure, row.measure)
        value = number_or_reason(row.value, reason or "not known", decimals, signed=True)
        limits = interval(row.ci_low, row.ci_high, decimals)
        shown = [arm_name(str(row.arm)), arm_name(str(row.versus)), what, value, limits, str(row.seeds), str(row.steps)]
        rows.append([*shown, "" if math.isnan(row.value) else reason])
    caption = "Test loss of one choice of layers minus that of another, in nats. Negative: the first is lower"
    columns = ["trained", "against", "measure", "difference", "95 % interval", "seeds", "last step", "note"]
    return Table(caption, columns, rows, words={0, 1, 2, 7})


def _curves_table(curves: Sequence[ArmCurve], seeds: int) -> Table:
    steps = sorted({int(step) for curve in curves for step in curve.steps})
    by_step = [
        dict(zip(curve.steps.tolist(), zip(curve.mean, curve.low, curve.high, strict=True), strict=True))
        for curve in curves
    ]
    rows: list[list[str]] = []
    for step in steps[:MOST]:
        told = [found.get(step) for found in by_step]
        rows.append([str(step), *("—" if each is None else _with_limits(*each) for each in told)])
    over = "of one seed" if seeds == 1 else f"over {seeds} seeds, with its 95 % interval"
    caption = f"Mean test loss (nats) {over}"
    if len(steps) > MOST:
        caption += f". These are the first {MOST} of {len(steps)} steps; results/training.parquet has all"
    return Table(caption, ["step", *(curve.name for curve in curves)], rows)


def _with_limits(mean: float, low: float, high: float) -> str:
    decimals = 3 if math.isnan(low) else max(3, decimals_for(low, high))
    return number(mean, decimals) + ("" if math.isnan(low) else f" {interval(low, high, decimals)}")


def _parts(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of training and of test losses, by step; those without a loss left out."""
    rows = rows.sort_values("step").dropna(subset=["loss"]).drop_duplicates(["split", "step"], keep="last")
    return rows[rows["split"] == "train"], rows[rows["split"] == "test"]


def _tuned_sentence(rows: pd.DataFrame) -> Markup:
    _, test = _parts(rows)
    arm, layers, seed = str(rows["arm"].iloc[0]), str(rows["layers"].iloc[0]), int(rows["seed"].iloc[0])
    shown = re.sub(r"(?<=\d)-(?=\d)", "–", layers)
    what = shown if arm == layers else arm if arm == "all" else f"{arm}: {shown}"
    start = Markup("Fine-tuned (layers {}, seed {}) in {} steps.").format(what, seed, int(rows["step"].max()))
    if len(test) < 2:
        last = Markup(" Its test loss is <strong>{}</strong> nats.")
        return start + (last.format(number(float(test["loss"].iloc[0]), 3)) if len(test) else Markup(""))
    first, last, lowest = test["loss"].iloc[0], test["loss"].iloc[-1], test.loc[[test["loss"].idxmin()]].iloc[0]
    told = Markup(" The test loss goes from {} to <strong>{}</strong> nats").format(number(first, 3), number(last, 3))
    if lowest["step"] != test["step"].iloc[-1]:
        told += Markup(". It was lowest, {}, at step {}").format(number(lowest["loss"], 3), int(lowest["step"]))
    return start + told + Markup(".")


def _tuned_picture(cell: Cell, rows: pd.DataFrame, drawings: Drawings) -> Picture:
    train, test = _parts(rows)
    ends = (
        ""
        if not len(test)
        else f", the test loss from {number(test['loss'].iloc[0])} to {number(test['loss'].iloc[-1])}"
    )
    return drawings.add(
        training_figures.finetune_curves(train, test, heading(cell)),
        ("finetune", cell.model, cell.dataset),
        f"Line chart of loss over steps of fine-tuning{ends}.",
        "Test: the mean loss per response token, averaged over the test examples, as in every other figure here. "
        "Training: the trainer’s own loss on its latest batches, averaged over their tokens, before each update. Compare "
        "how the curves fall, not how high they are.",
    )


def _tuned_table(rows: pd.DataFrame) -> Table:
    train, test = (part.set_index("step")["loss"] for part in _parts(rows))
    steps = sorted({*train.index, *test.index})
    shown = [
        [str(step), *(number(part[step], 4) if step in part.index else "—" for part in (test, train))] for step in steps
    ]
    caption = "Loss by step of fine-tuning, nats"
    if len(steps) > MOST:
        caption += f". These are the first {MOST} of {len(steps)} steps; results/training.parquet has all"
    return Table(caption, ["step", "test", "training batches"], shown[:MOST])
