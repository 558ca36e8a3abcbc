"""The generator's modules, importable, and how a query of a panel becomes one that Prometheus takes."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "dashboards"
sys.path.insert(0, str(FOLDER))
