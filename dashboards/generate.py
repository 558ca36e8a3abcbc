"""Write the Grafana dashboard, Prometheus's configuration and its rules, from the constants that name the metrics.

    python dashboards/generate.py

A test fails where the files here are not what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from panels import ROWS, Panel
from rules import ALERTS, PROMETHEUS, RECORDING, groups

from raysweep.engine import metrics

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
WINDOWS = ("1m", "5m", "15m", "1h")
WARNING = "# Written by generate.py; change rules.py.\n"


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "raysweep",
        "uid": "raysweep",
        "description": "Runs of raysweep on this Ray cluster.",
        "tags": ["raysweep", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "templating": {"list": variables()},
        "panels": panels(),
    }


def variables() -> list[dict[str, Any]]:
    """Which Prometheus, which runs, and over how long rates are taken."""
    runs = f"label_values({metrics.RUNNING.series}, run)"
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": SOURCE,
            "definition": runs,
            "query": {"query": runs, "refId": "runs"},
            "refresh": 2,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "sort": 1,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        },
        {
            "name": "window",
            "label": "Rates over",
            "type": "custom",
            "query": ",".join(WINDOWS),
            "options": [{"selected": each == "5m", "text": each, "value": each} for each in WINDOWS],
            "current": {"selected": True, "text": "5m", "value": "5m"},
        },
    ]


def panels() -> list[dict[str, Any]]:
    """All rows and their panels, each panel right of the one before where there is room."""
    drawn: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        drawn.append(
            {"id": len(drawn) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        x, y, tallest = 0, y + 1, 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            drawn.append({"id": len(drawn) + 1, "gridPos": place, **drawing(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return drawn


def drawing(panel: Panel) -> dict[str, Any]:
    """A panel as Grafana has it, its id and place apart."""
    heat = panel.kind == "heatmap"
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        custom = {"custom": {"fillOpacity": 40 if panel.stacked else 10, "showPoints": "auto", "stacking": stacking}}
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend,
            "range": True,
            "format": "heatmap" if heat else "time_series",
        }
        for index, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, **custom}, "overrides": []},
        "options": options(panel),
        "targets": targets,
    }


def options(panel: Panel) -> dict[str, Any]:
    """What Grafana asks for each kind of panel."""
    reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return {
        "stat": {"reduceOptions": reduced, "graphMode": "area", "textMode": "auto"},
        "bargauge": {"reduceOptions": reduced, "orientation": "horizontal", "displayMode": "basic"},
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "heatmap": {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"mode": "scheme", "scheme": "Blues"}},
    }[panel.kind]


def table() -> str:
    """Every metric, as a page in Markdown."""
    lines = [
        "# Metrics",
        "",
        "Written by generate.py.",
        "",
        "| in Prometheus | kind | unit | labels | what it is |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.series} | {each.kind} | {each.unit} | {', '.join(each.labels)} | {each.help} |"
        for each in metrics.METRICS
    ]
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """What is written, by file name."""

    def dumped(value: dict[str, Any]) -> str:
        return WARNING + yaml.safe_dump(value, sort_keys=False, width=1000)

    return {
        "raysweep.json": json.dumps(dashboard(), indent=1) + "\n",
        "metrics.md": table(),
        "prometheus.yml": dumped(PROMETHEUS),
        "recording.yml": dumped(groups("raysweep", RECORDING)),
        "alerts.yml": dumped(groups("raysweep alerts", ALERTS)),
    }


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_text(content, encoding="utf-8")
