"""Numbers, layers, metrics and times as the page and the figures write them. Pure functions of plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from markupsafe import Markup

from raysweep.numerics.measures.registry import MEASURES
from raysweep.studies.layer_names import layers_text as layers_text
from raysweep.studies.layer_names import runs as runs
from raysweep.studies.layer_names import runs_text as runs_text

PAGE_CHARS = 20_000  # of one prompt, reference or generated text on the page; the tables have all of it


def metric_name(metric: str) -> str:
    """A metric's name as it is written in prose; the column's own word where there is no other."""
    return MEASURES[metric].label if metric in MEASURES else metric


def likeness_name(metric: str) -> str:
    """What δ is the mean of, in prose: the metric, or "1 − …" where a larger value means farther apart."""
    return f"1 − {metric_name(metric)}" if measures_distance(metric) else metric_name(metric)


def measures_distance(metric: str) -> bool:
    """Whether a larger value of a metric means farther apart."""
    return metric in MEASURES and MEASURES[metric].larger == "apart"


def consecutive(width: int) -> str:
    """So many layers in a row: "one layer", "5 consecutive layers"."""
    return "one layer" if width == 1 else f"{width} consecutive layers"


def number(value: float, decimals: int = 2, signed: bool = False) -> str:
    """A number with a true minus sign, none before a zero; "n/a" for NaN."""
    if math.isnan(value):
        return "n/a"
    return f"{value:{'+' if signed else ''}z.{decimals}f}".replace("-", "−")


def number_or_reason(value: float, reason: str, decimals: int, signed: bool = False) -> str:
    """A number, or "n/a" with the reason why there is none."""
    return f"n/a ({reason})" if math.isnan(value) else number(value, decimals, signed)


def percent(share: float) -> str:
    """A share in whole percent: "62 %"."""
    return f"{100 * share:.0f} %"


def interval(low: float, high: float, decimals: int = 2) -> str:
    """ "[low, high]", or "[n/a]" where there is no interval."""
    return "[n/a]" if math.isnan(low) or math.isnan(high) else f"[{number(low, decimals)}, {number(high, decimals)}]"


def decimals_for(low: float, high: float, spare: int = 0) -> int:
    """As many decimals as show the first digit of the interval's half-width (and `spare` more), from 2 to 6."""
    half = (high - low) / 2
    return min(6, max(2, spare - math.floor(math.log10(half)))) if 0 < half < math.inf else 2 + spare


def moment(text: str) -> str:
    """An ISO time to the minute, as a reader writes it; any other text as it is."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{found:%Y-%m-%d %H:%M %Z}".strip()


def duration(seconds: float) -> str:
    """Seconds as a reader writes them: "47.3 s", "1 min 23 s", "2 h 03 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def listed(parts: Sequence[Markup]) -> Markup:
    """Parts as a sentence lists them: "a", "a and b", "a, b and c"."""
    if len(parts) < 2:
        return Markup("").join(parts)
    return Markup("{} and {}").format(Markup(", ").join(parts[:-1]), parts[-1])


def excerpt(text: str) -> str:
    """Return a text as the page shows it: its beginning and end if it is longer than PAGE_CHARS, with how much is left out."""
    if len(text) <= PAGE_CHARS:
        return text
    half = PAGE_CHARS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters are not shown …]\n{text[-half:]}"
