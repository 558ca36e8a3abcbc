"""What the interval of agreement between data sets covers, in simulation: `python benchmarks/agreement.py`.

True curves δ of M data sets have a part in common and parts of their own (autocorrelated along the layers, of relative size
`apart`); what is measured has noise (`noise`), and half-samples have as much again, as they have to first order. Told: how
often the interval holds the mean agreement of choices made on so many examples (its target) and the agreement of the true
choices (which more examples would come to), for percentiles of the half-samples and for other intervals made of them. Beside
it the mean of what two samples of one data set agree, as told and as it is.
"""

from __future__ import annotations

import numpy as np

from raysweep.numerics.dynamics import chosen_layers
from raysweep.numerics.selection import agreement

SIMULATIONS, RESAMPLES = 200, 200
SETTINGS = [(0.1, 0.1), (0.3, 0.1), (0.3, 0.3), (1.0, 0.1), (1.0, 0.3), (3.0, 0.3), (0.05, 0.3)]


def autocorrelated(rng, shape, coefficient):
    noise = rng.standard_normal(shape)
    curve = np.empty(shape)
    curve[..., 0] = noise[..., 0]
    for layer in range(1, shape[-1]):
        curve[..., layer] = coefficient * curve[..., layer - 1] + np.sqrt(1 - coefficient**2) * noise[..., layer]
    return curve


def simulate(rng, layers, datasets, apart, noise):
    """(what an interval should hold: target and truth; ends of each interval; repeated as told, as it is)."""
    shape = (datasets, layers)

    def measured(truth, *more):
        return truth + noise * autocorrelated(rng, (*more, *shape), 0.5)

    truth = autocorrelated(rng, (layers,), 0.8) + apart * autocorrelated(rng, shape, 0.8)
    target = agreement(chosen_layers(measured(truth, 200))).mean()
    seen = measured(truth)
    value = agreement(chosen_layers(seen))
    chosen = chosen_layers(measured(seen, RESAMPLES))
    halves = agreement(chosen)
    low, high = np.quantile(halves, [0.025, 0.975])
    shift = value - halves.mean()
    ends = {
        "percentiles (used)": (low, high),
        "re-centred": (low + shift, high + shift),
        "basic": (2 * value - high, 2 * value - low),
    }

    def same(choices):  # pairs of draws of one data set
        return agreement(np.stack([choices[0::2], choices[1::2]], axis=2)).mean()

    return target, agreement(chosen_layers(truth)), ends, same(chosen), same(chosen_layers(measured(truth, 200)))


def main():
    rng = np.random.default_rng(0)
    print(f"{SIMULATIONS} simulations each; share of intervals that hold the target (truth)")
    print("layers  sets  apart  noise  target  truth  repeated: told (is)  width  coverage")
    for layers in (16, 32):
        for datasets in (2, 4):
            for apart, noise in SETTINGS:
                runs = [simulate(rng, layers, datasets, apart, noise) for _ in range(SIMULATIONS)]
                target, truth, told, real = (np.mean([run[i] for run in runs]) for i in (0, 1, 3, 4))
                width = np.mean([np.diff(run[2]["percentiles (used)"]) for run in runs])
                covered = []
                for name in runs[0][2]:
                    holds = [
                        np.mean([run[2][name][0] - 1e-9 <= run[i] <= run[2][name][1] + 1e-9 for run in runs])
                        for i in (0, 1)
                    ]
                    covered.append(f"{name} {holds[0]:.0%} ({holds[1]:.0%})")
                print(
                    f"{layers:>6}  {datasets:>4}  {apart:>5}  {noise:>5}  {target:>6.2f}  {truth:>5.2f}  {told:>14.2f} ({real:.2f})"
                    f"  {width:>5.2f}  {', '.join(covered)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
