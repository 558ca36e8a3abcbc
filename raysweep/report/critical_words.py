"""`raysweep critical` in words for a terminal, and as plain values for a script."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from raysweep.numerics.selection import Agreement
from raysweep.report.words import interval, layers_text, number, percent, runs_text
from raysweep.studies.critical import Critical, DatasetChoice


def critical_lines(found: Critical, title: str) -> list[str]:
    """The answer, the choice of every data set, their agreement, the lists for training, and what not to trust."""
    n_layers, datasets = len(found.delta), found.datasets
    lines = [f"critical layers of {title}: {runs_text(found.layers) or 'none'} ({len(found.layers)} of {n_layers})"]
    lines += [f"weights of {title}: {found.note}"] if found.note else []
    lines.append("")
    lines.append(f"{'layer':>5}  {'mean δ' if len(datasets) > 1 else 'δ':>7}  chosen in")
    for layer in sorted(range(n_layers), key=lambda layer: (math.isnan(found.delta[layer]), found.delta[layer])):
        if layer in found.layers or found.stability[layer] >= 0.05:
            mark = "*" if layer in found.layers else " "
            lines.append(f"{layer:>5}{mark} {number(found.delta[layer], 4):>7}  {_share(found.stability[layer])}")
    lines += ["", "* chosen; the share is of half-samples of the examples", ""]
    for name, choice in datasets.items():
        lines.append(f"{name}: {runs_text(choice.layers) or 'none'} ({choice.n_examples} examples)")
        lines.append(f"  stretches of alike layers begin at {', '.join(map(str, [0, *choice.starts]))} (ruptures)")
        if choice.outliers:
            same = "the same" if choice.trimmed == choice.layers else runs_text(choice.trimmed) or "none"
            lines.append(f"  without {choice.outliers} outlier dimensions: {same}")
    if found.agreement is not None:
        lines += ["", agreement_text(found.agreement, len(datasets))]
    lines += [
        "",
        f"PEFT     {json.dumps(found.peft_config())}",
        f"freeze   {' '.join(found.freeze_list()) or 'nothing'}",
    ]
    warned = [line for name, choice in datasets.items() for line in _warnings(name, choice)]
    return [*lines, *(["", *warned] if warned else [])]


def agreement_text(found: Agreement, datasets: int) -> str:
    """The agreement of the choices on several data sets, as a sentence."""
    between = "the two" if datasets == 2 else f"any two of {datasets}"
    text = (
        f"agreement between data sets {number(found.value)} {interval(found.ci_low, found.ci_high)} (1: the same layers, 0: chance): "
        f"{between} share {found.common:.1f} layers on average, {found.chance:.1f} by chance"
    )
    if math.isnan(found.repeated):
        return f"{text}; no half-samples for an interval"
    return f"{text}; two samples of one data set would agree {number(found.repeated)}"


def critical_json(found: Critical, title: str) -> dict[str, Any]:
    """Plain values; NaN is null."""
    agreement = found.agreement
    return {
        "model": title,
        "note": found.note or None,
        "layers": found.layers,
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


def _warnings(name: str, choice: DatasetChoice) -> list[str]:
    """One line a measure: the layers warned of, and the first one's words."""
    lines = []
    for _, rows in choice.health.dropna(subset=["warning"]).groupby("measure", sort=False):
        layers = layers_text(sorted(int(layer) for layer in rows["layer"]))
        first = f"; here layer {rows['layer'].iloc[0]}'s" if rows["warning"].nunique() > 1 else ""
        lines.append(f"warning: {name}, {layers}{first}: {rows['warning'].iloc[0]}")
    return lines


def _share(value: float) -> str:
    return "n/a (fewer than 8 examples)" if math.isnan(value) else percent(value)


def _plain(values: np.ndarray) -> list[float | None]:
    return [_value(value) for value in values.tolist()]


def _value(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
