"""Layers by name, as messages and reports write them."""

from __future__ import annotations

from collections.abc import Iterable


def runs(layers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending layers as (first, last) of each run of consecutive ones."""
    found: list[tuple[int, int]] = []
    for layer in layers:
        if found and layer == found[-1][1] + 1:
            found[-1] = found[-1][0], layer
        else:
            found.append((layer, layer))
    return found


def runs_text(layers: Iterable[int]) -> str:
    """Ascending layers as runs: "3", "8–12", "1, 10–13"."""
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs(layers))


def layers_text(layers: Iterable[int]) -> str:
    """Ascending layers by name: "layer 3", "layers 8–12", "layers 1, 10–13"."""
    text = runs_text(layers)
    return f"layer {text}" if text.isdigit() else f"layers {text}"
