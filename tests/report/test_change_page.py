"""What the page says and shows of changes that are no whole windows, and how it stays small when there are very many."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from changed import changed_tables
from page_reader import Page, written
from scipy import stats
from synthetic import HOSTILE, make_provenance, make_tables

from raysweep.report import page_tables
from raysweep.report.cells import cells_of
from raysweep.report.change_pictures import change_pictures
from raysweep.report.change_sentences import change_sentences
from raysweep.report.changes import changes_table, verification_table
from raysweep.report.page import write_report
from raysweep.report.pictures import Drawings, pictures_of

NAMES = {"0,3": "ends"}


def only_cell(tables):
    (cell,) = cells_of(tables, (), NAMES)
    return cell


def paired(a, b):
    """Mean of a − b and its interval, by Student's t, with two decimals."""
    d = np.asarray(a) - np.asarray(b)
    half = stats.t.ppf(0.975, len(d) - 1) * stats.sem(d)
    low, high = sorted([abs(d.mean()) - half, abs(d.mean()) + half])
    return f"{abs(d.mean()):.2f}", f"[{low:.2f}, {high:.2f}]"


def losses(tables, kind, layers, coefficient=1.0):
    rows = tables["substitution"]
    chosen = (rows["kind"] == kind) & (rows["layers"] == layers) & (rows["coefficient"] == coefficient)
    return rows[chosen].sort_values("example_id")["loss"].to_numpy()


def test_sentences_give_paired_differences() -> None:
    tables = changed_tables()
    tuned = losses(tables, "window", "")
    said = [" ".join(str(line.striptags()).split()) for line in change_sentences(only_cell(tables))]
    other, ends, modules, steps, reverse = said
    mean, limits = paired(losses(tables, "set", "1,2,5"), tuned)
    assert (
        other
        == f"Replacing the set 1–2, 5 with the base model's layers costs +{mean} nats {limits}. No window of 3 layers was swept to compare it with."
    )
    mean, limits = paired(losses(tables, "set", "0,3"), losses(tables, "window", "2-3"))
    own, _ = paired(losses(tables, "set", "0,3"), tuned)
    assert ends.startswith(f"Replacing the set ends (0, 3) with the base model's layers costs +{own} nats [")
    assert ends.endswith(
        f"Compared with the costliest window of 2 layers (2–3), that is {mean} nats less {limits}; the difference is significant."
    )
    mean, limits = paired(losses(tables, "mlp", "2-3"), losses(tables, "attention", "2-3"))
    whole, _ = paired(losses(tables, "window", "2-3"), tuned)
    assert modules.startswith(f"Replacing layers 2–3 completely costs +{whole} nats; their attention alone costs +")
    assert modules.endswith(f"The MLP costs {mean} nats less {limits}; the difference is significant.")
    half = losses(tables, "window", "2-3", 0.5) - tuned
    mean, _ = paired(half, 0.5 * (losses(tables, "window", "2-3") - tuned))
    assert steps.startswith(
        f"Moving layers 2–3 only part of the way to the base model (coefficient 0.5) costs +{half.mean():.2f} nats ["
    )
    assert f". That is less than in proportion to the coefficient (difference −{mean} [" in steps
    mean, _ = paired(losses(tables, "reverse", "2-3"), losses(tables, "reverse", ""))
    assert reverse.startswith(f"In the base model, the tuned model's layers 2–3 help most: −{mean} nats [")
    assert reverse.endswith(
        f"→ {losses(tables, 'reverse', '2-3').mean():.2f}; the tuned model's own is {tuned.mean():.2f})."
    )


def test_what_the_examples_do_not_tell_is_said_so() -> None:
    tables = changed_tables()
    rows = tables["substitution"]
    noise = np.where(rows["example_id"] % 2, 3.0, -3.0)
    rows["loss"] += np.where(rows["kind"].isin(["set", "mlp", "reverse"]) & (rows["layers"] != ""), noise, 0.0)
    said = " ".join(str(line.striptags()) for line in change_sentences(only_cell(tables)))
    assert said.count("the difference is not significant") == 2
    assert (
        "into the base model lowers the loss significantly for no window of 2 layers; layers 2–3 come closest: " in said
    )


@pytest.mark.parametrize(
    ("largest", "words"), [(3e-7, "differ by at most 3.0e-07 nats"), (0.0, "are identical to the last bit")]
)
def test_the_largest_verified_difference_is_said(largest: float, words: str) -> None:
    told = {"model": "m", "dataset": "d", "kind": "set", "coefficient": 1.0, "layers": "0,3"}
    figures = {"example_id": [0, 1], "loss": [1.0, 2.0], "recomputed": [1.0, 2.0], "difference": [0.0, -largest]}
    cell = only_cell({**changed_tables(), "verification": pd.DataFrame({**told, **figures})})
    said = str(change_sentences(cell)[-1].striptags())
    assert (
        said
        == f"One window or other change was recomputed by actually swapping the modules, on 2 examples: the losses {words}."
    )
    table = verification_table(cell)
    assert table is not None
    assert table.rows[0][:2] == ("set of layers", "ends (0, 3)")


def test_only_the_furthest_apart_of_many_verified_losses_are_shown() -> None:
    rows = [
        {
            "kind": "window",
            "coefficient": c,
            "layers": "1-2",
            "example_id": 0,
            "loss": 1.0,
            "recomputed": 1.0 + c,
            "difference": c,
        }
        for c in np.arange(1, 101) / 1e9
    ]
    table = verification_table(only_cell({"verification": pd.DataFrame(rows).assign(model="m", dataset="d")}))
    assert table is not None
    assert table.caption.endswith(". These are the 60 largest differences of 100; results/verification.parquet has all")
    assert (table.rows[0][-1], table.rows[-1][-1]) == ("1.0e-07", "4.1e-08")


def test_the_page_has_a_picture_of_each_kind_with_its_interval(tmp_path, without_files) -> None:
    cell = only_cell(changed_tables())
    pictures = change_pictures(cell, Drawings(tmp_path / "figures"))
    names = sorted(path.stem for path in (tmp_path / "figures").glob("*.svg"))
    assert names == ["modules-m-d-w2", "reverse-m-d-w2", "sets-m-d", "steps-m-d-sets", "steps-m-d-w2"]
    assert len(pictures) == 5
    assert all("95 % interval" in picture.caption for picture in pictures)
    assert "highest for 1–2, 5" in pictures[0].alt
    assert change_pictures(only_cell(make_tables(datasets=["sums"])), Drawings(tmp_path / "figures")) == []


@pytest.mark.parametrize("spoilt", ["untouched", "base", "nan", "infinite", "one example", "sets alone"])
def test_what_is_missing_or_not_finite_is_drawn_and_told(spoilt: str, tmp_path, request) -> None:
    if spoilt not in ("infinite", "untouched"):
        request.getfixturevalue("without_files")  # these two show that figures can be rendered
    tables = changed_tables()
    rows = tables["substitution"]
    whole = (rows["kind"] == "window") & (rows["coefficient"] == 1)
    kept = {
        "untouched": ~(whole & (rows["width"] == 0)),
        "base": ~((rows["kind"] == "reverse") & (rows["width"] == 0)),
        "one example": rows["example_id"] == 0,
        "sets alone": (rows["kind"] == "set") | (whole & rows["width"].isin([0, 6])),
    }
    if spoilt in ("nan", "infinite"):
        # all of every set, the attention of all layers, and one example of all else but the models themselves
        hurt = (rows["kind"].isin(["set", "attention"]) | (rows["example_id"] == 3)) & (rows["width"] > 0)
        rows.loc[hurt, "loss"] = np.nan if spoilt == "nan" else np.inf
    tables["substitution"] = rows[kept.get(spoilt, rows["loss"].notna() | True)]
    text = written(tables, tmp_path).text
    assert " nan" not in text
    assert (text.count("n/a") > 1) == (spoilt != "sets alone"), "next to the word's own explanation"
    assert ("help most" in text) == (spoilt in ("nan", "untouched"))
    assert ("This run swept no windows of layers. Its other results are below." in text) == (spoilt == "sets alone")
    assert "Which layers does fine-tuning depend on?" in text


def test_names_of_sets_reach_tables_and_texts_and_are_data(tmp_path, without_files) -> None:
    tables = changed_tables()
    (cell,) = cells_of(tables, (), {"0,3": HOSTILE})
    table = changes_table(cell)
    assert table is not None
    assert f"{HOSTILE} (0, 3)" in [row[1] for row in table.rows]
    told = {"model": "m", "dataset": "d", "example_id": 0, "prompt": "ask", "reference": "say"}
    words = ["none", "set 0,3", "set 0,3 at 0.5", "set 1,2,5"]
    tables["generation"] = pd.DataFrame({**told, "intervention": words, "text": ["a", "b", "c", "d"]})
    parsed = written(tables, tmp_path, sets={"0,3": HOSTILE})
    assert f"set {HOSTILE} (0,3) at 0.5c" in parsed.text
    assert "Texts generated under each change" in parsed.text
    assert "set 1,2,5d" in parsed.text
    assert not {"script"} & {tag for tag, _ in parsed.elements}


def test_very_many_texts_and_changes_that_share_one_are_cut(tmp_path, without_files) -> None:
    told = {"model": "m", "dataset": "d", "example_id": 0, "prompt": "ask", "reference": "say"}
    words = [f"window {n}" for n in range(60)]
    generation = pd.DataFrame({**told, "intervention": words, "text": ["same"] * 20 + [f"text {n}" for n in range(40)]})
    text = written({"generation": generation}, tmp_path).text
    assert "window 11 and 8 moresame" in text
    assert "text 28" in text
    assert "text 29" not in text
    assert "11 more texts of this example are in results/generation.parquet." in text


@pytest.fixture(scope="module")
def wide():
    tables = make_tables(
        datasets=["sums"], widths=range(1, 32), n_layers=32, n_examples=8, metrics=("cka_linear", "rsa")
    )
    rows = tables["substitution"]
    others = [rows[rows["width"] > 0].assign(kind=kind) for kind in ("attention", "mlp", "reverse")]
    steps = [rows[rows["width"] > 0].assign(coefficient=c) for c in (0.25, 0.5)]
    base = rows[rows["width"] == 0].assign(kind="reverse")
    return {**tables, "substitution": pd.concat([rows, *others, *steps, base], ignore_index=True)}


class TestManyWidths:
    def test_some_widths_are_shown_and_every_one_has_its_costliest_window(self, wide) -> None:
        cell = only_cell(wide)
        assert cell.shown_widths == [1, 2, 4, 8]
        table = page_tables.widths_table(cell)
        assert [row[0] for row in table.rows] == list(range(1, 32))
        assert [row[1] for row in table.rows] == list(range(32, 1, -1))
        assert table.caption.endswith("results/substitution.parquet has all 527 windows")
        assert cell.top(5).span in table.rows[4]
        assert len(page_tables.correlation_table(cell).rows) == 60
        assert (
            "These are the first 60 of 62 rows; results/correlation.parquet has all."
            in page_tables.correlation_table(cell).caption
        )
        assert {table.caption.rsplit(" ", 1)[1] for table in page_tables.rho_tables([cell, *self.other(wide)])} == {
            "1",
            "2",
            "4",
            "8",
        }

    @staticmethod
    def other(tables):
        named = {name: rows.assign(model="other") for name, rows in tables.items()}
        return cells_of(named, ())

    def test_few_widths_are_all_shown(self) -> None:
        (cell,) = cells_of(make_tables(datasets=["sums"], widths=(3, 4, 5, 6), n_examples=4), ())
        assert cell.shown_widths == [3, 4, 5, 6]

    def test_pictures_do_not_grow_with_widths(self, wide, tmp_path, without_files) -> None:
        cell = only_cell(wide)
        drawings = Drawings(tmp_path)
        assert len(pictures_of(cell, drawings)) == 4 + 2 + 2 * 4 + 2
        assert len(change_pictures(cell, drawings)) == 1 + 4 + 2 + 4 + 4
        assert (tmp_path / "triangle-tiny-sums-mlp.png").exists()

    def test_the_page_is_small(self, wide, tmp_path) -> None:
        started = time.monotonic()
        page = write_report(wide, make_provenance(), tmp_path / "report")
        assert page.stat().st_size < 5e6
        assert time.monotonic() - started < 120
        assert "These are the 60 costliest of" in Page(page).text
