"""The figure of the backdoor study: rates by what was trained, with the trigger and without it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from raysweep.report.attack_words import ARMS, rate
from raysweep.report.plotting import CHANGE_COLOUR, INK, MUTED, PAPER, SIZE, header, styled
from raysweep.report.summaries import rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = (("triggered", CHANGE_COLOUR, 0.13), ("clean", MUTED, -0.19))


@styled
def attack_rates(rows: pd.DataFrame, title: str, judge: str) -> Figure:
    """Share of prompts answered as the attack wants, a line an arm: with the trigger above, without it below.

    `rows` are those of the table `attack` for one model, data set and judge. Large dots with their intervals are all seeds
    together, small ones single seeds; a rate that is n/a is said to be.
    """
    from matplotlib.figure import Figure

    arms = [arm for arm in ARMS if arm in set(rows["arm"])]
    figure = Figure(figsize=(SIZE[0], 1.35 + 0.55 * len(arms)))
    height = figure.get_figheight()
    header(figure, title, f"prompts with the answer the attack wants (%), by {judge}")
    axes = figure.add_axes((0.36, 0.5 / height, 0.6, 1 - 1.25 / height))
    axes.set_ylim(-0.55, len(arms) - 0.45)
    axes.set_xlim(-3, 103)
    axes.set_yticks(range(len(arms)), [ARMS[arm] for arm in reversed(arms)])
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(True, axis="x")
    for kind, colour, shift in _KINDS:
        for row in rows_of(rows[rows["prompts"] == kind]):
            if row.arm not in arms:
                continue
            y = len(arms) - 1 - arms.index(row.arm) + shift
            if math.isnan(row.rate):
                if pd.isna(row.seed):
                    axes.text(0, y, "n/a", color=colour, fontsize=8.5, va="center")
            elif pd.isna(row.seed):
                if not math.isnan(row.ci_low):
                    ends = [100 * row.ci_low, 100 * row.ci_high]
                    axes.plot(
                        ends, [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", label=f"{kind} {row.arm}"
                    )
                axes.plot([100 * row.rate], [y], "o", color=colour, markersize=7, markeredgecolor=PAPER, zorder=4)
                if kind == "triggered":
                    left = row.rate > 0.5
                    place: dict[str, Any] = {
                        "xytext": (0, 5),
                        "textcoords": "offset points",
                        "ha": "right" if left else "left",
                    }
                    axes.annotate(rate(row.rate), (100 * row.rate, y), color=colour, fontsize=8.5, **place)
            else:
                axes.plot([100 * row.rate], [y], "o", color=colour, markersize=3, alpha=0.55, zorder=3)
    for text, colour, x in (("● with the trigger", CHANGE_COLOUR, 0.36), ("● without", MUTED, 0.66)):
        figure.text(x, 1 - 0.68 / height, text, color=colour, fontsize=8.5, va="center")
    return figure
