"""Figures measured elsewhere: every file form in, ρ against scipy, and each wrong file with its own words."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from raysweep.errors import InputError
from raysweep.studies.measured import Correlated, correlate_measured, read_dynamics, read_losses

LAYERS = 32
Table = Callable[..., Path]


@pytest.fixture
def curves() -> tuple[np.ndarray, np.ndarray]:
    """δ of 32 layers, and the loss at the 28 centres 2 … 29 of windows five wide."""
    rng = np.random.default_rng(0)
    delta = rng.uniform(0.8, 1.0, LAYERS)
    return delta, 3 - 2 * delta[2:30] + rng.normal(0, 0.1, 28)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """table(name, **columns) writes a CSV or Parquet file."""

    def write(name: str, /, **columns: Sequence[Any] | np.ndarray) -> Path:
        path, rows = tmp_path / name, pd.DataFrame(columns)
        if path.suffix == ".parquet":
            rows.to_parquet(path)
        else:
            rows.to_csv(path, index=False)
        return path

    return write


def write_prune(folder: Path, losses: Mapping[float, Sequence[float]], records: bool = True) -> Path:
    """A folder as the original writes it: for each centre a record an example, then the two lines of totals."""
    folder.mkdir()
    for centre, of_centre in losses.items():
        lines = [
            json.dumps(
                {"Instrunction": f"Tell {i}", "groundtruth": "so\u2028so", "output": "{no}", "loss": loss},
                ensure_ascii=False,
            )
            for i, loss in enumerate(of_centre)
        ]
        lines = lines if records else []
        lines += [f"Total loss: {np.nansum(of_centre)}", f"Average loss: {np.nanmean(of_centre)}"]
        (folder / f"prune_{centre:g}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "notes.txt").write_text("not a measurement")
    return folder


def check(found: Correlated, delta: np.ndarray, loss: np.ndarray) -> None:
    assert found.figures["spearman"] == pytest.approx(stats.spearmanr(delta, loss).statistic, abs=1e-12)
    assert found.figures["kendall"] == pytest.approx(stats.kendalltau(delta, loss).statistic, abs=1e-12)
    assert found.figures["n_layers"] == len(delta) == len(found.centres)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_tables_are_aligned_by_index_and_correlated_as_scipy_does(
    kind: str, curves: tuple[np.ndarray, np.ndarray], table: Table
) -> None:
    delta, loss = curves
    order = np.random.default_rng(1).permutation(LAYERS)
    dynamics = read_dynamics(table(f"d.{kind}", layer=order, delta=delta[order], other="x"))
    losses = read_losses(table(f"l.{kind}", loss=loss[::-1], centre=np.arange(29, 1, -1)))
    found = correlate_measured(dynamics, losses)
    check(found, delta[2:30], loss)
    assert found.centres == list(range(2, 30))
    assert found.only_dynamics == [0, 1, 30, 31]
    assert found.only_losses == []
    assert found.notes == ()


def test_a_folder_of_the_originals_output_and_its_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    walk = np.cumsum(rng.normal(size=(LAYERS, 50)) * rng.uniform(0.2, 2, (LAYERS, 1)), axis=0)
    similarity = np.corrcoef(walk)
    torch.save(torch.from_numpy(similarity).float(), tmp_path / "dolly_linear_cka.pt")
    per_example = {centre: list(rng.uniform(0.5, 2, 9)) for centre in range(2, 30)}
    per_example[4][3] = per_example[17][0] = per_example[17][8] = float("nan")
    found = correlate_measured(
        read_dynamics(tmp_path / "dolly_linear_cka.pt"), read_losses(write_prune(tmp_path / "res", per_example))
    )
    S = similarity.astype(np.float32).astype(np.float64)
    delta = np.array([S[i, i - 1 : i + 2].mean() for i in range(2, 30)])
    loss = np.array([np.nanmean(of_centre) for of_centre in per_example.values()])
    check(found, delta, loss)
    assert found.only_dynamics == [0, 1, 30, 31]
    assert found.notes == (
        "prune_4.jsonl: 1 of 9 losses are NaN and left out",
        "prune_17.jsonl: 2 of 9 losses are NaN and left out",
    )


def test_a_matrix_takes_the_asked_neighbourhood(tmp_path: Path) -> None:
    S = np.corrcoef(np.random.default_rng(0).normal(size=(8, 30)))
    torch.save(torch.nn.Parameter(torch.from_numpy(S)), tmp_path / "s.pt")
    found = read_dynamics(tmp_path / "s.pt", neighbourhood=5)
    expected = [S[i, max(0, i - 2) : i + 3].mean() for i in range(8)]
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-12)
    assert found.at.tolist() == list(range(8))


def test_layers_of_a_matrix_without_delta_are_left_out_and_told(tmp_path: Path) -> None:
    S = torch.eye(6, dtype=torch.float64)
    S[0] = S[:, 0] = torch.nan
    torch.save(S, tmp_path / "s.pt")
    found = read_dynamics(tmp_path / "s.pt")
    assert found.at.tolist() == [2, 3, 4, 5]
    assert found.notes == (f"{tmp_path / 's.pt'}: layers left out because they are not finite: 0, 1",)


def test_a_folder_whose_files_have_no_records_falls_back_on_its_averages(tmp_path: Path) -> None:
    per_example = {centre: [1.0 + centre, 2.0] for centre in (3, 4, 10)}
    found = read_losses(write_prune(tmp_path / "res", per_example, records=False))
    assert found.at.tolist() == [3, 4, 10]
    assert found.values.tolist() == [3.0, 3.5, 6.5]


def test_windows_of_even_width_take_the_mean_delta_of_the_two_layers_beside_their_centre(
    tmp_path: Path, curves: tuple[np.ndarray, np.ndarray], table: Table
) -> None:
    delta, loss = curves
    folder = write_prune(tmp_path / "res", {i + 0.5: [value] for i, value in enumerate(loss)})
    found = correlate_measured(read_dynamics(table("d.csv", layer=range(LAYERS), delta=delta)), read_losses(folder))
    check(found, (delta[:28] + delta[1:29]) / 2, loss)
    assert found.only_dynamics == [29, 30, 31]


def test_what_only_one_side_has_is_told_on_both_sides(table: Table) -> None:
    dynamics = read_dynamics(table("d.csv", layer=[1, 2, 3, 4, 9], delta=[0.9, 0.7, 0.8, 0.6, 0.5]))
    losses = read_losses(table("l.csv", centre=[0, 2, 3, 4, 6.5, 20], loss=[1, 3, 2, 4, 5, 6]))
    found = correlate_measured(dynamics, losses)
    assert (found.centres, found.only_dynamics, found.only_losses) == ([2, 3, 4], [1, 9], [0, 6.5, 20])
    text = found.to_text().splitlines()
    assert text[0] == "Spearman       -1.000000 over 3 centres (2 to 4)"
    assert "layers without a loss: 1, 9" in text
    assert "centres without a δ: 0, 6.5, 20" in text


def test_values_that_are_not_finite_are_left_out_and_told(table: Table) -> None:
    path = table("l.csv", centre=[1, 2, 3, 4], loss=[1.0, np.nan, 2.0, np.inf])
    found = read_losses(path)
    assert (found.at.tolist(), found.values.tolist()) == ([1, 3], [1.0, 2.0])
    assert found.notes == (f"{path}: centres left out because they are not finite: 2, 4",)


def test_rows_without_a_centre_are_left_out_and_told(table: Table) -> None:
    path = table("l.csv", centre=[np.nan, 1, 2], loss=[0.5, 1.0, 2.0])
    found = read_losses(path)
    assert (found.at.tolist(), found.values.tolist()) == ([1, 2], [1.0, 2.0])
    assert found.notes == (f"{path}: 1 rows without a centre are left out",)


def test_json_has_null_for_what_cannot_be_computed(table: Table) -> None:
    dynamics = read_dynamics(table("d.csv", layer=[0, 1, 2], delta=[0.9, 0.9, 0.9]))
    losses = read_losses(table("l.csv", centre=[0, 1, 2, 3], loss=[1, 2, 4, 3]))
    told = json.loads(json.dumps(correlate_measured(dynamics, losses).to_json(), allow_nan=False))
    assert told["figures"]["spearman"] is None
    assert told["figures"]["n_layers"] == 3
    assert told["only_losses"] == [3]


# wrong files


def test_sides_that_hardly_meet_are_refused_with_both_ranges(table: Table) -> None:
    dynamics = read_dynamics(table("d.csv", layer=[0, 1, 2, 3], delta=[1, 2, 3, 4]))
    losses = read_losses(table("l.csv", centre=[2, 3, 4, 5], loss=[1, 2, 3, 4]))
    message = (
        r"^only 2 centres have both a δ and a loss \(layers 0 to 3, centres 2 to 5\); at least three are needed; do"
    )
    with pytest.raises(InputError, match=message):
        correlate_measured(dynamics, losses)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_is_told_with_the_nearest(kind: str, table: Table) -> None:
    with pytest.raises(InputError, match=rf"^'.*l\.{kind}' has no column 'centre'; did you mean 'center'\?$"):
        read_losses(table(f"l.{kind}", center=[1], loss=[2.0]))
    with pytest.raises(InputError, match=r"^'.*d\.csv' has no column 'delta'; known: layer, x$"):
        read_dynamics(table("d.csv", layer=[1], x=[2.0]))


def test_a_column_of_text_is_refused(table: Table) -> None:
    with pytest.raises(InputError, match=r"^'.*l\.csv' has a column 'loss' that is not numeric$"):
        read_losses(table("l.csv", centre=[1, 2], loss=["low", "2"]))


def test_a_doubled_centre_is_refused(table: Table) -> None:
    with pytest.raises(InputError, match=r"^'.*l\.csv' has centre 2\.5 more than once; give one loss for each$"):
        read_losses(table("l.csv", centre=[2.5, 1, 2.5], loss=[1.0, 2.0, 3.0]))


@pytest.mark.parametrize("name", ["gone.csv", "gone.parquet"])
def test_a_missing_table_is_named(name: str, tmp_path: Path) -> None:
    for read in (read_dynamics, read_losses):
        with pytest.raises(InputError, match=rf"^file '.*{name}' does not exist$"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", b""),
        ("l.csv", b"centre,loss\n0,1,2\n1,2,3\n"),
        ("l.csv", b"centre,loss\n1,2\n1,2,3\n"),
        ("l.csv", b"\xff\xfe\x00"),
        ("l.parquet", b"x"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^'.*{name}' is neither CSV nor Parquet: "):
        read_losses(tmp_path / name)


def test_a_missing_matrix_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^dynamics file '.*gone\.pt' does not exist$"):
        read_dynamics(tmp_path / "gone.pt")


@pytest.mark.parametrize(
    ("value", "found"),
    [(torch.zeros(3, 4), r"\[3, 4\]"), (torch.zeros(2, 3, 3), r"\[2, 3, 3\]"), ({"cka": torch.zeros(3, 3)}, "dict")],
)
def test_a_tensor_that_is_no_square_matrix_is_refused(value: Any, found: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "s.pt")
    with pytest.raises(InputError, match=rf"^'.*s\.pt' holds {found}, but an L × L similarity matrix is expected$"):
        read_dynamics(tmp_path / "s.pt")


class _Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    mark = tmp_path / "sprung"
    if legacy:
        (tmp_path / "s.pt").write_bytes(pickle.dumps(_Trap(mark), protocol=2))
    else:
        torch.save(_Trap(mark), tmp_path / "s.pt")
    message = (
        r"^'.*s\.pt' is not a file of plain tensors \(UnpicklingError\); save only the L × L matrix with torch\.save$"
    )
    with pytest.raises(InputError, match=message):
        read_dynamics(tmp_path / "s.pt")
    assert not mark.exists()
    torch.load(tmp_path / "s.pt", weights_only=False) if not legacy else pickle.loads((tmp_path / "s.pt").read_bytes())
    assert mark.exists(), "the trap is a trap"


def test_a_file_of_something_else_is_no_matrix(tmp_path: Path) -> None:
    (tmp_path / "s.pt").write_text("0.1 0.2")
    with pytest.raises(InputError, match=r"^'.*s\.pt' is not a file of plain tensors \("):
        read_dynamics(tmp_path / "s.pt")


def test_a_folder_without_prune_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prune_x.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"^folder '.*' has no files prune_<centre>\.jsonl$"):
        read_losses(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"loss": 1.0}', '{"output": "x", "lo'], r"prune_3\.jsonl, line 2 is torn: "),
        (['{"loss": "high"}'], r"prune_3\.jsonl, line 1: the loss is 'high', but a number is expected$"),
        (['{"output": "x"}'], r"prune_3\.jsonl has neither a record with a finite loss nor a line 'Average loss: x'$"),
        (["Total loss: 4.0"], r"prune_3\.jsonl has neither a record with a finite loss nor a line 'Average loss: x'$"),
        (
            ["Average loss: much"],
            r"prune_3\.jsonl, line 'Average loss': the loss is 'much', but a number is expected$",
        ),
    ],
)
def test_a_file_of_losses_that_cannot_be_read_is_named_with_its_line(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "prune_3.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        read_losses(tmp_path)


def test_a_file_of_losses_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prune_3.jsonl").write_bytes('{"output": "é", "loss": 1.0}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"prune_3\.jsonl is not UTF-8 \(.*\); convert the file$"):
        read_losses(tmp_path)
