"""`raysweep critical` in words: the verdict on the choice, the lists, and 80 columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.report.critical_words import critical_json, critical_lines
from raysweep.studies.critical import Critical, DatasetChoice

DELTA = np.array([0.7, 0.8, 0.95, 0.9, 0.99, 0.98])


def found(stability: list[float], datasets: int = 1, n_examples: int = 24, **more: Any) -> Critical:
    shares = np.array(stability)
    health = pd.DataFrame(
        {
            "layer": [2, 3],
            "measure": ["mean_to_rms"] * 2,
            "value": [0.9995, 0.9997],
            "warning": ["mean_to_rms is 0.9995, above 0.999: the states hardly differ between examples", None],
        }
    )
    choice = DatasetChoice(n_examples, [0, 1, 3], DELTA, shares, [1, 4], 2, [0, 1, 2], health)
    named = {f"set-{n}": choice for n in range(datasets)}
    return Critical([0, 1, 3], DELTA, shares, "model.layers", datasets=named, **more)


def said(stability: list[float], **more: Any) -> str:
    return " ".join(" ".join(critical_lines(found(stability, **more), "some/model")).split())


def test_it_leads_with_the_layers_and_a_verdict() -> None:
    lines = critical_lines(found([1.0, 0.9, 0.1, 0.3, 0.0, 0.04]), "some/model")
    assert lines[:4] == [
        "Critical layers of some/model: 0–1, 3 (3 of 6 layers). Representations change",
        "  most there (smallest δ).",
        "2 of the 3 are stable (chosen in ≥ 80 % of half-samples of the examples); not",
        "  stable: 3 (30 %). More examples may settle it.",
    ]
    text = "\n".join(lines)
    assert '  layers_to_transform=[0, 1, 3], layers_pattern="layers"\n' in text
    assert "  model.layers.0. model.layers.1. model.layers.3.\n" in text
    assert "    2  0.9500       10 %\n" in text, "a layer that some half-samples choose"
    assert "    5  " not in text, "and none that hardly any choose"
    assert "  segments of similar layers: 0 | 1–3 | 4–5\n" in text
    assert "  without 2 outlier dimensions of the states: 0–2" in text
    assert "warning: States hardly differ between examples (set-0, layer 2)." in text
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("stability", "verdict"),
    [
        ([1.0, 0.9, 0.1, 0.8, 0.0, 0.0], "All 3 are stable: chosen in ≥ 80 % of half-samples of the examples."),
        ([0.5, 0.4, 0.3, 0.2, 0.0, 0.0], "None of the 3 is stable (chosen in ≥ 80 % of half-samples of the examples): 0 (50 %), 1 (40 %), 3 (20 %)."),
        ([math.nan] * 6, "The stability of the choice cannot be measured with 5 examples; it takes at least 8."),
    ],
)  # fmt: skip
def test_the_verdict(stability: list[float], verdict: str) -> None:
    assert verdict in said(stability, n_examples=5)


def test_json_has_the_stable_layers() -> None:
    assert critical_json(found([1.0, 0.9, 0.1, 0.3, 0.0, 0.0]), "m")["stable_layers"] == [0, 1]


def test_a_note_is_printed() -> None:
    assert "Weights: 4-bit weights." in said([1.0] * 6, note="4-bit weights.")
