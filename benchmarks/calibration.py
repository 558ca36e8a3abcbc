"""Do intervals cover what they say, and do tests reject as often as they say? By simulation; limits beside each figure.

tests      independent AR(1) curves of 0.8, with and without a common trend over depth (8 standard deviations of the noise from
           the first layer to the last), 20 to 60 layers: how often each p is at most 0.05 (3 to 7 % for what the report calls a
           test), and how often where the curves share three fifths of their variance (power).
combined   the same for the p over cells, of which those of one model share δ and have losses that resemble one another.
intervals  95 % intervals of CKA entries and δ, 12 layers that drift step by step: states whose variance decays over
           dimensions, the same with heavy tails (Student's t of 5 degrees of freedom), and as much in each of 400 dimensions,
           four times the examples. Biased values should cover what as many examples give on average, debiased ones the
           population's, which the covariances give in closed form.
rho        95 % intervals of ρ of δ and losses over 24 layers, both resampled together; they should cover what as many
           examples give on average.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from common import machine
from numpy.typing import NDArray
from scipy import stats

from raysweep.numerics.cka import cka_matrix
from raysweep.numerics.combined import combined_p
from raysweep.numerics.correlation import spearman, spearman_rows
from raysweep.numerics.left_out import cka_left_out
from raysweep.numerics.nulls import autocorrelated_p, circular_shift_p, permutation_p
from raysweep.numerics.resampling import half_samples, halfway_interval, jackknife_interval
from raysweep.numerics.subsets import cka_resamples, dynamics_of

Array = NDArray[np.float64]
Ends = tuple[Array, Array]

PHI, TREND, LEVEL = 0.8, 4.0, 0.05
POPULATIONS = {"decaying": (48, 0.75, False), "heavy tails": (48, 0.75, True), "wide": (400, 0.0, False)}


def ar1(rng: np.random.Generator, shape: tuple[int, ...], phi: float = PHI) -> Array:
    """AR(1) curves along the last axis with noise of variance 1, from their stationary distribution."""
    noise = rng.standard_normal(shape)
    noise[..., 0] /= np.sqrt(1 - phi**2)
    for place in range(1, shape[-1]):
        noise[..., place] += phi * noise[..., place - 1]
    return noise


# Tests ----------------------------------------------------------------------------------------------------------------


def tests(simulations: int) -> None:
    """Rejections of each p under independence, and under a common part."""
    measures: dict[str, Callable[[Array, Array], float]] = {
        "effective number (the test)": lambda x, y: autocorrelated_p(x, y).p,
        "circular shifts, detrended": circular_shift_p,
        "permutation": lambda x, y: permutation_p(x, y, 199),
    }
    print(
        f"rejected at the 5 % level in {simulations} simulations (limits 3 to 7 % for the test), power in {simulations // 5}:"
    )
    for layers in (20, 24, 32, 40, 60):
        for trend in (0.0, TREND):
            rng = np.random.default_rng(layers)
            line = np.linspace(-trend, trend, layers)
            apart = ar1(rng, (simulations, 2, layers)) + line
            tied = (
                ar1(rng, (simulations // 5, 2, layers)) + np.sqrt(1.5) * ar1(rng, (simulations // 5, 1, layers)) + line
            )
            told = []
            for name, p in measures.items():
                level, power = (np.mean([p(x, y) <= LEVEL for x, y in pairs]) for pairs in (apart, tied))
                told.append(f"{name} {level:.1%} (power {power:.0%})")
            print(f"  {layers} layers, trend {'yes' if trend else 'no '}: {', '.join(told)}", flush=True)


def combined(simulations: int) -> None:
    """Rejections of the p over cells: models × data sets, δ one curve a model, losses alike within it."""
    print(f"combined p rejected at the 5 % level in {simulations} simulations (limits 3 to 7 %), 28 layers:")
    for models, datasets in ((1, 4), (3, 1), (3, 4)):
        for alike in (0.0, 0.6):
            rng = np.random.default_rng(models + datasets)
            rejected = 0
            for _ in range(simulations):
                delta = np.repeat(ar1(rng, (models, 28)), datasets, axis=0)
                common = np.repeat(ar1(rng, (models, 28)), datasets, axis=0)
                loss = np.sqrt(alike) * common + np.sqrt(1 - alike) * ar1(rng, delta.shape)
                groups = [str(model) for model in range(models) for _ in range(datasets)]
                rejected += combined_p(list(delta), list(loss), groups).p <= LEVEL
            print(
                f"  {models} models x {datasets} data sets, losses {alike:.0%} alike: {rejected / simulations:.1%}",
                flush=True,
            )


# Intervals ------------------------------------------------------------------------------------------------------------


def population(kind: str, layers: int, rng: np.random.Generator) -> Array:
    """Maps [L, Q, Q] from what an example is to its state at each layer, drifting by steps of unlike size."""
    q, decay, _ = POPULATIONS[kind]
    spectrum = np.arange(1, q + 1) ** -decay / np.sqrt(q)
    steps = np.r_[1.0, rng.uniform(0.15, 0.9, layers - 1)]
    maps: Array = (steps[:, None, None] * spectrum[:, None] * rng.standard_normal((layers, q, q))).cumsum(axis=0)
    return maps


def sample(kind: str, maps_LQQ: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """States [L, n, Q] and the examples [n, Q] they are of."""
    Z_NQ = rng.standard_normal((n, maps_LQQ.shape[1]))
    if POPULATIONS[kind][2]:
        Z_NQ *= np.sqrt(3 / rng.chisquare(5, (n, 1)))
    return Z_NQ @ maps_LQQ, Z_NQ


def population_cka(maps_LQQ: Array) -> Array:
    """Linear CKA of the population, whose examples have covariance I: ‖A_iᵀ A_j‖² normalised."""
    F_LL = np.array([[np.linalg.norm(A.T @ B) ** 2 for B in maps_LQQ] for A in maps_LQQ])
    return np.asarray(F_LL / np.sqrt(np.outer(F_LL.diagonal(), F_LL.diagonal())))


def bootstrapped(X_LND: Array, draws_RN: NDArray[np.intp]) -> tuple[Array, Array]:
    """Biased and debiased CKA of samples drawn with replacement [R, L, L]."""
    both = [cka_matrix(X_LND[:, draw_N], debiased="both") for draw_N in draws_RN]
    return np.stack([b for b, _ in both]), np.stack([d for _, d in both])


def quantiles(values: Array) -> Ends:
    """Ends of the central 95 % along the first axis."""
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high


def schemes(estimate: Array, one: Array, two: Array, halves: Array, boot: Array) -> dict[str, Ends]:
    """95 % intervals of each scheme."""
    n = len(one)
    low, high = quantiles(halves)
    shift = estimate - halves.mean(axis=0)
    boot_low, boot_high = quantiles(boot)
    boot_shift = estimate - boot.mean(axis=0)
    z, spread = np.arctanh(estimate), np.sqrt(n - 1) * np.arctanh(one).std(axis=0)
    t = stats.t.ppf(0.975, n - 1)
    half_z = 1.96 * np.arctanh(halves).std(axis=0)
    return {
        "jackknife on z, pairs once (used)": jackknife_interval(estimate, one, two),
        "jackknife on z": (np.tanh(z - t * spread), np.tanh(z + t * spread)),
        "half-samples, SD on z": (np.tanh(z - half_z), np.tanh(z + half_z)),
        "half-samples, re-centred": (low + shift, high + shift),
        "half-samples, percentile": (low, high),
        "bootstrap, percentile": (boot_low, boot_high),
        "bootstrap, re-centred": (boot_low + boot_shift, boot_high + boot_shift),
    }


def intervals(simulations: int, resamples: int = 100) -> None:
    """Coverage of CKA entries and δ by each scheme."""
    layers = 12
    upper = np.triu_indices(layers, 1)
    print(
        f"coverage of 95 % intervals in {simulations} samples (limits 93 to 97 % for what is used), mean over entries; ±2 % or so:"
    )
    for kind in POPULATIONS:
        for n in (50, 100) if kind != "wide" else (100,):
            rng = np.random.default_rng(1)
            maps_LQQ = population(kind, layers, rng)
            truth_LL = population_cka(maps_LQQ)
            found: dict[tuple[str, str], list[tuple[Array, dict[str, Ends]]]] = {}
            for turn in range(simulations):
                X_LND, _ = sample(kind, maps_LQQ, n, rng)
                estimates, left = cka_matrix(X_LND, debiased="both"), cka_left_out(X_LND)
                halves = cka_resamples(X_LND, half_samples(n, resamples, turn), debiased="both")
                boot = bootstrapped(X_LND, rng.integers(0, n, (resamples, n)))
                for which, name in enumerate(("biased", "debiased")):
                    sides = estimates[which][None], *left[which], halves[which], boot[which]
                    for what, take in (("CKA", lambda S: S[:, *upper]), ("δ", dynamics_of)):
                        estimate, *rest = map(take, sides)
                        found.setdefault((name, what), []).append((estimate[0], schemes(estimate[0], *rest)))
            for (name, what), cases in found.items():
                population_value = truth_LL[upper] if what == "CKA" else dynamics_of(truth_LL[None])[0]
                target = np.mean([e for e, _ in cases], axis=0) if name == "biased" else population_value
                told = []
                for scheme in cases[0][1]:
                    inside = [(ends[scheme][0] <= target) & (target <= ends[scheme][1]) for _, ends in cases]
                    told.append(f"{scheme} {np.mean(inside):.1%}")
                print(f"  {kind}, {n} examples, {name} {what}: {'; '.join(told)}", flush=True)


def rho(simulations: int, resamples: int = 200) -> None:
    """Coverage of ρ by half-samples."""
    layers = 24
    print(f"coverage of 95 % intervals of ρ in {simulations} samples (limits 93 to 97 % for what is used); ±2 % or so:")
    for kind, n in (("decaying", 100), ("heavy tails", 60), ("heavy tails", 200)):
        for noise, tie in ((1.5, 0.8), (1.5, 0.3), (4.0, 0.8), (0.5, 0.0), (0.5, 0.95)):
            rng = np.random.default_rng(n + int(100 * tie))
            maps_LQQ = population(kind, layers, rng)
            delta_L = dynamics_of(population_cka(maps_LQQ)[None])[0]
            mean_L = -tie * stats.zscore(delta_L) + np.sqrt(1 - tie**2) * rng.standard_normal(layers)
            cases: list[tuple[float, dict[str, tuple[float, float]]]] = []
            for turn in range(simulations):
                X_LND, Z_NQ = sample(kind, maps_LQQ, n, rng)
                own = Z_NQ[:, :1] * np.linspace(-0.3, 0.3, layers)
                loss_NL = mean_L + own + rng.standard_normal((n, 1)) + noise * rng.standard_normal((n, layers))
                keep_RN = half_samples(n, resamples, turn)
                estimate = spearman(dynamics_of(cka_matrix(X_LND)[None])[0], loss_NL.mean(axis=0))
                loss_RL = keep_RN @ loss_NL / keep_RN.sum(axis=1, keepdims=True)
                rho_R = spearman_rows(dynamics_of(cka_resamples(X_LND, keep_RN)), loss_RL)
                low, high = np.quantile(rho_R, [0.025, 0.975])
                shift = estimate - rho_R.mean()
                ends = {
                    "percentiles moved halfway (used)": halfway_interval(estimate, rho_R),
                    "percentile": (low, high),
                    "re-centred": (low + shift, high + shift),
                }
                cases.append((estimate, ends))
            target = float(np.tanh(np.mean(np.arctanh([e for e, _ in cases]))))
            told = [
                f"{scheme} {np.mean([ends[scheme][0] <= target <= ends[scheme][1] for _, ends in cases]):.1%}"
                for scheme in cases[0][1]
            ]
            print(f"  {kind}, {n} examples, noise {noise:g}, ρ {target:+.2f}: {'; '.join(told)}", flush=True)


def main() -> None:
    parts: dict[str, tuple[Callable[[int], None], int]] = {
        "tests": (tests, 2000),
        "combined": (combined, 1000),
        "intervals": (intervals, 300),
        "rho": (rho, 300),
    }
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all unless given")
    options.add_argument("--simulations", type=int, help="instead of each part's own number")
    asked = options.parse_args()
    print(f"calibration; {machine()}")
    for name in asked.parts or parts:
        part, simulations = parts[name]
        started = time.perf_counter()
        part(asked.simulations or simulations)
        print(f"  ({name}: {time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
