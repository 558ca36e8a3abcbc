"""The types of the package, strictly."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_types() -> None:
    done = subprocess.run(
        ["make", "types"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
