"""How far choices of layers agree: over resamples of the examples, and between data sets.

Shape suffixes: L layers, M choices that are compared, C different choices, R resamples; … any leading axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.gram import Array


def agreement(chosen_ML: NDArray[np.bool_]) -> Array:
    """Agreement of M choices of layers [..., M, L], corrected for chance: 1 the same layers, about 0 choices at random.

    1 − mean_l(s_l²) / (k̄/L · (1 − k̄/L)), with s_l² = M/(M−1) · p_l (1 − p_l) the variance of layer l's being chosen and k̄
    the mean number chosen (Nogueira, Sechidis & Brown, JMLR 2018). For choices of one size it is the mean over pairs of
    Kuncheva's index, (common − k²/L) / (k − k²/L). Not less than −1/(M−1). NaN where nothing or everything is chosen
    throughout, so that there is no choice to agree on. Raises ValueError for fewer than two choices.
    """
    chosen_ML = np.asarray(chosen_ML)
    if chosen_ML.dtype != np.bool_ or chosen_ML.ndim < 2 or chosen_ML.shape[-2] < 2:
        raise ValueError(f"two or more choices are compared, boolean [M, L]; got {chosen_ML.dtype} {chosen_ML.shape}")
    m, layers = chosen_ML.shape[-2:]
    share_L = chosen_ML.mean(axis=-2)
    variance = m / (m - 1) * (share_L * (1 - share_L)).mean(axis=-1)
    density = chosen_ML.sum(axis=(-2, -1)) / (m * layers)
    spread = np.where((density > 0) & (density < 1), density * (1 - density), np.nan)
    found: Array = 1 - variance / spread
    return found


def common_layers(chosen_ML: NDArray[np.bool_]) -> Array:
    """How many layers two of the M choices [..., M, L] have in common, on average over pairs; k²/L by chance."""
    m = chosen_ML.shape[-2]
    times_L = chosen_ML.sum(axis=-2, dtype=np.float64)
    found: Array = (times_L * (times_L - 1)).sum(axis=-1) / (m * (m - 1))
    return found


@dataclass(frozen=True)
class Choices:
    """The choice on all examples of one data set, `whole` [L], and those of its resamples: each once, with its share of them.

    `distinct` [C, L] and `shares` [C] are empty where nothing was resampled.
    """

    whole: NDArray[np.bool_]
    distinct: NDArray[np.bool_]
    shares: Array

    @property
    def layer_shares(self) -> Array:
        """How often each layer is chosen [L], as a share of the resamples; NaN without any."""
        if not len(self.shares):
            return np.full(len(self.whole), np.nan)
        shares: Array = self.shares @ self.distinct
        return shares


@dataclass(frozen=True)
class Agreement:
    """How far the choices on several data sets agree.

    `value` is `agreement` of the choices on all examples, with a 95 % interval; `common` and `chance` are how many layers two
    of them share, and would share by chance; `repeated` is what two samples of one and the same data set would agree.
    """

    value: float
    ci_low: float
    ci_high: float
    common: float
    chance: float
    repeated: float

    def __repr__(self) -> str:
        return (
            f"Agreement({self.value:.3f}, 95 % interval {self.ci_low:.3f} to {self.ci_high:.3f}; {self.common:.2f} layers in common, "
            f"{self.chance:.2f} by chance; one data set repeated {self.repeated:.3f})"
        )


def agreement_between(datasets: Sequence[Choices], draws: int = 1000, seed: int = 0) -> Agreement:
    """How far the choices on two or more data sets agree, with an interval over examples.

    The interval is that of agreement when each data set's choice is drawn from those of its half-samples, for all data sets
    independently, not re-centred. In simulation (benchmarks/agreement.py) it covers the mean agreement of choices made on so
    many examples; that of choices made on unlimited examples is higher, and above the interval where choices are unstable.
    `repeated` tells that case: it is the mean over data sets of what two choices drawn for the same data set agree, and no
    agreement between data sets can be told to be less than perfect that is as high. Interval and `repeated` are NaN where some
    data set has no resamples. Deterministic in `seed`.
    """
    whole_ML = np.stack([each.whole for each in datasets])
    sizes_M = whole_ML.sum(axis=1)
    pairs = [a * b for a, b in itertools.combinations(sizes_M.tolist(), 2)]
    low = high = repeated = np.nan
    if all(len(each.shares) for each in datasets):
        rng = np.random.default_rng(seed)
        drawn_RML = np.stack(
            [e.distinct[rng.choice(len(e.shares), draws, p=e.shares / e.shares.sum())] for e in datasets], axis=1
        )
        agreed_R = agreement(drawn_RML)
        if not np.isnan(agreed_R).any():
            low, high = (float(end) for end in np.quantile(agreed_R, [0.025, 0.975]))
        repeated = float(np.mean([_repeated(each.layer_shares) for each in datasets]))
    chance = float(np.mean(pairs)) / whole_ML.shape[1]
    return Agreement(float(agreement(whole_ML)), low, high, float(common_layers(whole_ML)), chance, repeated)


def _repeated(share_L: Array) -> float:
    """Agreement to expect of two independent choices that take each layer with these probabilities."""
    size, layers = float(share_L.sum()), len(share_L)
    chance = size**2 / layers
    return float((share_L @ share_L - chance) / (size - chance)) if 0 < size < layers else np.nan
