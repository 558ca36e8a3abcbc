"""What came of trainings in plain lines, as commands print it: the page's own sentences without their marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raysweep.report.attack import attack_sentences
from raysweep.report.training import adapted_sentences, tuned_sentences

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.report.cells import Cell


def training_lines(tables: Mapping[str, pd.DataFrame], cells: Sequence[Cell]) -> list[str]:
    """Return what came of fine-tunes, adaptation and attacks."""
    lines = [
        f"{cell.model} on {cell.dataset}: {sentence.striptags()}"
        for sentences in (tuned_sentences, adapted_sentences)
        for cell in cells
        for sentence in sentences(cell)
    ]
    return [*lines, *(sentence.striptags() for sentence in attack_sentences(tables))]
