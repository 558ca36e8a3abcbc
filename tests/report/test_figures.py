"""Figures show the frames' own numbers: artists' data against the frames and against plain recomputation."""

from __future__ import annotations

import math
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raysweep.report import figures

WIDTH, LAYERS = 5, 24


@pytest.fixture(scope="module")
def cell(tables):
    """The rows of the first data set, table by table."""
    return {name: table[table["dataset"] == "sums"] for name, table in tables.items()}


@pytest.fixture(scope="module")
def windows(cell):
    return figures.window_losses(figures.paired_losses(cell["substitution"]), LAYERS)


def losses_of(substitution, start, stop):
    rows = substitution[(substitution["start"] == start) & (substitution["stop"] == stop)]
    return rows.sort_values("example_id")["loss"].to_numpy()


def artist(axes, label):
    (found,) = [child for child in axes.get_children() if child.get_label() == label]
    return found


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def frame_of(losses, n_layers=6):
    """A substitution table from {(start, stop): losses of the examples}."""
    rows = [
        {"start": start, "stop": stop, "width": stop - start, "example_id": example, "loss": loss}
        for (start, stop), values in losses.items()
        for example, loss in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(kind="window", coefficient=1.0, estimator="exact")


class TestWindowLosses:
    def test_every_window_against_scipys_paired_interval(self, cell, windows):
        tuned_E = losses_of(cell["substitution"], 0, 0)
        assert len(windows) == 1 + (LAYERS - WIDTH + 1) + 1
        for row in windows.itertuples():
            change_E = losses_of(cell["substitution"], row.start, row.stop) - tuned_E
            assert row.loss == pytest.approx(losses_of(cell["substitution"], row.start, row.stop).mean())
            assert row.cost == pytest.approx(change_E.mean())
            if row.role != "tuned":
                low, high = stats.t.interval(0.95, len(change_E) - 1, change_E.mean(), stats.sem(change_E))
                assert (row.cost_low, row.cost_high) == pytest.approx((low, high))
        roles = windows.set_index(["start", "stop"])["role"]
        assert roles[(0, 0)] == "tuned"
        assert roles[(0, LAYERS)] == "all"
        assert (roles == "window").sum() == LAYERS - WIDTH + 1

    def test_a_missing_loss_leaves_its_example_out_of_both_sides(self):
        frame = frame_of({(0, 0): [1.0, 2.0, math.nan, 4.0], (0, 2): [1.5, math.nan, 9.0, 5.5]})
        row = figures.window_losses(figures.paired_losses(frame), 6).set_index("role").loc["window"]
        assert row.cost == pytest.approx((0.5 + 1.5) / 2)
        assert row.loss == pytest.approx((1.5 + 9.0 + 5.5) / 3)
        assert (row.examples, row.left_out) == (3, 1)

    def test_without_the_tuned_model_costs_are_nan_and_the_highest_loss_is_the_costliest(self):
        frame = frame_of({(0, 2): [1.0, 2.0], (1, 3): [2.0, 3.0]})
        windows = figures.window_losses(figures.paired_losses(frame), 6)
        assert windows["cost"].isna().all()
        assert figures.costliest(windows, 2).name == "layers 1–2"

    def test_an_infinite_loss_has_no_interval(self):
        frame = frame_of({(0, 0): [1.0, 1.0, 1.0], (0, 2): [2.0, math.inf, 2.0]})
        row = figures.window_losses(figures.paired_losses(frame), 6).set_index("role").loc["window"]
        assert row.cost == math.inf
        assert math.isnan(row.cost_low)

    def test_sets_scaled_and_estimated_substitutions_are_not_windows(self):
        frame = frame_of({(0, 0): [1.0, 1.0], (0, 2): [2.0, 2.0]})
        others = [
            frame.assign(kind="set", start=math.nan, stop=math.nan),
            frame.assign(coefficient=0.5, loss=7.0),
            frame.assign(estimator="taylor", loss=7.0),
        ]
        mixed = pd.concat([*others, frame], ignore_index=True)
        pd.testing.assert_frame_equal(figures.paired_losses(mixed), figures.paired_losses(frame))


class TestWords:
    @pytest.mark.parametrize(
        ("layers", "text"),
        [([3], "layer 3"), (range(8, 13), "layers 8–12"), ([1, 10, 11, 13], "layers 1, 10–11, 13")],
    )
    def test_layers(self, layers, text):
        assert figures.layers_text(layers) == text

    def test_numbers_have_a_true_minus_and_nan_is_not_a_number(self):
        assert figures.number(-0.125, 3) == "−0.125"
        assert figures.number(0.5, signed=True) == "+0.50"
        assert figures.number(-0.0001) == "0.00"
        assert figures.number(math.nan) == "n/a"
        assert figures.interval(-1, math.nan) == "[n/a]"

    def test_change_points_are_the_fifth_of_smallest_delta(self, cell):
        smallest = cell["dynamics"].sort_values("delta")["layer"].head(5)
        assert figures.change_points(cell["dynamics"]) == sorted(smallest)

    def test_layers_without_a_rank_are_no_change_points(self):
        rank = pd.array([None, 2, 1, None], dtype="Int64")
        assert figures.change_points(pd.DataFrame({"layer": range(4), "rank": rank})) == [2]


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
        figure = figures.loss_curve(figures.window_losses(figures.paired_losses(frame), 6), 2, "tiny")
        assert figure.axes[0].get_ylim()[1] < 10
        assert "all layers put back: 90.50 (above this scale ↑)" in texts(figure)

    def test_no_finite_loss_at_all_still_draws(self, tmp_path):
        frame = frame_of({(0, 0): [math.nan] * 2, (0, 2): [math.inf] * 2})
        figure = figures.loss_curve(figures.window_losses(figures.paired_losses(frame), 6), 2, "tiny")
        assert all(path.stat().st_size for path in figures.save(figure, tmp_path / "nothing"))


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
        windows = figures.window_losses(figures.paired_losses(frame_of({(0, 0): [1, 1], **spans})), LAYERS)
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
        assert "ρ = −0.50 [−0.70, −0.10] (rank correlation, 95 % interval)" in texts(figure)

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


def test_the_overview_has_every_cells_curves(tables):
    cells = []
    for dataset in ("sums", "choices"):
        rows = {name: table[table["dataset"] == dataset] for name, table in tables.items()}
        windows = figures.window_losses(figures.paired_losses(rows["substitution"]), LAYERS)
        cells.append(figures.CellCurves(dataset, windows, WIDTH, rows["dynamics"]))
    figure = figures.overview(cells, "cka_linear")
    assert len(figure.axes) == 4
    for cell, above, below in zip(cells, figure.axes[::2], figure.axes[1::2], strict=True):
        swept = cell.windows[cell.windows["role"] == "window"]
        np.testing.assert_array_equal(artist(above, "losses").get_xydata(), swept[["centre", "loss"]])
        np.testing.assert_array_equal(artist(below, "delta").get_xydata(), cell.dynamics[["layer", "delta"]])
        assert above.get_title(loc="left") == cell.title
        assert above.get_xlim() == below.get_xlim()


class TestSave:
    def test_the_same_bytes_whatever_the_users_style(self, cell, tmp_path):
        def bytes_of(name):
            paths = figures.save(figures.dynamics_curve(cell["dynamics"], "tiny", "cka_linear"), tmp_path / name)
            return [path.read_bytes() for path in paths]

        first = bytes_of("a")
        with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
            assert bytes_of("b") == first
            assert mpl.rcParams["font.size"] == 30
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]

    def test_names_that_are_no_plain_text_make_valid_files(self, cell, tmp_path):
        title = "a\x00b\n$x$ <b>--> 🦊 漢 \u202e" + "long" * 40
        png, svg = figures.save(figures.dynamics_curve(cell["dynamics"], title, "cka_linear"), tmp_path / "odd")
        assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert png.read_bytes().startswith(b"\x89PNG")


def test_matplotlib_waits_until_a_figure_is_drawn_and_pyplot_is_never_imported():
    program = (
        "import sys, pandas as pd\n"
        "import raysweep.report.page\n"
        "from raysweep.report import figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figures.dynamics_curve(pd.DataFrame({'layer': [0, 1], 'delta': [1., 2.], 'ci_low': [0., 1.], 'ci_high': [2., 3.],"
        " 'rank': [1, 2], 'neighbourhood': 3}), 't', 'cka_linear')\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
