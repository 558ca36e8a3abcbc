"""Figures measured elsewhere: δ by layer and loss by centre read from files, aligned, and correlated.

Known are CSV or Parquet (`layer`, `delta`; `centre`, `loss`), an L × L similarity matrix saved by torch (`*.pt`), and a
folder of `prune_<centre>.jsonl`, one JSON record an example with its `loss`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raysweep.errors import InputError, nearest
from raysweep.numerics.dynamics import local_dynamics
from raysweep.studies.correlation import correlate_curves, untold

PRUNE = re.compile(r"prune_(\d+(?:\.5)?)\.jsonl")
_AVERAGE = re.compile(r"Average loss:\s*(\S+)")


@dataclass(frozen=True)
class Curve:
    """Values by layer (or centre), ascending, and what was left out on the way, in words."""

    at: np.ndarray
    values: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Correlated:
    """The figures of `correlate_curves` over the shared centres, and what only one side had."""

    centres: list[float]
    figures: dict[str, float]
    only_dynamics: list[float]
    only_losses: list[float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain values; figures that cannot be computed are null."""
        figures = {name: None if np.isnan(value) else value for name, value in self.figures.items()}
        return {**asdict(self), "figures": figures}

    def to_text(self) -> str:
        """A few lines for a terminal."""
        figures = self.figures
        lines = [
            f"Spearman       {figures['spearman']:+.6f} over {figures['n_layers']} centres "
            f"({self.centres[0]:g} to {self.centres[-1]:g})",
            f"Kendall        {figures['kendall']:+.6f}",
            f"depth out      {figures['partial_depth']:+.6f} (Spearman with the layer's depth taken out)",
            f"test           p = {figures['p_value']:.4f} (depth out; the centres count as {figures['effective_layers']:.1f})",
            f"circular shift share = {figures['p_shift']:.4f} (never below 1/{figures['n_layers']})",
            f"precision@k    {figures['precision_at_k']:.3f} (smallest δ among the costliest fifth of the centres; "
            f"blindly {figures['precision_chance']:.3f})",
        ]
        if reason := untold(figures):
            lines.append(f"note: {reason}")
        if self.only_dynamics:
            lines.append(f"layers without a loss: {', '.join(f'{x:g}' for x in self.only_dynamics)}")
        if self.only_losses:
            lines.append(f"centres without a δ: {', '.join(f'{x:g}' for x in self.only_losses)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def read_dynamics(path: str | Path, neighbourhood: int = 3, *, diagonal: bool = True) -> Curve:
    """δ by layer: a table with `layer` and `delta`, or an L × L matrix (`.pt`), whose δ is taken here, with or without `diagonal`.

    Raises InputError naming the file for anything else, and for a table whose δ is to be without the diagonal.
    """
    path = Path(path).expanduser()
    if path.suffix == ".pt":
        return _matrix_dynamics(path, neighbourhood, diagonal)
    if not diagonal:
        raise InputError(f"'{path}' contains δ itself; --no-diagonal applies only to an L × L matrix (.pt)")
    return _read_curve(path, "layer", "delta")


def read_losses(path: str | Path) -> Curve:
    """Mean loss by window centre: a table with `centre` and `loss`, or a folder of `prune_<centre>.jsonl`.

    In a folder the mean is over each file's records; records whose loss is NaN are left out and counted. A file without
    records that carry a loss falls back on its line `Average loss: x`.
    """
    path = Path(path).expanduser()
    return _prune_losses(path) if path.is_dir() else _read_curve(path, "centre", "loss")


def correlate_measured(dynamics: Curve, losses: Curve, *, drop_ends: int = 0) -> Correlated:
    """Align by index and correlate. A centre at x.5 takes the mean δ of the two layers beside it.

    `drop_ends` of the losses' centres are left out at each end, as in a run's own correlation. Raises InputError where fewer
    than three centres are left, or are on both sides.
    """
    losses = _without_ends(losses, drop_ends)
    delta = dict(zip(dynamics.at.tolist(), dynamics.values.tolist(), strict=True))
    loss = dict(zip(losses.at.tolist(), losses.values.tolist(), strict=True))

    def beside(centre: float) -> list[float]:
        return [centre] if centre == int(centre) else [centre - 0.5, centre + 0.5]

    centres = [centre for centre in loss if all(layer in delta for layer in beside(centre))]
    used = {layer for centre in centres for layer in beside(centre)}
    if len(centres) < 3:
        raise InputError(
            f"only {len(centres)} centres have both a δ and a loss (layers {_span(delta)}, centres {_span(loss)}); "
            "at least three are needed; do both files count layers from 0?"
        )
    figures = correlate_curves(
        np.array([np.mean([delta[layer] for layer in beside(centre)]) for centre in centres]),
        np.array([loss[centre] for centre in centres]),
    )
    return Correlated(
        centres,
        figures,
        [layer for layer in delta if layer not in used],
        [centre for centre in loss if centre not in centres],
        (*dynamics.notes, *losses.notes),
    )


def _without_ends(losses: Curve, drop_ends: int) -> Curve:
    if not drop_ends:
        return losses
    n = len(losses.at)
    if n - 2 * drop_ends < 3:
        raise InputError(
            f"--drop-ends {drop_ends} leaves {max(0, n - 2 * drop_ends)} of {n} centres; at least three are needed; "
            "drop fewer"
        )
    gone = ", ".join(f"{at:g}" for at in (*losses.at[:drop_ends], *losses.at[n - drop_ends :]))
    kept = slice(drop_ends, n - drop_ends)
    return Curve(losses.at[kept], losses.values[kept], (*losses.notes, f"centres left out at the ends: {gone}"))


def _span(values: dict[float, float]) -> str:
    return f"{min(values):g} to {max(values):g}" if values else "none"


def _matrix_dynamics(path: Path, neighbourhood: int, diagonal: bool) -> Curve:
    import torch

    if not path.is_file():
        raise InputError(f"dynamics file '{path}' does not exist")
    try:
        matrix = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types, some advising to run the file's pickled code
        raise InputError(
            f"'{path}' is not a file of plain tensors ({type(error).__name__}); save only the L × L matrix with "
            "torch.save"
        ) from error
    if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        found = list(matrix.shape) if isinstance(matrix, torch.Tensor) else type(matrix).__name__
        raise InputError(f"'{path}' holds {found}, but an L × L similarity matrix is expected")
    delta = local_dynamics(matrix.detach().double().numpy(), neighbourhood, diagonal)
    return _finite(np.arange(len(delta), dtype=float), delta, f"{path}: layers")


def _read_curve(path: Path, at: str, value: str) -> Curve:
    if not path.is_file():
        raise InputError(f"file '{path}' does not exist")
    try:
        # absolute, for pyarrow takes a relative `s3:x` or `a::b` for a URL
        rows = pd.read_parquet(path.absolute()) if path.suffix == ".parquet" else _read_csv(path)
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        raise InputError(f"'{path}' is neither CSV nor Parquet: {error}") from error
    for column in (at, value):
        if column not in rows.columns:
            raise InputError(f"'{path}' has no column '{column}'; {nearest(column, map(str, rows.columns))}")
        if not pd.api.types.is_numeric_dtype(rows[column]):
            raise InputError(f"'{path}' has a column '{column}' that is not numeric")
    n_rows = len(rows)
    rows = rows[rows[at].notna()].sort_values(at)  # in a table of windows the untouched model has no centre
    notes = (f"{path}: {n_rows - len(rows)} rows without a {at} are left out",) if len(rows) < n_rows else ()
    doubled = rows[at][rows[at].duplicated()]
    if len(doubled):
        raise InputError(f"'{path}' has {at} {doubled.iloc[0]:g} more than once; give one {value} for each")
    curve = _finite(rows[at].to_numpy(dtype=float), rows[value].to_numpy(dtype=float), f"{path}: {at}s")
    return Curve(curve.at, curve.values, (*notes, *curve.notes))


def _read_csv(path: Path) -> pd.DataFrame:
    """Rows with more values than the header has names are an error; pandas would shift their columns, or cut them off."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(path, index_col=False)


def _finite(at: np.ndarray, values: np.ndarray, what: str) -> Curve:
    finite = np.isfinite(values)
    left_out = ", ".join(f"{x:g}" for x in at[~finite])
    notes = (f"{what} left out because they are not finite: {left_out}",) if left_out else ()
    return Curve(at[finite], values[finite], notes)


def _prune_losses(folder: Path) -> Curve:
    files = sorted((float(m[1]), path) for path in folder.iterdir() if (m := PRUNE.fullmatch(path.name)))
    if not files:
        raise InputError(f"folder '{folder}' has no files prune_<centre>.jsonl")
    means, notes = [], []
    for _, path in files:
        losses = np.array(list(_record_losses(path)), dtype=float)
        nan = int(np.isnan(losses).sum())
        if nan:
            notes.append(f"{path.name}: {nan} of {len(losses)} losses are NaN and left out")
        means.append(float(np.nanmean(losses)) if nan < len(losses) else _average_line(path))
    curve = _finite(np.array([centre for centre, _ in files]), np.array(means), f"{folder}: centres")
    return Curve(curve.at, curve.values, (*notes, *curve.notes))


def _record_losses(path: Path) -> Iterator[float]:
    for number, line in enumerate(_text(path).split("\n"), start=1):  # splitlines would break a text at U+2028
        text = line.strip()
        if not text.startswith("{"):
            continue
        try:
            loss = json.loads(text).get("loss")
        except ValueError as error:
            raise InputError(f"{path}, line {number} is torn: {error}") from error
        if loss is not None:
            yield _number(loss, f"{path}, line {number}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); convert the file") from error


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: the loss is {value!r}, but a number is expected") from None


def _average_line(path: Path) -> float:
    found = _AVERAGE.search(_text(path))
    if found is None:
        raise InputError(f"{path} has neither a record with a finite loss nor a line 'Average loss: x'")
    return _number(found[1], f"{path}, line 'Average loss'")
