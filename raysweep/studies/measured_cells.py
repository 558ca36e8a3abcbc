"""Many cells measured elsewhere: folders of similarity matrices and of losses, matched by model and data set, each correlated.

Known is the paper's form: `<dataset>_<linear|kernel>_cka.pt` (or `…_ckares.pt`), and folders of `prune_<centre>.jsonl` named for the
data set, or `width_<width>` in such a one; both in a folder a model. measured.py reads and correlates each, as for one cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysweep.errors import InputError
from raysweep.studies.measured import PRUNE, Correlated, correlate_measured, read_dynamics, read_losses

_MATRIX = re.compile(r"(?P<dataset>.+?)_(?P<kernel>linear_debiased|linear|kernel)_cka(?:res)?\.pt")
_WIDTH = re.compile(r"width_(\d+)")


@dataclass(frozen=True)
class Cell:
    """One cell's two files: δ's matrix of one kernel, and the folder of losses of one width (None: the only one)."""

    model: str
    dataset: str
    kernel: str
    width: int | None
    dynamics: Path
    losses: Path


@dataclass(frozen=True)
class CorrelatedCell:
    """A cell with what was found, or why nothing was."""

    cell: Cell
    found: Correlated | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values: the cell, and what the command for one cell tells as JSON (null with a reason)."""
        told = {**asdict(self.cell), "dynamics": str(self.cell.dynamics), "losses": str(self.cell.losses)}
        return {**told, "reason": self.reason, "correlated": self.found.to_json() if self.found else None}


@dataclass(frozen=True)
class CorrelatedCells:
    """All cells, by model, data set, kernel and width; and matrices or folders that have no other side, in words."""

    cells: tuple[CorrelatedCell, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> list[CorrelatedCell]:
        """The cells that could not be correlated."""
        return [each for each in self.cells if each.found is None]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"cells": [cell.to_json() for cell in self.cells], "notes": list(self.notes)}

    def to_text(self) -> str:
        """A ρ table a kernel and width, models by data sets; then what was left out."""
        lines: list[str] = []
        for kernel, width in dict.fromkeys((each.cell.kernel, each.cell.width) for each in self.cells):
            chosen = [each for each in self.cells if (each.cell.kernel, each.cell.width) == (kernel, width)]
            lines += [*([""] if lines else []), *_table(kernel, width, chosen)]
        lines += [
            f"n/a: {each.cell.model} on {each.cell.dataset} ({each.cell.kernel}): {each.reason}"
            for each in self.cells
            if each.reason
        ]
        told = (
            f"{each.cell.model} on {each.cell.dataset}: {note}"
            for each in self.cells
            if each.found
            for note in each.found.notes
        )
        return "\n".join([*lines, *(f"note: {note}" for note in (*dict.fromkeys(told), *self.notes))])


def _table(kernel: str, width: int | None, cells: list[CorrelatedCell]) -> list[str]:
    datasets = list(dict.fromkeys(each.cell.dataset for each in cells))
    models = list(dict.fromkeys(each.cell.model for each in cells))
    found = {(each.cell.model, each.cell.dataset): each.found for each in cells}
    first = max(len("model"), *map(len, models))
    sizes = [max(len(dataset), len("-0.000000")) for dataset in datasets]
    of_width = "" if width is None else f", windows of {width}"
    lines = [f"Spearman's ρ of δ and loss ({kernel} CKA{of_width})"]
    lines.append("  ".join(["model".ljust(first), *(d.rjust(size) for d, size in zip(datasets, sizes, strict=True))]))
    for model in models:
        row = [model.ljust(first)]
        for dataset, size in zip(datasets, sizes, strict=True):
            one = found.get((model, dataset))
            row.append((f"{one.figures['spearman']:+.6f}" if one else "n/a").rjust(size))
        lines.append("  ".join(row))
    return lines


def correlate_cells(
    dynamics: Path, losses: Path, neighbourhood: int = 3, *, drop_ends: int = 0, diagonal: bool = True
) -> CorrelatedCells:
    """Every cell that both folders have, correlated as one cell alone is; a cell that cannot be read fails alone, with the reason.

    Raises InputError where a folder is none, or where no cell has both sides.
    """
    matrices, folders = _matrices(dynamics), _loss_folders(losses)
    cells = [
        Cell(
            dynamics.resolve().name if model == "." else model,
            dataset,
            kernel,
            width,
            path,
            folders[model, dataset, width],
        )
        for (model, dataset, kernel), path in matrices.items()
        for width in sorted((w for m, d, w in folders if (m, d) == (model, dataset)), key=lambda w: w or 0)
    ]
    cells.sort(key=lambda cell: (cell.kernel, cell.width or 0))
    if not cells:
        raise InputError(
            f"no cell has both sides: similarity matrices in '{dynamics}' are of {_names(matrices)}, losses in '{losses}' of "
            f"{_names(folders)}; name both for the same models (folders) and data sets"
        )
    found = []
    for cell in cells:
        try:
            curve = read_dynamics(cell.dynamics, neighbourhood, diagonal=diagonal)
            one = correlate_measured(curve, read_losses(cell.losses), drop_ends=drop_ends)
            found.append(CorrelatedCell(cell, one))
        except InputError as error:
            found.append(CorrelatedCell(cell, None, str(error)))
    used = {path for cell in cells for path in (cell.dynamics, cell.losses)}
    notes = [f"{path}: no losses of this cell" for path in matrices.values() if path not in used]
    notes += [f"{path}: no similarity matrix of this cell" for path in folders.values() if path not in used]
    return CorrelatedCells(tuple(found), tuple(notes))


def _names(found: dict[Any, Path]) -> str:
    names = list(dict.fromkeys(f"{model}/{dataset}" for model, dataset, _ in found))
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


def _matrices(root: Path) -> dict[tuple[str, str, str], Path]:
    """(model, data set, kernel) → file. The model is the folder's path within `root`."""
    found: dict[tuple[str, str, str], Path] = {}
    for path in _files(root, "*.pt"):
        if (named := _MATRIX.fullmatch(path.name)) is None:
            continue
        key = (_model(root, path.parent), named["dataset"], named["kernel"])
        if key in found:
            raise InputError(f"'{found[key]}' and '{path}' are of the same model, data set and kernel; remove one")
        found[key] = path
    return found


def _loss_folders(root: Path) -> dict[tuple[str, str, int | None], Path]:
    """(model, data set, width) → folder of prune_*.jsonl."""
    found: dict[tuple[str, str, int | None], Path] = {}
    for folder in dict.fromkeys(path.parent for path in _files(root, "prune_*.jsonl") if PRUNE.fullmatch(path.name)):
        width = _WIDTH.fullmatch(folder.name)
        of_cell = folder.parent if width and folder != root else folder
        if of_cell == root:
            raise InputError(
                f"'{root}' has prune_*.jsonl itself: for many cells give the folder that has a folder for each data set"
            )
        key = (_model(root, of_cell.parent), of_cell.name, int(width[1]) if width else None)
        found[key] = folder
    return found


def _model(root: Path, folder: Path) -> str:
    """A model's name: its folder's within the root, which itself is "."."""
    return folder.relative_to(root).as_posix()


def _files(root: Path, pattern: str) -> Iterator[Path]:
    if not root.is_dir():
        raise InputError(f"folder '{root}' does not exist")
    return iter(sorted(path for path in root.rglob(pattern) if path.is_file()))
