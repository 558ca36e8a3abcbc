"""Text in figures: placed where it overlaps no other text, and cut to the room that it has.

Figures add their texts as if there were room. `settle`, which runs once a figure is complete, measures every text with the
renderer: it shortens headings that are too long, moves axes whose tick labels leave the figure, hides tick labels that would
touch, and puts each note at the first of its places that is free. A note with no free place is left out: captions and tables
have its number. Boxes are (left, bottom, right, top) in pixels of the figure's own resolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation, Text

Box = tuple[float, float, float, float]

_GAP = 1.5  # pixels between two texts, and between a text and the edge of the figure
_SMALLEST = 7.5  # points: a heading is not set smaller than this, but shortened
_POINT = 2.5  # points: half the width of a data point
_NOTES = "_raysweep_notes"  # attribute of a figure
_FITS = "_raysweep_fits"


class Place(NamedTuple):
    """A place for a note: the point it belongs to, the offset from it in points, and how the text is aligned there."""

    at: tuple[float, float]
    offset: tuple[float, float]
    ha: str
    va: str


class _Note(NamedTuple):
    axes: Axes
    text: Annotation
    places: Sequence[Place]
    hides: Sequence[tuple[float, float]]  # points of the data that the note should not cover
    most: float  # of the note's own area that may lie on them


def place_note(
    axes: Axes,
    text: str,
    places: Sequence[Place],
    *,
    hides: Sequence[tuple[float, float]] = (),
    most: float = 1.0,
    **style: Any,
) -> None:
    """Write `text` at the first of `places` where it covers no other text; leave it out if there is none.

    Of places that are free of text, the one that covers least of the points `hides` is taken; none of those in which points
    cover more than the share `most` of the note.
    """
    first = places[0]
    note = axes.annotate(
        text, first.at, xytext=first.offset, textcoords="offset points", ha=first.ha, va=first.va, zorder=6, **style
    )
    _listed(axes.figure, _NOTES).append(_Note(axes, note, places, hides, most))


def fit(text: Text, right: float | Text, *, smaller: bool = True) -> None:
    """Have `settle` cut `text` so that it ends before `right`: a share of the figure's width, or a text it must not touch."""
    _listed(text.figure, _FITS).append((text, right, smaller))


def write_row(
    figure: Figure, parts: Iterable[tuple[str, str]], left: float, y: float, *, right: float = 0.99, size: float = 8.5
) -> None:
    """Write (text, colour) parts one after the other, starting at (left, y) of the figure; smaller if they need more room."""
    row = [figure.text(left, y, text, color=colour, fontsize=size, va="center") for text, colour in parts]
    while size >= 5.5:
        across = left
        for text in row:
            text.set_x(across)
            text.set_fontsize(size)
            across += (_width(text) + 1.1 * size * figure.dpi / 72) / figure.bbox.width
        if across - 1.1 * size * figure.dpi / 72 / figure.bbox.width <= right:
            return
        size -= 0.5


def write_rows(figure: Figure, parts: Iterable[tuple[str, str]], left: float, y: float, *, line: float) -> int:
    """Write (text, colour) parts from (left, y) of the figure on, in rows that are `line` apart downwards; return how many rows."""
    across, row = left, 0
    for text, colour in parts:
        found = figure.text(across, y - row * line, text, color=colour, fontsize=8.5, va="center")
        width = _width(found) / figure.bbox.width
        if across > left and across + width > 0.99:
            across, row = left, row + 1
            found.set_position((left, y - row * line))
        across += width + 0.03
    return row + 1


def settle(figure: Figure) -> Figure:
    """Fit, move and place the texts of a complete figure; see the top of this module."""
    for text, right, smaller in _listed(figure, _FITS):
        _shorten(text, right, smaller)
    for _ in range(3):
        figure.draw_without_rendering()
        if not _make_room(figure):
            break
    _thin_ticks(figure)
    notes: list[_Note] = _listed(figure, _NOTES)
    own = {id(note.text) for note in notes}
    taken = [box_of(text) for text in drawn_texts(figure) if id(text) not in own]
    for note in notes:
        place = _free_place(figure, note, taken)
        if place is None:
            note.text.set_visible(False)
            continue
        note.text.xy = place.at
        note.text.xyann = place.offset
        note.text.set(ha=place.ha, va=place.va)
        taken.append(box_of(note.text))
    return figure


def drawn_texts(figure: Figure) -> Iterator[Text]:
    """Every text of a figure that is drawn and not empty; of tick labels those within the axes' limits."""
    from matplotlib.axis import Tick
    from matplotlib.text import Text

    ticks: set[int] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks |= {id(label) for label in tick_labels(axis)}
    waiting: list[Artist] = [figure]
    while waiting:
        artist = waiting.pop()
        if not artist.get_visible():
            continue
        if isinstance(artist, Text):
            if artist.get_text().strip():
                yield artist
        elif isinstance(artist, Tick):
            yield from (label for label in (artist.label1, artist.label2) if id(label) in ticks)
        else:
            waiting += artist.get_children()


def tick_labels(axis: Any) -> list[Text]:
    """The tick labels of an axis that are drawn, in order."""
    ticks = sorted(axis._update_ticks(), key=lambda tick: tick.get_loc()) if axis.get_visible() else []
    both = (label for tick in ticks for label in (tick.label1, tick.label2))
    return [label for label in both if label.get_visible() and label.get_text().strip()]


def box_of(text: Text) -> Box:
    """Where a text is drawn."""
    found = text.get_window_extent()
    return float(found.x0), float(found.y0), float(found.x1), float(found.y1)


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _listed(figure: Any, name: str) -> list[Any]:
    """A list that goes with a figure."""
    if not hasattr(figure, name):
        setattr(figure, name, [])
    found: list[Any] = getattr(figure, name)
    return found


def _width(text: Text) -> float:
    left, _, right, _ = box_of(text)
    return right - left


def _shorten(text: Text, right: float | Text, smaller: bool) -> None:
    """Set a text smaller, then cut its middle out, until it fits: a heading ends in the data set's name."""
    figure: Any = text.figure
    end: float = right * figure.bbox.width if isinstance(right, int | float) else box_of(right)[0] - 6
    room = end - box_of(text)[0]
    while smaller and _width(text) > room and float(text.get_fontsize()) > _SMALLEST:
        text.set_fontsize(max(_SMALLEST, float(text.get_fontsize()) - 0.5))
    whole = text.get_text()
    kept = len(whole)
    while _width(text) > room and kept > 3:
        kept = min(kept - 1, max(3, int(kept * room / _width(text)) + 1))
        head = (kept + 1) // 2
        text.set_text(f"{whole[:head].rstrip()}…{whole[len(whole) - (kept - head) :].lstrip()}")


def _make_room(figure: Figure) -> bool:
    """Move all axes inwards if tick or axis labels leave the figure; return whether they were moved."""
    wide, high = figure.bbox.width, figure.bbox.height
    boxes = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            texts = [*tick_labels(axis), axis.label]
            boxes += [box_of(text) for text in texts if text.get_visible() and text.get_text().strip()]
    if not boxes:
        return False
    left = max(0.0, _GAP - min(box[0] for box in boxes)) / wide
    right = max(0.0, max(box[2] for box in boxes) - (wide - _GAP)) / wide
    below = max(0.0, _GAP - min(box[1] for box in boxes)) / high
    if left + right + below == 0 or left + right > 0.6:
        return False
    for axes in figure.axes:
        x, y, w, h = axes.get_position().bounds
        scale, tall = 1 - left - right, 1 - below
        axes.set_position((left + scale * x, below + tall * y, scale * w, tall * h))
    return True


def _thin_ticks(figure: Figure) -> None:
    """Hide tick labels that would touch: of one axis every second, of two axes the one that comes later."""
    taken: list[Box] = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = tick_labels(axis)
            while len(labels) > 1 and any(_touch(box_of(a), box_of(b)) for a, b in itertools.pairwise(labels)):
                for label in labels[len(labels) % 2 :: 2] if len(labels) > 2 else labels[:1]:
                    label.set_visible(False)
                labels = tick_labels(axis)
            for label in labels:
                box = box_of(label)
                if any(_touch(box, other) for other in taken):
                    label.set_visible(False)
                else:
                    taken.append(box)


def _touch(a: Box, b: Box) -> bool:
    return overlap((a[0] - _GAP, a[1] - _GAP / 2, a[2] + _GAP, a[3] + _GAP / 2), b) > 0


def _free_place(figure: Figure, note: _Note, taken: Sequence[Box]) -> Place | None:
    """The place that covers least of what it should not, of those that touch no text and lie within the figure."""
    left, low, right, high = box_of(note.text)
    width, height, points = right - left, high - low, figure.dpi / 72
    data = note.axes.transData
    radius = _POINT * points
    marks = [(x - radius, y - radius, x + radius, y + radius) for x, y in map(data.transform, note.hides)]
    best: tuple[float, Place] | None = None
    for place in note.places:
        x, y = data.transform(place.at)
        x, y = x + place.offset[0] * points, y + place.offset[1] * points
        x -= {"left": 0.0, "center": width / 2, "right": width}[place.ha]
        y -= {"bottom": 0.0, "center": height / 2, "top": height}[place.va]
        box = (x, y, x + width, y + height)
        inside = x >= _GAP and y >= _GAP and x + width <= figure.bbox.width - _GAP and y + height <= figure.bbox.height
        if not inside or any(_touch(box, other) for other in taken):
            continue
        hidden = sum(overlap(box, other) for other in marks) / max(1.0, width * height)
        if hidden <= note.most and (best is None or hidden < best[0] - 1e-9):
            best = hidden, place
            if hidden == 0:
                break
    return None if best is None else best[1]
