"""The site's pages: all in the navigation, links that lead somewhere, nothing loaded from elsewhere. `make docs` checks the rest."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import hooks
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(
    path
    for kind in ("*.md", "*.ipynb")
    for path in DOCS.rglob(kind)
    if "_reference" not in path.relative_to(DOCS).parts
)
OUTSIDE = [path for name in ("README.md", "CONTRIBUTING.md", "dashboards/README.md") if (path := ROOT / name).exists()]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def in_nav(entries):
    for entry in entries:
        if isinstance(entry, dict):
            for inner in entry.values():
                yield from in_nav(inner) if isinstance(inner, list) else [inner]
        else:
            yield entry


def links(page):
    return LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))


def anchors(page):
    """The names of a page's headings as GitHub makes them, and those that are written or generated."""
    text = CODE.sub(lambda found: found[0].strip("`") if "\n" not in found[0] else "", page.read_text(encoding="utf-8"))
    text = hooks.on_page_markdown(text) if page.is_relative_to(DOCS) else text
    headings = re.findall(r"^#+ (.+?)(?: \{.*\})?$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r"\{ ?#([^\s}]+)", text)) | set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


def test_every_page_is_in_the_navigation_once():
    nav = list(in_nav(hooks.expand(SITE["nav"], DOCS)))
    assert sorted(nav) == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_outside_the_site_lead_somewhere(page):
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"{path} is not there"
        assert not anchor or anchor in anchors(target), f"{path}#{anchor} is not a heading"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: str(page.relative_to(DOCS))
)
def test_links_between_pages_lead_to_pages_of_the_site(page):
    for path, _ in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is not there"
        assert target.is_relative_to(DOCS), f"{path} is not on the site; write its address, or name the file"


def test_a_pattern_of_the_navigation_becomes_its_files(tmp_path):
    (tmp_path / "design").mkdir()
    for name in ("b.md", "a.md"):
        (tmp_path / "design" / name).touch()
    nav = ["index.md", {"Design": ["design/*.md"]}, {"Nothing": ["nothing/*.md"]}]
    assert hooks.expand(nav, tmp_path) == ["index.md", {"Design": ["design/a.md", "design/b.md"]}]


def test_markers_become_generated_text():
    page = hooks.on_page_markdown("# A\n\n<!-- reference: metrics -->\n")
    assert page.startswith("# A\n\n### `ray_raysweep_")
    with pytest.raises(KeyError):
        hooks.on_page_markdown("<!-- reference: nothing -->")


def test_each_writer_has_its_page():
    for name in hooks.WRITERS:
        page = (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")
        assert hooks.MARKER.findall(page) == [name]


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://cdn.org/a.js"></script>', ["https://cdn.org/a.js"]),
        ('<link rel="stylesheet" href="//fonts.org/a.css">', ["//fonts.org/a.css"]),
        ('<img alt="a" src=http://a.org/b.png>', ["http://a.org/b.png"]),
        (
            '<a href="https://a.org">a</a><link rel="canonical" href="https://a.org"><script src="assets/a.js"></script>',
            [],
        ),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(html, found):
    assert hooks.external_assets(html) == found


def test_links_of_notebooks_lead_to_pages(caplog):
    page = SimpleNamespace(src_uri="tutorials/first.ipynb")
    made = SimpleNamespace(url_relative_to=lambda source: "../statistics.html")
    files = SimpleNamespace(get_file_from_path={"statistics.md": made}.get)
    html = '<a href="../statistics.md#rho">a</a> <a href="#top">b</a> <a href="https://a.org/b.md">c</a>'
    assert hooks.page_links(html, page, files) == html.replace("../statistics.md", "../statistics.html")
    assert caplog.records == []
    html = '<a href="gone.md">a</a>'
    assert hooks.page_links(html, page, files) == html
    assert "links to 'gone.md', which is not there" in caplog.text


def test_the_site_needs_no_network():
    assert SITE["theme"]["font"] is False
    assert {"search", "offline"} <= {
        name for each in SITE["plugins"] for name in (each if isinstance(each, dict) else [each])
    }
    assert SITE["extra"]["polyfills"] == ["javascripts/iframe-worker-shim.js"], (
        "else the plugin offline names one on the network"
    )
    for path in [*SITE["extra"]["polyfills"], *SITE["extra_css"], SITE["theme"]["favicon"]]:
        assert (DOCS / path).exists()
        assert "http" not in (DOCS / path).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")


def test_warnings_are_found_for_all_kinds_of_links():
    assert set(SITE["validation"]["nav"].values()) == set(SITE["validation"]["links"].values()) == {"warn"}
    command = re.findall(
        r"^docs:.*\n\t(.*mkdocs build.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert command
    assert "--strict" in command[0]
    assert "--quiet" not in command[0], "mkdocs then counts no warnings, and nothing is strict"
    assert "make docs" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
