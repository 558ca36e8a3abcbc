"""The result tables as files of other programs; known is `paper`, the form in which the paper's own runs were written.

Of `paper`: one folder a cell, `<model>/<dataset>`, with `prune_<centre>.jsonl` for each window (a record an example with
`Instrunction`, `groundtruth`, `output`, `loss`, then the lines `Total loss: x` and `Average loss: x`), and beside it
`<dataset>_<linear|kernel>_cka.pt`, the L × L matrix of the base model. Of a run that swept several widths, each has a folder
`width_<width>` of its own within the cell's. studies/measured.py reads them back.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from raysweep.errors import InputError, RunError, nearest
from raysweep.report.summaries import rows_of
from raysweep.report.words import consecutive
from raysweep.store.artifacts import check_safe_name
from raysweep.store.whole_folder import install_folder

FORMATS = ("paper",)

# The paper's words for the metrics; the debiased one it did not have.
_CKA = {"cka_linear": "linear", "cka_rbf": "kernel", "cka_linear_debiased": "linear_debiased"}


@dataclass(frozen=True)
class Exported:
    """The folder written, its files (relative to it, sorted), and what a reader of them has to know, in words."""

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def to_text(self) -> str:
        """A few lines for a terminal."""
        return "\n".join([f"wrote {len(self.files)} files: {self.folder}", *(f"note: {note}" for note in self.notes)])


def check_format(name: str) -> None:
    """Raise InputError for a format that is not known."""
    if name not in FORMATS:
        raise InputError(f"unknown format '{name}'; {nearest(name, FORMATS)}")


def check_vacant(out: Path) -> None:
    """Raise InputError unless the folder is empty or is not there."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"--out '{out}' is a file or a link; give a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out '{out}' is not empty; give a new folder, or empty this one")


def export_paper(tables: Mapping[str, pd.DataFrame], out: Path) -> Exported:
    """Write the tables of a run to the folder `out`, which appears whole or not at all.

    Losses are nats, with every digit, NaN ones too; texts are null where the run generated none. Windows that put back no
    layer or every layer are no files, nor is what is no whole window put back. Raises InputError where no window was swept,
    or `out` is not empty, and RunError where it cannot be written.
    """
    windows = _windows(tables)
    if windows.empty:
        raise InputError("the run has no losses of windows to export; give it studies.substitution and run it")
    check_vacant(out)
    try:
        files = _publish(out, windows, tables)
    except OSError as error:
        raise RunError(f"--out '{out}' cannot be written to: {error.strerror or error}; nothing was written") from error
    return Exported(out, files, tuple(_notes(windows, tables)))


def _publish(out: Path, windows: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> tuple[str, ...]:
    """Write the files and give them their place; their POSIX paths below `out`."""
    files: list[str] = []

    def build(whole: Path, scratch: Path) -> None:
        _write_losses(windows, tables, whole)
        _write_matrices(tables, whole)
        files.extend(sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()))

    if not install_folder(out, build):
        check_vacant(out)
    return tuple(files)


def _windows(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of the substitution table that the correlation study takes, one an example and window."""
    if "substitution" not in tables:
        return pd.DataFrame()
    rows = tables["substitution"]
    rows = rows[(rows["kind"] == "window") & (rows["coefficient"] == 1)]
    several = rows.groupby(["model", "dataset"])["estimator"].transform("nunique") > 1
    rows = rows[(rows["estimator"] == "exact") | ~several]
    depth = rows["model"].map(rows.groupby("model")["stop"].max())
    if "similarity" in tables:
        of_matrix = tables["similarity"].groupby("model")["layer_i"].max() + 1
        depth = depth.combine(rows["model"].map(of_matrix), max)
    inside = (rows["width"] > 0) & (rows["width"] < depth)
    keys = ["model", "dataset", "start", "stop", "example_id"]
    return rows[inside].drop_duplicates(keys).sort_values(keys)


def _write_losses(windows: pd.DataFrame, tables: Mapping[str, pd.DataFrame], out: Path) -> None:
    generated = list(rows_of(tables["generation"])) if "generation" in tables else []
    asked = {(row.model, row.dataset, row.example_id): (row.prompt, row.reference) for row in generated}
    said = {(row.model, row.dataset, row.example_id, row.intervention): row.text for row in generated}
    several = windows["width"].nunique() > 1
    keys: Any
    for keys, rows in windows.groupby(["model", "dataset", "width", "centre"]):
        model, dataset, width, centre = keys
        folder = _cell_folder(out, model, dataset) / (f"width_{width}" if several else "")
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for row in rows_of(rows):
            example = (model, dataset, row.example_id)
            prompt, reference = asked.get(example, (None, None))
            output = said.get((*example, f"window {row.layers}"))
            # The paper's files spell the first key so.
            record = {"Instrunction": prompt, "groundtruth": reference, "output": output, "loss": float(row.loss)}
            lines.append(json.dumps(record))
        known = rows["loss"].dropna()
        lines += [f"Total loss: {float(known.sum())!r}", f"Average loss: {float(known.mean())!r}"]
        (folder / f"prune_{centre:g}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_matrices(tables: Mapping[str, pd.DataFrame], out: Path) -> None:
    import torch

    if "similarity" not in tables:
        return
    rows = tables["similarity"]
    rows = rows[rows["other"].isna() & rows["metric"].isin(list(_CKA))]
    keys: Any
    for keys, cell in rows.groupby(["model", "dataset", "metric"]):
        model, dataset, metric = keys
        S_LL = cell.pivot(index="layer_i", columns="layer_j", values="value").to_numpy(dtype=float)
        folder = _cell_folder(out, model, dataset).parent
        folder.mkdir(parents=True, exist_ok=True)
        saved = io.BytesIO()  # on a full disk torch.save raises no OSError
        torch.save(torch.tensor(S_LL), saved)
        (folder / f"{dataset}_{_CKA[metric]}_cka.pt").write_bytes(saved.getvalue())


def _cell_folder(out: Path, model: str, dataset: str) -> Path:
    check_safe_name(model, "model")
    check_safe_name(dataset, "data set")
    return out / model / dataset


def _notes(windows: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """What the files do not say: losses that are estimates, windows on unlike records, centres that the run leaves out."""
    correlated = tables.get("correlation", pd.DataFrame(columns=["model", "dataset", "width", "n_layers"]))
    keys: Any
    for keys, rows in windows.groupby(["model", "dataset", "width"]):
        model, dataset, width = keys
        where = f"{model} on {dataset}, windows of {consecutive(width)}"
        if rows["estimator"].iloc[0] != "exact":
            yield f"{where}: losses are estimates"
        records = rows.groupby("centre")["example_id"].size()
        if records.min() < records.max():
            yield f"{where}: some have {records.min()} records, others {records.max()}; the run is not finished"
        same = (correlated["model"] == model) & (correlated["dataset"] == dataset) & (correlated["width"] == width)
        left_out = (len(records) - correlated["n_layers"][same].max()) / 2
        if not math.isnan(left_out) and left_out >= 1:
            yield (
                f"{where}: the run's own correlation leaves out centres at both ends; correlate with --drop-ends {left_out:g} to "
                "have the same"
            )
    if "similarity" not in tables or not tables["similarity"]["metric"].isin(list(_CKA)).any():
        yield "the run has no CKA: no *_cka.pt are written"
