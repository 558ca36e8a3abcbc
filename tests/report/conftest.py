"""Reports drawn once for all tests, and drawing without files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from changed import changed_tables
from synthetic import make_hostile, make_provenance, make_tables

from raysweep.report import plotting
from raysweep.report.page import write_report


@pytest.fixture(scope="session")
def tables() -> dict[str, pd.DataFrame]:
    return make_tables(datasets=("sums", "choices"))


@pytest.fixture(scope="session")
def page(tables: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tables, make_provenance(), tmp_path_factory.mktemp("plain") / "report")


@pytest.fixture(scope="session")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(*make_hostile(), tmp_path_factory.mktemp("hostile") / "report")


@pytest.fixture(scope="session")
def changed_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    provenance = make_provenance(sets={"0,3": "ends"})
    return write_report(changed_tables(), provenance, tmp_path_factory.mktemp("changed") / "report")


@pytest.fixture
def without_files(monkeypatch):
    """Figures are drawn but not rendered, for tests of the page alone."""

    def save(figure, stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".svg"):
            stem.with_name(stem.name + suffix).write_bytes(b"<svg/>")
        return stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")

    monkeypatch.setattr(plotting, "save", save)
