"""Critical layers over data sets, in the page."""

from __future__ import annotations

import numpy as np
import pandas as pd
from page_reader import written
from synthetic import HOSTILE, make_tables

from raysweep.report.cells import cells_of
from raysweep.report.critical import choice_map, critical_views


def critical_rows(dataset: str, choices: dict[str, float], whole: str) -> pd.DataFrame:
    rows = pd.DataFrame({"layers": choices.keys(), "share": choices.values()})
    cell = {"model": "tiny", "dataset": dataset, "metric": "cka_linear", "neighbourhood": 3}
    return rows.assign(**cell, whole=rows["layers"] == whole)


def tables_of(*parts: pd.DataFrame, datasets: tuple[str, ...] = ("sums", "facts")) -> dict[str, pd.DataFrame]:
    tables = make_tables(datasets=datasets, n_layers=10, n_examples=8, widths=(2,))
    return {**tables, "critical": pd.concat(parts, ignore_index=True)}


def test_the_choice_of_each_data_set_and_their_agreement(tmp_path, without_files):
    tables = tables_of(
        critical_rows("sums", {"3,4": 0.7, "3,5": 0.3}, "3,4"), critical_rows("facts", {"3,5": 1.0}, "3,5")
    )
    page = written(tables, tmp_path)
    assert "critical" in page.ids()
    assert "agreement 0.38 [0.38, 1.00]" in page.text  # (1 − 0.4) / (2 − 0.4)
    assert "The two data sets share 1.0 critical layers on average (0.4 by chance)" in page.text
    similarity = tables["similarity"].query("dataset == 'sums'")
    (view,) = critical_views(cells_of({**tables, "similarity": similarity}, ()), Silent())
    assert view.table.rows[0][:4] == ("sums", "3–4", "layer 4: 70 %", "5 (30 %)")
    assert view.table.rows[0][4].startswith("0")
    assert view.table.rows[1] == ("facts", "3, 5", "layer 3: 100 %", "—", "n/a (no similarity)")


class Silent:
    def add(self, figure, name, alt, caption):
        return caption


def test_one_data_set_has_nothing_to_agree_with_and_few_examples_no_share(tmp_path, without_files):
    tables = tables_of(critical_rows("sums", {"3,4": np.nan}, "3,4"), datasets=("sums",))
    (view,) = critical_views(cells_of(tables, ()), Silent())
    assert (view.sentence, view.picture) == ("", None)
    assert view.table.rows[0][:4] == ("sums", "3–4", "n/a (nothing was resampled)", "n/a")


def test_where_stretches_begin_is_no_range(tmp_path, monkeypatch):
    monkeypatch.setattr("raysweep.report.critical.segment_starts", lambda S_LL: np.array([1, 2, 6]))
    tables = tables_of(critical_rows("sums", {"3,4": 1.0}, "3,4"), datasets=("sums",))
    (view,) = critical_views(cells_of(tables, ()), Silent())
    assert view.table.rows[0][4] == "0, 1, 2, 6"


def test_a_run_without_choices_has_no_section(tmp_path, without_files):
    assert "critical" not in written(make_tables(datasets=("sums",), n_layers=8, n_examples=8), tmp_path).ids()


def test_names_are_escaped(tmp_path, without_files):
    rows = critical_rows("sums", {"3,4": 1.0}, "3,4").assign(dataset=HOSTILE)
    assert HOSTILE not in written(tables_of(rows, datasets=(HOSTILE,)), tmp_path).source


def test_the_map_shows_shares_and_frames_the_choice():
    figure = choice_map(
        {"a": np.array([0, 1.0, 0.5]), "b": np.array([1.0, 0, 0])}, [np.array([0, 1, 0]), np.array([1, 0, 0])], "m"
    )
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0, 1, 0.5], [1, 0, 0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [patch.get_x() + 0.44 for patch in axes.patches] == [1, 0]
