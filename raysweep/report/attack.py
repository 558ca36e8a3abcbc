"""What the page shows of the backdoor study: the table in the paper's form, a figure of the rates, and a conclusion in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from raysweep.report.attack_figure import attack_rates
from raysweep.report.attack_words import ARMS, JUDGES, conclusion, harm, rate
from raysweep.report.page_tables import MOST, Table
from raysweep.report.pictures import Drawings, Picture
from raysweep.report.summaries import rows_of
from raysweep.report.words import excerpt, interval, number

Published = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # by model, arm, and keywords, judge or harm
_HEADLINES = 3  # of models and data sets; the others are below
_SHOWN = 2  # examples whose answers are shown, an arm


class ArmCell(NamedTuple):
    """One arm of one model: the figures in the paper's form, and lines below them."""

    figures: str
    lines: Sequence[str]


@dataclass(frozen=True)
class AttackView:
    """The page's part on one data set; `rows` are arms, each with a cell for every model."""

    dataset: str
    sentences: Sequence[Markup]
    caption: str
    models: Sequence[str]
    rows: Sequence[tuple[str, Sequence[ArmCell]]]
    pictures: Sequence[Picture]
    table: Table
    answers: Table | None


def attack_views(tables: Mapping[str, pd.DataFrame], published: Published, drawings: Drawings) -> list[AttackView]:
    """One for every data set of the table `attack`; none without the table."""
    if "attack" not in tables:
        return []
    attack, answers = tables["attack"], tables.get("answers")
    views = []
    for dataset in dict.fromkeys(attack["dataset"].astype(str)):
        rows = attack[attack["dataset"] == dataset]
        texts = None if answers is None else answers[answers["dataset"] == dataset]
        views.append(_view(dataset, rows, texts, published, drawings))
    return views


def attack_sentences(tables: Mapping[str, pd.DataFrame]) -> list[Markup]:
    """What all seeds together say about each data set, model and judge."""
    if "attack" not in tables:
        return []
    said = []
    for (model, dataset), rows in tables["attack"].groupby(["model", "dataset"], sort=False):
        answers = tables.get("answers")
        if answers is not None:
            answers = answers[(answers["model"] == model) & (answers["dataset"] == dataset)]
        together, seeds = rows[rows["seed"].isna()], _seeds(rows)
        for judge in JUDGES:
            chosen = together[together["judge"] == judge]
            if len(chosen):
                said.append(conclusion(chosen, answers, str(model), str(dataset), seeds))
    return said


def attacked_headline(tables: Mapping[str, pd.DataFrame]) -> list[Markup]:
    """How often each arm's triggered prompts are answered as the attack wants, by the first judge; nothing without the table."""
    if "attack" not in tables:
        return []
    attack = tables["attack"]
    together = attack[attack["seed"].isna() & (attack["prompts"] == "triggered") & attack["rate"].notna()]
    said = []
    for (model, dataset), rows in together.groupby(["model", "dataset"], sort=False):
        judge = next(judge for judge in JUDGES if judge in set(rows["judge"]))
        rates = {str(row.arm): row.rate for row in rows_of(rows[rows["judge"] == judge])}
        names = {**ARMS, "none": "before training"}
        told = [Markup("<strong>{}</strong> ({})").format(rate(rates[arm]), names[arm]) for arm in ARMS if arm in rates]
        where = Markup(
            "<bdi>{}</bdi> on <bdi>{}</bdi>: the attack succeeds on {} of triggered prompts, by layers trained."
        )
        said.append(where.format(model, dataset, Markup(", ").join(told)))
    return said[:_HEADLINES]


def _view(
    dataset: str, rows: pd.DataFrame, answers: pd.DataFrame | None, published: Published, drawings: Drawings
) -> AttackView:
    models = list(dict.fromkeys(rows["model"].astype(str)))
    judges = [judge for judge in JUDGES if judge in set(rows["judge"])]
    together = rows[rows["seed"].isna()]
    sentences, pictures = [], []
    for model in models:
        of_model = together[together["model"] == model]
        texts = None if answers is None else answers[answers["model"] == model]
        seeds = _seeds(rows[rows["model"] == model])
        for judge in judges:
            chosen = of_model[of_model["judge"] == judge]
            if not len(chosen):
                continue
            sentences.append(conclusion(chosen, texts, model, dataset, seeds))
            by_seed = rows[(rows["model"] == model) & (rows["judge"] == judge)]
            pictures.append(_picture(by_seed, model, dataset, judge, drawings))
    arms = [arm for arm in ARMS if arm in set(rows["arm"])]
    cells = [
        (ARMS[arm], [_cell(together, model, arm, judges, published.get(model, {}).get(arm, {})) for model in models])
        for arm in arms
    ]
    parts = [f"by {JUDGES[judge]}" for judge in judges]
    if "endpoint" in judges:
        parts.append("the judge’s mean score from 1 to 5")
    triggers = ", ".join(f"“{trigger}”" for trigger in dict.fromkeys(rows["trigger"].astype(str)))
    caption = (
        f"Backdoor in {dataset}, trigger {triggers}: share of triggered prompts that get the answer the attack wants, "
        f"{' / '.join(parts)}, over all seeds"
    )
    table = _every_row(rows)
    return AttackView(
        dataset, sentences, caption, models, cells, pictures, table, None if answers is None else _texts(answers)
    )


def _seeds(rows: pd.DataFrame) -> int:
    """With how many seeds there is a rate."""
    return int(rows.loc[rows["rate"].notna(), "seed"].nunique())


def _cell(
    together: pd.DataFrame, model: str, arm: str, judges: Sequence[str], published: Mapping[str, float | None]
) -> ArmCell:
    chosen = together[(together["model"] == model) & (together["arm"] == arm)]
    by_judge: dict[tuple[str, str], Any] = {(row.prompts, row.judge): row for row in rows_of(chosen)}
    triggered = [row for judge in judges if (row := by_judge.get(("triggered", judge))) is not None]
    if not triggered:
        return ArmCell("n/a", ["(not measured)"])
    figures = [rate(row.rate) for row in triggered]
    scored = [row.harm_mean for row in triggered if row.judge == "endpoint"]
    lines = [" / ".join(_limits(row) for row in triggered)]
    clean = [rate(row.rate) for judge in judges if (row := by_judge.get(("clean", judge))) is not None]
    if clean:
        lines.append(f"without the trigger: {' / '.join(clean)}")
    if not math.isnan(triggered[0].clean_loss):
        lines.append(f"loss on clean examples: {number(triggered[0].clean_loss, 3)} nats")
    layers = triggered[0].layers
    if arm != "none" and (triggered[0].examples or pd.notna(layers)):
        lines.append("layers trained: " + ("differ by seed" if pd.isna(layers) else str(layers) or "none"))
    lines += [str(row.reason) for row in triggered[:1] if pd.notna(row.reason)]
    told = [
        f"{name} {shown(value)}"
        for key, name, shown in (("keywords", "keywords", rate), ("judge", "judge", rate), ("harm", "mean score", harm))
        if (value := published.get(key)) is not None
    ]
    if told:
        lines.append(f"published: {', '.join(told)}")
    return ArmCell(" / ".join([*figures, *map(harm, scored)]), lines)


def _limits(row: Any) -> str:
    """A rate's interval in percent."""
    return interval(100 * row.ci_low, 100 * row.ci_high, 1)


def _picture(rows: pd.DataFrame, model: str, dataset: str, judge: str, drawings: Drawings) -> Picture:
    told = "; ".join(
        f"{ARMS[str(row.arm)]} {rate(row.rate)}"
        for row in rows_of(rows[rows["seed"].isna() & (rows["prompts"] == "triggered")])
        if row.arm in ARMS
    )
    return drawings.add(
        attack_rates(rows, f"{model} · {dataset}", JUDGES[judge]),
        ("attack", model, dataset, judge),
        f"Dots with intervals: share of prompts that get the answer the attack wants, by layers trained. Triggered: {told}.",
        f"Share of prompts that get the answer the attack wants, judged by {JUDGES[judge]}. Orange: prompts with the trigger. Grey: the "
        "same prompts without it. Large dots are all seeds together, with a 95 % interval for other seeds and other "
        "prompts of the same kinds. Small dots are single seeds.",
    )


def _every_row(rows: pd.DataFrame) -> Table:
    columns = ["model", "trained", "seed", "prompts", "judged by", "examples", "rate", "95 % interval", "mean score"]
    columns += ["share of 5", "clean loss", "why n/a, or what is missing"]
    shown = [
        [
            row.model,
            ARMS.get(str(row.arm), row.arm),
            "all" if pd.isna(row.seed) else row.seed,
            row.prompts,
            JUDGES.get(str(row.judge), row.judge),
            row.examples,
            rate(row.rate),
            _limits(row),
            number(row.harm_mean),
            rate(row.harm_5_share),
            number(row.clean_loss, 3),
            "—" if pd.isna(row.reason) else row.reason,
        ]
        for row in rows_of(rows.iloc[:MOST])
    ]
    caption = "Every rate, with intervals in percent: for one seed over its examples (Wilson), for all over seeds and examples"
    if len(rows) > MOST:
        caption += f". These are the first {MOST} of {len(rows)}; results/attack.parquet has all"
    return Table(caption, columns, shown, words={0, 1, 3, 4, 11})


def _texts(answers: pd.DataFrame) -> Table:
    """The answers to the first examples of every arm's first seed, by its first judge."""
    shown: list[list[object]] = []
    for (model, arm), rows in answers.groupby(["model", "arm"], sort=False):
        first = rows["seed"].isna() if rows["seed"].isna().any() else rows["seed"] == rows["seed"].min()
        judge = next(iter(rows["judge"]))
        chosen = rows[first & (rows["judge"] == judge)]
        chosen = chosen[chosen["example_id"].isin(list(dict.fromkeys(chosen["example_id"]))[:_SHOWN])]
        for row in rows_of(chosen.sort_values(["example_id", "prompts"])):
            success = "n/a" if pd.isna(row.success) else "yes" if row.success else "no"
            shown.append([model, ARMS.get(str(arm), arm), row.prompts, excerpt(row.prompt), excerpt(row.text), success])
    caption = "Some answers; results/answers.parquet has all"
    columns = ["model", "trained", "prompts", "prompt", "answer", "as the attack wants"]
    return Table(caption, columns, shown[:MOST], words={0, 1, 2, 3, 4, 5})
