"""A simulated run in words: how long, how idle, what is read, and the workers with most and least to do over time."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.engine.simulate import Simulation, Span

_COLUMNS = 48
_SHOWN = 3


def simulation_lines(found: Simulation) -> list[str]:
    """A few lines for a terminal."""
    lines = [
        f"simulated    {_count(found.workers, 'worker')} on {_count(found.nodes, 'node')}: {_seconds(found.makespan)}, workers idle "
        f"{found.idle_share:.1%} of the time",
        f"  loads      {found.loads} loads of {found.least_loads} checkpoints, {found.bytes_read / 1e9:.2f} GB read in total; "
        f"{found.calls} calls, {found.cut} cut into pieces",
        f"  over time  {_COLUMNS} moments: █ computing, ▒ loading, · idle",
    ]
    order = sorted(range(found.workers), key=found.busy, reverse=True)
    shown = order if len(order) <= 2 * _SHOWN else [*order[:_SHOWN], *order[-_SHOWN:]]
    for place, worker in enumerate(shown):
        if len(order) > len(shown) and place == _SHOWN:
            lines.append(f"             … {len(order) - len(shown)} more workers between these")
        bar = timeline(found.timelines[worker], found.makespan)
        lines.append(
            f"  worker {worker:<4}{bar} {_count(len(found.timelines[worker]), 'call')}, {_seconds(found.busy(worker))}"
        )
    return lines


def timeline(spans: Sequence[Span], makespan: float, columns: int = _COLUMNS) -> str:
    """What a worker is doing at evenly spaced moments of the run, a character each."""
    moments = [(column + 0.5) * makespan / columns for column in range(columns)]
    text = ""
    for moment in moments:
        span = next((span for span in spans if span.begin <= moment < span.end), None)
        text += "·" if span is None else "▒" if moment < span.begin + span.loading else "█"
    return text


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
