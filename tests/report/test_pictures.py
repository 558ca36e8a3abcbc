"""Figures beside the page: a file of its own for each, described, and nothing of an earlier page left."""

from __future__ import annotations

import base64
import json

import pytest
from matplotlib.figure import Figure
from synthetic import STEADY, make_tables, tiny_tables

from raysweep.report.cells import cells_of
from raysweep.report.dark import adaptive
from raysweep.report.pictures import Drawings, overview, pictures_of


@pytest.fixture
def folder(tmp_path, without_files):
    return tmp_path / "figures"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_embeds_what_was_written(tmp_path):
    picture = Drawings(tmp_path).add(Figure((1, 1)), ("a", "b c"), "seen", "meant")
    kind, data = picture.source.split(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == adaptive((tmp_path / "a-b-c.svg").read_text())
    assert (picture.alt, picture.caption, picture.wide) == ("seen", "meant", False)


def test_names_that_make_one_file_name_do_not_overwrite_each_other(folder):
    drawings = Drawings(folder)
    for model in ("a/b", "a b", "../A-B", "", "🦊", "x" * 100):
        drawings.add(Figure(), ("loss", model), "", "")
    stems = ["loss-A-B-3", "loss-a-b", "loss-a-b-2", "loss-x", "loss-x-2", f"loss-{'x' * 48}"]
    assert names(folder) == sorted(f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg"))
    assert names(folder.parent) == ["figures"]


def test_an_earlier_pages_figures_are_removed_and_other_files_stay(folder):
    earlier = Drawings(folder)
    for name in ("Loss", "old"):
        earlier.add(Figure(), (name,), "", "")
    earlier.remove_others()
    for name in ("mine.png", "mine.svg", "notes.jpg", ".tmp-host-1-a.svg"):
        (folder / name).write_bytes(b"")
    now = Drawings(folder)
    now.add(Figure(), ("loss",), "", "")  # the same file as Loss, on some file systems
    now.remove_others()
    kept = [".raysweep-files.json", ".tmp-host-1-a.svg", "Loss.png", "Loss.svg", "loss.png", "loss.svg"]
    assert names(folder) == [*kept, "mine.png", "mine.svg", "notes.jpg"]


def test_a_list_of_files_names_none_outside_its_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "figures").mkdir()
    listed = ["../mine.txt", str(tmp_path / "mine.txt"), "..", "", 3]
    (tmp_path / "figures" / ".raysweep-files.json").write_text(json.dumps(listed))
    Drawings(tmp_path / "figures").remove_others()
    assert names(tmp_path) == ["mine.txt"]


def test_nothing_drawn_and_no_folder(tmp_path):
    Drawings(tmp_path / "none").remove_others()
    assert list(tmp_path.iterdir()) == []


def test_a_picture_for_every_width_setting_and_metric(folder):
    tables = make_tables(datasets=("x",), metrics=("cka_linear", "rsa"), widths=(1, 2), n_layers=8, n_examples=8)
    (cell,) = cells_of(tables, ())
    assert len(pictures_of(cell, Drawings(folder))) == 2 + 2 + 2 * 2 + 2
    assert "agreement-tiny-x-rsa-n3-w2.png" in names(folder)


def test_captions_count_what_is_left_out_and_say_why_delta_is_undefined(folder):
    tables = tiny_tables({**STEADY, (0, 2): [2.0, float("nan"), 1.9, 2.3]})
    tables["dynamics"].loc[[4, 5], "delta"] = float("nan")
    (cell,) = cells_of(tables, ())
    loss, dynamics, agreement = pictures_of(cell, Drawings(folder))
    assert "highest for layers 0–1, 2.07 nats" in loss.alt
    assert "Up to 1 examples per window have no loss and are skipped." in loss.caption
    assert "smallest at layer 1" in dynamics.alt
    assert "At layers 4–5 δ is n/a (a similarity that it averages is undefined)." in dynamics.caption
    assert "ρ" not in agreement.alt


@pytest.mark.parametrize(("n_datasets", "wide"), [(1, None), (2, False), (8, False), (9, True)])
def test_the_overview_is_scrolled_where_it_has_three_columns(folder, n_datasets, wide):
    tables = make_tables(datasets=tuple("abcdefghi"[:n_datasets]), n_layers=8, n_examples=4)
    picture = overview(cells_of(tables, ()), Drawings(folder))
    assert (picture and picture.wide) == wide
