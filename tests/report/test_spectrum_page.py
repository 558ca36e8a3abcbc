"""Spectra on the page: lines are the table's own values, captions tell what is missing and what is not settled."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from page_reader import written
from synthetic import make_tables

from raysweep.report import spectrum_figures
from raysweep.report.cells import cells_of
from raysweep.report.pictures import Drawings
from raysweep.report.spectrum import spectrum_pictures, spectrum_table

LAYERS, COMPONENTS = 6, (1, 3)


def make_spectrum(model="tiny", dataset="sums", components=COMPONENTS):
    """Values that are all different, with the neighbours that each layer has."""
    rng = np.random.default_rng(0)
    rows = []
    for layer in range(LAYERS):
        rows.append((layer, None, "examples", 26.0, None))
        for measure in ("effective_rank", "participation_ratio", "stable_rank"):
            rows.append((layer, None, measure, rng.uniform(1, 20), None))
        for k in components:
            for measure in ("explained_share", "explained_cumulative", "relative_gap"):
                rows.append((layer, k, measure, rng.uniform(0, 1), None))
            for step in (-2, -1, 1, 2):
                if 0 <= layer + step < LAYERS:
                    for measure in ("cca", "overlap"):
                        rows.append((layer, k, f"{measure}{step:+d}", rng.uniform(0, 1), None))
    table = pd.DataFrame(rows, columns=["layer", "components", "measure", "value", "reason"])
    return table.assign(model=model, dataset=dataset)


@pytest.fixture
def spectrum():
    return make_spectrum()


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def values(spectrum, measure, k):
    rows = spectrum[(spectrum["measure"] == measure) & (spectrum["components"] == k)]
    return rows[["layer", "value"]].to_numpy(dtype=float)


def test_each_panel_has_the_lines_of_its_neighbours_and_their_mean(spectrum):
    figure = spectrum_figures.shared_components(spectrum, COMPONENTS, [2, 3], "tiny")
    panels = iter(figure.axes)
    for k in COMPONENTS:
        for measure in ("cca", "overlap"):
            drawn = lines(next(panels))
            for step in (-2, -1, 1, 2):
                line = drawn[f"{measure}{step:+d}"]
                np.testing.assert_array_equal(line[~np.isnan(line[:, 1])], values(spectrum, f"{measure}{step:+d}", k))
            own = spectrum[spectrum["measure"].str.match(rf"{measure}[+-]") & (spectrum["components"] == k)]
            np.testing.assert_allclose(drawn["mean"][:, 1], own.groupby("layer")["value"].mean())
            assert ("independent" in drawn) == (measure == "cca")
            if measure == "cca":
                np.testing.assert_allclose(drawn["independent"][:, 1], math.sqrt(k / 25))


def test_the_spread_of_the_variance(spectrum):
    shares, ranks = spectrum_figures.spread(spectrum, COMPONENTS, "tiny").axes
    for k in COMPONENTS:
        np.testing.assert_array_equal(lines(shares)[f"k{k}"], values(spectrum, "explained_cumulative", k))
    for measure in ("effective_rank", "participation_ratio", "stable_rank"):
        rows = spectrum.loc[spectrum["measure"] == measure, ["layer", "value"]]
        np.testing.assert_array_equal(lines(ranks)[measure], rows)


def test_captions_tell_what_is_missing_and_what_is_not_settled(spectrum, tmp_path, without_files):
    gap = spectrum["measure"].eq("relative_gap") & spectrum["layer"].isin([0, 1, 4]) & spectrum["components"].eq(3)
    spectrum.loc[gap, "reason"] = "component 4 is within 0.01 of component 3"
    lost = spectrum["measure"].str.startswith(("cca", "overlap")) & spectrum["layer"].eq(5)
    spectrum.loc[lost, ["value", "reason"]] = [math.nan, "all examples have the same state at layer 5"]
    (cell,) = cells_of({"spectrum": spectrum}, ())
    assert cell.n_layers == LAYERS
    shared, spread = spectrum_pictures(cell, Drawings(tmp_path))
    assert (
        "Uncertain with so few examples, because the next component has nearly the same variance: k = 3 at layers 0–1, 4."
        in (shared.caption)
    )
    assert "Missing values are n/a (all examples have the same state at layer 5)." in shared.caption
    assert "with these 26 examples" in shared.caption
    assert "Shaded" not in shared.caption, "no δ was measured"
    assert "for k = 1 lowest at layer" in shared.alt
    assert "None can exceed 25, one less than the number of examples." in spread.caption
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("components-tiny-sums.png", "components-tiny-sums.svg", "spectrum-tiny-sums.png", "spectrum-tiny-sums.svg"),
    ]
    table = spectrum_table(cell)
    assert table.columns[:6] == [
        "layer",
        "effective rank",
        "participation ratio",
        "stable rank",
        "variance, first 1",
        "gap after 1",
    ]
    assert [row[0] for row in table.rows] == list(range(LAYERS))
    assert table.rows[5][table.columns.index("CCA, k = 3")] == "n/a"
    share = values(spectrum, "explained_cumulative", 3)[2, 1]
    assert table.rows[2][table.columns.index("variance, first 3")] == f"{share:.3f}"


def test_nothing_but_nan_is_drawn_too(spectrum, tmp_path):
    measured = spectrum["measure"] != "examples"
    spectrum.loc[measured, ["value", "reason"]] = [math.nan, "all examples have the same state <b>"]
    shared, spread = spectrum_pictures(cells_of({"spectrum": spectrum}, ())[0], Drawings(tmp_path))
    assert "mean canonical correlation n/a" in shared.alt
    assert "effective rank, n/a" in spread.alt


def test_of_many_numbers_of_components_four_are_drawn(tmp_path, without_files):
    (cell,) = cells_of({"spectrum": make_spectrum(components=(9, 1, 2, 3, 4, 5))}, ())
    assert len(spectrum_pictures(cell, Drawings(tmp_path))) == 2
    assert [c for c in spectrum_table(cell).columns if c.startswith("CCA")] == [f"CCA, k = {k}" for k in (9, 1, 2, 3)]


def test_the_page_has_them_with_and_without_the_other_tables(tmp_path, without_files):
    tables = make_tables(datasets=("sums",), n_layers=LAYERS, n_examples=8)
    whole = written({**tables, "spectrum": make_spectrum()}, tmp_path / "whole")
    assert "Shaded: the change-point layers, chosen by δ alone." in whole.text
    assert "Spectrum of the base model's states by layer" in whole.text
    alone = written({"spectrum": make_spectrum(model="<script>alert(1)</script>")}, tmp_path / "alone")
    assert "The directions in which a layer's states differ most between examples" in alone.text
    assert not [tag for tag, _ in alone.elements if tag == "script"]
    assert "results/spectrum.parquet" in alone.text
    none = written(tables, tmp_path / "none")
    assert "canonical correlation" not in none.text
