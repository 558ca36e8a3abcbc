"""Whether δ of the base models predicts the critical layers over all cells, in one plain sentence.

Also how far published ρ agree with those measured. Numbers in, text out; nothing is estimated here but the mean and its p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raysweep.numerics.combined import Combined, combined_p, mean_correlation
from raysweep.report.cells import SIGNIFICANT, Cell, Setting
from raysweep.report.words import interval, number

STRONG = -0.5  # a mean ρ below this is called strongly negative, as most of those published are

Published = Mapping[str, Mapping[str, float]]


def tested_together(cells: Sequence[Cell], setting: Setting, width: int) -> Combined:
    """ρ given depth over all cells that have a p, and the p of all of them together."""
    asked = [(cell, row) for cell in cells if (row := cell.correlation(setting, width)) and not math.isnan(row.p_value)]
    curves = [(*cell.curves(row), cell.model) for cell, row in asked]
    return combined_p(*map(list, zip(*curves, strict=True))) if curves else Combined(math.nan, math.nan, 0)


def effect_sentence(cells: Sequence[Cell], setting: Setting, width: int) -> str:
    """What the cells of one setting and width say together; empty where none has a ρ."""
    rows = [(cell, row) for cell in cells if (row := cell.correlation(setting, width)) and not math.isnan(row.spearman)]
    if not rows:
        return ""
    n, idle = len(rows), sum(cell.verdict(row) == "idle" for cell, row in rows)
    below, above = sum(row.ci_high < 0 for _, row in rows), sum(row.ci_low > 0 for _, row in rows)
    negative = sum(row.spearman < 0 for _, row in rows)
    mean = mean_correlation([row.spearman for _, row in rows], [cell.model for cell, _ in rows])
    counted = f"ρ is negative in {negative} of {n} cells; its interval is below 0 in {below} and above 0 in {above}"
    together = f"the mean ρ is {number(mean.mean)} {interval(mean.low, mean.high)}"
    models = "this model" if mean.groups == 1 else "these models"
    if math.isnan(mean.low):
        said = f"It is unknown whether δ predicts the critical layers of {models}: there is no interval over models or data sets"
    elif mean.high < 0 and mean.mean <= STRONG and 2 * below > n:
        tested = tested_together(cells, setting, width)
        said = f"In {models}, δ predicts the critical layers: ρ is strongly negative"
        if not tested.p <= SIGNIFICANT:
            why = f"p = {number(tested.p, 3)} with the trend over depth removed" if tested.cells else "no cell has a p"
            said = (
                f"In {models}, δ points to the critical layers: ρ is strongly negative, but this may be chance ({why})"
            )
    elif mean.high < 0:
        said = f"In {models}, δ predicts the critical layers weakly: ρ is negative on average, but not strongly"
    elif mean.low > 0:
        said = f"In {models}, δ points to the wrong layers: ρ is positive"
    else:
        said = (
            f"It is undecided whether δ predicts the critical layers of {models}: the interval of the mean ρ includes 0"
        )
    without = (
        f" In {idle} of the cells no window has a cost that is significantly different from 0, so there ρ means nothing."
        if idle
        else ""
    )
    return f"{said}. In numbers, {counted}; {together}.{without}"


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
        f"Published ρ exist for {len(pairs)} of these cells, from {number(min(values))} to {number(max(values))}. The sign is the same in "
        f"{alike}; {inside} of {len(told)} lie in the interval measured here, which is over examples only."
    )
