"""The page shows what the tables say, escapes what comes from outside, and needs nothing but itself."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from page_reader import Page, written
from synthetic import HOSTILE, RTL, STEADY, make_hostile, make_provenance, make_tables, tiny_tables

from raysweep.report import plotting
from raysweep.report.page import write_report


class TestSections:
    def test_a_whole_run_has_every_section(self, page):
        parsed = Page(page)
        assert parsed.ids() == ["answer", "rho", "reading", "cell-1", "cell-2", "warnings", "provenance"]
        for text in ("How to read this", "Numbers", "Texts generated under each window", "How this was made"):
            assert text in parsed.text
        for text in ("3f9a1c77d2b04e55", "raysweep run configs/demo.yaml", "lab://tiny/sums", "took 47.3 s", "2.13.0"):
            assert text in parsed.text
        assert "(sums, layers 2–5; choices, layers 2–5): one dimension holds 71 % of the variance" in parsed.text
        assert "results/substitution.parquet" in parsed.text

    def test_figures_are_embedded_described_and_written(self, page):
        images = [attrs for tag, attrs in Page(page).elements if tag == "img"]
        assert len(images) == 2 * 4 + 1
        assert all(image["src"].startswith("data:image/svg+xml;base64,") and len(image["alt"]) > 40 for image in images)
        files = sorted(path.name for path in (page.parent / "figures").glob("[!.]*"))
        assert {path.rsplit(".", 1)[1] for path in files} == {"png", "svg"}
        assert len(files) == 2 * len(images)
        assert "loss-tiny-sums-w5.png" in files

    def test_only_substitution(self, tables, tmp_path, without_files):
        parsed = written({"substitution": tables["substitution"], "dynamics": tables["dynamics"].iloc[:0]}, tmp_path)
        assert parsed.ids() == ["answer", "reading", "cell-1", "cell-2", "provenance"]
        assert "Fine-tuning depends most on" in parsed.text
        assert "δ" not in parsed.text

    def test_only_similarity(self, tables, tmp_path, without_files):
        parsed = written({name: tables[name] for name in ("similarity", "dynamics")}, tmp_path)
        assert parsed.ids() == ["answer", "reading", "cell-1", "cell-2", "provenance"]
        assert "Where do the layers' representations change?" in parsed.text
        assert "The base model's representations change fastest at layers" in parsed.text
        assert "fine-tuning" not in parsed.text.lower()

    def test_nothing_at_all(self, tmp_path):
        assert "This run has no results" in written({}, tmp_path).text

    def test_many_cells_are_answered_in_a_table(self, tmp_path, without_files):
        tables = make_tables(models=("a", "b"), datasets=tuple("wxyz"), n_layers=8, n_examples=8)
        page = written(tables, tmp_path)
        assert "; the table has 2 more cases." in page.text
        links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
        assert links == [f"#cell-{n}" for n in range(1, 9)]
        assert set(page.ids()) >= {link[1:] for link in links}

    def test_one_cell_needs_no_table_of_correlations(self, tmp_path, without_files):
        row = {"spearman": -0.9, "ci_low": -1.0, "ci_high": -0.5, "p_value": 0.1}
        parsed = written(tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]}, correlation=row), tmp_path)
        assert "rho" not in parsed.ids()
        assert (
            "The base model alone points to the critical layers, but this may be chance (ρ = −0.90 [−1.00, −0.50], p = 0.100)."
            in parsed.text
        )

    def test_failures_stand_before_the_answer(self, tmp_path):
        failures = ["substitution 3-7 of tiny on sums: out of memory", "cka of tiny on sums: file gone"]
        parsed = written({}, tmp_path, failures=failures)
        assert "2 tasks failed" in parsed.text
        assert parsed.source.index(failures[0]) < parsed.source.index('id="answer"')


class TestSamples:
    def test_interventions_that_leave_the_text_alike_are_listed_together(self, tmp_path):
        texts = {"none": "one", "window 0-4": "two", "window 1-5": "one"}
        rows = [{"example_id": e, "intervention": i, "text": t} for e in range(9) for i, t in texts.items()]
        generation = pd.DataFrame(rows).assign(model="m", dataset="d", prompt="ask", reference="say")
        page = written({"generation": generation}, tmp_path)
        assert page.text.count("none, window 1-5one") == page.text.count("window 0-4two") == 8
        assert "1 more examples are in results/generation.parquet." in page.text


class TestUndefined:
    def test_every_undefined_value_says_why(self, hostile_page):
        text = Page(hostile_page).text
        same = "layer 0: every example has the same state"
        assert f"At layers 0–1 δ is n/a ({same}" in text
        assert f"Hatched: n/a ({same}" in text
        assert f"δ is undefined at layers 0–1: {same}" in text  # the correlation
        assert "n/a (no variance at all" in text  # a health measure
        assert " nan " not in text.lower()

    def test_losses_left_out_are_counted(self, hostile_page):
        assert "Up to 1 examples per window have no loss and are skipped." in Page(hostile_page).text

    def test_an_infinite_loss(self, tmp_path):
        windows = {**STEADY, (0, 2): [2.0, math.inf, 1.9, 2.3], (2, 4): [1.3, 1.4, 1.2, 1.6]}
        assert "inf" in written(tiny_tables(windows), tmp_path).text


class TestHostileText:
    def test_no_element_or_attribute_comes_from_data(self, tmp_path, without_files):
        hostile = Page(write_report(*make_hostile(), tmp_path / "hostile"))
        plain = Page(write_report(*make_hostile(markup="harmless"), tmp_path / "plain"))

        def shape(parsed):
            return [(tag, sorted(attrs)) for tag, attrs in parsed.elements]

        # The one choice that depends on a text is the class of a long table field.
        assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
        assert [x for x in shape(hostile) if x[0] != "td"] == [x for x in shape(plain) if x[0] != "td"]
        assert not {"script", "iframe", "object"} & {tag for tag, _ in hostile.elements}
        assert not [name for _, attrs in hostile.elements for name in attrs if name.startswith("on")]

    def test_texts_are_shown_as_they_are(self, hostile_page):
        parsed = Page(hostile_page)
        for before in ("run ", "record 7 was cut ", "CUDA out of memory ", "raysweep run '", "name: '", "big "):
            assert before + HOSTILE in parsed.text
        assert " ".join(RTL.split()) in parsed.text
        fields = [attrs for tag, attrs in parsed.elements if tag == "td" and "text" in attrs.get("class", "")]
        assert fields
        assert all(attrs.get("dir") == "auto" for attrs in fields)

    def test_nothing_outside_the_page_is_asked_for(self, page, hostile_page):
        for path in (page, hostile_page):
            parsed = Page(path)
            for _, attrs in parsed.elements:
                for name in {"src", "href", "srcset", "action", "data", "poster"} & set(attrs):
                    assert re.match(r"data:|#", attrs[name]), attrs[name][:80]
            assert parsed.styles
            assert not re.search(r"url\(|@import", "".join(parsed.styles))
            (policy,) = [attrs["content"] for tag, attrs in parsed.elements if attrs.get("http-equiv")]
            assert "default-src 'none'" in policy
            assert path.stat().st_size < 3e6


class TestWriting:
    def test_the_same_tables_make_the_same_page(self, tmp_path):
        tables = tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]})
        first = write_report(tables, make_provenance(), tmp_path / "report")
        before = first.read_bytes()
        assert write_report(tables, make_provenance(), tmp_path / "report").read_bytes() == before
        assert first == tmp_path / "report" / "index.html"

    def test_a_page_that_cannot_be_finished_leaves_the_old_one(self, tmp_path, monkeypatch):
        page = tmp_path / "index.html"
        page.write_text("old")
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "old.svg").write_text("old")

        def broken(figure, stem):
            raise OSError("disk full")

        monkeypatch.setattr(plotting, "save", broken)
        with pytest.raises(OSError, match="disk full"):
            write_report(tiny_tables({**STEADY, (0, 2): [2.0] * 4}), make_provenance(), tmp_path)
        assert page.read_text() == "old"
        assert [path.name for path in tmp_path.rglob("*.*")] == ["index.html", "old.svg"]

    def test_a_run_that_took_no_known_time_says_nothing_of_it(self, tmp_path):
        assert "started yesterday. A fingerprint" in written({}, tmp_path, created="yesterday", duration_s=None).text
        assert "started yesterday, took 1 min 23 s." in written({}, tmp_path, created="yesterday", duration_s=83.0).text

    def test_a_new_page_removes_the_figures_of_the_old_one_and_nothing_else(self, tmp_path, without_files):
        tables = tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3], (0, 1): [2.0] * 4, (1, 2): [1.5] * 4})
        figures = write_report(tables, make_provenance(), tmp_path).parent / "figures"
        others = ["elsewhere.svg", "notes.txt", ".tmp-host-1-a.png", "loss-m-d-w1.PNG.bak", "folder.png/old.png"]
        for name in others:
            (figures / name).parent.mkdir(exist_ok=True)
            (figures / name).write_text("kept")
        (tmp_path / "mine.png").write_text("kept")

        def files():
            return {path.relative_to(figures).as_posix() for path in figures.rglob("*") if path.is_file()}

        before = files()
        narrow = {"loss-m-d-w1.png", "loss-m-d-w1.svg", "agreement-m-d-cka_linear-n3-w1.png"}
        assert narrow < before
        substitution = tables["substitution"]
        write_report({**tables, "substitution": substitution[substitution["width"] != 1]}, make_provenance(), tmp_path)
        gone = {*narrow, "agreement-m-d-cka_linear-n3-w1.svg"}
        assert before - files() == gone
        assert {*others, "loss-m-d-w2.png", "loss-m-d-w2.svg"} <= files()
        assert (tmp_path / "mine.png").exists()
