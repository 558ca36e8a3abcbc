"""Draw single-pass.svg: which cells a sweep of all windows computes. Run it in this folder: `python single_pass.py`."""

from __future__ import annotations

from pathlib import Path

LAYERS, WIDTH = 8, 3
CELL, GAP, LEFT, TOP = 46, 6, 196, 96
COLOURS = {"tuned": "#2f6fb0", "base": "#b45f06", "shared": "none"}
MARKED = 4  # the layer whose two calls are explained


def rows() -> list[tuple[str, list[str]]]:
    """Each path through the layers: its label, and for each layer tuned, base, or shared with a path above."""
    paths = [("tuned model", ["tuned"] * LAYERS), ("base model", ["base"] * LAYERS)]
    for start in range(LAYERS - WIDTH + 1):
        stop = start + WIDTH
        before, inside = ["shared"] * start, ["shared" if start == 0 else "base"] * WIDTH
        paths.append((f"window {start}–{stop - 1}", [*before, *inside, *["tuned"] * (LAYERS - stop)]))
    return paths


def text(x: float, y: float, words: str, *, size: int = 15, anchor: str = "start", weight: int = 400) -> str:
    """Return an SVG text element."""
    style = f'font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


def drawing() -> str:
    """Return the complete SVG."""
    paths = rows()
    computed = sum(cell != "shared" for _, cells in paths for cell in cells)
    step = CELL + GAP
    wide, high = LEFT + LAYERS * step + 24, TOP + len(paths) * (26 + GAP) + 96
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img" '
        'font-family="system-ui, sans-serif" fill="#1d2733">',
        f"<title>One pass over {LAYERS} layers: {computed} layer applications instead of {len(paths) * LAYERS}</title>",
        f'<rect x="1" y="1" width="{wide - 2}" height="{high - 2}" rx="10" fill="#ffffff" stroke="#c5ced8"/>',
        text(
            20,
            34,
            f"{len(paths)} models, one pass, {computed} layer applications instead of {len(paths) * LAYERS}",
            size=17,
            weight=600,
        ),
    ]
    x = LEFT + MARKED * step - GAP / 2
    parts.append(
        f'<rect x="{x}" y="56" width="{step}" height="{high - 140}" rx="6" fill="#eef2f6" stroke="#7c8a99" '
        'stroke-dasharray="4 3"/>'
    )
    parts.append(text(20, TOP - 16, "layer", size=14))
    parts += [text(LEFT + i * step + CELL / 2, TOP - 16, str(i), size=14, anchor="middle") for i in range(LAYERS)]
    for number, (label, cells) in enumerate(paths):
        y = TOP + number * (26 + GAP)
        parts.append(text(20, y + 18, label))
        for layer, kind in enumerate(cells):
            x, border = LEFT + layer * step, COLOURS.get(kind)
            shape = f'x="{x}" y="{y}" width="{CELL}" height="26" rx="4"'
            dashed = 'fill="none" stroke="#aab4bf" stroke-dasharray="3 3"'
            parts.append(f"<rect {shape} " + (dashed if kind == "shared" else f'fill="{border}"') + "/>")
            if kind != "shared":
                parts.append(
                    f'<text x="{x + CELL / 2}" y="{y + 18}" font-size="12" text-anchor="middle" fill="#ffffff">{kind}</text>'
                )
    y = high - 62
    parts.append(
        text(20, y, f"At layer {MARKED}: one call of the tuned layer for every blue cell of the column, stacked,")
    )
    parts.append(text(20, y + 21, "and one call of the base layer for every orange cell."))
    parts.append(text(20, y + 44, "Dashed: not computed, because a path above has the same state.", size=14))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("single-pass.svg").write_text(drawing(), encoding="utf-8")
