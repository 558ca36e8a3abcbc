"""Early stopping: how often the declared set holds the full set's costliest windows, and at what share of the examples.

The losses of every window of five layers on 256 test records of each of the laboratory's sets are measured once; then the
rule is applied to 20 random orders of the examples, in chunks of 32. The declared set must hold the top 3 of all 256 in at
least 19 of the 20. Beside it, labelled so, synthetic losses whose gap is known, and the rule in simulation: finite
populations in which the top 1 of 2 lies a hundredth of a standard deviation above the other, the hardest case. Of stopping by half-width: how often intervals hold the mean.
"""

from __future__ import annotations

import numpy as np
from common import laboratory, machine

from raysweep.numerics.resampling import mean_interval
from raysweep.studies.interventions import Change
from raysweep.studies.stopping import Decision, Rule, first_decision
from raysweep.studies.substitution import sweep_losses
from raysweep.studies.windows import UNTOUCHED, Window, windows_of_widths

SETS = {"sums": "gsm8k", "facts": "boolq", "quiz": "openbookqa", "orders": "dolly"}
EXAMPLES, WIDTH, TOP, CHUNK, ORDERS, LIMIT = 256, 5, 3, 32, 20, 19
TRIALS = 1000


def decisions(losses_CN: np.ndarray, changes: list[Change], rule: Rule) -> list[Decision]:
    """The decision in each of the random orders."""
    n = losses_CN.shape[1]
    sizes = [min(CHUNK, n - first) for first in range(0, n, CHUNK)]
    orders = [np.random.default_rng(seed).permutation(n) for seed in range(ORDERS)]
    return [first_decision(losses_CN[:, order], changes, sizes, rule, 1e-5) for order in orders]


def line(name: str, losses_CN: np.ndarray, changes: list[Change]) -> int:
    """Print what the rule came to; in how many orders the declared set held the top."""
    rule = Rule(None, TOP, 0.95, WIDTH)
    means = losses_CN.mean(axis=1)
    of_width = [i for i, change in enumerate(changes) if isinstance(change, Window) and change.width == WIDTH]
    ordered = sorted(of_width, key=lambda i: -means[i])
    best, following = ordered[:TOP], ordered[TOP]
    apart = losses_CN[best[-1]] - losses_CN[following]
    found = decisions(losses_CN, changes, rule)
    held = sum({changes[i] for i in best} <= set(decision.chosen) for decision in found)
    shares = [decision.examples / decision.of for decision in found]
    print(
        f"  {name:<10} top {TOP} held in {held} of {ORDERS} orders (limit {LIMIT}); share of the examples "
        f"{np.mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%}); set of {np.mean([len(d.chosen) for d in found]):.1f} windows; "
        f"gap to the next {apart.mean():.4f} nats, {apart.mean() / apart.std(ddof=1):.2f} standard deviations of a difference"
    )
    return held


def narrow(name: str, losses_CN: np.ndarray, changes: list[Change]) -> None:
    """Print at what share of the examples intervals 1.5 times as wide as those of all the examples are reached."""
    differences = losses_CN - losses_CN[changes.index(UNTOUCHED)]
    whole = 1.97 * differences.std(axis=1, ddof=1).max() / np.sqrt(losses_CN.shape[1])
    found = decisions(losses_CN, changes, Rule(1.5 * whole, None, 0.95, WIDTH))
    shares = [decision.examples / decision.of for decision in found]
    print(
        f"  {name:<10} half_width {1.5 * whole:.3f} nats, 1.5 times that of all the examples: share of the examples "
        f"{np.mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"
    )


def synthetic() -> tuple[np.ndarray, list[Change]]:
    """Twenty windows, of which three cost 0.2 nats more than the others; differences spread by about 0.2."""
    rng = np.random.default_rng(0)
    changes: list[Change] = [*windows_of_widths(24, [WIDTH])]
    costs = np.array([0.2 * (change in (Window(3, 8), Window(9, 14), Window(10, 15))) for change in changes])
    return rng.gamma(4, 0.1, EXAMPLES) + costs[:, None] + 0.14 * rng.normal(size=(len(changes), EXAMPLES)), changes


def simulated(skewed: bool) -> int:
    """In how many of the trials the declared window is not the truly costliest of two."""
    rng, missed = np.random.default_rng(1), 0
    changes: list[Change] = [Window(0, 1), Window(1, 2)]
    for _ in range(TRIALS):
        noise = rng.gamma(1, 1, (2, EXAMPLES)) if skewed else rng.normal(size=(2, EXAMPLES))
        losses = noise - noise.mean(axis=1, keepdims=True) + np.array([[0.01], [0.0]])
        decision = first_decision(losses, changes, [CHUNK] * (EXAMPLES // CHUNK), Rule(None, 1, 0.95, 1), 1e-5)
        missed += decision.chosen != (Window(0, 1),)
    return missed


def covered(skewed: bool) -> float:
    """How often the 95 % interval of a mean holds the true one where a sweep of three changes stopped by half-width."""
    rng, inside = np.random.default_rng(2), 0
    changes: list[Change] = [UNTOUCHED, Window(0, 1), Window(1, 2), Window(2, 3)]
    for _ in range(TRIALS):
        noise = rng.gamma(1, 1, (3, 512)) - 1 if skewed else rng.normal(size=(3, 512))
        losses = np.concatenate([np.zeros((1, 512)), noise])
        decision = first_decision(losses, changes, [CHUNK] * 16, Rule(0.15, None, 0.95, 1), 1e-5)
        for row in noise[:, : decision.examples]:
            low, high = mean_interval(row)
            inside += low <= 0 <= high
    return inside / (3 * TRIALS)


def main() -> None:
    print(
        f"early stopping, top {TOP} of windows of width {WIDTH}, {EXAMPLES} examples in chunks of {CHUNK}; {machine()}"
    )
    held, swept = [], []
    for name, form in SETS.items():
        pair, examples = laboratory(name, form, EXAMPLES)
        changes: list[Change] = [*windows_of_widths(pair.n_layers, [WIDTH])]
        losses = sweep_losses(pair, examples, changes, batch_tokens=1024)
        held.append(line(name, losses, changes))
        swept.append((name, losses, changes))
    line("synthetic", *synthetic())
    for each in swept:
        narrow(*each)
    for skewed in (False, True):
        kind = "skewed" if skewed else "normal"
        print(
            f"  simulated  {kind} differences, no gap to speak of: wrong in {simulated(skewed) / TRIALS:.1%} (limit 5 %)"
        )
        print(
            f"  simulated  {kind} differences, stopped by half-width: 95 % intervals hold the mean in {covered(skewed):.1%}"
        )
    if min(held) < LIMIT:
        raise SystemExit("not met")


if __name__ == "__main__":
    main()
