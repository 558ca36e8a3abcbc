"""The queries of the committed dashboard, as Prometheus is asked them."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "dashboards"


def drawn():
    """The dashboard's panels, rows apart."""
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def board():
    return json.loads((FOLDER / "raysweep.json").read_text(encoding="utf-8"))


def queries(run=".*", window="1m"):
    """(panel, query) of every target, its variables put in."""
    return [
        (panel["title"], target["expr"].replace("$run", run).replace("$window", window))
        for panel in drawn()
        for target in panel["targets"]
    ]
