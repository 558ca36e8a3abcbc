"""No text of any figure overlaps another or leaves the figure, whatever the names, layers, widths and cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from changed import changed_tables
from drawn_texts import drawn, problems
from matplotlib.figure import Figure
from synthetic import frame_of, make_hostile, make_provenance, make_tables
from test_along import steps_of
from test_attack_page import attack
from test_spectrum_page import make_spectrum
from test_training_page import adapted, losses

from raysweep.report import figures, labels, plotting, summaries
from raysweep.report.critical import choice_map
from raysweep.report.page import write_report

LONG = "a-base-model-with-a-name-that-nobody-can-read-in-one-breath-7b-instruct-v2"


def renamed(tables, model=LONG, dataset="a data set whose name is as long as that of the model it goes with"):
    return {name: rows.assign(model=model, dataset=dataset) for name, rows in tables.items()}


def along():
    return steps_of(tuple(range(1000000, 7000000, 1000000)), 7000000)


def finetuned():
    curve = [3.0 - step / 20 for step in range(40)]
    return pd.concat([losses("finetune", "all", 42, curve, split=split) for split in ("test", "train")])


def many_windows():
    tables = make_tables(datasets=["sums"], widths=range(1, 12), n_layers=12, n_examples=6)
    rows = tables["substitution"]
    whole = [rows[rows["width"] > 0].assign(kind=kind) for kind in ("attention", "mlp", "reverse")]
    between = [rows[rows["width"] > 0].assign(coefficient=c) for c in (0.25, 0.5)]
    base = rows[rows["width"] == 0].assign(kind="reverse")
    return {
        "substitution": pd.concat([rows, *whole, *between, base], ignore_index=True),
        "dynamics": tables["dynamics"],
    }


def large_losses():
    tables = make_tables(datasets=["sums"], n_layers=6, n_examples=6, widths=(2,))
    tables["substitution"]["loss"] *= 12345.0
    return tables


CASES = {
    "80 layers and long names": lambda: make_tables((LONG,), (LONG, "x"), widths=(1, 5), n_layers=80, n_examples=6),
    "4 layers": lambda: make_tables(datasets=("s",), n_layers=4, widths=(1, 2), n_examples=6),
    "14 cells": lambda: make_tables(datasets=tuple(f"{LONG}-{i}" for i in range(14)), n_layers=24, n_examples=4),
    "undefined values": lambda: make_hostile()[0],
    "every kind of change": lambda: renamed(changed_tables()),
    "many widths": many_windows,
    "large losses": large_losses,
    "spectra": lambda: renamed({"spectrum": make_spectrum()}),
    "adaptation": lambda: renamed(adapted()),
    "fine-tuning": lambda: renamed({"training": finetuned()}),
    "backdoor": lambda: renamed({"attack": attack()}),
    "along a training": along,
}


@pytest.mark.parametrize("case", CASES)
def test_no_text_of_a_page_overlaps_another_or_leaves_its_figure(case, tmp_path, monkeypatch, without_files):
    made, save = [], plotting.save

    def kept(figure, stem):
        made.append((stem.name, figure))
        return save(figure, stem)

    monkeypatch.setattr(plotting, "save", kept)
    write_report(CASES[case](), make_provenance(sets={"0,3": f"{LONG} {LONG}"}), tmp_path)
    assert made
    assert [f"{name}: {problem}" for name, figure in made for problem in problems(figure)] == []


def test_a_map_of_choices_shows_the_names_of_its_data_sets():
    names = [f"{LONG}-{place}" for place in range(3)]
    figure = choice_map({name: np.linspace(0, 1, 80) for name in names}, [np.arange(80) < 16] * 3, LONG)
    assert problems(figure) == []
    assert sum(text.endswith(("-0", "-1", "-2")) for text, _ in drawn(figure)) == 3


def test_the_costliest_window_is_not_written_over_the_tuned_model():
    losses = {
        (0, 0): [1.0, 1.0],
        **{(i, i + 1): [1.01 + i / 1e4, 1.0 + i / 1e4] for i in range(20)},
        (0, 20): [1.02, 1.01],
    }
    windows = summaries.window_losses(summaries.paired_losses(frame_of(losses)), 20)
    figure = figures.loss_curve(windows, 1, "m · d")
    assert problems(figure) == []
    assert {"layer 19", "tuned model: 1.00"} <= {text for text, _ in drawn(figure)}


def test_a_note_without_a_free_place_is_left_out_and_the_first_stays():
    figure = Figure((2, 2))
    axes = figure.add_axes((0.2, 0.2, 0.7, 0.7))
    for text in ("first", "second"):
        labels.place_note(axes, text, [labels.Place((0.5, 0.5), (0, 3), "center", "bottom")])
    labels.settle(figure)
    assert [text for text, _ in drawn(figure) if not text[0].isdigit()] == ["first"]


def test_a_heading_that_is_too_long_keeps_its_start_and_its_end():
    figure = Figure((3, 1))
    text = figure.text(0.02, 0.5, f"{LONG} · sums")
    labels.fit(text, 0.98)
    labels.settle(figure)
    assert text.get_text().startswith("a-base")
    assert text.get_text().endswith("· sums")
    assert problems(figure) == []


def test_the_check_finds_what_overlaps_and_what_is_cut():
    figure = Figure((3, 1))
    for text in ("one", "two"):
        figure.text(0.5, 0.5, text)
    figure.text(0.95, 0.1, "far too long")
    assert len(problems(figure)) == 2


@pytest.mark.parametrize(
    ("hides", "side"), [([], "right"), ([(x, y) for x in (8, 9) for y in np.linspace(4, 7, 13)], "left")]
)
def test_the_name_of_a_line_covers_no_bars(hides, side):
    figure, axes = plotting.frame("t", "s")
    axes.set(xlim=(0, 10), ylim=(0, 10))
    plotting.line_note(axes, 5, "all layers replaced: 1.90", "black", above=True, hides=hides)
    labels.settle(figure)
    assert [text.get_horizontalalignment() for text in axes.texts] == [side]
