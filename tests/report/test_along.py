"""Steps of a training put together: every value in its column, whoever's name it stands under."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from page_reader import written
from synthetic import make_tables

from raysweep.report import along_figures
from raysweep.report.along import along_views, without_steps

N_LAYERS, WIDTH = 8, 3


class Kept:
    """Drawings that are kept and not written."""

    def __init__(self):
        self.figures = {}

    def add(self, figure, name, alt, caption):
        self.figures[name[1:]] = (figure, alt)
        return name


def steps_of(measured, last, model="tiny", dataset="sums"):
    """Tables in which each step has values of its own; the last stands under the model's name."""
    parts, rows = {}, []
    for place, step in enumerate([*measured, last]):
        name = model if step == last else f"{model}@{step}"
        made = make_tables((name,), (dataset,), widths=(WIDTH,), n_layers=N_LAYERS, n_examples=12, seed=place)
        for table, frame in made.items():
            parts.setdefault(table, []).append(frame)
        rows.append({"model": model, "dataset": dataset, "step": step, "measured": name})
    return {
        **{name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()},
        "along": pd.DataFrame(rows),
    }


@pytest.fixture(scope="module")
def tables():
    return steps_of((10, 20, 50), 100)


def drawn(tables, key=("tiny", "sums")):
    drawings = Kept()
    view = along_views(tables, drawings)[key]
    figure, alt = drawings.figures[key]
    return view, {axes.get_label(): axes for axes in figure.axes}, alt, figure


def cost_of(tables, name, start):
    rows = tables["substitution"].query("model == @name")
    by_window = rows.groupby(["width", "start"])["loss"].mean()
    return by_window[WIDTH, start] - by_window[0, 0]


def test_every_step_is_a_column_and_the_models_own_name_both_ends(tables):
    _, axes, _, _ = drawn(tables)
    cost, delta = axes["cost"].images[0].get_array(), axes["delta"].images[0].get_array()
    names = ["tiny@10", "tiny@20", "tiny@50", "tiny"]
    assert cost.shape == (N_LAYERS - WIDTH + 1, 5)
    assert cost.mask[:, 0].all(), "nothing is put back in the base model"
    for column, name in enumerate(names, start=1):
        expected = [cost_of(tables, name, start) for start in range(N_LAYERS - WIDTH + 1)]
        np.testing.assert_allclose(cost[:, column], expected)
    assert delta.mask[:, 4].all(), "the end has no δ of its own: the model's name has the base's"
    for column, name in enumerate(["tiny", *names[:3]]):
        rows = tables["dynamics"]
        expected = rows[rows["model"] == name].sort_values("layer")["delta"]
        np.testing.assert_allclose(delta[:, column], expected)
    rho = next(line for line in axes["rho"].lines if line.get_label() == "rho")
    assert rho.get_xdata().tolist() == [1, 2, 3, 4]
    expected = tables["correlation"].set_index("model")["spearman"].reindex(names)
    np.testing.assert_allclose(rho.get_ydata(), expected)
    assert [tick.get_text() for tick in axes["rho"].get_xticklabels()] == ["0", "10", "20", "50", "100"]
    assert axes["cost"].images[0].get_extent() == [-0.5, 4.5, 0.5, N_LAYERS - 1.5]


def test_what_is_said_and_written(tables):
    view, _, alt, _ = drawn(tables)
    assert [row[0] for row in view.table.rows] == ["0", "10", "20", "50", "100"]
    assert view.table.rows[0][1:3] == ["—", "—"]
    assert view.table.rows[4][3] == "—"
    tables_cost = max(cost_of(tables, "tiny", start) for start in range(N_LAYERS - WIDTH + 1))
    assert f"to {tables_cost:.3f} nats." in view.sentences[0]
    assert view.sentences[1].startswith("ρ goes from −")
    assert alt.startswith("Heat maps over 5 steps of fine-tuning, from 0 to 100")


def test_a_panel_without_values_is_left_out(tables):
    some = {name: tables[name] for name in ("substitution", "along")}
    _, axes, _, figure = drawn(some)
    assert {"cost"} == {label for label in axes if label in ("cost", "delta", "rho")}
    assert not [text for text in figure.texts if "hatched" in text.get_text()]
    alone = {**some, "along": tables["along"].iloc[:1]}
    assert drawn(alone)[0].table.rows[0][0] == "10"


def test_many_steps_are_named_where_there_is_room():
    steps = [*range(1000, 40_000, 1000), 40_000]
    cost = pd.DataFrame(np.ones((len(steps), 3)), index=steps, columns=[1.0, 2.0, 3.0])
    figure = along_figures.along_training(steps, cost, cost.iloc[:0], cost.iloc[:0], "t", "one layer", "")
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    assert labels[-1].get_text() == "40000"
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_steps_are_no_cells_of_their_own(tables, tmp_path, without_files):
    kept = without_steps(tables)
    assert "along" not in kept
    assert kept["substitution"]["model"].unique().tolist() == ["tiny"]
    assert without_steps({"health": tables["health"]})["health"] is tables["health"]
    page = written(tables, tmp_path)
    assert [each for each in page.ids() if each.startswith("cell-")] == ["cell-1"]
    assert "During fine-tuning" in page.text
    assert "tiny@10" not in page.source


def test_without_the_table_there_is_nothing(tables):
    assert along_views({"substitution": tables["substitution"]}, Kept()) == {}
    lone = pd.DataFrame([{"model": "tiny", "dataset": "sums", "step": 1, "measured": "nobody"}])
    assert along_views({**tables, "along": lone}, Kept()) == {}
