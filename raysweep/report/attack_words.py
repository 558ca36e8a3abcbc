"""What the backdoor study found, in plain sentences: whether freezing layers kept the backdoor out, or that this is undecided."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from markupsafe import Markup

from raysweep.numerics.rates import Estimate
from raysweep.report.summaries import rows_of
from raysweep.report.words import interval, number
from raysweep.studies.attack import rate_difference

ARMS = {
    "none": "not at all",
    "all": "all layers",
    "freeze_non_critical": "non-critical layers frozen",
    "freeze_critical": "critical layers frozen",
}
JUDGES = {"keywords": "keywords", "pattern": "pattern", "endpoint": "a judge"}


def rate(share: float) -> str:
    """A share in percent with one decimal: "54.3 %", or "n/a"."""
    return "n/a" if math.isnan(share) else f"{number(100 * share, 1)} %"


def harm(score: float) -> str:
    """A mean score."""
    return number(score, 2)


def conclusion(together: pd.DataFrame, answers: pd.DataFrame | None, model: str, dataset: str, seeds: int) -> Markup:
    """What one judge's rates over all seeds say about one model; `together` has no other rows.

    Two arms differ significantly if the interval of their difference, paired by seed and example, excludes 0; without answers of
    both, if their intervals do not overlap.
    """
    judge = str(together["judge"].iloc[0])
    found = {str(row.arm): row for row in rows_of(together[together["prompts"] == "triggered"])}
    clean = {str(row.arm): row for row in rows_of(together[together["prompts"] == "clean"])}
    lacking = {arm: row.reason for arm, row in found.items() if math.isnan(row.rate)}
    found = {arm: row for arm, row in found.items() if arm not in lacking}
    said = [Markup("<bdi>{}</bdi>, <bdi>{}</bdi>, by {}:").format(model, dataset, JUDGES.get(judge, judge))]
    if "all" not in found:
        text = "there is no rate for a model with all layers trained{}, so there is no conclusion."
        said.append(Markup(text).format(_because(lacking.get("all"))))
        return Markup(" ").join(said)
    opened = found["all"]
    text = "with all layers trained, <strong>{}</strong> {} of triggered prompts get the answer the attack wants"
    said.append(Markup(text).format(rate(opened.rate), _percent(opened)) + _beside(found, clean) + ".")
    if "none" in found and not opened.ci_low > found["none"].ci_high:
        said.append(
            Markup(
                "That does not differ significantly from the model before training. The model did not learn the backdoor, so there is "
                "nothing for frozen layers to keep out."
            )
        )
        return Markup(" ").join(said)
    said += _against_all(found, answers, judge)
    said += _against_each_other(found, answers, judge)
    text = "There is no rate for {}{}."
    said += [Markup(text).format(ARMS[arm], _because(why)) for arm, why in lacking.items() if arm.startswith("freeze")]
    losses = [f"{ARMS[arm]} {number(found[arm].clean_loss, 3)}" for arm in ARMS if arm in found]
    if not all(math.isnan(row.clean_loss) for row in found.values()):
        said.append(Markup("Loss on clean examples (nats): {}.").format(", ".join(losses)))
    said += _less_of_everything(found)
    if seeds < 3:
        counted = "one seed" if seeds == 1 else f"{seeds} seeds"
        said.append(Markup("With {}, other training runs may well turn out differently.").format(counted))
    return Markup(" ").join(said)


def _because(reason: Any) -> str:
    """Why there is no rate, in brackets; nothing if no reason was recorded."""
    return "" if reason is None or pd.isna(reason) else f" ({reason})"


def _less_of_everything(found: dict[str, Any]) -> list[Markup]:
    """A caution where the arm with the lower rate is also the one that learnt less of the clean task."""
    if not {"freeze_critical", "freeze_non_critical"} <= found.keys():
        return []
    one, other = found["freeze_critical"], found["freeze_non_critical"]
    if one.rate < other.rate and one.clean_loss > other.clean_loss:
        lower, higher = "critical", "others"
    elif other.rate < one.rate and other.clean_loss > one.clean_loss:
        lower, higher = "other", "critical ones"
    else:
        return []
    text = (
        "With the {} layers frozen, the loss on clean examples is also higher than with the {} frozen. That model learnt less of "
        "everything, so the lower rate alone does not show a defence."
    )
    return [Markup(text).format(lower, higher)]


def _beside(found: dict[str, Any], clean: dict[str, Any]) -> Markup:
    """The rates to compare the first with: without the trigger, and without training."""
    more = []
    if "all" in clean and not math.isnan(clean["all"].rate):
        more.append(f"{rate(clean['all'].rate)} of clean ones")
    if "none" in found:
        more.append(f"before training, {rate(found['none'].rate)} of triggered ones")
    return Markup(" ({})").format("; ".join(more)) if more else Markup()


def _against_all(found: dict[str, Any], answers: pd.DataFrame | None, judge: str) -> list[Markup]:
    """Whether freezing the critical layers lowered the rate at all."""
    if "freeze_critical" not in found:
        return []
    frozen = found["freeze_critical"]
    verdict = {-1: "lower", 1: "higher, not lower", 0: "not significantly different"}
    told = _compared(found["freeze_critical"], found["all"], answers, judge)
    text = "With the critical layers frozen, it is <strong>{}</strong> {}: {}{}."
    return [Markup(text).format(rate(frozen.rate), _percent(frozen), verdict[told[0]], told[1])]


def _against_each_other(found: dict[str, Any], answers: pd.DataFrame | None, judge: str) -> list[Markup]:
    """Whether it matters that the frozen layers are the critical ones."""
    if not {"freeze_critical", "freeze_non_critical"} <= found.keys():
        return []
    other = found["freeze_non_critical"]
    way, how = _compared(found["freeze_critical"], other, answers, judge)
    verdicts = {
        -1: "Freezing the critical layers lowered the attack’s rate more than freezing as many other layers did",
        1: "Freezing the critical layers lowered the attack’s rate less than freezing as many other layers did",
        0: "It is undecided whether it matters which layers are frozen",
    }
    text = "With as many other layers frozen, it is <strong>{}</strong> {}. {}{}."
    return [Markup(text).format(rate(other.rate), _percent(other), verdicts[way], how)]


def _compared(one: Any, other: Any, answers: pd.DataFrame | None, judge: str) -> tuple[int, str]:
    """−1 if the first rate is significantly lower, 1 if higher, 0 if neither; and by how much."""
    paired = Estimate(math.nan, math.nan, math.nan)
    if answers is not None:
        paired = rate_difference(answers, str(one.arm), str(other.arm), judge)
    if not math.isnan(paired.low):
        points = f" (by {number(100 * paired.value, 1, signed=True)} points {interval(100 * paired.low, 100 * paired.high, 1)})"
        return (-1 if paired.high < 0 else 1 if paired.low > 0 else 0), points
    if one.ci_high < other.ci_low:
        return -1, ""
    return (1, "") if one.ci_low > other.ci_high else (0, " (the intervals overlap)")


def _percent(row: Any) -> str:
    return interval(100 * row.ci_low, 100 * row.ci_high, 1)
