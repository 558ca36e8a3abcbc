"""The report page: the answer, the evidence, and how it was made, as one self-contained HTML file with figures beside it.

`write_report` turns result tables and their provenance into the page. What it says is cells.py's and answer.py's, what it shows
page_tables.py's and pictures.py's; where the tables come from is tables.py's. Text from models, records, configs and names is
data: it reaches the page only through Jinja's autoescape or `Markup.format`, which escapes its arguments, and the page forbids
scripts and requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from raysweep.report import page_tables
from raysweep.report.along import Along, along_views, without_steps
from raysweep.report.answer import CARDS, Answer, answer_of, headline
from raysweep.report.attack import Published, attack_views, attacked_headline
from raysweep.report.cells import Cell, cells_of
from raysweep.report.change_pictures import change_pictures
from raysweep.report.change_sentences import change_sentences
from raysweep.report.changes import changes_table, estimates_table, verification_table
from raysweep.report.critical import critical_views
from raysweep.report.earlier import META, EarlierReport, MadeFrom, settings_of
from raysweep.report.health_words import health_sentences
from raysweep.report.page_tables import Table, records_table
from raysweep.report.pictures import Drawings, Picture, overview, pictures_of
from raysweep.report.removals import PREFIX, Removed, removed_view
from raysweep.report.spectrum import spectrum_pictures, spectrum_table
from raysweep.report.training import Adapted, Tuned, adapted_headline, adapted_view, tuned_view
from raysweep.report.words import duration, excerpt, moment
from raysweep.store.artifacts import publish_bytes
from raysweep.store.owned_files import keep_only

# Null bytes and other control characters, halves of surrogate pairs: HTML has no way to hold them.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_SAMPLES = 8  # examples whose generated texts are shown, a cell
_TEXTS = 30  # different texts that are shown of an example
_ARMS = ("attack", "answers")  # tables of trained arms, which no cell of a model and a data set shows
# The question that a page answers, by the first of these tables that it has.
_TITLES = {
    "substitution": "Which layers does fine-tuning depend on?",
    "adaptation": "Is it enough to train the critical layers?",
    "attack": "Which layers does a backdoor need?",
}
_TITLE = "Where do the layers' representations change?"
_NAMED = 12  # changes that are named next to a text they share


@dataclass(frozen=True)
class Provenance:
    """How a run was made, as the page prints it; texts are shown as they are, escaped."""

    name: str
    created: str
    command: str | None
    duration_s: float | None
    versions: Mapping[str, str]
    checkpoints: Sequence[Mapping[str, str]]
    datasets: Sequence[Mapping[str, str]]
    timings: Sequence[Mapping[str, str]]
    warnings: Sequence[str]
    failures: Sequence[str]
    config_yaml: str
    sets: Mapping[str, str] = field(default_factory=dict)  # the config's names of sets, by their layers
    accuracy: Sequence[Mapping[str, str]] = ()
    published_rho: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # by model and data set, from the config
    published_attack: Published = field(default_factory=dict)  # rates that were published, from the config
    shared: Sequence[Mapping[str, Any]] = ()  # what bases and tuned checkpoints have in common, from the plan
    results: str = ""  # a digest of all that decides the results; see earlier.py
    earlier: Sequence[EarlierReport] = ()  # reports of the same folder that were made with other settings

    @property
    def made_from(self) -> MadeFrom:
        """What the page is made from, as its head says."""
        return MadeFrom(self.results, self.created, settings_of(self.config_yaml))


def write_report(tables: Mapping[str, pd.DataFrame], provenance: Provenance, out: Path) -> Path:
    """Write figures/*.png, figures/*.svg and index.html under `out`; return the page's path.

    `tables` has result tables by name (substitution, similarity, dynamics, spectrum, correlation, health, generation); one that is missing
    or empty leaves its sections out. The page is published after its figures, by one rename, so that a half-written one is never
    read; then the figures of an earlier page that it does not use are removed.
    """
    tables = {name: table for name, table in tables.items() if len(table)}
    drawings = Drawings(out / "figures")
    along = along_views(tables, drawings)
    tables = without_steps(tables)
    of_cells = {name: table for name, table in tables.items() if name not in _ARMS}
    cells = cells_of(
        of_cells, provenance.checkpoints, provenance.sets, shared=provenance.shared, datasets=provenance.datasets
    )
    html = _template().render(
        provenance=provenance,
        meta=META,
        created=moment(provenance.created),
        duration=None if provenance.duration_s is None else duration(provenance.duration_s),
        title=next((title for name, title in _TITLES.items() if name in tables), _TITLE),
        headline=_headline(tables, cells),
        swept="substitution" in tables,
        cells=[_cell_view(cell, drawings, along.get((cell.model, cell.dataset))) for cell in cells],
        summary=page_tables.summary_table(cells) if len(cells) > CARDS else None,
        overview=overview(cells, drawings),
        rho_tables=page_tables.rho_tables(cells, provenance.published_rho),
        critical=critical_views(cells, drawings),
        attacks=attack_views(tables, provenance.published_attack, drawings),
        cautions=health_sentences(cells),
        checkpoints=records_table("Checkpoints", provenance.checkpoints),
        datasets=records_table("Data sets", provenance.datasets),
        timings=records_table("Timings", provenance.timings),
        accuracy=records_table("Estimated before the run, and measured", provenance.accuracy),
        versions=Table("Versions", ("package", "version"), list(provenance.versions.items()), words={0, 1}),
        stored=sorted(tables),
    )
    page = out / "index.html"
    publish_bytes(page, _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", html).encode())
    keep_only(out, [page.name])
    drawings.remove_others()
    return page


def _headline(tables: Mapping[str, pd.DataFrame], cells: Sequence[Cell]) -> list[Markup]:
    """The page's first sentences: of a sweep, or else of what was trained, and then of the base model."""
    found, trained = headline(cells), [*adapted_headline(cells), *attacked_headline(tables)]
    return [*found, *trained] if "substitution" in tables else [*trained, *found]


def _template() -> jinja2.Template:
    source = (resources.files("raysweep.report") / "page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(source)


@dataclass(frozen=True)
class _Samples:
    """Generated texts: (prompt, reference, [(interventions, their text)], texts not shown) an example; `more` examples are not."""

    examples: Sequence[tuple[str, str, Sequence[tuple[str, str]], int]]
    more: int
    windows: bool = True  # no other change has a text


@dataclass(frozen=True)
class _CellView:
    """What the template shows of a cell."""

    title: str
    anchor: str
    answer: Answer
    beyond: Sequence[Markup]
    pictures: Sequence[Picture]
    tables: Sequence[Table]
    samples: _Samples | None
    removed: Removed | None
    adapted: Adapted | None
    tuned: Tuned | None
    along: Along | None


def _cell_view(cell: Cell, drawings: Drawings, along: Along | None) -> _CellView:
    tables = [page_tables.windows_table(cell, width) for width in cell.shown_widths]
    tables += [page_tables.widths_table(cell)] if len(cell.shown_widths) < len(cell.widths) else []
    tables += [
        table for table in (changes_table(cell), estimates_table(cell), verification_table(cell)) if table is not None
    ]
    tables += [page_tables.dynamics_table(cell)] if cell.settings else []
    tables += [spectrum_table(cell)] if "spectrum" in cell.tables else []
    tables += [page_tables.correlation_table(cell)] if cell.correlations else []
    tables += [page_tables.health_table(cell)] if "health" in cell.tables else []
    pictures = [*pictures_of(cell, drawings), *change_pictures(cell, drawings), *spectrum_pictures(cell, drawings)]
    answer, beyond, samples = answer_of(cell), change_sentences(cell), _samples(cell)
    trained = adapted_view(cell, drawings), tuned_view(cell, drawings)
    return _CellView(
        cell.title, cell.anchor, answer, beyond, pictures, tables, samples, removed_view(cell), *trained, along
    )


def _samples(cell: Cell) -> _Samples | None:
    if "generation" not in cell.tables:
        return None
    generated = cell.tables["generation"]
    generated = generated[~generated["intervention"].str.startswith(PREFIX)]  # these have a part of their own
    if not len(generated):
        return None
    groups = [rows for _, rows in generated.groupby("example_id", sort=False)]
    examples = []
    for rows in groups[:_SAMPLES]:
        texts = [
            (_together([_named(cell, str(words)) for words in same["intervention"]]), excerpt(str(text)))
            for text, same in rows.groupby("text", sort=False)
        ]
        prompt, reference = (excerpt(str(rows[column].iloc[0])) for column in ("prompt", "reference"))
        examples.append((prompt, reference, texts[:_TEXTS], max(0, len(texts) - _TEXTS)))
    words = generated["intervention"].astype(str)
    others = words.str.match("set |attention |mlp |reverse ") | words.str.contains(" at ")
    return _Samples(examples, len(groups) - len(examples), not others.any())


def _named(cell: Cell, intervention: str) -> str:
    """An intervention with the name of its set, where it is one that has a name."""
    kind, _, rest = intervention.partition(" ")
    layers, _, share = rest.partition(" ")
    named = kind == "set" and layers in cell.sets
    return f"set {cell.sets[layers]} ({layers}) {share}".rstrip() if named else intervention


def _together(names: Sequence[str]) -> str:
    """Names in a row, the first of very many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
