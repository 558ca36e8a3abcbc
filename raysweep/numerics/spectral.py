"""The spectrum of a layer's states: its principal components, how many directions it fills, and what it shares with another's.

With X the states of N examples, centred over the examples, X = U Σ Vᵀ: the columns of U have a component's score for each
example, the columns of V its direction in the residual stream, and σ²/(N − 1) is the variance along it. The decomposition is
the singular value decomposition of the triangular factor of X (or of Xᵀ, whichever is taller) in float64. The smaller Gram
would be two to four times as fast, and have singular values only to the square root of the precision, about 1e-8 of the
largest: where massive activations make that one huge, the others lose their digits.

Pure functions of arrays. Shape suffixes: N examples, D width, R = min(N, D), K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from raysweep.numerics.gram import Array, LinearGram, States, as_float64, input_epsilon

_EPS = float(np.finfo(np.float64).eps)
# Float64 arithmetic moves a component by some ten epsilons times σ₁ over its gap: at this gap by less than 1e-6.
_RESOLUTION = 1e-8
# How far a model's arithmetic may be from exact, in roundings of its result: against float64, the laboratory's 24 layers were
# off by 3 to 8 in float32, and in bfloat16, whose products are summed in float32, by 1 to 4.
_ROUNDINGS, _ROUNDINGS_OF_HALVES = 16, 4


class PrincipalComponents(NamedTuple):
    """The first components of a layer: x ≈ mean + Σ_k ⟨x − mean, v_k⟩ v_k, with the rows v_k orthonormal.

    Shapes: mean [D], components [K, D], singular_values [K].
    """

    mean: Array
    components: Array
    singular_values: Array


def principal_components(states_ND: States, k: int) -> PrincipalComponents:
    """The mean of the states, their first `k` principal directions, and the singular values of the centred states.

    A singular value's square over N − 1 is the variance along a direction. Of the two signs of a direction that is taken in which
    its largest coordinate is positive. Raises ValueError for states that are not finite [N, D] with N ≥ 2, and where the
    states have no `k` components that stand above their own rounding.
    """
    found = decompose(states_ND, k)
    if not 1 <= k <= found.rank:
        raise ValueError(f"{k} components are asked for, and the states have {found.rank}: {found.why_few(k)}")
    return PrincipalComponents(found.mean, found.right, found.singular_values[:k])


@dataclass(frozen=True)
class Decomposition:
    """Centred states as U Σ Vᵀ: every singular value, in descending order, and the first vectors of both sides as rows.

    `rank` counts the singular values that stand above `rounding`, what arithmetic in the states' own dtype alone would give;
    `constant` says that the states are all the same. Shapes: mean [D], singular_values [R], left [K, N], right [K, D], with K
    no more than the rank.
    """

    examples: int
    width: int
    mean: Array
    singular_values: Array
    left: Array
    right: Array
    rounding: float
    constant: bool

    @property
    def rank(self) -> int:
        """The number of components, N − 1 at most."""
        return 0 if self.constant else int((self.singular_values > self.rounding).sum())

    def why_few(self, k: int) -> str:
        """Why there are fewer than `k` components."""
        if self.constant:
            return "all examples have the same state"
        if k > self.examples - 1:
            return f"{self.examples} examples have {self.examples - 1} components at most"
        if k > self.width:
            return f"the states have {self.width} dimensions"
        return "the rest is no larger than the rounding of the states"

    def gap(self, k: int) -> float:
        """(λ_k − λ_{k+1}) / λ_k with λ = σ², for k up to the rank: small where components k and k + 1 may change places."""
        after = self._after(k) / self.singular_values[k - 1]
        return float((1 - after) * (1 + after))

    def determined(self, k: int) -> bool:
        """Whether the first `k` components span a subspace that is more than an accident of rounding.

        To first order a perturbation E mixes component k with the next by ⟨u_k, E v_{k+1}⟩ / (σ_k − σ_{k+1}). For a random E
        that numerator is about its norm over √N + √D.
        """
        difference = self.singular_values[k - 1] - self._after(k)
        entry = self.rounding / (math.sqrt(self.examples) + math.sqrt(self.width))
        return bool(difference > max(entry, _RESOLUTION * self.singular_values[0]))

    def _after(self, k: int) -> float:
        return float(self.singular_values[k]) if k < self.rank else 0.0


def decompose(states_ND: States, k: int) -> Decomposition:
    """The centred states' singular values, with the vectors of the first `k` (fewer where the rank is lower).

    Rounding is bounded as a random matrix of the states' roundings is: half an epsilon of their dtype, times the largest norm
    of a row plus the largest of a column (Bandeira and van Handel, 2016). It is taken four times for 16-bit states and 16 times
    for others, as a model's arithmetic rounds more than once, and is not below that of float64 arithmetic here. Raises
    ValueError for states that are not finite, or not [N, D] with N ≥ 2.
    """
    shape = tuple(states_ND.shape)
    if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
        raise ValueError(f"states of shape {shape}; expected [N, D] with N at least 2")
    gram = LinearGram(states_ND)
    X_ND = gram.centred(slice(0, gram.examples))
    wide = gram.examples < gram.width
    tall = X_ND.T if wide else X_ND
    _, scaled_R, small_RR = np.linalg.svd(np.linalg.qr(tall, mode="r"))
    singular_R = gram.peak * scaled_R
    squares_ND = as_float64(states_ND) ** 2
    largest = np.sqrt(squares_ND.sum(axis=1).max()) + np.sqrt(squares_ND.sum(axis=0).max())
    epsilon = input_epsilon(states_ND)
    roundings = _ROUNDINGS if epsilon < 1e-4 else _ROUNDINGS_OF_HALVES
    arithmetic = max(gram.examples, gram.width) * _EPS * float(singular_R[0])
    rounding = max(roundings * epsilon / 2 * largest, arithmetic)
    kept = 0 if gram.constant else min(k, int((singular_R > rounding).sum()))
    small = small_RR[:kept]
    large = (small @ tall.T) / scaled_R[:kept, None]
    left_KN, right_KD = (small, large) if wide else (large, small)
    signs_K = np.sign(right_KD[np.arange(kept), np.abs(right_KD).argmax(axis=1)])[:, None]
    return Decomposition(
        gram.examples,
        gram.width,
        gram.mean_D,
        singular_R,
        left_KN * signs_K,
        right_KD * signs_K,
        float(rounding),
        gram.constant,
    )


def explained_shares(singular_values_R: ArrayLike) -> Array:
    """Share of the variance along each component [R]: σ² / Σ σ²; in [0, 1], descending, of sum 1."""
    squares_R = _scaled(singular_values_R) ** 2
    shares_R: Array = squares_R / squares_R.sum()
    return shares_R


def effective_rank(singular_values_R: ArrayLike) -> float:
    """exp(−Σ p ln p) with p = σ / Σ σ (Roy and Vetterli, 2007): in [1, R]; R where all singular values are equal.

    Theirs is of singular values, not of variances: it is above the one of variances, which weighs small components less.
    """
    sigma_R = _scaled(singular_values_R)
    p_R = sigma_R / sigma_R.sum()
    return float(np.exp(-(p_R * np.log(np.where(p_R > 0, p_R, 1.0))).sum()))


def participation_ratio(singular_values_R: ArrayLike) -> float:
    """(Σ λ)² / Σ λ² with λ = σ²: in [1, R]; the number of components where all have the same variance."""
    lambda_R = _scaled(singular_values_R) ** 2
    return float(lambda_R.sum() ** 2 / (lambda_R**2).sum())


def stable_rank(singular_values_R: ArrayLike) -> float:
    """Σ σ² / σ₁², the squared Frobenius norm over the squared spectral norm: in [1, R]."""
    return float((_scaled(singular_values_R) ** 2).sum())


def _scaled(singular_values_R: ArrayLike) -> Array:
    """Singular values over the largest, so that no square of one overflows; NaN where all are zero, or there is none."""
    sigma_R = as_float64(singular_values_R)
    largest = sigma_R.max(initial=0.0)
    return sigma_R / largest if largest > 0 else np.full(max(1, len(sigma_R)), np.nan)


def canonical_correlations(x: Decomposition, y: Decomposition, k: int) -> Array:
    """Canonical correlations between the first `k` components of two layers' states of the same examples [K], descending.

    The singular values of U_xᵀ U_y, whose columns are the left singular vectors: in [0, 1], symmetric, and unchanged where a
    layer's states are turned, shifted or multiplied by a number. Between k independent directions of N centred examples
    their root mean square is about √(k / (N − 1)). Raises ValueError where a side has not so many vectors.
    """
    return _cosines(x.left, y.left, k)


def principal_angle_cosines(x: Decomposition, y: Decomposition, k: int) -> Array:
    """Cosines of the principal angles between the subspaces of two layers' first `k` components [K], descending.

    The singular values of V_xᵀ V_y, whose columns are directions in the residual stream, so that both layers have the same
    width: in [0, 1], symmetric, and unchanged where both layers' states are turned alike. Between k independent directions
    of D dimensions their root mean square is about √(k / D). Raises ValueError where a side has not so many vectors.
    """
    return _cosines(x.right, y.right, k)


def _cosines(x_KM: Array, y_KM: Array, k: int) -> Array:
    if not 1 <= k <= min(len(x_KM), len(y_KM)):
        raise ValueError(f"{k} components of each side are asked for, and there are {len(x_KM)} and {len(y_KM)}")
    if x_KM.shape[1] != y_KM.shape[1]:
        raise ValueError(f"vectors of {x_KM.shape[1]} and {y_KM.shape[1]} coordinates cannot be compared")
    return as_float64(np.linalg.svd(x_KM[:k] @ y_KM[:k].T, compute_uv=False))
