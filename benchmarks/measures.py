"""Seconds that each measure takes between 32 layers of 300 examples, and its error against the tests' plain implementation."""

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


def main() -> None:
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
    print(machine())


if __name__ == "__main__":
    main()
