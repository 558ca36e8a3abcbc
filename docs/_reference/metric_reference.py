"""The metrics of a run on Ray in Markdown, from the table that the code emits them by."""

from __future__ import annotations

from raysweep.engine.metrics import METRICS


def markdown() -> str:
    """Every metric as a term and its definition."""
    lines: list[str] = []
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        buckets = (
            f" Upper bounds of the buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}."
            if metric.buckets
            else ""
        )
        lines += [
            f"### `{metric.series}` {{ #{metric.series} .key }}",
            "",
            f"{metric.kind} · unit: {metric.unit} · labels: {labels}",
            "{ .type }",
            "",
            f"{metric.help}{buckets}",
            "",
        ]
    return "\n".join(lines)
