"""The page's part on trainings: verdicts that keep to the intervals, figures that show every arm, names that stay text."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
from page_reader import written
from synthetic import HOSTILE

from raysweep.report import training_figures
from raysweep.report.cells import cells_of
from raysweep.report.training import adapted_headline, adapted_sentences, adapted_view, tuned_view
from raysweep.studies.adaptation import adaptation_table

ARMS = ("critical", "non_critical", "all")
SPEED = {"critical": 2.0, "non_critical": 1.2, "all": 4.0}


def losses(study, arm, seed, curve, layers="1-2", split="test", model="m", dataset="d"):
    steps = np.arange(len(curve)) * 10
    told = {"model": model, "dataset": dataset, "study": study, "arm": arm, "layers": layers, "seed": seed}
    return pd.DataFrame({**told, "step": steps, "split": split, "loss": curve})


def adapted(seeds=3, noise=0.02, speed=SPEED, **names):
    """The two tables of one cell; `noise` is how far seeds differ in what an arm reaches."""
    rng, time = np.random.default_rng(0), np.linspace(0, 1, 6)
    training = pd.concat(
        [
            losses("adaptation", arm, seed, 0.5 + np.exp(-speed[arm] * time) + time * rng.normal(0, noise), **names)
            for seed in range(seeds)
            for arm in ARMS
        ]
    )
    named = {"model": names.get("model", "m"), "dataset": names.get("dataset", "d")}
    return {"training": training, "adaptation": adaptation_table(training, ARMS).assign(**named)}


def cell_of(tables, **dtype):
    return cells_of(tables, [{"model": "m", **dtype}])[0]


class Kept:
    """Drawings that are kept and not written."""

    def __init__(self):
        self.figures = {}

    def add(self, figure, name, alt, caption):
        self.figures[name[0]] = (figure, alt, caption)
        return name


@pytest.fixture
def drawings():
    return Kept()


def texts(sentences):
    return [sentence.striptags() for sentence in sentences]


def test_the_verdict_is_the_intervals(drawings):
    tables = adapted()
    first, against_all, others = texts(adapted_sentences(cell_of(tables)))
    assert first.startswith(
        "When training critical layers, the test loss falls faster than when training as many others: it is on "
    )
    assert against_all.startswith(
        "When training critical layers, the test loss falls more slowly than when training all layers: it"
    )
    assert "higher (area +" in others
    area = tables["adaptation"].iloc[0]
    told = re.search(r"area −([\d.]+) \[−([\d.]+), −([\d.]+)\], 3 seeds\)", first)
    assert [float(each) for each in told.groups()] == pytest.approx(
        [-area["value"], -area["ci_low"], -area["ci_high"]], abs=6e-3
    )
    assert "on average over 50 steps" in first


def test_what_seeds_do_not_decide_is_undecided():
    noisy = texts(adapted_sentences(cell_of(adapted(noise=2.0))))[0]
    assert noisy.startswith(
        "It is undecided whether the test loss falls faster when training critical layers than when training as many others: "
    )
    assert "and the interval includes 0. At the last step" in noisy
    assert noisy.endswith("not significantly different from 0.")
    alone = texts(adapted_sentences(cell_of(adapted(seeds=1))))[0]
    assert "as many others: it is on average over 50 steps" in alone
    assert "one seed is not enough." in alone
    same = texts(adapted_sentences(cell_of(adapted(noise=0.0))))[0]
    assert "there is no interval (the seeds all give the same: no interval)" in same


def test_no_difference_is_told_that_is_below_the_precision():
    tables = adapted(noise=1e-5, speed=dict.fromkeys(ARMS, 1.0))
    areas = tables["adaptation"]["measure"] == "area"
    tables["adaptation"].loc[areas, ["value", "ci_low", "ci_high"]] = [-5e-4, -6e-4, -4e-4]
    assert texts(adapted_sentences(cell_of(tables)))[0].startswith(
        "When training critical layers, the test loss falls faster"
    )
    half = texts(adapted_sentences(cell_of(tables, dtype="bfloat16")))[0]
    assert half.startswith("It is undecided whether the test loss falls faster")


def test_what_cannot_be_compared_says_why(drawings):
    tables = adapted()
    gone = tables["training"]["arm"] != "all"
    tables["training"] = tables["training"][gone]
    tables["adaptation"] = adaptation_table(tables["training"], ARMS).assign(model="m", dataset="d")
    view = adapted_view(cell_of(tables), drawings)
    words = texts(view.sentences)
    assert words[1] == (
        "Training critical layers cannot be compared with training all layers: no seed has test losses of both critical and all."
    )
    assert view.tables[0].rows[2][3] == "n/a (no seed has test losses of both critical and all)"
    assert words[-1] == "Layers trained: critical layers: 1-2, as many others: 1-2."


def test_the_curves_are_those_of_the_arms(drawings):
    tables = adapted()
    view = adapted_view(cell_of(tables), drawings)
    figure, alt, _ = drawings.figures["adaptation"]
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    for arm in ARMS:
        mean = tables["training"].query("arm == @arm").groupby("step")["loss"].mean()
        np.testing.assert_allclose(lines[arm].get_ydata(), mean)
        assert lines[arm].get_xdata().tolist() == mean.index.to_list()
    assert len({line.get_color() for line in (lines[arm] for arm in ARMS)}) == 3
    assert len({line.get_marker() for line in (lines[arm] for arm in ARMS)}) == 3
    assert {band.get_label() for band in axes.collections} == {f"band {arm}" for arm in ARMS}
    assert "critical layers from 1.50 to " in alt
    dots = {line.get_label() for line in drawings.figures["area"][0].axes[0].lines}
    assert {"areas", "intervals"} <= dots
    table = view.tables[1]
    assert table.columns == ["step", "critical layers", "as many others", "all layers"]
    assert len(table.rows) == 6
    assert table.rows[0][1] == "1.500 [1.500, 1.500]"


def test_one_seed_has_no_band(drawings):
    adapted_view(cell_of(adapted(seeds=1)), drawings)
    figure, _, caption = drawings.figures["adaptation"]
    assert not figure.axes[0].collections
    assert "With one seed there is no interval." in caption
    assert [line.get_label() for line in drawings.figures["area"][0].axes[0].lines].count("areas") == 3


def test_wide_bands_do_not_flatten_the_lines():
    time = np.linspace(0, 1, 6)
    curve = training_figures.ArmCurve("all", "all", np.arange(6), 2 - time, 2 - time - 50, 2 - time + 50)
    low, high = training_figures.arm_curves([curve], 3, "t").axes[0].get_ylim()
    assert 0 < low < 1
    assert 2 < high < 3


def test_names_of_many_arms_do_not_lie_on_one_another():
    curves = [
        training_figures.ArmCurve(name, name, np.arange(3), *np.ones((3, 3)))
        for name in ("none", "all", "freeze critical", "freeze non_critical", "freeze 4,5,7,9,10")
    ]
    figure = training_figures.arm_curves(curves, 3, "t")
    figure.draw_without_rendering()
    names = [text.get_window_extent() for text in (*figure.axes[0].texts, *figure.texts)]
    assert not any(a.overlaps(b) for place, a in enumerate(names) for b in names[:place])
    assert all(box.x1 <= figure.bbox.x1 for box in names)


def test_a_fine_tuning_has_both_its_losses(drawings):
    test, train = [2.0, 1.0, 0.5, 0.75], [1.9, math.nan, 0.8, 0.4]
    rows = [losses("finetune", "critical", 42, test, "3,5"), losses("finetune", "critical", 42, train, "3,5", "train")]
    view = tuned_view(cell_of({"training": pd.concat(rows)}), drawings)
    assert texts(view.sentences) == [
        "Fine-tuned (layers critical: 3,5, seed 42) in 30 steps. The test loss goes from 2.000 to 0.750 nats. It was lowest, "
        "0.500, at step 20."
    ]
    lines = {line.get_label(): line.get_ydata().tolist() for line in drawings.figures["finetune"][0].axes[0].lines}
    assert lines == {"test": test, "train": [1.9, 0.8, 0.4]}
    assert view.parts[0][1].rows[1] == ["10", "1.0000", "—"]
    assert adapted_view(cell_of({"training": pd.concat(rows)}), drawings) is None
    end = losses("finetune", "all", 42, [0.5], "0-3")
    assert texts(tuned_view(cell_of({"training": end}), drawings).sentences) == [
        "Fine-tuned (layers all, seed 42) in 0 steps. Its test loss is 0.500 nats."
    ]


def test_the_page_has_the_parts_and_what_names_say_is_text(tmp_path, without_files):
    tables = adapted(model=HOSTILE, dataset=HOSTILE, layers=HOSTILE)
    tuned = losses("finetune", HOSTILE, 1, [2.0, 1.0], HOSTILE, model=HOSTILE, dataset=HOSTILE)
    tables["training"] = pd.concat([tables["training"], tuned])
    page = written(tables, tmp_path)
    assert "script" not in {tag for tag, _ in page.elements}
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.elements if tag == "img")
    assert "Training some layers only" in page.text
    assert "Fine-tuning" in page.text
    assert "area between losses" in page.text
    assert all(attrs.get("alt") for tag, attrs in page.elements if tag == "img")


def test_the_headline_counts_the_cases():
    def of(*cells):
        return texts(adapted_headline([cell_of(tables) for tables in cells]))

    slower = dict(zip(ARMS, (1.2, 2.0, 4.0), strict=True))
    words = "Training only the critical layers lowers the test loss {} than training as many other layers."
    assert of(adapted()) == [words.format("faster")]
    assert of(adapted(speed=slower)) == [words.format("more slowly")]
    assert of(adapted(seeds=1))[0].startswith("It is undecided whether training only the critical layers lowers")
    assert of(adapted(), adapted(), adapted(speed=slower), adapted(seeds=1)) == [
        "Of 4 cases, training only the critical layers lowers the test loss faster in 2, more slowly in 1 than training as "
        "many other layers; undecided in 1."
    ]
    assert of({"training": adapted()["training"]}) == []
