"""Figures of changes that are no whole windows show the frames' own numbers."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
from changed import changed_tables

from raysweep.report import change_figures
from raysweep.report.cells import cells_of

N = 6


@pytest.fixture(scope="module")
def cell():
    (found,) = cells_of(changed_tables(), (), {"0,3": "ends"})
    return found


@pytest.fixture(scope="module")
def mean(cell):
    """mean(kind, layers, coefficient=1.0): the mean loss over examples, from the table."""
    rows = cell.tables["substitution"]
    return rows.groupby(["kind", "layers", "coefficient"])["loss"].mean()


def artist(axes, label):
    (found,) = [child for child in axes.get_children() if child.get_label() == label]
    return found


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def test_a_bar_for_each_set_and_the_costliest_window_of_as_many_layers(cell, mean):
    rows = [change for change in cell.changes.itertuples() if change.kind == "set" and change.coefficient == 1]
    shown = [(cell.set_name(row.layers), row, cell.top(row.width)) for row in rows]
    figure = change_figures.set_bars(shown, "tiny")
    (axes,) = figure.axes
    lengths = sorted(bar.get_width() for bar in axes.patches)
    tuned = mean["window", "", 1.0]
    costs = [mean["set", layers, 1.0] - tuned for layers in ("0,3", "1,2,5")]
    window = max(mean["window", layers, 1.0] for layers in ("0-1", "1-2", "2-3", "3-4", "4-5")) - tuned
    assert lengths == pytest.approx(sorted([*costs, window]))
    lines = [line.get_xdata() for line in axes.lines if line.get_label() == "sets interval"]
    assert [list(line) for line in lines] == [[row.cost_low, row.cost_high] for row in rows]
    assert {"ends (0, 3)", "1–2, 5"} <= set(texts(figure))


def test_curves_of_whole_windows_and_their_parts(cell, mean):
    whole = cell.windows[(cell.windows["role"] == "window") & (cell.windows["width"] == 2)]
    parts = cell.changes[cell.changes["kind"].isin(["attention", "mlp"]) & (cell.changes["width"] == 2)]
    (axes,) = change_figures.module_curves(whole, parts, 2, N, "tiny").axes
    for label, kind in (("whole", "window"), ("attention", "attention"), ("mlp", "mlp")):
        x, y = artist(axes, label).get_data()
        assert list(x) == [0.5, 1.5, 2.5, 3.5, 4.5]
        expected = [mean[kind, f"{s}-{s + 1}", 1.0] - mean["window", "", 1.0] for s in range(5)]
        np.testing.assert_allclose(y, expected)


def test_a_line_for_each_window_over_the_coefficient(cell, mean):
    rows = cell.changes[cell.changes["kind"] == "set"]
    (axes,) = change_figures.coefficient_lines(rows, ["one", "other"], "tiny", "cost").axes
    tuned = mean["window", "", 1.0]
    top = artist(axes, "top").get_xydata()
    steps = [0.0, 0.5, 1.0]
    expected = [0.0, *(mean["set", "1,2,5", step] - tuned for step in steps[1:])]
    np.testing.assert_allclose(top, np.column_stack([steps, expected]))
    (other,) = [line for line in axes.lines if line.get_label() == "line 0,3"]
    np.testing.assert_allclose(other.get_ydata(), [0.0, *(mean["set", "0,3", step] - tuned for step in steps[1:])])
    np.testing.assert_allclose(artist(axes, "proportional").get_ydata(), [0, expected[-1]])


def test_the_other_direction_between_both_models_own_losses(cell, mean):
    figure = change_figures.reverse_curve(cell.gains, 2, (1.0, 3.0), N, "tiny")
    (axes,) = figure.axes
    losses = [mean["reverse", f"{s}-{s + 1}", 1.0] for s in range(5)]
    np.testing.assert_allclose(artist(axes, "losses").get_ydata(), losses)
    assert artist(axes, "tuned model").get_ydata() == pytest.approx([1, 1])
    assert artist(axes, "base model").get_ydata() == pytest.approx([3, 3])
    assert artist(axes, "best").get_xydata() == pytest.approx(np.array([[2.5, min(losses)]]))
    (bars,) = axes.collections
    low, high = np.array([segment[:, 1] for segment in bars.get_segments()]).T
    own = cell.gains.set_index("layers").loc[[f"{s}-{s + 1}" for s in range(5)]]
    np.testing.assert_allclose(high - low, own["cost_high"] - own["cost_low"])
    assert "layers 2–3" in texts(figure)


def test_a_field_for_every_window_by_its_first_and_last_layer(cell):
    windows = cell.windows[cell.windows["role"] != "tuned"].copy()
    windows.loc[(windows["start"] == 3) & (windows["stop"] == 5), "cost"] = math.nan
    figure = change_figures.window_triangle(windows, N, "tiny", "cost")
    (image,) = figure.axes[0].images
    shown = np.ma.filled(image.get_array(), np.nan)
    for row in windows.itertuples():
        np.testing.assert_equal(shown[row.stop - 1, row.start], row.cost)
    measured = {(row.stop - 1, row.start) for row in windows.itertuples() if not math.isnan(row.cost)}
    assert {tuple(place) for place in np.argwhere(np.isfinite(shown))} == measured
    missing = {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in figure.axes[0].patches}
    assert missing == {(last, first) for last in range(N) for first in range(last + 1)} - measured
    assert "hatched: n/a" in texts(figure)
    unsure = artist(figure.axes[0], "unsure").get_xydata()
    assert {tuple(place) for place in unsure} == {
        (row.start, row.stop - 1)
        for row in windows.itertuples()
        if row.cost_low <= 0 <= row.cost_high and row.cost == row.cost
    }
