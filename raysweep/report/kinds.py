"""What a run takes by kind of work, in words."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.engine.by_kind import KindCost
from raysweep.engine.standing import kind_name


def kind_lines(kinds: Sequence[KindCost]) -> list[str]:
    """A line for each kind of work, for a terminal; none where nothing is left."""
    if not kinds:
        return []
    lines = [f"{'by kind':<14} {'tasks':>6} {'calls':>6} {'hours':>9}  device {'read':>8} {'memory of a worker':>19}"]
    for each in kinds:
        tasks = str(each.tasks) if each.tasks else "—"
        lines.append(
            f"  {kind_name(each.kind):<12} {tasks:>6} {each.calls:>6} {_hours(each.seconds):>9}  {each.on:<6} {_size(each.bytes_read):>8} "
            f"{_size(each.memory):>19}{f'  ({each.note})' if each.note else ''}"
        )
    return lines


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    hours = seconds / 3600
    return f"{hours:.3f}" if hours < 10 else f"{hours:,.1f}"


def _size(n: float) -> str:
    if not n:
        return "—"
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} TB"
