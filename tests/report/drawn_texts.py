"""Which texts a figure really draws, and which of them collide: recorded while matplotlib draws, for any figure."""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from raysweep.report.plotting import shipped_font


def drawn(figure):
    """Every text that is drawn with its box in pixels (left, bottom, right, top)."""
    found, original = [], Text.draw

    def draw(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            box = self.get_window_extent(renderer)
            found.append((self.get_text(), (box.x0, box.y0, box.x1, box.y1)))
        return original(self, renderer, *args, **kwargs)

    Text.draw = draw
    try:
        with shipped_font():
            FigureCanvasAgg(figure).draw()
    finally:
        Text.draw = original
    return found


def problems(figure):
    """Texts that overlap, and texts that leave the figure."""
    texts = drawn(figure)
    wide, high = figure.bbox.width, figure.bbox.height
    outside = [
        f"outside the figure: {text!r}"
        for text, (left, low, right, top) in texts
        if left < -0.5 or low < -0.5 or right > wide + 0.5 or top > high + 0.5
    ]
    apart = 0.5  # pixels
    overlapping = [
        f"{a!r} overlaps {b!r}"
        for (a, one), (b, two) in itertools.combinations(texts, 2)
        if min(one[2], two[2]) - max(one[0], two[0]) > apart and min(one[3], two[3]) - max(one[1], two[1]) > apart
    ]
    return outside + overlapping
