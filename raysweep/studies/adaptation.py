"""Domain adaptation: does the test loss fall faster where only critical layers are trained? From loss curves; trains nothing.

An arm is a choice of layers to train: the critical ones, as many others, or all. Arms are compared seed by seed: a seed decides
the order of the data, the same for every arm, so that this cancels in the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import pandas as pd

from raysweep.numerics.curves import OverSeeds, paired_area, paired_mean

PAIRS = (("critical", "non_critical"), ("critical", "all"), ("non_critical", "all"))
MEASURES = ("area", "final")
COLUMNS = ("arm", "versus", "measure", "seeds", "steps", "value", "ci_low", "ci_high", "reason")
_NAMED = 4  # steps that a reason names


def adaptation_table(
    training: pd.DataFrame, arms: Sequence[str], level: float = 0.95, lacking: Mapping[tuple[str, int], str] = {}
) -> pd.DataFrame:
    """Every arm against another of `arms`, from the `training` rows of one model and data set, as the `adaptation` table.

    `training` has arm, seed, step, split and loss; the test losses are used, those of seeds that both arms have. Two rows a pair of
    arms, both arm − versus in nats, so that negative says that `arm` has the lower loss: `area`, the mean difference over the
    steps (numerics/curves.py), and `final`, the difference at the last step. `seeds` and `steps` are how many seeds and what
    last step they come from; the interval is over seeds. Without test losses at the same steps in all of a pair's curves
    nothing is compared: the value is NaN, and `reason` says why; it also names seeds that only one of the arms has, and what `lacking`
    says of a pair's arms and seeds: why they have no curve. Raises ValueError where a curve has two losses at a step.
    """
    test = training[training["split"] == "test"]
    twice = test[test.duplicated(["arm", "seed", "step"])]
    if len(twice):
        arm, seed, step = twice[["arm", "seed", "step"]].iloc[0]
        raise ValueError(f"arm {arm} with seed {seed} has two test losses at step {step}")
    rows = [
        row
        for arm, versus in PAIRS
        if {arm, versus} <= set(arms)
        for row in _compared(test, arm, versus, level, _why({arm, versus}, lacking))
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"seeds": "int64", "steps": "int64", "reason": "string"})


def loss_curves(training: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The test losses of one arm: a row a seed, a column a step, ascending; NaN where a seed has none."""
    rows = training[(training["arm"] == arm) & (training["split"] == "test")]
    return rows.pivot(index="seed", columns="step", values="loss").astype(float).sort_index().sort_index(axis="columns")


def _compared(test: pd.DataFrame, arm: str, versus: str, level: float, why: str) -> list[tuple[object, ...]]:
    """The rows of one pair; `why` ends their reasons."""
    a, b = _measured(test, arm), _measured(test, versus)
    seeds = sorted(a.keys() & b.keys())
    steps: list[int] = []
    if not seeds:
        found = {measure: _none(f"no seed has test losses of both {arm} and {versus}") for measure in MEASURES}
    elif apart := _apart([(arm, seed, a[seed]) for seed in seeds] + [(versus, seed, b[seed]) for seed in seeds]):
        found = {measure: _none(apart) for measure in MEASURES}
    else:
        steps = a[seeds[0]].index.to_list()
        a_ST, b_ST = (np.array([curves[seed].to_numpy(dtype=float) for seed in seeds]) for curves in (a, b))
        with np.errstate(invalid="ignore"):  # ∞ − ∞
            final = paired_mean(a_ST[:, -1] - b_ST[:, -1], level)
        area = (
            paired_area(steps, a_ST, b_ST, level) if len(steps) > 1 else _none("the test loss was measured only once")
        )
        found = {"area": area, "final": final}
    last, alone = steps[-1] if steps else 0, _alone(arm, versus, a.keys() ^ b.keys()) if seeds else ""
    return [
        (
            arm,
            versus,
            measure,
            len(seeds),
            last,
            value,
            low,
            high,
            "; ".join(filter(None, (reason, alone, why))) or None,
        )
        for measure in MEASURES
        for value, low, high, reason in [found[measure]]
    ]


def _alone(arm: str, versus: str, seeds: Set[int]) -> str:
    """Which seeds could not be paired, in words: a training that failed may well be one that diverged."""
    named = ", ".join(map(str, sorted(seeds)))
    return f"left out, because only one of {arm} and {versus} has test losses: seed {named}" if seeds else ""


def _why(arms: Set[str], lacking: Mapping[tuple[str, int], str]) -> str:
    """Why these arms lack curves, in words; seeds that lack them for the same cause together."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for (arm, seed), why in lacking.items():
        if arm in arms:
            seeds.setdefault((arm, why), []).append(seed)
    return "; ".join(f"{arm} with seed {', '.join(map(str, of))}: {why}" for (arm, why), of in seeds.items())


def _measured(test: pd.DataFrame, arm: str) -> dict[int, pd.Series[float]]:
    """The curve of every seed of an arm, by step."""
    rows = test[test["arm"] == arm].sort_values("step")
    return {int(seed): rows[rows["seed"] == seed].set_index("step")["loss"] for seed in rows["seed"].unique()}


def _apart(curves: Sequence[tuple[str, int, pd.Series[float]]]) -> str:
    """How curves differ in their steps, in words; nothing where they do not.

    Nothing is interpolated: a loss between two measurements was not measured.
    """
    first_arm, first_seed, first = curves[0]
    for arm, seed, curve in curves[1:]:
        if not curve.index.equals(first.index):
            only = sorted(set(curve.index) ^ set(first.index))
            more = f" and {len(only) - _NAMED} more" if len(only) > _NAMED else ""
            named = ", ".join(map(str, only[:_NAMED])) + more
            return (
                f"{first_arm} with seed {first_seed} and {arm} with seed {seed} were not measured at the same steps: "
                f"only one of them at {named}"
            )
    return ""


def _none(reason: str) -> OverSeeds:
    return OverSeeds(np.nan, np.nan, np.nan, reason)
