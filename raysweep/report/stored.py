"""Where the report of a run is put: written in place in a folder, drawn in a temporary folder and sent to an object store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from raysweep.report.earlier import earlier_reports, forget_current, keep_earlier
from raysweep.report.page import Provenance, write_report
from raysweep.store.owned_files import keep_only, owned_files
from raysweep.store.places import for_each, put

if TYPE_CHECKING:
    from raysweep.store.places import Location


def write_stored_report(tables: Mapping[str, pd.DataFrame], provenance: Provenance, out: Location) -> Location:
    """`write_report` to a folder or an object store; returns the page's place.

    A report of other settings is kept first, and the page links to it; see earlier.py. The page is sent after its figures; then the
    figures of an earlier page that it does not use are removed.
    """
    made = provenance.made_from
    keep_earlier(out, made, provenance.config_yaml)
    page = _written(tables, replace(provenance, earlier=earlier_reports(out, made)), out)
    forget_current(out, made)
    return page


def _written(tables: Mapping[str, pd.DataFrame], provenance: Provenance, out: Location) -> Location:
    if isinstance(out, Path):
        return write_report(tables, provenance, out)
    with tempfile.TemporaryDirectory(prefix="raysweep-") as folder:
        page = write_report(tables, provenance, Path(folder))
        figures = {name: page.parent / "figures" / name for name in sorted(owned_files(page.parent / "figures"))}
        for_each(out, lambda name: put(figures[name], out / "figures" / name), figures)
        put(page, out / page.name)
    keep_only(out, [page.name])
    keep_only(out / "figures", figures)
    return out / page.name
