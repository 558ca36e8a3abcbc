"""The page says what the tables say, escapes what comes from outside, and needs nothing but itself."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import HOSTILE, RTL, make_hostile, make_provenance, make_tables
from scipy import stats

from raysweep.report import figures
from raysweep.report.page import write_report


class Page(HTMLParser):
    """A page as a browser sees it: elements with their attributes, and text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.pieces, self.styles = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        in_style = bool(self.elements) and self.elements[-1][0] == "style" and not self.styles
        (self.styles if in_style else self.pieces).append(data)

    def ids(self):
        return [attrs["id"] for _, attrs in self.elements if "id" in attrs]


def tiny_tables(window_losses, n_layers=6, correlation=None):
    """One model and data set from {(start, stop): losses}, with δ smallest at layer 1."""
    rows = [
        {"start": start, "stop": stop, "width": stop - start, "example_id": example, "loss": loss}
        for (start, stop), losses in window_losses.items()
        for example, loss in enumerate(losses)
    ]
    substitution = pd.DataFrame(rows).assign(kind="window", coefficient=1.0, estimator="exact", model="m", dataset="d")
    delta_L = [0.9, 0.5, 0.9, 0.95, 0.95, 0.99]
    cell = {"model": "m", "dataset": "d", "metric": "cka_linear", "neighbourhood": 3}
    dynamics = pd.DataFrame({"layer": range(n_layers), "delta": delta_L, "rank": stats.rankdata(delta_L, "ordinal")})
    tables = {"substitution": substitution, "dynamics": dynamics.assign(**cell, ci_low=math.nan, ci_high=math.nan)}
    if correlation is not None:
        usual = {"width": 2, "n_layers": 20, "partial_depth": -0.5, "kendall": -0.5, "precision_at_k": 0.5}
        tables["correlation"] = pd.DataFrame([{**cell, **usual, **correlation}])
    return tables


def written(tables, tmp_path, **provenance):
    return Page(write_report(tables, make_provenance(**provenance), tmp_path / "report"))


@pytest.fixture
def without_files(monkeypatch):
    """Figures are drawn but not rendered, for tests of the page alone."""

    def save(figure, stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".svg"):
            stem.with_name(stem.name + suffix).write_bytes(b"<svg/>")
        return stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")

    monkeypatch.setattr(figures, "save", save)


STEADY = {(0, 0): [1.0, 1.1, 0.9, 1.2], (0, 6): [3.0, 3.1, 2.8, 3.2]}


class TestAnswer:
    def test_the_costliest_window_and_its_paired_interval(self, tables, page):
        substitution = tables["substitution"].query("dataset == 'sums'")
        by_span = substitution.groupby(["start", "stop"])["loss"].apply(lambda losses: losses.to_numpy())
        costs = {span: losses - by_span[(0, 0)] for span, losses in by_span.items() if span[1] - span[0] == 5}
        start, stop = best = max(costs, key=lambda span: costs[span].mean())
        low, high = stats.t.interval(0.95, len(costs[best]) - 1, costs[best].mean(), stats.sem(costs[best]))
        separate = max((s for s in costs if s[1] <= start or s[0] >= stop), key=lambda span: costs[span].mean())
        less = costs[best] - costs[separate]
        near = stats.t.interval(0.95, len(less) - 1, less.mean(), stats.sem(less))
        text = Page(page).text
        assert (
            f"Putting layers {start}–{stop - 1} back to the base model costs most: +{costs[best].mean():.2f} nats "
            f"[{low:.2f}, {high:.2f}] per response token (loss {by_span[(0, 0)].mean():.2f} → {by_span[best].mean():.2f}; "
            f"with all 24 layers put back {by_span[(0, 24)].mean():.2f})." in text
        )
        assert (
            f"The next costliest window that shares no layer with it (layers {separate[0]}–{separate[1] - 1}) costs "
            f"{less.mean():.2f} [{near[0]:.2f}, {near[1]:.2f}] less: the two can be told apart on these 60 examples."
            in text
        )
        assert f"Fine-tuning leans most on layers {start}–{stop - 1} (sums)" in text

    def test_change_point_layers_and_correlation(self, tables, page):
        dynamics = tables["dynamics"].query("dataset == 'sums'")
        changes = sorted(dynamics.sort_values("delta")["layer"].head(5))
        row = tables["correlation"].query("dataset == 'sums'").iloc[0]
        text = Page(page).text
        assert f"representations change most at layers {changes[0]}–{changes[-1]} (smallest δ, linear CKA)" in text
        assert (
            f"ρ = {row.spearman:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}], p = {row.p_shift:.3f}, over 20 window "
            "centres: the smaller δ, the higher the loss.".replace("-", "−")
            in text
        )

    def test_two_windows_that_the_examples_do_not_tell_apart_are_both_named(self, tmp_path, without_files):
        alike = {(0, 2): [2.0, 2.4, 1.9, 2.5], (2, 4): [1.1, 1.2, 1.0, 1.3], (4, 6): [2.3, 2.0, 2.1, 2.2]}
        text = written(tiny_tables({**STEADY, **alike}), tmp_path).text
        assert "Fine-tuning leans most on layers 0–1 or 4–5" in text
        assert "the two cannot be told apart on these 4 examples" in text

    def test_no_window_that_costs_anything(self, tmp_path, without_files):
        idle = {(0, 2): [1.1, 1.0, 1.0, 1.1], (2, 4): [0.9, 1.2, 0.9, 1.1]}
        text = written(tiny_tables({**STEADY, **idle}), tmp_path).text
        assert "No window of layers has a cost that these examples tell from 0." in text
        assert "No window of 2 layers has a cost that these 4 examples tell from 0" in text

    def test_without_a_cost_there_is_nothing_to_tell(self, tmp_path, without_files):
        better = {(0, 2): [0.5, 0.7, 0.4, 0.6], (2, 4): [0.4, 0.4, 0.3, 0.5], (0, 6): [0.3, 0.3, 0.1, 0.3]}
        row = {"spearman": 0.8, "ci_low": 0.6, "ci_high": 0.9, "p_shift": 0.05}
        text = written(tiny_tables({**STEADY, **better}, correlation=row), tmp_path).text
        assert "Nothing to tell: no window has a cost" in text
        assert "no window's cost is told from 0, so there is no leaning for δ to tell" in text
        assert "so the base model's layers do better here than the tuned ones" in text
        assert "All 6 layers together: −0.80 nats" in text
        assert "misled" not in text

    def test_cases_that_lean_and_cases_that_do_not(self, tmp_path, without_files):
        leaning = tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]})["substitution"]
        idle = tiny_tables({**STEADY, (0, 2): STEADY[(0, 0)]})["substitution"].assign(dataset="idle")
        text = written({"substitution": pd.concat([leaning, idle])}, tmp_path).text
        assert "Fine-tuning leans most on layers 0–1 (d). In 1 of 2 cases no window of layers has a cost" in text

    @pytest.mark.parametrize(("dtype", "told"), [("float32", "can"), ("bfloat16", "cannot")])
    def test_half_precision_tells_nothing_apart_below_its_noise(self, tmp_path, without_files, dtype, told):
        base = np.array(STEADY[(0, 0)])
        noise = np.array([1e-5, -1e-5, 0, 1e-5])
        close = {(0, 2): base + 1, (2, 4): base + 1 - 5e-4 + noise}
        checkpoints = [{"model": "m", "role": "base", "dtype": dtype}]
        text = written(tiny_tables({**STEADY, **close}), tmp_path, checkpoints=checkpoints).text
        assert f"the two {told} be told apart" in text

    @pytest.mark.parametrize(
        ("correlation", "label", "reading"),
        [
            ((-0.8, -0.9, -0.6, 0.05), "The base model would have told", "whole interval is below 0, and"),
            ((-0.8, -0.9, -0.6, 0.3), "Points the same way, may be chance", "too often to rule chance out"),
            ((-0.8, -0.9, -0.6, math.nan), "Points the same way, may be chance", "without p"),
            ((-0.2, -0.5, 0.1, 0.01), "Cannot tell", "The interval includes 0"),
            ((0.5, 0.2, 0.7, 0.01), "The base model would have misled", "The whole interval is above 0"),
            ((-0.8, math.nan, math.nan, 0.01), "Cannot tell", "There is no interval"),
        ],
    )
    def test_readings_of_a_correlation(self, tmp_path, without_files, correlation, label, reading):
        row = dict(zip(("spearman", "ci_low", "ci_high", "p_shift"), correlation, strict=True))
        windows = {**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3], (2, 4): [1.3, 1.4, 1.2, 1.6]}
        text = written(tiny_tables(windows, correlation=row), tmp_path).text
        assert label in text
        assert reading in text

    def test_too_few_centres_for_a_p_value(self, tmp_path, without_files):
        row = {"spearman": -0.9, "ci_low": -1.0, "ci_high": -0.5, "p_shift": 0.125, "n_layers": 8}
        text = written(tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]}, correlation=row), tmp_path).text
        assert "8 centres are too few to rule chance out (p is never below 1/8)" in text

    def test_many_cells_are_answered_in_a_table(self, tmp_path, without_files):
        tables = make_tables(models=("a", "b"), datasets=tuple("wxyz"), n_layers=8, n_examples=8)
        page = written(tables, tmp_path)
        assert "and, in 2 more cases, those in the table below." in page.text
        links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
        assert links == [f"#cell-{n}" for n in range(1, 9)]
        assert set(page.ids()) >= {link[1:] for link in links}


class TestSections:
    def test_a_whole_run_has_every_section(self, page):
        parsed = Page(page)
        assert parsed.ids() == ["answer", "rho", "reading", "cell-1", "cell-2", "warnings", "provenance"]
        for text in ("How to read this", "The numbers", "Texts generated under each window", "How this was made"):
            assert text in parsed.text
        for text in ("3f9a1c77d2b04e55", "raysweep run configs/demo.yaml", "lab://tiny/sums", "in 47.3 s", "2.13.0"):
            assert text in parsed.text
        assert "layers 2–5: one dimension holds 71 % of the variance" in parsed.text
        assert "results/substitution.parquet" in parsed.text

    def test_figures_are_embedded_described_and_written(self, page):
        images = [attrs for tag, attrs in Page(page).elements if tag == "img"]
        assert len(images) == 2 * 4 + 1
        assert all(image["src"].startswith("data:image/svg+xml;base64,") and len(image["alt"]) > 40 for image in images)
        files = sorted(path.name for path in (page.parent / "figures").iterdir())
        assert {path.rsplit(".", 1)[1] for path in files} == {"png", "svg"}
        assert len(files) == 2 * len(images)
        assert "loss-tiny-sums-w5.png" in files

    def test_only_substitution(self, tables, tmp_path, without_files):
        parsed = written({"substitution": tables["substitution"], "dynamics": tables["dynamics"].iloc[:0]}, tmp_path)
        assert parsed.ids() == ["answer", "reading", "cell-1", "cell-2", "provenance"]
        assert "Fine-tuning leans most on" in parsed.text
        assert "δ" not in parsed.text

    def test_only_similarity(self, tables, tmp_path, without_files):
        parsed = written({name: tables[name] for name in ("similarity", "dynamics")}, tmp_path)
        assert parsed.ids() == ["answer", "reading", "cell-1", "cell-2", "provenance"]
        assert "Where do the layers' representations change?" in parsed.text
        assert "The base model's representations change most at layers" in parsed.text
        assert "fine-tuning" not in parsed.text.lower()

    def test_nothing_at_all(self, tmp_path):
        assert "Nothing was measured" in written({}, tmp_path).text

    def test_one_cell_needs_no_table_of_correlations(self, tmp_path, without_files):
        row = {"spearman": -0.9, "ci_low": -1.0, "ci_high": -0.5, "p_shift": 0.1}
        parsed = written(tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]}, correlation=row), tmp_path)
        assert "rho" not in parsed.ids()
        assert "The base model alone points the same way, but chance is not ruled out." in parsed.text

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
        assert "Up to 1 examples a window have no loss and are left out." in Page(hostile_page).text

    def test_without_the_tuned_model_the_cost_is_not_available(self, tmp_path, without_files):
        text = written(tiny_tables({(0, 2): [2.0, 2.2], (2, 4): [1.3, 1.4]}), tmp_path).text
        assert "what that costs is n/a (no loss of the tuned model to compare with)" in text
        assert "n/a (no loss of the tuned model)" in text

    def test_a_window_without_any_loss_and_one_example(self, tmp_path, without_files):
        text = written(tiny_tables({(0, 0): [1.0], (0, 2): [2.0], (2, 4): [math.nan], (0, 6): [3.0]}), tmp_path).text
        assert "n/a (none of 1 examples has a loss)" in text
        assert "[n/a: one example]" in text

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

    def test_figures_of_names_that_make_one_file_name_do_not_overwrite_each_other(self, tmp_path, without_files):
        first, second, third = (tiny_tables({**STEADY, (0, 2): [2.0] * 4})["substitution"] for _ in range(3))
        tables = [first.assign(model="a/b"), second.assign(model="a b"), third.assign(model="../A-B")]
        page = write_report({"substitution": pd.concat(tables)}, make_provenance(), tmp_path / "report")
        names = sorted(path.name for path in (page.parent / "figures").glob("loss-*.png"))
        assert names == ["loss-A-B-d-w2-3.png", "loss-a-b-d-w2-2.png", "loss-a-b-d-w2.png"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["report"]


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

        def broken(figure, stem):
            raise OSError("disk full")

        monkeypatch.setattr(figures, "save", broken)
        with pytest.raises(OSError, match="disk full"):
            write_report(tiny_tables({**STEADY, (0, 2): [2.0] * 4}), make_provenance(), tmp_path)
        assert page.read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["index.html"]

    @pytest.mark.parametrize(
        ("created", "shown"),
        [("2026-11-23T09:09:01.672+00:00", "made 2026-11-23 09:09 UTC"), ("yesterday", "made yesterday")],
    )
    def test_moments(self, tmp_path, created, shown):
        assert shown in written({}, tmp_path, created=created).text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(None, None), (47.31, "47.3 s"), (83.0, "1 min 23 s"), (7384.0, "2 h 03 min")]
    )
    def test_durations(self, tmp_path, seconds, text):
        shown = written({}, tmp_path, duration_s=seconds).text
        assert (f", in {text}." in shown) if text else (", in " not in shown)
