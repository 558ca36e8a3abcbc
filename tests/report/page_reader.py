"""A page read back as a browser would."""

from __future__ import annotations

from html.parser import HTMLParser

from synthetic import make_provenance

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


def written(tables, tmp_path, **provenance):
    return Page(write_report(tables, make_provenance(**provenance), tmp_path / "report"))
