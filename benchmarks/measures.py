"""Every measure of similarity: seconds and error between 32 layers, and its value where the true answer is known.

The error is against the plain implementations that the tests have too. The second table is what docs/reference/measures.md shows.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from common import in_turn, machine, spread

from raysweep.numerics.measures.registry import DEFAULTS, MEASURES, similarity

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "numerics"))
from plain_measures import plain_measure

LAYERS, EXAMPLES, WIDTH = 32, 300, 1024
LIMIT = 10.0  # seconds
ACCURACY = 1e-6
CHECKED = slice(None, None, 12), slice(80)  # layers and examples that the plain implementation takes


def residual_stream() -> torch.Tensor:
    """float32 states that drift from layer to layer about a common mean, their variance falling from axis to axis."""
    rng = np.random.default_rng(0)
    scale_D = np.arange(1, WIDTH + 1) ** -1.5
    steps_LND = rng.standard_normal((LAYERS, EXAMPLES, WIDTH)) * scale_D
    for layer, step_ND in enumerate(steps_LND):  # each block writes along axes of its own
        step_ND[:] = step_ND[:, rng.permutation(WIDTH)] * (1 if layer == 0 else 0.4)
    return torch.from_numpy(steps_LND.cumsum(axis=0) + 0.2 * rng.standard_normal(WIDTH)).float()


def known_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of layers of 300 examples: three that have nothing in common but what is named, and two of the same states."""
    rng = np.random.default_rng(1)
    narrow, wide = rng.standard_normal((2, EXAMPLES, 32)), rng.standard_normal((2, EXAMPLES, WIDTH))
    outlier = wide.copy()
    outlier[..., 0] = 10 * rng.standard_normal(EXAMPLES)
    signal = rng.standard_normal((EXAMPLES, WIDTH)) * np.arange(1, WIDTH + 1) ** -1.0
    rotation, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    return {
        "independent, D = 32": (narrow[0], narrow[1]),
        "independent, D = 1024": (wide[0], wide[1]),
        "one shared dimension × 10": (outlier[0], outlier[1]),
        "one shared mean × 3": (wide[0] + 3, wide[1] + 3),
        "the same, turned": (signal, signal @ rotation),
        "the same, a mean added": (signal, signal + 0.1),
    }


def main() -> None:
    time_and_check()
    cases = known_cases()
    print("\n| metric | " + " | ".join(cases) + " |\n" + "| --- " * (len(cases) + 1) + "|")
    for metric in MEASURES:
        values = [similarity([x], metric, [y])[0, 0] for x, y in cases.values()]
        print(f"| {metric} | " + " | ".join("n/a" if np.isnan(v) else f"{v:z.2f}" for v in values) + " |")
    print(machine())


def time_and_check() -> None:
    states = residual_stream()
    few = states[CHECKED]
    parameters = dataclasses.asdict(DEFAULTS)
    print(f"{LAYERS} × {EXAMPLES} × {WIDTH}, float32; limits {LIMIT:.0f} s, {ACCURACY:.0e}")
    for metric in MEASURES:
        defined = np.isfinite(similarity(states, metric)).mean()
        plain = np.array([[plain_measure(metric, x, y, **parameters) for y in few] for x in few])
        found = similarity(few, metric)
        error = np.abs(found - plain)[np.isfinite(found)].max()
        (seconds,) = in_turn(3, lambda metric=metric: similarity(states, metric))
        print(f"{metric:<20} {spread(seconds)} s, error {error:.0e}, defined for {defined:.0%} of the pairs")


if __name__ == "__main__":
    main()
