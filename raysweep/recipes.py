"""Configs made for the user: the laboratory's demo, and the one behind `raysweep sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysweep.config import Config, parse_config

DEMO_SETS = {"sums": "gsm8k", "facts": "boolq", "quiz": "openbookqa", "orders": "dolly"}
DEMO_EXAMPLES = 64


def demo_config(storage: str) -> Config:
    """The whole study of the laboratory's model on each of its sets."""
    return parse_config(
        {
            "name": "demo",
            "models": [
                {"name": "tiny", "base": "lab://tiny", "tuned": {name: f"lab://tiny/{name}" for name in DEMO_SETS}}
            ],
            "datasets": [
                {"name": name, "path": f"lab://{name}/test", "format": form, "limit": DEMO_EXAMPLES}
                for name, form in DEMO_SETS.items()
            ],
            "studies": {
                "substitution": {"widths": [5], "generate": {"examples": 1, "tokens": 20}},
                "similarity": {"metrics": ["cka_linear"]},
                "correlation": {},
            },
            "storage": storage,
        }
    )


def sweep_config(
    base: str,
    tuned: str,
    data: str,
    *,
    format: str | None,
    wording: str,
    widths: list[int],
    limit: int | None = None,
    split: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    storage: str | None = None,
) -> Config:
    """The whole study of one pair on one data set; the format is that of the first record unless given."""
    if format is None:
        from raysweep.data.formats import detect_format
        from raysweep.data.records import read_records

        first = read_records(data, split=split, limit=1).records[0]
        format = "columns" if prompt and response else detect_format(first)
    name = _name(data if Path(data).stem not in ("test", "train") else str(Path(data).parent))
    dataset: dict[str, Any] = {"name": name, "path": data, "format": format, "limit": limit, "split": split}
    dataset |= {"prompt": prompt, "response": response}
    return parse_config(
        {
            "name": f"{_name(base)}-{name}",
            "models": [{"name": _name(base), "base": base, "tuned": {name: tuned}, "wording": wording}],
            "datasets": [{key: value for key, value in dataset.items() if value is not None}],
            "studies": {"substitution": {"widths": widths}, "similarity": {}, "correlation": {}},
            "storage": storage or f"runs/{_name(base)}-{name}",
        }
    )


def _name(source: str) -> str:
    """A name made of the last part of a path, hub id or laboratory name."""
    stem = Path(source.rstrip("/")).stem if "." in Path(source).name[1:] else Path(source.rstrip("/")).name
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem).strip("._-")
    return (clean or "data")[:48]  # two of them make the run's name
