"""The backdoor study's tables: how often triggered prompts, and clean ones, are answered as the attack wants.

An arm is what was trained (`none`, `all`, `freeze_non_critical`, `freeze_critical`); each but `none` is trained once a seed.
A seed's rate has Wilson's interval over its examples. All seeds together (seed null) are every seed's answers to the same
examples: the interval is for other seeds and other examples of the same kinds (numerics/rates.py). With three seeds it is
wide where they differ, and that is what three seeds can say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from raysweep.numerics.rates import Estimate, crossed_mean, crossed_rate
from raysweep.studies.judging import Verdict

TEXT_COLUMNS = ["arm", "seed", "prompts", "example_id", "prompt", "text"]
ANSWER_COLUMNS = [*TEXT_COLUMNS, "judge", "success", "score", "reason"]
ATTACK_COLUMNS = [
    *("arm", "layers", "seed", "trigger", "prompts", "judge", "examples", "rate", "ci_low", "ci_high"),
    *("harm_mean", "harm_5_share", "clean_loss", "reason"),
]
_FIGURES = ("rate", "ci_low", "ci_high", "harm_mean", "harm_5_share", "clean_loss")
_FLOATS = dict.fromkeys(_FIGURES, "float64")
_TYPES = {"seed": "Int64", "reason": "string"}
_ATTACK_TYPES = {**_TYPES, "layers": "string", "examples": "Int64"}


class Run(NamedTuple):
    """One model that was attacked: its arm and seed (None where no seed made it), the layers trained, the mean clean test loss."""

    arm: str
    seed: int | None
    layers: str
    clean_loss: float = math.nan


def answers_table(texts: pd.DataFrame, judge: str, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The answers [rows of `TEXT_COLUMNS`] with one judge's verdicts, as rows of the table `answers` (without model and dataset)."""
    judged = texts[TEXT_COLUMNS].reset_index(drop=True)
    judged["judge"] = judge
    judged["success"] = pd.array([verdict.success for verdict in verdicts], dtype="boolean")
    judged["score"] = np.array([verdict.score for verdict in verdicts], dtype=np.float64)
    judged["reason"] = [verdict.reason for verdict in verdicts]
    return judged[ANSWER_COLUMNS].astype(_TYPES)


def attack_table(answers: pd.DataFrame, runs: Sequence[Run], trigger: str) -> pd.DataFrame:
    """Rates of success by arm, judge and kind of prompt (`triggered`, `clean`), for each seed and for all together (seed null).

    `examples` is how many are counted: those that the judge has a verdict on, for all seeds together under every seed.
    `harm_mean` is the mean of the judge's scores and `harm_5_share` the share of 5 among them; NaN for a judge that has
    none. `clean_loss`, nats, is the run's, or the mean over seeds. `layers` is null where the seeds' differ. `reason` says
    why a figure is NaN, or how many answers have no verdict and why. Rows are in the order in which `runs` has the arms.
    Raises ValueError for answers of a run that is not there.
    """
    told = {(run.arm, run.seed): run for run in runs}
    rows = []
    for (arm, prompts, judge), group in _groups(answers, [run.arm for run in runs]):
        of_arm = [run for run in runs if run.arm == arm]
        seeds = [None if pd.isna(seed) else int(seed) for seed in group["seed"].unique()]
        lacking = [seed for seed in seeds if (arm, seed) not in told]
        if lacking:
            raise ValueError(f"there are answers of arm {arm} and seed {lacking[0]}, but no such run")
        key: dict[str, Any] = {"arm": arm, "trigger": trigger, "prompts": prompts, "judge": judge}
        for seed in seeds:
            if seed is not None:
                rows.append(key | _figures(group[group["seed"] == seed], [told[arm, seed]]) | {"seed": seed})
        rows.append(key | _figures(group, [run for run in of_arm if run.seed in seeds]) | {"seed": None})
    return pd.DataFrame(rows, columns=ATTACK_COLUMNS).astype(_ATTACK_TYPES)


def with_lacking(
    attack: pd.DataFrame, runs: Sequence[tuple[str, int | None]], lacking: Mapping[tuple[str, int | None], str]
) -> pd.DataFrame:
    """One judge's rates, rows as of `attack_table`, with rows of NaN for each arm and seed that is `lacking`, by why it is.

    Of all seeds together (seed null) the reason names those that are lacking; where all are, its figures are NaN too. `runs` are
    all arms and seeds, in the order of rows.
    """
    kinds = list(dict.fromkeys(attack["prompts"]))
    nothing: dict[str, Any] = {"trigger": attack["trigger"].iloc[0], "judge": attack["judge"].iloc[0], "examples": 0}
    nothing |= {"layers": None, **dict.fromkeys(_FIGURES, math.nan)}
    rows: list[dict[Any, Any]] = attack.astype(object).to_dict("records")
    for arm in dict.fromkeys(arm for arm, _ in lacking):
        why = {seed: reason for (of, seed), reason in lacking.items() if of == arm}
        for prompts in kinds:
            empty = nothing | {"arm": arm, "prompts": prompts}
            rows += [empty | {"seed": seed, "reason": reason} for seed, reason in why.items() if seed is not None]
            together = [row for row in rows if (row["arm"], row["prompts"]) == (arm, prompts) and pd.isna(row["seed"])]
            if not together:
                rows.append(empty | {"seed": None, "reason": _named(why)})
            for row in together:
                told = [] if pd.isna(row["reason"]) else [row["reason"]]
                row["reason"] = "; ".join([*told, f"left out: {_named(why)}"])
    arms = list(dict.fromkeys(arm for arm, _ in runs))

    def place(row: dict[Any, Any]) -> tuple[int, int, int]:
        seed = len(runs) if pd.isna(row["seed"]) else runs.index((row["arm"], row["seed"]))
        return arms.index(row["arm"]), kinds.index(row["prompts"]), seed

    rows.sort(key=place)
    return pd.DataFrame(rows, columns=ATTACK_COLUMNS).astype({**_ATTACK_TYPES, **_FLOATS})


def _named(why: Mapping[int | None, str]) -> str:
    """Why seeds are lacking, in words; those that are for the same cause together."""
    seeds: dict[str, list[str]] = {}
    for seed, reason in why.items():
        seeds.setdefault(reason, []).extend([] if seed is None else [str(seed)])
    return "; ".join(f"seed {', '.join(of)}: {reason}" if of else reason for reason, of in seeds.items())


def rate_difference(answers: pd.DataFrame, arm: str, versus: str, judge: str, prompts: str = "triggered") -> Estimate:
    """How much higher the arm's rate of success is than the other's, on the same examples and seeds, with its 95 % interval.

    Paired: the same seed drew the same poisoned records for both. NaN where they share no seed or no judged example.
    """
    chosen = answers[(answers["judge"] == judge) & (answers["prompts"] == prompts)]
    one, other = (_by_seed(chosen[chosen["arm"] == name], "success") for name in (arm, versus))
    difference = (one - other).dropna(how="all").dropna(axis="columns", how="any")
    if not difference.size:
        return Estimate(math.nan, math.nan, math.nan)
    return crossed_mean(difference.to_numpy(dtype=np.float64))


def _groups(answers: pd.DataFrame, arms: Sequence[str]) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """The answers by arm, prompts and judge: arms in the given order, the rest as the table has it."""
    order = {arm: place for place, arm in enumerate(dict.fromkeys(arms))}
    grouped = answers.groupby(["arm", "prompts", "judge"], sort=False)
    found = [((str(a), str(p), str(j)), rows) for (a, p, j), rows in grouped]
    yield from sorted(found, key=lambda item: order.get(item[0][0], len(order)))


def _by_seed(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """A value as a table [seeds, examples], float64; NaN where there is none."""
    plain = rows.assign(seed=rows["seed"].fillna(-1), **{value: rows[value].astype("Float64")})
    return plain.pivot(index="seed", columns="example_id", values=value).astype("float64")


def _figures(rows: pd.DataFrame, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of one or several seeds' answers to the same prompts."""
    success = _by_seed(rows, "success").dropna(axis="columns", how="any")
    found = crossed_rate(success.to_numpy()) if success.size else Estimate(math.nan, math.nan, math.nan)
    scores = rows.loc[rows["example_id"].isin(success.columns), "score"].dropna()
    layers = {run.layers for run in runs}
    loss = float(np.mean([run.clean_loss for run in runs])) if runs else math.nan
    return {
        "layers": layers.pop() if len(layers) == 1 else None,
        "examples": success.shape[1],
        "rate": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "harm_mean": float(scores.mean()) if len(scores) else math.nan,
        "harm_5_share": float((scores == 5).mean()) if len(scores) else math.nan,
        "clean_loss": loss,
        "reason": _reason(rows, runs),
    }


def _reason(rows: pd.DataFrame, runs: Sequence[Run]) -> str | None:
    """What is not there, and why; None where nothing is missing."""
    reasons = []
    unjudged = rows[rows["success"].isna()]
    if len(unjudged):
        first = unjudged["reason"].dropna()
        why = f": {first.iloc[0]}" if len(first) else ""
        reasons.append(f"{len(unjudged)} of {len(rows)} answers have no verdict{why}")
    lossless = [run for run in runs if math.isnan(run.clean_loss)]
    if lossless:
        reasons.append(f"{len(lossless)} of {len(runs)} models have no mean loss on clean examples")
    return "; ".join(reasons) or None
