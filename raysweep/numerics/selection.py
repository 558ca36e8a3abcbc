"""How far choices of layers agree: over resamples of the examples, and between data sets.

Shape suffixes: L layers, M choices that are compared, R resamples; … any leading axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.dynamics import how_many
from raysweep.numerics.gram import Array, as_float64


def chosen_layers(delta_RL: ArrayLike, k: int | None = None) -> NDArray[np.bool_]:
    """Which layers `change_points` takes in every row of δ [..., L], as a mask of the same shape."""
    delta_RL = as_float64(delta_RL)
    k = how_many(delta_RL.shape[-1], k)
    first_RK = np.argsort(delta_RL, axis=-1, kind="stable")[..., :k]  # NaN sorts behind all numbers
    chosen_RL = np.zeros(delta_RL.shape, dtype=bool)
    np.put_along_axis(chosen_RL, first_RK, True, axis=-1)
    return chosen_RL & ~np.isnan(delta_RL)


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
