"""What came of trainings in plain lines, as commands print it: the page's own sentences without their marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from raysweep.report.attack import attack_sentences
from raysweep.report.effect import effect_sentence
from raysweep.report.training import adapted_sentences, tuned_sentences

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.report.cells import Cell


def training_lines(tables: Mapping[str, pd.DataFrame], cells: Sequence[Cell]) -> list[str]:
    """Fine-tunes, adaptation and attacks, and whether all cells together show the effect where there are several."""
    lines = [
        f"{cell.model} on {cell.dataset}: {sentence.striptags()}"
        for sentences in (tuned_sentences, adapted_sentences)
        for cell in cells
        for sentence in sentences(cell)
    ]
    lines += [sentence.striptags() for sentence in attack_sentences(tables)]
    return [*lines, *_effects(cells)]


def _effects(cells: Sequence[Cell]) -> Iterator[str]:
    found = [cell for cell in cells if cell.correlations]
    if len(found) < 2:
        return
    for setting, width in dict.fromkeys((row.setting, row.width) for cell in found for row in cell.correlations):
        if said := effect_sentence(found, setting, width):
            yield f"{setting}, windows of width {width}: {said}"
