"""Figures that follow the page into dark mode: the colours of an SVG as variables, with a second set for dark pages.

Only the copy inside the page is changed; the files in report/figures stay light, as papers need them. An image follows the
reader's setting by a media query of its own. A viewer without media queries in images shows the light figure on its own paper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from raysweep.report.plotting import (
    ATTENTION_COLOUR,
    CHANGE_COLOUR,
    DELTA_COLOUR,
    FAINT,
    GRID,
    HATCH,
    INK,
    LOSS_COLOUR,
    MISSING,
    MLP_COLOUR,
    MUTED,
    PAPER,
    SHADE,
)

# Every colour that figures are drawn in, and its counterpart: as far from the dark paper as the first is from the light one.
DARK: Mapping[str, str] = {
    PAPER: "#1b2128",
    INK: "#e8ecf0",
    MUTED: "#a2adb8",
    FAINT: "#4a5561",
    GRID: "#2b333c",
    MISSING: "#333c46",
    HATCH: "#75808c",
    LOSS_COLOUR: "#56b4e9",
    DELTA_COLOUR: "#4cc9a4",
    CHANGE_COLOUR: "#f28e4b",
    ATTENTION_COLOUR: "#d98bb9",
    MLP_COLOUR: "#d9b44a",
    SHADE: "#c98a5c",
}

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_STYLE = re.compile(r' (?:style|fill|stroke)="[^"]*"')
_ROOT = re.compile(r"(<svg\b[^>]*>)")


def adaptive(svg: str) -> str:
    """An SVG of matplotlib's that takes its dark colours where the reader prefers dark pages.

    A colour without a counterpart stays: those of heat maps mean the same on any page.
    """
    used = {colour.lower() for style in _STYLE.findall(svg) for colour in _COLOUR.findall(style)}
    known = {light.lower(): dark for light, dark in DARK.items() if light.lower() in used}
    light = "".join(f"--{colour[1:]}:{colour};" for colour in known)
    dark = "".join(f"--{colour[1:]}:{other};" for colour, other in known.items())
    rules = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"

    def variable(found: re.Match[str]) -> str:
        colour = found[0].lower()
        return f"var(--{colour[1:]},{colour})" if colour in known else found[0]

    changed = _STYLE.sub(lambda style: _COLOUR.sub(variable, style[0]), svg)
    return _ROOT.sub(lambda root: root[0] + rules, changed, count=1)
