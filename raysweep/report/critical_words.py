"""`raysweep critical` as lines for a terminal, and as plain values for a script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raysweep.numerics.selection import Agreement
from raysweep.report.cells import Cell
from raysweep.report.health_words import health_sentences
from raysweep.report.words import interval, number, percent, runs_text
from raysweep.studies.critical import Critical, DatasetChoice
from raysweep.terminal import aligned, wrapped

STABLE = 0.8  # the share of half-samples from which on the choice of a layer is called stable
_SHOWN = 0.05  # the share from which on a layer that is not chosen is in the table


def critical_lines(found: Critical, title: str) -> list[str]:
    """Return the layers and how stable they are, the lists for training, the table, and what not to trust; at most 80 columns."""
    datasets = found.datasets
    lines = [*wrapped(f"Critical layers of {title}: {_chosen(found)}"), *wrapped(_verdict(found))]
    lines += wrapped(f"Weights: {found.note}") if found.note else []
    if found.agreement is not None:
        lines += wrapped(agreement_text(found.agreement, len(datasets)))
    lines += ["", *_lists(found), "", *_table(found)]
    for name, choice in datasets.items():
        lines += ["", *_dataset_lines(name, choice, alone=len(datasets) == 1)]
    warned = _warnings(datasets)
    return [*lines, *(["", *warned] if warned else [])]


def _chosen(found: Critical) -> str:
    if not found.layers:
        return "none, because no layer has a δ."
    return f"{runs_text(found.layers)} ({len(found.layers)} of {len(found.delta)} layers). Representations change most there (smallest δ)."


def _verdict(found: Critical) -> str:
    """How stable the choice is, in a sentence."""
    if not found.layers:
        return ""
    shares = {layer: float(found.stability[layer]) for layer in found.layers}
    if any(math.isnan(share) for share in shares.values()):
        few = min(choice.n_examples for choice in found.datasets.values())
        return f"The stability of the choice cannot be measured with {few} examples; it takes at least 8."
    half = f"in ≥ {percent(STABLE)} of half-samples of the examples"
    n, shaky = len(shares), {layer: share for layer, share in shares.items() if share < STABLE}
    if not shaky:
        what = "The layer is stable" if n == 1 else f"All {n} are stable"
        return f"{what}: chosen {half}."
    named = ", ".join(f"{layer} ({percent(share)})" for layer, share in shaky.items())
    if len(shaky) == n:
        what = "It is not stable" if n == 1 else f"None of the {n} is stable"
        return f"{what} (chosen {half}): {named}. More examples may settle it."
    return f"{n - len(shaky)} of the {n} are stable (chosen {half}); not stable: {named}. More examples may settle it."


def _lists(found: Critical) -> list[str]:
    """What to pass on, and to what."""
    if not found.layers:
        return ["No critical layers were found, so there is no list to train or to freeze."]
    peft = found.peft_config()
    lines = ["To train only these layers, pass this to PEFT's LoraConfig:"]
    settings = [f"{name}={json.dumps(value)}" for name, value in peft.items()]
    lines += wrapped(", ".join(settings), first="  ")
    lines.append("To freeze them, freeze the parameters whose names begin with:")
    return [*lines, *wrapped(" ".join(found.freeze_list()), first="  ")]


def _table(found: Critical) -> list[str]:
    """δ and stability of the chosen layers and of those that some half-samples choose."""
    rows = [["layer", "mean δ" if len(found.datasets) > 1 else "δ", "chosen in", ""]]
    for layer in sorted(
        range(len(found.delta)), key=lambda layer: (math.isnan(found.delta[layer]), found.delta[layer])
    ):
        if layer in found.layers or found.stability[layer] >= _SHOWN:
            mark = "critical" if layer in found.layers else ""
            rows.append([str(layer), number(found.delta[layer], 4), _share(found.stability[layer]), mark])
    return [*aligned(rows, right=(0, 1, 2)), "(chosen in: share of half-samples of the examples)"]


def _dataset_lines(name: str, choice: DatasetChoice, *, alone: bool) -> list[str]:
    """What one data set's examples say."""
    examples = f"{choice.n_examples} example{'s' * (choice.n_examples != 1)}"
    layers = "" if alone else f"; critical layers {runs_text(choice.layers) or 'none'}"
    lines = wrapped(f"{name}: {examples}{layers}")
    segments = _segments(choice.starts, len(choice.delta))
    lines += wrapped(f"segments of similar layers: {segments}", first="  ", indent="    ")
    if choice.outliers:
        same = "the same layers" if choice.trimmed == choice.layers else runs_text(choice.trimmed) or "none"
        dimensions = "1 outlier dimension" if choice.outliers == 1 else f"{choice.outliers} outlier dimensions"
        lines += wrapped(f"without {dimensions} of the states: {same}", first="  ", indent="    ")
    return lines


def _segments(starts: Sequence[int], n_layers: int) -> str:
    """Segments by their first and last layers: "0–3 | 4–11"."""
    firsts = [0, *starts]
    ends = [*starts, n_layers]
    return " | ".join(runs_text(range(first, end)) for first, end in zip(firsts, ends, strict=True))


def agreement_text(found: Agreement, datasets: int) -> str:
    """Return how far the choices on several data sets agree, as sentences."""
    between = "The two data sets" if datasets == 2 else f"Any two of the {datasets} data sets"
    text = (
        f"{between} share {found.common:.1f} critical layers on average ({found.chance:.1f} by chance): agreement "
        f"{number(found.value)} {interval(found.ci_low, found.ci_high)}, where 1 is the same layers and 0 is chance."
    )
    if math.isnan(found.repeated):
        return f"{text} There are too few examples for an interval."
    return f"{text} Two samples of the same data set would have an agreement of {number(found.repeated)}."


def critical_json(found: Critical, title: str) -> dict[str, Any]:
    """Return plain values; NaN is null."""
    agreement = found.agreement
    return {
        "model": title,
        "note": found.note or None,
        "layers": found.layers,
        "stable_layers": [layer for layer in found.layers if found.stability[layer] >= STABLE],
        "delta": _plain(found.delta),
        "stability": _plain(found.stability),
        "peft": found.peft_config(),
        "freeze": {"prefixes": found.freeze_list(), "parameters": list(found.parameters)},
        "datasets": {
            name: {
                "examples": choice.n_examples,
                "layers": choice.layers,
                "delta": _plain(choice.delta),
                "stability": _plain(choice.stability),
                "stretches_begin": [0, *choice.starts],
                "outlier_dimensions": choice.outliers,
                "layers_without_outliers": choice.trimmed,
                "warnings": [
                    {"layer": int(row.layer), "measure": str(row.measure), "warning": str(row.warning)}
                    for row in _warned(choice.health)
                ],
            }
            for name, choice in found.datasets.items()
        },
        "agreement": None if agreement is None else {name: _value(value) for name, value in vars(agreement).items()},
    }


def _warned(health: pd.DataFrame) -> list[Any]:
    return list(health.dropna(subset=["warning"]).itertuples(index=False))


def _warnings(datasets: Mapping[str, DatasetChoice]) -> list[str]:
    """One warning of each kind, for the data sets and layers that have it."""
    cells = [
        Cell("", name, name, name, {"health": choice.health}, 0.0)
        for name, choice in datasets.items()
        if len(choice.health)
    ]
    return [line for text in health_sentences(cells) for line in wrapped(f"warning: {text.striptags()}")]


def _share(value: float) -> str:
    return "n/a" if math.isnan(value) else percent(value)


def _plain(values: np.ndarray) -> list[float | None]:
    return [_value(value) for value in values.tolist()]


def _value(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
