"""The report page: the answer in sentences made from the numbers, the evidence, and how it was made.

`write_report` turns result tables and their provenance into one self-contained HTML file with figures beside it. What is drawn
is figures.py's; where the tables come from is tables.py's. Text from models, records, configs and names is data: it reaches the
page only through Jinja's autoescape or `Markup.format`, which escapes its arguments, and the page forbids scripts and requests.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from raysweep.report import figures
from raysweep.report.figures import Window, interval, layers_text, mean_difference, metric_name, number, rows_of
from raysweep.store.artifacts import publish_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CARDS = 6  # beyond so many cells the answer is a table's, and the sentences move to each cell's own section
_SAMPLES = 8  # examples whose generated texts are shown, a cell

# How much a loss may differ from one batching to another, in nats: nothing is told apart by less.
_RESOLUTION = {"bfloat16": 1e-3, "float16": 1e-3}
_FINEST = 1e-5

_SIGNIFICANT = 0.05  # the p at which agreement is no longer put down to chance


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


def write_report(tables: Mapping[str, pd.DataFrame], provenance: Provenance, out: Path) -> Path:
    """Write figures/*.png, figures/*.svg and index.html under `out`; return the page's path.

    `tables` has result tables by name (substitution, similarity, dynamics, correlation, health, generation); one that is missing
    or empty leaves its sections out. The page is published last, by one rename, so that a half-written one is never read.
    """
    tables = {name: table for name, table in tables.items() if len(table)}
    cells = _cells(tables, provenance)
    drawings = _Drawings(out / "figures")
    html = _template().render(
        provenance=provenance,
        created=_moment(provenance.created),
        duration=_duration(provenance.duration_s),
        headline=_headline(cells),
        swept=any(cell.widths for cell in cells),
        cells=[_cell_view(cell, drawings) for cell in cells],
        summary=_summary_table(cells) if len(cells) > _CARDS else None,
        overview=_overview(cells, drawings),
        rho_tables=_rho_tables(cells),
        cautions=_cautions(cells),
        checkpoints=_records_table("Checkpoints", provenance.checkpoints),
        datasets=_records_table("Data sets", provenance.datasets),
        timings=_records_table("Timings", provenance.timings),
        versions=_Table("Versions", ("package", "version"), list(provenance.versions.items()), words={0, 1}),
        stored=sorted(tables),
    )
    page = out / "index.html"
    publish_bytes(page, html.encode("utf-8", "replace"))
    return page


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


# The run, cell by cell ------------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    """What δ depends on: the metric and how many layers a neighbourhood has."""

    metric: str
    neighbourhood: int

    def __str__(self) -> str:
        return f"{metric_name(self.metric)}, neighbourhood {self.neighbourhood}"


@dataclass(frozen=True)
class _Cell:
    """One model on one data set: its rows of every table, and how finely its losses can be told apart."""

    model: str
    dataset: str
    title: str
    anchor: str
    tables: Mapping[str, pd.DataFrame]
    resolution: float

    @cached_property
    def n_layers(self) -> int:
        ends = (("substitution", "stop", 0), ("dynamics", "layer", 1), ("similarity", "layer_i", 1))
        return max((int(self.tables[t][c].max()) + more for t, c, more in ends if t in self.tables), default=0)

    @cached_property
    def paired(self) -> pd.DataFrame:
        return figures.paired_losses(self.tables["substitution"]) if "substitution" in self.tables else pd.DataFrame()

    @cached_property
    def windows(self) -> pd.DataFrame:
        return figures.window_losses(self.paired, self.n_layers)

    @cached_property
    def widths(self) -> list[int]:
        """The widths swept, in the order in which the table has them."""
        if "substitution" not in self.tables:
            return []
        swept = set(self.windows.loc[self.windows["role"] == "window", "width"])
        return [int(width) for width in self.tables["substitution"]["width"].dropna().unique() if width in swept]

    @cached_property
    def metrics(self) -> list[str]:
        if "similarity" not in self.tables:
            return []
        return [str(metric) for metric in self.tables["similarity"]["metric"].unique()]

    @cached_property
    def settings(self) -> list[_Setting]:
        if "dynamics" not in self.tables:
            return []
        pairs = self.tables["dynamics"][["metric", "neighbourhood"]].drop_duplicates()
        return [_Setting(str(row.metric), int(row.neighbourhood)) for row in rows_of(pairs)]

    def top(self, width: int | None = None) -> Window | None:
        """The costliest window of a width (the first one swept, unless given)."""
        width = width or next(iter(self.widths), None)
        return None if width is None else figures.costliest(self.windows, width)

    def leans(self, width: int) -> bool:
        """Whether the costliest window of a width has a cost that the examples tell from 0."""
        top = self.top(width)
        return top is not None and top.cost_low > self.resolution

    def dynamics(self, setting: _Setting) -> pd.DataFrame:
        rows = self.tables["dynamics"]
        chosen = (rows["metric"] == setting.metric) & (rows["neighbourhood"] == setting.neighbourhood)
        return rows[chosen].sort_values("layer")

    def similarity(self, metric: str) -> pd.DataFrame:
        return self.tables["similarity"][self.tables["similarity"]["metric"] == metric]

    def correlations(self) -> list[_Correlation]:
        if "correlation" not in self.tables:
            return []
        rows = self.tables["correlation"][[field.name for field in dataclasses.fields(_Correlation)]]
        return [_Correlation(*row) for row in rows_of(rows)]

    def correlation(self, setting: _Setting, width: int) -> _Correlation | None:
        return next((c for c in self.correlations() if (c.setting, c.width) == (setting, width)), None)

    def delta_reason(self, setting: _Setting, layer: int) -> str:
        """Why δ of a layer is NaN: the reason given for a similarity that it is the mean of."""
        if setting.metric in self.metrics:
            rows = self.similarity(setting.metric)
            near = (rows["layer_i"] == layer) & ((rows["layer_j"] - layer).abs() <= setting.neighbourhood // 2)
            for reason in rows.loc[near, "reason"].dropna():
                return str(reason)
        return "a similarity it is the mean of is undefined"

    def rho_reason(self, correlation: _Correlation) -> str:
        """Why a correlation is NaN, in words, as far as the tables tell."""
        if correlation.setting in self.settings:
            rows = self.dynamics(correlation.setting)
            undefined = rows.loc[rows["delta"].isna(), "layer"].astype(int).to_list()
            if undefined:
                reason = self.delta_reason(correlation.setting, undefined[0])
                return f"δ is undefined at {layers_text(undefined)}: {reason}"
        if self.windows["loss"].isna().any():
            return "some window has no loss"
        return "δ or the loss is the same at all centres"


@dataclass(frozen=True)
class _Correlation:
    """A row of the correlation table."""

    metric: str
    neighbourhood: int
    width: int
    n_layers: int
    spearman: float
    ci_low: float
    ci_high: float
    p_shift: float
    partial_depth: float
    kendall: float
    precision_at_k: float

    @property
    def setting(self) -> _Setting:
        return _Setting(self.metric, self.neighbourhood)

    @property
    def limits(self) -> str:
        return interval(self.ci_low, self.ci_high)

    @property
    def p(self) -> str:
        return "p n/a" if math.isnan(self.p_shift) else f"p = {self.p_shift:.3f}"


def _cells(tables: Mapping[str, pd.DataFrame], provenance: Provenance) -> list[_Cell]:
    """Every model and data set that some table has, in order of appearance."""
    found = dict.fromkeys(
        (str(row.model), str(row.dataset))
        for table in tables.values()
        for row in rows_of(table[["model", "dataset"]].drop_duplicates())
    )
    one_model = len({model for model, _ in found}) == 1
    cells = []
    for place, (model, dataset) in enumerate(found):
        rows = {name: t[(t["model"] == model) & (t["dataset"] == dataset)] for name, t in tables.items()}
        dtypes = [record.get("dtype", "") for record in provenance.checkpoints if record.get("model") == model]
        cells.append(
            _Cell(
                model=model,
                dataset=dataset,
                title=dataset if one_model and len(found) > 1 else f"{model} · {dataset}",
                anchor=f"cell-{place + 1}",
                tables={name: part for name, part in rows.items() if len(part)},
                resolution=max((_RESOLUTION.get(dtype, _FINEST) for dtype in dtypes), default=_FINEST),
            )
        )
    return cells


# The answer, in sentences ---------------------------------------------------------------------------------------------

_Verdict = Literal["told", "maybe", "unclear", "misled", "idle"]

# As the headline says it after "in 3 of 4 data sets", and as a label.
_VERDICTS: Mapping[_Verdict, tuple[str, str]] = {
    "told": ("the base model alone would have told", "the base model would have told"),
    "maybe": (
        "the base model alone points the same way, but chance is not ruled out",
        "points the same way, may be chance",
    ),
    "unclear": ("these examples cannot tell whether the base model alone would have told", "cannot tell"),
    "misled": ("the base model alone would have misled", "the base model would have misled"),
    "idle": ("there is nothing for the base model to tell", "nothing to tell: no window has a cost"),
}


def _verdict(cell: _Cell, found: _Correlation) -> _Verdict:
    """Whether the base model would have told.

    `told` needs both the interval (over examples) wholly below 0 and p ≤ 0.05 (over shifts along the layers); where no
    window's cost is told from 0, ρ ranks differences that are no leaning.
    """
    if not cell.leans(found.width):
        return "idle"
    if found.ci_high < 0:
        return "told" if found.p_shift <= _SIGNIFICANT else "maybe"
    return "misled" if found.ci_low > 0 else "unclear"


@dataclass(frozen=True)
class _Answer:
    """What the numbers of one cell say, for its first width and setting."""

    sentences: Sequence[Markup]
    verdict: _Verdict | None

    @property
    def label(self) -> str:
        return _VERDICTS[self.verdict][1] if self.verdict else ""


def _answer(cell: _Cell) -> _Answer:
    setting, first = next(iter(cell.settings), None), next(iter(cell.widths), None)
    sentences = [s for width in cell.widths for s in _cost_sentences(cell, width, brief=width != first)]
    if setting is not None:
        sentences.append(_change_sentence(cell, setting))
    found = cell.correlation(setting, first) if setting and first else None
    if found is not None:
        sentences.append(_rho_sentence(cell, found))
    return _Answer(sentences, _verdict(cell, found) if found else None)


def _cost_sentences(cell: _Cell, width: int, brief: bool) -> list[Markup]:
    """Which window costs most and whether the examples tell it apart from the others; `brief`: the first alone."""
    top = cell.top(width)
    span = "one layer" if width == 1 else f"{width} layers"
    if top is None:
        return [Markup("The loss with {} put back is n/a (no example has a loss).").format(span)]
    if math.isnan(top.cost):
        text = "Putting <strong>{}</strong> back to the base model gives the highest loss, {} nats; what that costs is n/a ({})."
        return [Markup(text).format(top.name, number(top.loss), "no loss of the tuned model to compare with")]
    decimals = _decimals(top.cost_low, top.cost_high)
    cost = Markup("<strong>{} nats</strong> {}").format(number(top.cost, decimals, signed=True), _limits(top, decimals))
    if not cell.leans(width):
        text = (
            "<strong>No window of {}</strong> has a cost that these {} examples tell from 0; the costliest is {}: {}."
        )
        return [Markup(text).format(span, top.examples, top.name, cost), *_whole_sentence(cell)]
    if brief:
        return [Markup("Of windows of {}, {} costs most: {}.").format(span, top.name, cost)]
    whole = cell.windows.loc[cell.windows["role"] == "all", "loss"].dropna()
    first = Markup(
        "Putting <strong>{}</strong> back to the base model costs most: {} per response token (loss {} → {}{})."
    ).format(
        top.name,
        cost,
        number(top.loss - top.cost, decimals),
        number(top.loss, decimals),
        f"; with all {cell.n_layers} layers put back {number(whole.iloc[0], decimals)}" if len(whole) else "",
    )
    rival = _rival(cell, top)
    return [first] if rival is None else [first, _told_apart(top, rival)]


def _whole_sentence(cell: _Cell) -> list[Markup]:
    """What all layers cost together, for a cell in which no window alone does."""
    for whole in figures.windows_of(cell.windows[cell.windows["role"] == "all"]):
        decimals = _decimals(whole.cost_low, whole.cost_high)
        text = "All {} layers together: {} nats {}{}."
        better = ", so the base model's layers do better here than the tuned ones" if whole.cost_high < 0 else ""
        cost = number(whole.cost, decimals, signed=True)
        return [Markup(text).format(cell.n_layers, cost, _limits(whole, decimals), better)]
    return []


@dataclass(frozen=True)
class _Rival:
    """The window that the costliest is compared with: the next costliest that shares no layer with it, if there is one.

    mean, low, high: the paired difference (costliest − rival) on the same examples, with its interval.
    """

    window: Window
    separate: bool
    mean: float
    low: float
    high: float
    told_apart: bool
    alike: Sequence[Window]  # all windows that the examples do not tell apart from the costliest


def _rival(cell: _Cell, top: Window) -> _Rival | None:
    swept = cell.windows[(cell.windows["role"] == "window") & (cell.windows["width"] == top.width)]
    others = [w for w in figures.windows_of(swept) if w.start != top.start and not math.isnan(w.cost)]
    if not others:
        return None
    others.sort(key=lambda window: -window.cost)
    top_E = cell.paired[(top.start, top.stop)]
    differences = {window: mean_difference(top_E, cell.paired[(window.start, window.stop)]) for window in others}
    separate = [window for window in others if window.stop <= top.start or window.start >= top.stop]
    chosen = (separate or others)[0]
    mean, low, high = differences[chosen]
    alike = [window for window in others if not differences[window][1] > cell.resolution]
    return _Rival(chosen, bool(separate), mean, low, high, chosen not in alike, alike)


def _told_apart(top: Window, rival: _Rival) -> Markup:
    decimals = _decimals(rival.low, rival.high)
    text = "The next costliest window{} ({}) costs {} {} less: the two <strong>{} be told apart</strong> on these {} examples."
    sentence = Markup(text).format(
        " that shares no layer with it" if rival.separate else "",
        rival.window.name,
        number(rival.mean, decimals),
        interval(rival.low, rival.high, decimals),
        "can" if rival.told_apart else "cannot",
        top.examples,
    )
    if rival.told_apart and rival.alike:
        names = ", ".join(window.name.split()[1] for window in rival.alike[:5])
        more = f" and {len(rival.alike) - 5} more" if len(rival.alike) > 5 else ""
        sentence += Markup(" Not told apart from it: {}{}.").format(names, more)
    return sentence


def _change_sentence(cell: _Cell, setting: _Setting) -> Markup:
    changes = figures.change_points(cell.dynamics(setting))
    if not changes:
        reason = cell.delta_reason(setting, int(cell.dynamics(setting)["layer"].iloc[0]))
        return Markup("Where the base model's representations change is n/a ({}).").format(reason)
    text = "The base model's representations change most at <strong>{}</strong> (smallest δ, {}){}."
    inside = ""
    if (top := cell.top()) and cell.leans(top.width):
        within = sum(top.start <= layer < top.stop for layer in changes)
        inside = f"; {within or 'none'} of these {len(changes)} lie in the costliest window"
    return Markup(text).format(layers_text(changes), metric_name(setting.metric), inside)


def _rho_sentence(cell: _Cell, found: _Correlation) -> Markup:
    """ρ with its interval and p, and what they allow to be said."""
    if math.isnan(found.spearman):
        return Markup("Whether δ and the loss go together is n/a ({}).").format(cell.rho_reason(found))
    few, n = found.n_layers * _SIGNIFICANT < 1, found.n_layers
    verdict = _verdict(cell, found)
    if verdict == "idle":
        reading = "But no window's cost is told from 0, so there is no leaning for δ to tell."
    elif math.isnan(found.ci_low):
        reading = "There is no interval, so how sure this is cannot be said."
    elif verdict == "unclear":
        reading = "The interval includes 0: these examples cannot tell whether δ and the loss go together."
    elif verdict == "misled":
        reading = "The whole interval is above 0: choosing layers by small δ would have missed the costly ones."
    elif verdict == "told":
        reading = "The whole interval is below 0, and curves shifted along the layers seldom agree as well."
    elif math.isnan(found.p_shift):
        reading = "The interval is below 0; without p, a chance agreement of two smooth curves is not ruled out."
    elif few:
        reading = f"The interval is below 0, but {n} centres are too few to rule chance out (p is never below 1/{n})."
    else:
        reading = "The interval is below 0, but shifted curves agree as well too often to rule chance out."
    way = "higher" if found.spearman < 0 else "lower"
    text = "<strong>ρ = {}</strong> {}, {}, over {} window centres: the smaller δ, the {} the loss. {}"
    return Markup(text).format(number(found.spearman), found.limits, found.p, found.n_layers, way, reading)


def _headline(cells: Sequence[_Cell]) -> list[Markup]:
    """The page's first sentences: where fine-tuning leans, and whether the base model would have told."""
    swept = [cell for cell in cells if cell.widths]
    if swept:
        return [*_where_it_leans(swept), *_whether_it_told(swept)]
    changes = [(cell, figures.change_points(cell.dynamics(cell.settings[0]))) for cell in cells if cell.settings]
    places = [(cell, layers_text(layers)) for cell, layers in changes if layers]
    return [Markup("The base model's representations change most at {}.").format(_places(places))] if places else []


def _where_it_leans(swept: Sequence[_Cell]) -> list[Markup]:
    leaning = [(cell, where) for cell in swept if (where := _leans_on(cell))]
    if not leaning:
        return [Markup("No window of layers has a cost that these examples tell from 0.")]
    lines = [Markup("Fine-tuning leans most on {}.").format(_places(leaning))]
    if len(leaning) < len(swept):
        text = "In <strong>{} of {}</strong> cases no window of layers has a cost that the examples tell from 0."
        lines.append(Markup(text).format(len(swept) - len(leaning), len(swept)))
    return lines


def _whether_it_told(swept: Sequence[_Cell]) -> list[Markup]:
    verdicts = [verdict for cell in swept if (verdict := _answer(cell).verdict) not in (None, "idle")]
    many = Markup("in <strong>{} of {}</strong> cases {}")
    said = [
        many.format(verdicts.count(verdict), len(verdicts), text) if len(verdicts) > 1 else Markup(text)
        for verdict, (text, _) in _VERDICTS.items()
        if verdict in verdicts
    ]
    line = Markup("; ").join(said)
    return [line[:1].upper() + line[1:] + "."] if said else []


def _places(found: Sequence[tuple[_Cell, str]]) -> Markup:
    """Layers with the cell they were found in, for the first cells; the table names the rest."""
    each = [Markup("<strong>{}</strong> (<bdi>{}</bdi>)").format(layers, cell.title) for cell, layers in found[:_CARDS]]
    more = Markup(" and, in {} more cases, those in the table below").format(len(found) - _CARDS)
    return Markup(", ").join(each) + (more if len(found) > _CARDS else "")


def _leans_on(cell: _Cell) -> str | None:
    """The costliest window, and its rival where they are not told apart; None where no cost is told from 0."""
    top = cell.top()
    if top is None or not cell.leans(top.width):
        return None
    rival = _rival(cell, top)
    if rival is None or rival.told_apart or not rival.separate:
        return top.name
    return f"{top.name} or {rival.window.name.split()[1]}"


# The evidence ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """A table to show; `words` are the columns that hold text, the others hold figures."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: Collection[int] = ()


@dataclass(frozen=True)
class _Picture:
    """A figure, embedded."""

    source: str
    alt: str
    caption: str
    wide: bool = False  # too wide for a phone: to be scrolled there


@dataclass(frozen=True)
class _Samples:
    """Generated texts: (prompt, reference, [(interventions, their text)]) an example; `more` examples are not shown."""

    examples: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]
    more: int


@dataclass(frozen=True)
class _CellView:
    """What the template shows of a cell."""

    title: str
    anchor: str
    answer: _Answer
    pictures: Sequence[_Picture]
    tables: Sequence[_Table]
    samples: _Samples | None


class _Drawings:
    """Writes figures under one folder, each under a name of its own, and embeds them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()

    def add(self, figure: Figure, name: Iterable[object], alt: str, caption: str) -> _Picture:
        stem = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", str(part)).strip("-.")[:48] or "x" for part in name)
        names = itertools.chain([stem], (f"{stem}-{copy}" for copy in itertools.count(2)))
        free = next(candidate for candidate in names if candidate.lower() not in self._taken)
        self._taken.add(free.lower())  # some file systems do not tell upper case from lower
        _, svg = figures.save(figure, self._folder / free)
        data = base64.b64encode(svg.read_bytes()).decode("ascii")
        return _Picture(f"data:image/svg+xml;base64,{data}", alt, caption)


def _cell_view(cell: _Cell, drawings: _Drawings) -> _CellView:
    pictures = [
        *(_loss_picture(cell, width, drawings) for width in cell.widths),
        *(_dynamics_picture(cell, setting, drawings) for setting in cell.settings),
        *(_agreement_picture(cell, s, width, drawings) for s in cell.settings for width in cell.widths),
        *(_similarity_picture(cell, metric, drawings) for metric in cell.metrics),
    ]
    tables = [_windows_table(cell, width) for width in cell.widths]
    tables += [_dynamics_table(cell)] if cell.settings else []
    tables += [_correlation_table(cell)] if "correlation" in cell.tables else []
    tables += [_health_table(cell)] if "health" in cell.tables else []
    return _CellView(cell.title, cell.anchor, _answer(cell), pictures, tables, _samples(cell))


def _loss_picture(cell: _Cell, width: int, drawings: _Drawings) -> _Picture:
    top = cell.top(width)
    highest = "" if top is None else f"; highest for {top.name}, {number(top.loss)} nats"
    swept = cell.windows[cell.windows["width"] == width]
    left_out = int(cell.windows["left_out"].max())
    return drawings.add(
        figures.loss_curve(cell.windows, width, f"{cell.model} · {cell.dataset}"),
        ("loss", cell.model, cell.dataset, f"w{width}"),
        f"Line chart of mean test loss by the centre of the window of width {width} put back to the base model{highest}.",
        f"Mean test loss over {swept['examples'].max()} examples after {width} consecutive layers are put back to the base "
        "model's. Bars are 95 % intervals of the difference to the tuned model on the same examples, drawn around the "
        "mean: where one stays clear of the black line, the cost is told from 0."
        + (f" Up to {left_out} examples a window have no loss and are left out." if left_out else ""),
    )


def _dynamics_picture(cell: _Cell, setting: _Setting, drawings: _Drawings) -> _Picture:
    dynamics = cell.dynamics(setting)
    undefined = dynamics.loc[dynamics["delta"].isna(), "layer"].astype(int).to_list()
    changes = figures.change_points(dynamics)
    caption = f"δ of the base model by layer ({setting}): low where representations change fast."
    if dynamics["ci_low"].notna().any():
        caption += " The band is the 95 % interval from resampling examples."
    if undefined:
        caption += f" At {layers_text(undefined)} δ is n/a ({cell.delta_reason(setting, undefined[0])})."
    return drawings.add(
        figures.dynamics_curve(dynamics, f"{cell.model} · {cell.dataset}", setting.metric),
        ("dynamics", cell.model, cell.dataset, setting.metric, f"n{setting.neighbourhood}"),
        f"Line chart of δ by layer ({setting}); smallest at {layers_text(changes) if changes else 'no layer: all n/a'}.",
        caption,
    )


def _agreement_picture(cell: _Cell, setting: _Setting, width: int, drawings: _Drawings) -> _Picture:
    found = cell.correlation(setting, width)
    rho = None if found is None else (found.spearman, found.ci_low, found.ci_high)
    said = "" if found is None else f"; ρ = {number(found.spearman)} {found.limits}"
    title = f"{cell.model} · {cell.dataset}"
    return drawings.add(
        figures.dynamics_against_loss(cell.dynamics(setting), cell.windows, width, rho, title, setting.metric),
        ("agreement", cell.model, cell.dataset, setting.metric, f"n{setting.neighbourhood}", f"w{width}"),
        f"Scatter plot of mean test loss against δ, one numbered point a window of width {width}{said}.",
        f"Each point is a window of width {width}, numbered by its centre where there is room; change-point layers in "
        f"orange ({setting}). Where the base model tells what fine-tuning leans on, points fall from upper left to lower "
        "right.",
    )


def _similarity_picture(cell: _Cell, metric: str, drawings: _Drawings) -> _Picture:
    rows, name = cell.similarity(metric), metric_name(metric)
    setting = next((setting for setting in cell.settings if setting.metric == metric), None)
    changes = figures.change_points(cell.dynamics(setting)) if setting else []
    caption = f"{name[0].upper()}{name[1:]} of the base model's layers, 1 where they are alike; the scale is this figure's own."
    if rows["value"].isna().any():
        reasons = rows.loc[rows["value"].isna(), "reason"].dropna().value_counts()
        told = "; ".join(f"{reason}: {count} pairs" for reason, count in reasons.head(3).items())
        caption += f" Hatched: n/a ({told or 'no reason was recorded'})."
    low, high = number(rows["value"].min()), number(rows["value"].max())
    return drawings.add(
        figures.similarity_map(rows, changes, f"{cell.model} · {cell.dataset}", metric),
        ("similarity", cell.model, cell.dataset, metric),
        f"Heat map of {name} between the representations of every two of {cell.n_layers} layers, from {low} to {high}.",
        caption,
    )


def _overview(cells: Sequence[_Cell], drawings: _Drawings) -> _Picture | None:
    """Loss and δ of all cells side by side, for the first width and setting of each; None for a single cell."""
    drawn = [cell for cell in cells if cell.widths and cell.settings]
    if len(drawn) < 2:
        return None
    curves = [figures.CellCurves(c.title, c.windows, c.widths[0], c.dynamics(c.settings[0])) for c in drawn]
    picture = drawings.add(
        figures.overview(curves, drawn[0].settings[0].metric),
        ("overview",),
        f"Small line charts for {len(drawn)} models and data sets: loss after substitution above δ, by layer.",
        f"Blue: the test loss after {drawn[0].widths[0]} layers around each centre are put back to the base model's; black line: "
        "the tuned model untouched. Green: δ of the base model, low where its representations change fast. Where the base "
        "model tells what fine-tuning leans on, the shaded layers, chosen by δ alone, stand under the hump of the loss.",
    )
    return dataclasses.replace(picture, wide=len(drawn) > figures.TWO_COLUMNS)


def _summary_table(cells: Sequence[_Cell]) -> _Table:
    """The answer in one row a cell, for runs of many."""
    rows = []
    for cell in cells:
        top, answer = cell.top(), _answer(cell)
        rival = None if top is None else _rival(cell, top)
        decimals = 2 if top is None else _decimals(top.cost_low, top.cost_high)
        changes = figures.change_points(cell.dynamics(cell.settings[0])) if cell.settings else []
        rows.append(
            (
                Markup('<a href="#{}"><bdi>{}</bdi></a>').format(cell.anchor, cell.title),
                "—" if top is None else top.name.split()[1],
                "—" if top is None else f"{number(top.cost, decimals, signed=True)} {_limits(top, decimals)}",
                "—" if rival is None else f"{rival.window.name.split()[1]}: {'yes' if rival.told_apart else 'no'}",
                layers_text(changes).split(maxsplit=1)[1] if changes else "—",
                answer.label or "—",
            )
        )
    columns = (
        "",
        "costliest layers",
        "cost (nats)",
        "told apart from the next",
        "change-point layers",
        "alone, the base model",
    )
    return _Table("Where fine-tuning leans, and what the base model alone says", columns, rows, words={0, 4, 5})


def _windows_table(cell: _Cell, width: int) -> _Table:
    chosen = cell.windows["role"].isin(["tuned", "all"]) | (cell.windows["width"] == width)
    halves = (cell.windows.loc[chosen, "cost_high"] - cell.windows.loc[chosen, "cost_low"]) / 2
    decimals = _decimals(0, halves[halves > 0].median(), spare=1)
    rows = []
    for window in sorted(figures.windows_of(cell.windows[chosen]), key=lambda w: (w.role == "all", w.start)):
        no_loss = f"none of {window.left_out} examples has a loss"
        no_cost = no_loss if math.isnan(window.loss) else "no loss of the tuned model"
        names = {"tuned": "none (tuned model)", "all": f"all {cell.n_layers}"}
        untouched = window.role == "tuned"
        rows.append(
            (
                names.get(window.role) or window.name.split()[1],
                f"{window.centre:g}" if window.role == "window" else "—",
                _value(window.loss, no_loss, decimals),
                "—" if untouched else _value(window.cost, no_cost, decimals, signed=True),
                "—" if untouched else _limits(window, decimals),
                window.examples,
                window.left_out,
            )
        )
    columns = ("layers put back", "centre", "mean loss", "cost", "95 % interval", "examples", "left out")
    return _Table(f"Losses in nats, windows of width {width}", columns, rows, words={0})


def _dynamics_table(cell: _Cell) -> _Table:
    columns = ["layer"]
    rows: list[list[object]] = [[layer] for layer in range(cell.n_layers)]
    for setting in cell.settings:
        columns += [f"δ ({setting})", "95 % interval", "rank"]
        found = {int(row.layer): row for row in rows_of(cell.dynamics(setting))}
        for layer, shown in enumerate(rows):
            row = found.get(layer)
            if row is None:
                shown += ["n/a (not measured)", "n/a", "n/a"]
            elif math.isnan(row.delta):
                shown += [f"n/a ({cell.delta_reason(setting, layer)})", "n/a", "n/a"]
            else:
                shown += [number(row.delta, 4), interval(row.ci_low, row.ci_high, 4), int(row.rank)]
    return _Table("δ of the base model by layer (rank 1: smallest)", columns, rows)


def _correlation_table(cell: _Cell) -> _Table:
    rows = []
    for found in cell.correlations():
        reason = cell.rho_reason(found) if math.isnan(found.spearman) else "undefined for these values"
        first, *others = (found.spearman, found.p_shift, found.partial_depth, found.kendall, found.precision_at_k)
        shown = [_value(value, reason, 3) if not math.isnan(first) else "n/a" for value in others]
        setting = (metric_name(found.metric), found.neighbourhood, found.width, found.n_layers)
        rows.append((*setting, _value(first, reason, 3), interval(found.ci_low, found.ci_high, 3), *shown))
    columns = ["metric", "neighbourhood", "window", "centres", "ρ", "95 % interval"]
    columns += ["p", "ρ given depth", "Kendall's τ", "precision at k"]
    caption = (
        "δ against loss, every setting. ρ given depth: with both sides' trend over depth taken out. Precision at k: how many "
        "of the fifth of centres with the smallest δ are among the fifth with the highest loss."
    )
    return _Table(caption, columns, rows, words={0})


def _health_table(cell: _Cell) -> _Table:
    health = cell.tables["health"]
    measures = [str(measure) for measure in health["measure"].unique()]
    found = {(int(row.layer), str(row.measure)): row for row in rows_of(health)}
    rows = []
    for layer in sorted({layer for layer, _ in found}):
        shown: list[object] = [layer]
        for measure in measures:
            row = found.get((layer, measure))
            if row is None:
                shown.append("n/a (not measured)")
            elif math.isnan(row.value):
                shown.append(f"n/a ({row.warning if pd.notna(row.warning) else 'undefined'})")
            else:
                shown.append(f"{row.value:.3g}".replace("-", "−"))
        rows.append(shown)
    return _Table("Health of the representations by layer", ["layer", *(m.replace("_", " ") for m in measures)], rows)


def _samples(cell: _Cell) -> _Samples | None:
    if "generation" not in cell.tables:
        return None
    groups = [rows for _, rows in cell.tables["generation"].groupby("example_id", sort=False)]
    examples = []
    for rows in groups[:_SAMPLES]:
        texts = [
            (", ".join(map(str, same["intervention"])), str(text)) for text, same in rows.groupby("text", sort=False)
        ]
        examples.append((str(rows["prompt"].iloc[0]), str(rows["reference"].iloc[0]), texts))
    return _Samples(examples, len(groups) - len(examples))


class _Rho(NamedTuple):
    """One field of the ρ table."""

    value: str
    limits: str
    note: str
    verdict: str


class _RhoTable(NamedTuple):
    """ρ by model (rows) and data set (columns), for one metric, neighbourhood and width."""

    caption: str
    datasets: Sequence[str]
    rows: Sequence[tuple[str, Sequence[_Rho]]]


def _rho_tables(cells: Sequence[_Cell]) -> list[_RhoTable]:
    """A table for each metric, neighbourhood and width; none for a single cell."""
    found = {(cell.model, cell.dataset): cell for cell in cells if "correlation" in cell.tables}
    if len(found) < 2:
        return []
    asked = dict.fromkeys((row.setting, row.width) for cell in found.values() for row in cell.correlations())
    models, datasets = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    return [
        _RhoTable(
            f"{setting}, windows of width {width}",
            datasets,
            [(model, [_rho(found.get((model, dataset)), setting, width) for dataset in datasets]) for model in models],
        )
        for setting, width in asked
    ]


def _rho(cell: _Cell | None, setting: _Setting, width: int) -> _Rho:
    row = cell.correlation(setting, width) if cell else None
    if cell is None or row is None:
        return _Rho("n/a", "", "(not measured)", "")
    if math.isnan(row.spearman):
        return _Rho("n/a", "", f"({cell.rho_reason(row)})", "")
    verdict = _verdict(cell, row)
    notes = {"idle": f"{row.p}, no cost told from 0", "unclear": f"{row.p}, includes 0"}
    return _Rho(number(row.spearman), row.limits, notes.get(verdict, row.p), verdict)


def _cautions(cells: Sequence[_Cell]) -> list[tuple[str, str, str]]:
    """Health warnings as (cell, layers, the warning of the layer where the measure is highest), one a cell and measure."""
    said = []
    for cell in cells:
        if "health" in cell.tables:
            for _, rows in cell.tables["health"].dropna(subset=["warning"]).groupby("measure", sort=False):
                worst = rows.sort_values("value", ascending=False)["warning"].iloc[0]
                layers = layers_text(sorted(int(layer) for layer in rows["layer"]))
                said.append(
                    (cell.title, layers, f"{worst}" if rows["warning"].nunique() == 1 else f"at worst, {worst}")
                )
    return said


def _records_table(caption: str, records: Sequence[Mapping[str, str]]) -> _Table:
    columns = list(dict.fromkeys(key for record in records for key in record))
    rows = [[record.get(key, "—") for key in columns] for record in records]
    return _Table(caption, [column.replace("_", " ") for column in columns], rows, words=range(len(columns)))


# Figures in words -----------------------------------------------------------------------------------------------------


def _value(value: float, reason: str, decimals: int, signed: bool = False) -> str:
    return f"n/a ({reason})" if math.isnan(value) else number(value, decimals, signed)


def _limits(window: Window, decimals: int) -> str:
    """The interval of a window's cost."""
    if math.isnan(window.cost_low) and window.examples == 1:
        return "[n/a: one example]"
    return interval(window.cost_low, window.cost_high, decimals)


def _decimals(low: float, high: float, spare: int = 0) -> int:
    """As many decimals as show the first digit of the interval's half-width (and `spare` more), from 2 to 6."""
    half = (high - low) / 2
    return min(6, max(2, spare - math.floor(math.log10(half)))) if 0 < half < math.inf else 2 + spare


def _moment(text: str) -> str:
    """An ISO time to the minute, as a reader writes it; any other text as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%Y-%m-%d %H:%M %Z}".strip()


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
