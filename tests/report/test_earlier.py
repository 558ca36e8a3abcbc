"""A report made with other settings is kept and linked to; the same settings keep nothing, and other people's files stay."""

from __future__ import annotations

import json

import pytest
from page_reader import Page
from synthetic import make_provenance, tiny_tables
from upath import UPath

from raysweep.report.earlier import differences, made_from, settings_of
from raysweep.report.stored import write_stored_report

LOSSES = {(0, 0): [1.0, 1.1, 0.9], (0, 2): [1.3, 1.2, 1.1], (1, 3): [1.8, 1.9, 1.7], (2, 4): [1.1, 1.2, 1.0]}
TABLES = {"substitution": tiny_tables(LOSSES)["substitution"]}  # a page with one figure


def config(limit, device="cpu"):
    return f"name: r\ndatasets:\n- name: sums\n  limit: {limit}\nexecution:\n  device: {device}\n"


def draw(out, results, text, day=1):
    made = make_provenance(created=f"2025-11-{day:02}T08:40:00+00:00", results=results, config_yaml=text)
    return write_stored_report(TABLES, made, out)


@pytest.fixture(params=["folder", "object store"])
def out(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "run" / "report"
    return UPath(f"memory://{tmp_path.name}/report")


@pytest.mark.usefixtures("without_files")
class TestKept:
    def test_other_settings_keep_the_report_that_they_replace(self, out):
        before = draw(out, "a" * 32, config(64)).read_bytes()
        (out / "notes.txt").write_text("mine")
        page = draw(out, "b" * 32, config(32), day=2)
        kept = out / "earlier" / "2025-11-01-aaaaaaaa"
        assert (kept / "index.html").read_bytes() == before
        assert {path.name for path in (kept / "figures").iterdir()} == {
            path.name for path in (out / "figures").iterdir()
        }
        assert not (kept / "notes.txt").exists()
        assert (out / "notes.txt").read_text() == "mine"
        text = page.read_text(encoding="utf-8")
        assert 'href="earlier/2025-11-01-aaaaaaaa/index.html"' in text
        assert "datasets.sums.limit: 64 there, 32 here" in text
        assert "2025-11-01 08:40 UTC" in text

    def test_the_same_settings_keep_nothing(self, out):
        draw(out, "a" * 32, config(64))
        page = draw(out, "a" * 32, config(64, device="cuda"), day=2)
        assert not (out / "earlier").exists()
        assert 'id="earlier"' not in page.read_text(encoding="utf-8")

    def test_a_report_whose_settings_come_back_is_kept_once(self, out):
        for day, results in enumerate(("a", "b", "a", "b", "a"), 1):
            page = draw(out, results * 32, config(results), day)
        kept = [path.name for path in (out / "earlier").iterdir() if (path / "index.html").exists()]
        assert kept == ["2025-11-04-bbbbbbbb"]
        assert page.read_text(encoding="utf-8").count('href="earlier/') == 1

    def test_a_kept_page_links_to_the_other_kept_ones(self, out):
        for day, results in enumerate("abc", 1):
            draw(out, results * 32, config(results), day)
        text = (out / "earlier" / "2025-11-02-bbbbbbbb" / "index.html").read_text(encoding="utf-8")
        assert 'href="../2025-11-01-aaaaaaaa/index.html"' in text

    def test_other_checkpoints_with_the_same_settings(self, out):
        draw(out, "a" * 32, config(64))
        text = draw(out, "b" * 32, config(64), day=2).read_text(encoding="utf-8")
        assert "The settings are the same; checkpoints, data or the version of raysweep differ." in text

    def test_files_that_raysweep_did_not_write_stay(self, out):
        draw(out, "a" * 32, config(1))
        draw(out, "b" * 32, config(2), day=2)
        mine = out / "earlier" / "2025-11-01-aaaaaaaa" / "mine.txt"
        mine.write_text("mine")
        draw(out, "a" * 32, config(1), day=3)
        assert mine.read_text() == "mine"
        assert not (mine.parent / "index.html").exists()


@pytest.mark.usefixtures("without_files")
class TestFolder:
    def test_a_page_that_does_not_say_what_it_is_made_from(self, tmp_path):
        page = draw(tmp_path, "", config(64))
        page.write_text(page.read_text(encoding="utf-8").replace("raysweep-report", "other"), encoding="utf-8")
        assert not (draw(tmp_path, "a" * 32, config(64)).parent / "earlier").exists()  # it shows the same config
        draw(tmp_path, "", config(32))
        text = draw(tmp_path, "a" * 32, config(64)).read_text(encoding="utf-8")
        assert "earlier/2025-11-01-unknown-settings/index.html" in text
        assert "An older version of raysweep wrote it without its settings." in text

    def test_killed_while_copying_nothing_is_kept_and_the_next_run_keeps_it(self, tmp_path, monkeypatch):
        from raysweep.report import earlier

        draw(tmp_path, "a" * 32, config(1))
        with monkeypatch.context() as patched:
            patched.setattr(earlier, "_copy_figure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                draw(tmp_path, "b" * 32, config(2), day=2)
        assert list((tmp_path / "earlier").iterdir()) == []
        assert made_from((tmp_path / "index.html").read_bytes()).results == "a" * 32
        draw(tmp_path, "b" * 32, config(2), day=2)
        assert (tmp_path / "earlier" / "2025-11-01-aaaaaaaa" / "index.html").exists()

    def test_markup_in_settings_stays_text(self, tmp_path):
        draw(tmp_path, "a" * 32, "name: r\ndatasets:\n- name: '\"><script>alert(1)</script>'\n  limit: 1\n")
        page = Page(draw(tmp_path, "b" * 32, "name: r\ndatasets: []\n", day=2))
        assert not any(tag == "script" for tag, _ in page.elements)
        assert '"><script>alert(1)</script>.limit: 1 there, not set here' in page.text


def test_settings_by_name_without_what_decides_no_results():
    text = "name: a\nstorage: b\nexecution: {chunk: 1}\nmodels: [{name: m, base: x, tuned: {d: y}}]\nstudies: {widths: [2, 3]}\n"
    assert settings_of(text) == {"models.m.base": "x", "models.m.tuned.d": "y", "studies.widths": "[2, 3]"}
    assert settings_of("a: [") == {}


def test_of_many_differences_the_first_are_named():
    before, now = ({f"s{i}": value for i in range(10)} for value in "ab")
    assert differences(before, now)[7:] == ["s7: a there, b here", "2 more settings"]


def test_a_page_that_says_nonsense_says_nothing():
    for content in ("", "[]", "{}", json.dumps({"results": "../..", "made": "", "settings": {}})):
        page = f"<meta name='raysweep-report' content='{content}'><style>".encode()
        assert made_from(page).results == ""
