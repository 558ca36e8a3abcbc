"""What intervals cost: 1,000 half-samples of all L × L CKA values, and the jackknife, beside the CKA matrix itself.

Each is compared with `cka_matrix` of the examples kept, in float64; the limit is 5 s for the half-samples on 2 cores.
Set OMP_NUM_THREADS=2.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from common import in_turn, machine, spread

from raysweep.numerics.cka import cka_matrix
from raysweep.numerics.left_out import cka_left_out
from raysweep.numerics.resampling import half_samples
from raysweep.numerics.subsets import cka_resamples

RESAMPLES, LIMIT, ROUNDS = 1000, 5.0, 3


def measure(layers: int, examples: int, width: int) -> None:
    """Times in turn, and how far from the matrices of the same examples."""
    rng = np.random.default_rng(0)
    X_LND = rng.standard_normal((layers, examples, width), dtype=np.float32).cumsum(axis=0)
    keep_RN = half_samples(examples, RESAMPLES, 0)
    whole, halves, jackknife = in_turn(
        ROUNDS,
        lambda: cka_matrix(X_LND, debiased="both"),
        lambda: cka_resamples(X_LND, keep_RN, debiased="both"),
        lambda: cka_left_out(X_LND),
    )
    found = cka_resamples(X_LND, keep_RN[:3], debiased="both")
    left = cka_left_out(X_LND)
    apart = [
        float(np.abs(np.stack(pair) - np.stack(cka_matrix(X_LND[:, rows], debiased="both"))).max())
        for rows, pair in [
            *((keep_N, (found[0][r], found[1][r])) for r, keep_N in enumerate(keep_RN[:3])),
            (np.arange(1, examples), (left[0].one[0], left[1].one[0])),
            (np.setdiff1d(np.arange(examples), [0, examples // 2]), (left[0].two[0], left[1].two[0])),
        ]
    ]
    print(f"  {layers} layers x {examples} examples of width {width}, biased and debiased:")
    print(
        f"    {RESAMPLES} half-samples {spread(halves)} s, limit {LIMIT} s: {statistics.median(halves) / LIMIT:.2f} of it"
    )
    print(f"    jackknife (each, and every pair) {spread(jackknife)} s; the CKA matrix itself {spread(whole)} s")
    print(f"    off by at most {max(apart):.1e} from the CKA matrix of the same examples")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"resamples; {machine()}")
    measure(32, 300, 4096)
    measure(32, 300, 1024)
    measure(80, 300, 1024)


if __name__ == "__main__":
    main()
