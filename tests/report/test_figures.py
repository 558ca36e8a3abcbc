"""Figures show the frames' own numbers: artists' data against the frames and against plain recomputation."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from synthetic import frame_of

from raysweep.report import figures, plotting, summaries

WIDTH, LAYERS = 5, 24


@pytest.fixture(scope="module")
def cell(tables):
    """The rows of the first data set, table by table."""
    return {name: table[table["dataset"] == "sums"] for name, table in tables.items()}


@pytest.fixture(scope="module")
def windows(cell):
    return summaries.window_losses(summaries.paired_losses(cell["substitution"]), LAYERS)


def artist(axes, label):
    (found,) = [child for child in axes.get_children() if child.get_label() == label]
    return found


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


class TestLossCurve:
    def test_points_bars_and_lines(self, windows):
        axes = figures.loss_curve(windows, WIDTH, "tiny").axes[0]
        swept = windows[windows["role"] == "window"]
        x, y = artist(axes, "losses").get_data()
        np.testing.assert_array_equal(x, swept["centre"])
        np.testing.assert_array_equal(y, swept["loss"])
        (bars,) = axes.collections
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends[:, 0], swept["loss"] - (swept["cost"] - swept["cost_low"]))
        np.testing.assert_allclose(ends[:, 1], swept["loss"] + (swept["cost_high"] - swept["cost"]))
        for role in ("tuned", "all"):
            level = windows.loc[windows["role"] == role, "loss"].item()
            assert artist(axes, role).get_ydata() == pytest.approx([level, level])
            assert axes.get_ylim()[0] < level < axes.get_ylim()[1]

    def test_the_costliest_window_is_marked_and_named(self, windows):
        figure = figures.loss_curve(windows, WIDTH, "tiny")
        best = windows[windows["role"] == "window"].sort_values("cost").iloc[-1]
        assert artist(figure.axes[0], "top").get_xydata() == pytest.approx(np.array([[best.centre, best.loss]]))
        assert f"layers {best.start}–{best.stop - 1}" in texts(figure)

    def test_a_base_loss_that_would_flatten_the_windows_is_written_instead(self):
        frame = frame_of(
            {(0, 0): [0.4, 0.5], (0, 2): [0.6, 0.8], (1, 3): [0.5, 0.5], (2, 4): [0.7, 0.6], (0, 6): [90.0, 91.0]}
        )
        figure = figures.loss_curve(summaries.window_losses(summaries.paired_losses(frame), 6), 2, "tiny")
        assert figure.axes[0].get_ylim()[1] < 10
        assert "all layers replaced: 90.50 (above this scale ↑)" in texts(figure)

    def test_no_finite_loss_at_all_still_draws(self, tmp_path):
        frame = frame_of({(0, 0): [math.nan] * 2, (0, 2): [math.inf] * 2})
        figure = figures.loss_curve(summaries.window_losses(summaries.paired_losses(frame), 6), 2, "tiny")
        assert all(path.stat().st_size for path in plotting.save(figure, tmp_path / "nothing"))


class TestSimilarityMap:
    def test_values_and_marks(self, cell):
        figure = figures.similarity_map(cell["similarity"], [3, 7], "tiny", "cka_linear")
        (image,) = figure.axes[0].images
        expected_LL = np.full((LAYERS, LAYERS), np.nan)
        expected_LL[cell["similarity"]["layer_i"], cell["similarity"]["layer_j"]] = cell["similarity"]["value"]
        np.testing.assert_array_equal(image.get_array(), expected_LL)
        assert image.origin == "lower"
        below, left = [line for line in figure.axes[0].lines if line.get_label() == "changes"]
        assert list(below.get_xdata()) == [3, 7]
        assert list(left.get_ydata()) == [3, 7]
        assert "linear CKA" in " ".join(texts(figure))
        assert "hatched: n/a" not in texts(figure)

    def test_an_undefined_or_missing_pair_has_no_colour_but_a_hatch(self, cell):
        similarity = cell["similarity"].copy()
        similarity.loc[similarity["layer_i"] == 2, "value"] = math.nan
        similarity = similarity[similarity["layer_j"] != 5]
        similarity = pd.concat([similarity, similarity.iloc[[0]].assign(layer_i=0, layer_j=5)])
        figure = figures.similarity_map(similarity, [], "tiny", "cka_linear")
        (image,) = figure.axes[0].images
        mask = np.zeros((LAYERS, LAYERS), bool)
        mask[2] = mask[:, 5] = True
        mask[0, 5] = False
        np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), mask)
        assert image.cmap.get_bad()[3] == 0
        assert figure.axes[0].patch.get_hatch()
        assert "hatched: n/a" in texts(figure)

    def test_layers_that_are_alike_are_bright_in_a_map_of_distances_too(self, cell, tmp_path):
        distances = cell["similarity"].assign(value=(1 - cell["similarity"]["value"]) / 2)
        figure = figures.similarity_map(distances, [], "tiny", "angular")
        (image,) = figure.axes[0].images
        assert image.cmap.name == "viridis_r"
        assert (image.norm.vmin, image.norm.vmax) == (0, distances["value"].max())
        assert "distance between two layers' representations (angular distance)" in texts(figure)
        same = figures.similarity_map(distances.assign(value=0.0), [], "tiny", "angular")
        assert all(path.stat().st_size for path in plotting.save(same, tmp_path / "same"))


class TestDynamics:
    def test_line_band_and_change_points(self, cell):
        dynamics = cell["dynamics"].sample(frac=1, random_state=1)  # row order must not matter
        axes = figures.dynamics_curve(dynamics, "tiny", "cka_linear").axes[0]
        ordered = dynamics.sort_values("layer")
        np.testing.assert_array_equal(artist(axes, "delta").get_xydata(), ordered[["layer", "delta"]])
        band = {tuple(point) for point in artist(axes, "band").get_paths()[0].vertices}
        assert set(zip(ordered["layer"], ordered["ci_low"], strict=True)) <= band
        assert set(zip(ordered["layer"], ordered["ci_high"], strict=True)) <= band
        marked = ordered[ordered["rank"] <= 5]
        np.testing.assert_array_equal(artist(axes, "changes").get_xydata(), marked[["layer", "delta"]])

    def test_without_an_interval_there_is_no_band(self, cell):
        axes = figures.dynamics_curve(cell["dynamics"].assign(ci_low=np.nan, ci_high=np.nan), "t", "cka_rbf").axes[0]
        assert not axes.collections


class TestAgreement:
    @pytest.mark.parametrize("width", [5, 2])
    def test_delta_at_the_centre_against_the_loss(self, cell, width):
        spans = {(s, s + width): [1.0 + s * s, 1.5 + s] for s in range(LAYERS - width + 1)}
        windows = summaries.window_losses(summaries.paired_losses(frame_of({(0, 0): [1, 1], **spans})), LAYERS)
        figure = figures.dynamics_against_loss(cell["dynamics"], windows, width, (-0.5, -0.7, -0.1), "t", "cka_linear")
        delta = cell["dynamics"].set_index("layer")["delta"]
        expected = []
        for start in range(LAYERS - width + 1):
            middle = [start + 2] if width == 5 else [start, start + 1]
            expected.append((delta[middle].mean(), np.mean(spans[(start, start + width)])))
        axes = figure.axes[0]
        shown = np.vstack([artist(axes, name).get_xydata() for name in ("others", "changes")])
        np.testing.assert_allclose(sorted(map(tuple, shown)), sorted(expected))
        changes = set(delta.sort_values().index[:5])
        middles = [{s + 2} if width == 5 else {s, s + 1} for s in range(LAYERS - width + 1)]
        assert len(artist(axes, "changes").get_xydata()) == sum(middle <= changes for middle in middles)
        assert "rank correlation ρ = −0.50 [−0.70, −0.10] (95 % interval)" in texts(figure)

    def test_points_are_numbered_and_undefined_ones_left_out(self, cell, windows):
        dynamics = cell["dynamics"].copy()
        dynamics.loc[dynamics["layer"] == 8, "delta"] = math.nan
        figure = figures.dynamics_against_loss(dynamics, windows, WIDTH, None, "t", "cka_linear")
        axes = figure.axes[0]
        shown = sum(len(artist(axes, name).get_xydata()) for name in ("others", "changes"))
        assert shown == LAYERS - WIDTH + 1 - 1
        numbers = {text.get_text() for text in axes.texts}
        assert "8" not in numbers
        assert {"5", "6", "7", "9"} <= numbers  # the change-point layers are always numbered
        assert "no rank correlation was computed" in texts(figure)
        undefined = (math.nan, math.nan, math.nan)
        figure = figures.dynamics_against_loss(dynamics, windows, WIDTH, undefined, "t", "cka_linear")
        assert "no rank correlation was computed" in texts(figure)


def test_the_overview_has_every_cells_curves(tables):
    cells = []
    for dataset in ("sums", "choices"):
        rows = {name: table[table["dataset"] == dataset] for name, table in tables.items()}
        windows = summaries.window_losses(summaries.paired_losses(rows["substitution"]), LAYERS)
        cells.append(figures.CellCurves(dataset, windows, WIDTH, rows["dynamics"]))
    figure = figures.overview(cells, "cka_linear")
    assert len(figure.axes) == 4
    for cell, above, below in zip(cells, figure.axes[::2], figure.axes[1::2], strict=True):
        swept = cell.windows[cell.windows["role"] == "window"]
        np.testing.assert_array_equal(artist(above, "losses").get_xydata(), swept[["centre", "loss"]])
        np.testing.assert_array_equal(artist(below, "delta").get_xydata(), cell.dynamics[["layer", "delta"]])
        assert above.get_title(loc="left") == cell.title
        assert above.get_xlim() == below.get_xlim()
