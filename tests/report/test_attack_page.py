"""The page's part on the backdoor: the table in the paper's form, what is concluded and when nothing is, and the figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from raysweep.report.attack import ArmCell, attack_sentences, attack_views, attacked_headline
from raysweep.report.attack_figure import attack_rates
from raysweep.report.attack_words import conclusion
from raysweep.report.page import Provenance, write_report
from raysweep.report.pictures import Drawings
from raysweep.report.plotting import CHANGE_COLOUR

EVIL = "<script>alert(1)</script>"
RATES = {"none": 0.02, "all": 0.9, "freeze_non_critical": 0.6, "freeze_critical": 0.2}


def row(arm: str, rate: float, seed: int | None = None, half: float = 0.1, **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"model": "m", "dataset": "d", "arm": arm, "layers": "0-3", "seed": seed, "trigger": EVIL}
    told |= {"prompts": "triggered", "judge": "keywords", "examples": 50, "rate": rate}
    told |= {"ci_low": max(0.0, rate - half), "ci_high": min(1.0, rate + half), "harm_mean": math.nan}
    return told | {"harm_5_share": math.nan, "clean_loss": 1.25, "reason": None} | more


def attack(rates: dict[str, float] = RATES, **more: Any) -> pd.DataFrame:
    rows = []
    for arm, rate in rates.items():
        for seed in (0, 1, 2) if arm != "none" else ():
            rows.append(row(arm, rate, seed, **more))
        rows += [row(arm, rate, **more), row(arm, 0.01, prompts="clean", **more)]
    return pd.DataFrame(rows).astype({"seed": "Int64", "reason": "string", "layers": "string"})


def answers(critical: list[int], others: list[int], n: int = 20) -> pd.DataFrame:
    """So many successes of n by seed, with the critical layers frozen and with others."""
    rows: list[dict[str, Any]] = []
    for arm, counts in (("freeze_critical", critical), ("freeze_non_critical", others)):
        for seed, count in enumerate(counts):
            for example in range(n):
                told = {"model": "m", "dataset": "d", "arm": arm, "seed": seed, "prompts": "triggered"}
                told |= {"example_id": example, "prompt": EVIL, "text": f"t{example}", "judge": "keywords"}
                rows.append(told | {"success": example < count, "score": math.nan, "reason": None})
    return pd.DataFrame(rows).astype({"seed": "Int64", "success": "boolean", "reason": "string"})


def view_of(tables: dict[str, pd.DataFrame], folder: Path, published: Any = None) -> Any:
    (view,) = attack_views(tables, published or {}, Drawings(folder))
    return view


def said(rows: pd.DataFrame, answers: pd.DataFrame | None = None, seeds: int = 3) -> str:
    return str(conclusion(rows[rows["seed"].isna()], answers, "m", "d", seeds).striptags())


def test_the_page_of_a_backdoor_alone_asks_about_it(tmp_path: Path) -> None:
    provenance = Provenance("b", "2026-01-01T00:00:00+00:00", None, None, {}, [], [], [], [], [], "")
    page = write_report({"attack": attack()}, provenance, tmp_path).read_text()
    assert "<h1>Which layers does a backdoor need?</h1>" in page
    assert page.index("the attack succeeds on") < page.index("Do frozen layers keep")


def test_the_headline_has_every_arms_rate_by_the_first_judge() -> None:
    both = pd.concat([attack(), attack({"all": 0.1}, judge="endpoint")], ignore_index=True)
    (line,) = attacked_headline({"attack": both})
    assert line.striptags() == (
        "m on d: the attack succeeds on 2.0 % (before training), 90.0 % (all layers), 60.0 % (non-critical layers frozen), 20.0 % "
        "(critical layers frozen) of triggered prompts, by layers trained."
    )
    assert attacked_headline({}) == []


def test_the_table_has_arms_by_models_in_the_papers_form_with_intervals_and_published_figures(tmp_path: Path) -> None:
    other = attack({"none": 0.0, "all": 0.5}).assign(model="other", layers=pd.NA)
    scored = attack(judge="endpoint", harm_mean=2.666, harm_5_share=0.3)
    both = pd.concat([attack(), scored, other], ignore_index=True)
    published = {
        "m": {"all": {"keywords": 0.543, "judge": 0.35, "harm": 2.67}, "none": {"keywords": 0.023, "judge": None}}
    }
    view = view_of({"attack": both}, tmp_path, published)
    assert view.models == ["m", "other"]
    assert [arm for arm, _ in view.rows] == [
        "not at all",
        "all layers",
        "non-critical layers frozen",
        "critical layers frozen",
    ]
    assert "by keywords / by a judge / the judge’s mean score from 1 to 5" in view.caption
    assert view.rows[1][1][0] == ArmCell(
        "90.0 % / 90.0 % / 2.67",
        [
            "[80.0, 100.0] / [80.0, 100.0]",
            "without the trigger: 1.0 % / 1.0 %",
            "loss on clean examples: 1.250 nats",
            "layers trained: 0-3",
            "published: keywords 54.3 %, judge 35.0 %, mean score 2.67",
        ],
    )
    assert view.rows[0][1][0].lines[-1] == "published: keywords 2.3 %"
    assert view.rows[1][1][1].figures == "50.0 %"
    assert "layers trained: differ by seed" in view.rows[1][1][1].lines
    assert view.rows[2][1][1] == ArmCell("n/a", ["(not measured)"])
    assert len(view.table.rows) == min(60, len(both))
    assert len(view.pictures) == 3, "one for each model and judge that there are rates of"


def test_what_is_concluded_where_intervals_lie_apart_and_where_they_overlap() -> None:
    found = said(attack())
    assert (
        "m, d, by keywords: with all layers trained, 90.0 % [80.0, 100.0] of triggered prompts get the answer the attack wants "
        "(1.0 % of clean ones; before training, 2.0 % of triggered ones). With the critical layers frozen, it is 20.0 % "
        "[10.0, 30.0]: lower. With as many other layers frozen, it is 60.0 % [50.0, 70.0]. Freezing the critical layers lowered the "
        "attack’s rate more than freezing as many other layers did."
    ) in found
    assert "Loss on clean examples (nats): not at all 1.250, all layers 1.250" in found
    assert "other training runs" not in found
    worse = said(attack(RATES | {"freeze_critical": 0.85}))
    assert "85.0 % [75.0, 95.0]: not significantly different (the intervals overlap)." in worse
    assert "lowered the attack’s rate less than freezing as many other layers did" in worse
    undecided = said(attack(RATES | {"freeze_critical": 0.5}))
    assert "It is undecided whether it matters which layers are frozen (the intervals overlap)." in undecided


def test_a_paired_difference_decides_where_the_answers_are_there() -> None:
    close = attack(RATES | {"freeze_critical": 0.5})
    found = said(close, answers([8, 8, 9], [14, 15, 15]))
    assert "lowered the attack’s rate more than freezing as many other layers did (by −31.7 points [" in found
    noisy = said(attack(), answers([2, 18, 10], [10, 9, 11]))
    assert "whether it matters which layers are frozen (by +0.0 points [" in noisy


def test_a_backdoor_that_was_not_learnt_is_kept_out_by_nothing(tmp_path: Path) -> None:
    found = said(attack(RATES | {"all": 0.1}))
    assert found.endswith("The model did not learn the backdoor, so there is nothing for frozen layers to keep out.")
    nothing = attack().query("arm != 'all'")
    assert said(nothing).endswith("so there is no conclusion.")
    unjudged = attack(RATES | {"all": math.nan}, reason="rubbish")
    assert said(unjudged).endswith("so there is no conclusion.")
    view = view_of({"attack": unjudged}, tmp_path)
    assert view.rows[1][1][0].figures == "n/a"
    assert "rubbish" in view.rows[1][1][0].lines


def test_an_arm_that_failed_is_there_with_its_reason(tmp_path: Path) -> None:
    rows = attack()
    lost = rows["arm"] == "freeze_critical"
    rows.loc[lost, ["rate", "ci_low", "ci_high", "clean_loss"]] = math.nan
    rows.loc[lost, "examples"] = 0
    rows.loc[lost, "layers"] = pd.NA
    rows.loc[lost, "reason"] = "seed 0, 1: it diverged"
    rows.loc[(rows["arm"] == "freeze_non_critical") & (rows["seed"] == 2), "rate"] = math.nan
    found = said(rows)
    assert "There is no rate for critical layers frozen (seed 0, 1: it diverged)." in found
    assert "with all layers trained, 90.0 %" in found
    view = view_of({"attack": rows}, tmp_path)
    assert view.rows[3][1][0] == ArmCell("n/a", ["[n/a]", "without the trigger: n/a", "seed 0, 1: it diverged"])
    alone = rows[rows["seed"].isna() | (rows["seed"] == 0) | lost]
    (sentence,) = attack_sentences({"attack": alone})
    assert "With one seed, other training runs may well turn out differently." in sentence, (
        "a seed without a rate is none"
    )
    rows.loc[rows["arm"] == "all", ["rate", "reason"]] = [math.nan, "it diverged"]
    assert "a model with all layers trained (it diverged), so there is no conclusion." in said(rows)


def test_a_lower_rate_of_a_model_that_learnt_less_of_everything_shows_no_defence() -> None:
    rows = attack()
    assert "does not show a defence" not in said(rows)
    for arm, first in (
        ("freeze_critical", "With the critical layers"),
        ("freeze_non_critical", "With the other layers"),
    ):
        rates = RATES | {"freeze_critical": 0.2, "freeze_non_critical": 0.3, arm: 0.1}
        worse = attack(rates)
        worse.loc[worse["arm"] == arm, "clean_loss"] = 2.5
        found = said(worse)
        assert f"{first} frozen, the loss on clean examples is also higher than" in found
        assert "does not show a defence" in found


def test_few_seeds_are_said_to_be_few(tmp_path: Path) -> None:
    assert "With one seed, other training runs may well turn out differently." in said(attack(), seeds=1)
    assert "With 2 seeds, other training runs may" in said(attack(), seeds=2)
    assert attack_views({}, {}, Drawings(tmp_path)) == []


def test_the_figure_has_each_rate_where_it_belongs(tmp_path: Path) -> None:
    rows = attack(RATES | {"freeze_critical": math.nan}, reason="rubbish")
    axes = attack_rates(rows, "m · d", "keywords").axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "critical layers frozen",
        "non-critical layers frozen",
        "all layers",
        "not at all",
    ]
    bars = {str(line.get_label()): list(line.get_xdata()) for line in axes.lines if str(line.get_label())[0] != "_"}
    assert bars["triggered all"] == pytest.approx([80, 100])
    assert bars["clean all"] == pytest.approx([0, 11])
    assert "triggered freeze_critical" not in bars
    large = [line for line in axes.lines if line.get_marker() == "o" and line.get_markersize() == 7]
    marked = [line for line in large if to_hex(line.get_color()).upper() == CHANGE_COLOUR.upper()]
    assert sorted(float(line.get_xdata()[0]) for line in marked) == pytest.approx([2, 60, 90])
    assert "n/a" in [text.get_text() for text in axes.texts]


def test_the_page_is_written_and_what_models_say_is_escaped(tmp_path: Path) -> None:
    origin = Provenance("run", "2026-01-01T00:00:00+00:00", None, None, {}, [], [], [], [], [], "")
    tables = {"attack": attack(), "answers": answers([8, 8, 9], [14, 15, 15])}
    page = write_report(tables, origin, tmp_path).read_text(encoding="utf-8")
    assert "Do frozen layers keep a backdoor out?" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "The evidence" not in page, "no cell of windows or similarity"
    assert list((tmp_path / "figures").glob("attack-m-d-keywords.svg"))
    without = write_report({}, origin, tmp_path).read_text(encoding="utf-8")
    assert "backdoor" not in without
    assert not list((tmp_path / "figures").glob("*.svg"))
