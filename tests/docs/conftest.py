"""The modules that write the reference pages, which need no mkdocs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "_reference"))
