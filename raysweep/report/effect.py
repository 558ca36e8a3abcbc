"""Whether the models measured show the effect, in one plain sentence: small δ of the base model where putting layers back costs most.

Also how far ρ that were found elsewhere agree with those measured. Numbers in, text out; nothing is estimated here but the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raysweep.numerics.combined import mean_correlation
from raysweep.report.cells import Cell, Setting
from raysweep.report.words import interval, number

STRONG = -0.5  # a mean ρ below this is called strongly negative, as most of those published are

Published = Mapping[str, Mapping[str, float]]


def effect_sentence(cells: Sequence[Cell], setting: Setting, width: int) -> str:
    """What the cells of one setting and width say together; empty where none has a ρ."""
    rows = [(cell, row) for cell in cells if (row := cell.correlation(setting, width)) and not math.isnan(row.spearman)]
    if not rows:
        return ""
    n, idle = len(rows), sum(cell.verdict(row) == "idle" for cell, row in rows)
    below, above = sum(row.ci_high < 0 for _, row in rows), sum(row.ci_low > 0 for _, row in rows)
    negative = sum(row.spearman < 0 for _, row in rows)
    mean = mean_correlation([row.spearman for _, row in rows], [cell.model for cell, _ in rows])
    counted = f"of {n} cells, ρ is negative in {negative}, with an interval wholly below 0 in {below} (wholly above 0 in {above})"
    together = f"ρ together is {number(mean.mean)} {interval(mean.low, mean.high)}"
    if math.isnan(mean.low):
        said = "Whether these models show the effect cannot be said: there is no interval over models or data sets"
    elif mean.high < 0 and mean.mean <= STRONG and 2 * below > n:
        said = "These models show the effect: ρ is strongly negative"
    elif mean.high < 0:
        said = "These models lean towards the effect, but ρ is not strongly negative throughout"
    elif mean.low > 0:
        said = "These models show the opposite of the effect: ρ is positive"
    else:
        said = "Whether these models show the effect is undecided: the interval of ρ together includes 0"
    without = (
        f" In {idle} of the cells no window has a cost that is told from 0, so that ρ ranks nothing there."
        if idle
        else ""
    )
    return f"{said}; {counted}, and {together}.{without}"


def published_sentence(cells: Sequence[Cell], setting: Setting, width: int, published: Published) -> str:
    """How the published ρ lie to those measured; empty where none was published for a cell with a ρ."""
    pairs = [
        (row, published[cell.model][cell.dataset])
        for cell in cells
        if cell.dataset in published.get(cell.model, {})
        and (row := cell.correlation(setting, width))
        and not math.isnan(row.spearman)
    ]
    if not pairs:
        return ""
    told = [(row, rho) for row, rho in pairs if not math.isnan(row.ci_low)]
    inside = sum(row.ci_low <= rho <= row.ci_high for row, rho in told)
    alike = sum(row.spearman * rho > 0 for row, rho in pairs)
    values = [rho for _, rho in pairs]
    return (
        f"Published for {len(pairs)} of these cells: ρ from {number(min(values))} to {number(max(values))}; the sign is ours in "
        f"{alike}, and {inside} of {len(told)} lie in our interval, which is over examples alone."
    )
