"""Figures in the page have a dark set of colours; the files stay as they were."""

from __future__ import annotations

import base64
import re

from page_reader import Page

from raysweep.report.dark import DARK, adaptive
from raysweep.report.plotting import PAPER

COLOUR = re.compile(r"#[0-9a-f]{6}")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def embedded(page):
    sources = (attrs["src"] for tag, attrs in Page(page).elements if tag == "img")
    return [base64.b64decode(source.partition(",")[2]).decode() for source in sources]


def test_every_colour_outside_heat_maps_has_a_dark_counterpart(page, changed_page):
    light = {colour.lower() for colour in DARK}
    for svg in [*embedded(page), *embedded(changed_page)]:
        drawn = svg.partition("</style>")[2]
        plain = re.sub(r"var\(--[0-9a-f]{6},(#[0-9a-f]{6})\)", "", drawn)
        assert not light & set(COLOUR.findall(plain.lower()))
        styles = re.findall(r' style="[^"]*"', plain)
        assert not {colour for style in styles for colour in COLOUR.findall(style)}
        assert "@media (prefers-color-scheme:dark)" in svg


def test_text_and_lines_are_as_legible_in_the_dark():
    faint = 3.0  # what is drawn fainter than this in the light may be so in the dark
    for light, dark in DARK.items():
        if light != PAPER:
            assert contrast(dark, DARK[PAPER]) >= min(faint, 0.9 * contrast(light, PAPER)), light


def test_files_next_to_the_page_stay_light(page):
    for path in (page.parent / "figures").glob("*.svg"):
        assert "prefers-color-scheme" not in path.read_text()


def test_other_colours_and_texts_stay():
    svg = '<svg a="b"><text style="fill: #0072b2">#0072b2</text><path style="fill: #123456" fill="#DFE3E8"/></svg>'
    assert adaptive(svg) == (
        '<svg a="b"><style>svg{--ffffff:x}</style>'.replace(
            "svg{--ffffff:x}",
            "svg{--dfe3e8:#dfe3e8;--0072b2:#0072b2;}"
            "@media (prefers-color-scheme:dark){svg{--dfe3e8:#333c46;--0072b2:#56b4e9;}}",
        )
        + '<text style="fill: var(--0072b2,#0072b2)">#0072b2</text>'
        '<path style="fill: #123456" fill="var(--dfe3e8,#dfe3e8)"/></svg>'
    )
