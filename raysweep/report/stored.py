"""Where the report of a run is put: written in place in a folder, drawn aside and sent whole to an object store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from raysweep.report.page import Provenance, write_report
from raysweep.store.places import for_each, listing, put

if TYPE_CHECKING:
    from raysweep.store.places import Location


def write_stored_report(tables: Mapping[str, pd.DataFrame], provenance: Provenance, out: Location) -> Location:
    """`write_report` to a folder or an object store; returns the page's place.

    The page is sent after its figures; then figures there that it does not use, an earlier page's, are removed.
    """
    if isinstance(out, Path):
        return write_report(tables, provenance, out)
    with tempfile.TemporaryDirectory(prefix="raysweep-") as folder:
        page = write_report(tables, provenance, Path(folder))
        figures = {path.name: path for path in sorted((page.parent / "figures").glob("*"))}
        for_each(out, lambda name: put(figures[name], out / "figures" / name), figures)
        put(page, out / page.name)
    for name in listing(out / "figures"):
        if name not in figures:
            (out / "figures" / name).unlink(missing_ok=True)
    return out / page.name
