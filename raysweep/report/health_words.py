"""Warnings about representations as sentences: what was found, at which layers, what it means, and what to do.

The table `health` has a warning for each layer and measure. Here the same warning is one sentence for all layers and data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from raysweep.report.cells import Cell
from raysweep.report.summaries import rows_of
from raysweep.report.words import layers_text, number, percent
from raysweep.studies.health import TRUST

_NAMED = 6  # cells that are named one by one


@dataclass(frozen=True)
class _Warned:
    """One measure at one layer of a cell that has a warning; `figures` are all measures of that layer."""

    cell: Cell
    layer: int
    value: float
    warning: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class _Text:
    """What is found, and what the worst layer means to the reader; the layer with the highest `severity` is the worst."""

    found: str
    rest: Callable[[_Warned], str]
    severity: Callable[[_Warned], float] = lambda row: row.value


def _mean(row: _Warned) -> str:
    return (
        f"The mean over examples makes up as much as {100 * row.value:.2f} % of the size of a state (limit: "
        f"{100 * TRUST['mean_to_rms'].most:g} %). Similarity there compares small differences. Check these layers with more varied "
        "examples."
    )


def _floor(row: _Warned) -> str:
    return (
        f"Biased CKA would be as high as {number(row.value)} even with an unrelated layer, because there are few examples for the "
        "directions in which the states vary. A high similarity there means little. Use the debiased CKA, or more examples."
    )


def _component(row: _Warned) -> str:
    return (
        f"Two layers that share only this direction would have a linear CKA as high as {number(row.value)}, debiased or not. A high "
        "similarity, and so a high δ, there only shows that layers agree in this direction. The spectrum study shows how many "
        "directions they share."
    )


def _dimension(row: _Warned) -> str:
    return (
        f"It carries as much as {percent(row.value)} of the variance, so similarity there mostly compares this dimension. The table "
        "of the representations' health has the similarity without outlier dimensions."
    )


def _massive(row: _Warned) -> str:
    return (
        f"The largest is {row.value:,.0f} times the median value (dimension {row.figures.get('massive_dimension', 0):.0f} of "
        f"example {row.figures.get('massive_example', 0):.0f}, layer {row.layer}). It dominates norms, angles and the mean state. Linear "
        "CKA is affected only if that dimension varies between examples."
    )


def _longest(row: _Warned) -> str:
    return (
        f"It is {row.value:.0f} times as long as the median state (example {row.figures.get('longest_example', 0):.0f}, layer "
        f"{row.layer}), perhaps an attention sink. This example may dominate the similarity. Check the record, or exclude it and compare."
    )


def _few(row: _Warned) -> str:
    return (
        f"Their effective number is as low as {row.value:.3g}: they lie far from the others and decide the similarity there. Use more "
        "examples, or check the records for outliers."
    )


def _trimmed(row: _Warned) -> str:
    whole = row.figures.get("cka_next", float("nan"))
    return (
        f"At layer {row.layer}, CKA with the next layer is {number(whole, 3)}, and {number(row.value, 3)} without the dimensions that "
        "vary more than six times as much as others. Treat similarity and δ there as properties of these few dimensions."
    )


_TEXTS: Mapping[str, _Text] = {
    "mean_to_rms": _Text("States hardly differ between examples", _mean),
    "cka_floor": _Text("There are too few examples for biased CKA", _floor),
    "top_component_weight": _Text("One direction dominates the states", _component),
    "top_dimension_share": _Text("One dimension dominates the states", _dimension),
    "massive_ratio": _Text("States have massive activations", _massive),
    "longest_ratio": _Text("One example's state is far longer than the others", _longest),
    "effective_examples": _Text("Similarity rests on a few examples", _few, lambda row: -row.value),
    "cka_next_trimmed": _Text(
        "A few outlier dimensions decide the similarity",
        _trimmed,
        lambda row: abs(row.value - row.figures.get("cka_next", row.value)),
    ),
}


def health_sentences(cells: Sequence[Cell]) -> list[Markup]:
    """One text for each kind of warning that some cell has, in the order in which the tables have them."""
    kinds: dict[tuple[str, str], list[_Warned]] = {}
    for cell in cells:
        for measure, row in _warned(cell):
            undefined = pd.isna(row.value)
            own = "" if undefined or measure not in _TEXTS else measure
            kinds.setdefault((own, "" if own else f"{'n/a: ' if undefined else ''}{row.warning}"), []).append(row)
    return [_sentence(measure, warning, rows) for (measure, warning), rows in kinds.items()]


def _warned(cell: Cell) -> list[tuple[str, _Warned]]:
    if "health" not in cell.tables:
        return []
    health = cell.tables["health"]
    figures: dict[int, dict[str, float]] = {}
    for row in rows_of(health):
        figures.setdefault(int(row.layer), {})[str(row.measure)] = float(row.value)
    return [
        (str(row.measure), _Warned(cell, int(row.layer), float(row.value), str(row.warning), figures[int(row.layer)]))
        for row in rows_of(health.dropna(subset=["warning"]))
    ]


def _sentence(measure: str, warning: str, rows: Sequence[_Warned]) -> Markup:
    places = _places(rows)
    if measure:
        text = _TEXTS[measure]
        return Markup("<strong>{}</strong> ({}). {}").format(
            text.found, places, text.rest(max(rows, key=text.severity))
        )
    undefined = warning.startswith("n/a: ")
    found = "Some measures of health are undefined" if undefined else "The similarity may not be reliable"
    return Markup("<strong>{}</strong> ({}): <bdi>{}</bdi>.").format(found, places, warning.removeprefix("n/a: "))


def _places(rows: Sequence[_Warned]) -> Markup:
    """Data sets with their layers: "facts, layers 20–23; quiz, layer 0"."""
    by_cell: dict[str, tuple[str, set[int]]] = {}
    for row in rows:
        by_cell.setdefault(row.cell.anchor, (row.cell.title, set()))[1].add(row.layer)
    each: list[Any] = [
        Markup("<bdi>{}</bdi>, {}").format(title, layers_text(sorted(layers))) for title, layers in by_cell.values()
    ]
    if len(each) > _NAMED:
        each = [*each[:_NAMED], f"{len(each) - _NAMED} more"]
    return Markup("; ").join(each)
