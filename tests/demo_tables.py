"""The demo's tables against the committed ones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-6  # processors differ in the last bits of float32 arithmetic


def differences(results: Path) -> list[str]:
    """How the Parquet tables in the folder `results` differ from the demo's golden ones: one line per table, none if equal."""
    found = []
    for golden in sorted((GOLDENS / "demo").glob("*.parquet")):
        path = results / golden.name
        if not path.exists():
            found.append(f"{golden.stem}: missing")
            continue
        try:
            pd.testing.assert_frame_equal(
                pd.read_parquet(path), pd.read_parquet(golden), check_exact=False, rtol=TOLERANCE, atol=TOLERANCE
            )
        except AssertionError as error:
            found.append(f"{golden.stem}: {error}")
    return found
