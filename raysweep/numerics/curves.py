"""Loss curves of trainings: the area between two of them, and the mean of several, with intervals over seeds.

What a curve is of, and which are compared, is for the caller to say.

Shape suffixes: S seeds, T steps at which the loss was measured.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.resampling import mean_interval

Array = NDArray[np.float64]


class OverSeeds(NamedTuple):
    """A mean over seeds with its interval; what cannot be told is NaN, and `reason` says why."""

    value: float
    low: float
    high: float
    reason: str | None


def area_between(steps_T: ArrayLike, a_T: ArrayLike, b_T: ArrayLike) -> float:
    """The mean of a − b over the steps, in the losses' unit (nats): their area by trapezoids, ÷ (last step − first).

    Both curves are straight between measurements. Negative where a is below b; antisymmetric; a constant c added to a adds
    c. Step counts may be multiplied or shifted, and a measurement on a straight piece left out, without changing it. Any unit
    of steps would do. NaN where a loss is NaN or infinite.

    Raises ValueError unless the steps ascend, are two or more, and both curves have a loss at each.
    """
    steps_T, a_T, b_T = (np.asarray(values, dtype=np.float64) for values in (steps_T, a_T, b_T))
    return float(_areas(steps_T, (a_T - b_T)[None] if a_T.shape == b_T.shape else None)[0])


def paired_area(steps_T: ArrayLike, a_ST: ArrayLike, b_ST: ArrayLike, level: float = 0.95) -> OverSeeds:
    """The mean over seeds of `area_between`, row s of both being of one seed, with the interval of `paired_mean`.

    Raises ValueError for shapes that do not fit, or steps that do not ascend.
    """
    steps_T, a_ST, b_ST = (np.asarray(values, dtype=np.float64) for values in (steps_T, a_ST, b_ST))
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        return paired_mean(_areas(steps_T, a_ST - b_ST if a_ST.shape == b_ST.shape else None), level)


def paired_mean(differences_S: ArrayLike, level: float = 0.95) -> OverSeeds:
    """The mean of each seed's difference, and Student's t interval of it.

    The interval is for the mean over all seeds that might have been drawn. It takes the seeds for independent and their
    differences for near normal, which a few seeds cannot show: with 3 it is 2.5 standard deviations to either side, and with
    2 it is 9. Of a single seed, or of seeds that all give the same, there is none; no seed that has no difference is left
    out, for what diverges with one seed is no better for it.
    """
    differences_S = np.asarray(differences_S, dtype=np.float64)
    if differences_S.ndim != 1:
        raise ValueError(f"expected a difference a seed, [S]; got shape {differences_S.shape}")
    if not len(differences_S):
        return OverSeeds(np.nan, np.nan, np.nan, "no seed has both curves")
    if not np.isfinite(differences_S).all():
        missing = int((~np.isfinite(differences_S)).sum())
        return OverSeeds(
            np.nan, np.nan, np.nan, f"{missing} of {len(differences_S)} seeds have a loss that is NaN or infinite"
        )
    value = float(differences_S.mean())
    if len(differences_S) == 1:
        return OverSeeds(value, np.nan, np.nan, "one seed: no interval")
    if (differences_S == differences_S[0]).all():
        return OverSeeds(value, np.nan, np.nan, "the seeds all give the same: no interval")
    return OverSeeds(value, *mean_interval(differences_S, level), None)


def mean_curve(losses_ST: ArrayLike, level: float = 0.95) -> tuple[Array, Array, Array]:
    """At each step the mean over seeds and its Student's t interval (mean [T], low [T], high [T]).

    NaN at steps where a loss is NaN or infinite; the interval is NaN, too, for a single seed. Each step's interval is its own:
    it does not hold the whole curve, nor the difference of two curves of the same seeds, which is paired and surer.
    """
    losses_ST = np.asarray(losses_ST, dtype=np.float64)
    if losses_ST.ndim != 2 or not len(losses_ST):
        raise ValueError(f"expected a curve a seed, [S, T]; got shape {losses_ST.shape}")
    finite_ST = np.where(np.isfinite(losses_ST).all(axis=0), losses_ST, np.nan)
    intervals = [mean_interval(loss_S, level) for loss_S in finite_ST.T]
    low_T, high_T = np.array(intervals, dtype=np.float64).reshape(-1, 2).T
    return finite_ST.mean(axis=0), low_T, high_T


def _areas(steps_T: Array, difference_ST: Array | None) -> Array:
    """The area of each row ÷ the range of the steps [S]; NaN where the row is not finite."""
    if difference_ST is None or steps_T.ndim != 1 or difference_ST.ndim != 2:
        raise ValueError("both curves must have the same shape, with a loss at every step")
    if difference_ST.shape[1] != len(steps_T):
        raise ValueError(f"{difference_ST.shape[1]} losses a curve, and {len(steps_T)} steps")
    width_T = np.diff(steps_T)
    if len(steps_T) < 2 or not (width_T > 0).all():
        raise ValueError(f"an area needs two steps or more, ascending; got {steps_T.tolist()}")
    finite_S1 = np.isfinite(difference_ST).all(axis=1, keepdims=True)
    known_ST = np.where(finite_S1, difference_ST, np.nan)
    area_S = ((known_ST[:, 1:] + known_ST[:, :-1]) / 2 * width_T).sum(axis=1)
    return np.asarray(area_S / (steps_T[-1] - steps_T[0]), dtype=np.float64)
