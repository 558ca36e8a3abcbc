"""CKA and δ on subsets of the examples, at the cost of re-weighted products: no Gram is computed again.

Shape suffixes: L layers, N examples, R resamples, M the examples of a subset, P pairs of examples in a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.cka import Kernel
from raysweep.numerics.dynamics import local_dynamics
from raysweep.numerics.gram import Array, LinearGram, States, read_layers
from raysweep.numerics.products import normalised

_EPS = float(np.finfo(np.float64).eps)
# Row sums held at a time, R·N·L of them; with more of these, subsets are gone through in groups, each a pass of its own.
_MOST_SUMS = 2**24


@overload
def cka_resamples(
    X_LND: Iterable[States],
    keep_RN: NDArray[np.bool_],
    kernel: Kernel = "linear",
    debiased: bool = False,
    *,
    tile: int = 256,
) -> Array: ...


@overload
def cka_resamples(
    X_LND: Iterable[States],
    keep_RN: NDArray[np.bool_],
    kernel: Kernel = "linear",
    *,
    debiased: Literal["both"],
    tile: int = 256,
) -> tuple[Array, Array]: ...


def cka_resamples(
    X_LND: Iterable[States],
    keep_RN: NDArray[np.bool_],
    kernel: Kernel = "linear",
    debiased: bool | Literal["both"] = False,
    *,
    tile: int = 256,
) -> Array | tuple[Array, Array]:
    """CKA between every two layers on subsets of the examples [R, L, L]; `debiased="both"` gives (biased, debiased).

    Row r of the boolean `keep_RN` says which examples are in subset r. Equal to `cka_matrix` of each subset, without
    computing a Gram again. With every K and H restricted to the M examples of a subset, s the row sums of K there and t
    their total,

        ⟨H K_i H, H K_j H⟩ = Σ_ab (K_i)_ab (K_j)_ab − (2/M) Σ_a s_ia s_ja + t_i t_j / M².

    The pairs of a subset are gathered from tiles of the upper triangle that all layers are stacked in, so that a
    half-sample costs L²·N²/8 multiplications, a quarter of what all pairs would. Memory: L·tile² numbers twice, R·N·L
    row sums (16 million of them at most; with more the Grams' tiles are computed in several passes), R·L² results.

    The RBF keeps the bandwidth of the full sample: subsets differ in examples, not in kernel. Biased CKA grows as
    examples get fewer, so the values lie above the full sample's: their level is that of a smaller sample. A constant
    layer has NaN in its rows and columns, and so has, in one subset, a layer whose states are identical there (or differ, next to their
    distance from the mean of all examples, by too little for float64 to tell), or whose unbiased variance is not
    positive (debiased). Raises ValueError for shapes that do not fit and for subsets of too few examples: 2, debiased 4.
    """
    grams = read_layers(X_LND, kernel)
    layers, examples = len(grams), grams[0].examples
    keep_RN = np.asarray(keep_RN)
    if keep_RN.dtype != np.bool_ or keep_RN.ndim != 2 or keep_RN.shape[1] != examples:
        raise ValueError(f"subsets must be boolean [R, {examples}]; got {keep_RN.dtype} of shape {keep_RN.shape}")
    size_R, fewest = keep_RN.sum(axis=1), 4 if debiased else 2
    if (size_R < fewest).any():
        raise ValueError(f"subset {int((size_R < fewest).argmax())} has fewer than {fewest} examples")
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    varying = [layer for layer, gram in enumerate(grams) if not gram.constant]
    biased_RLL = np.full((len(keep_RN), layers, layers), np.nan)
    debiased_RLL = np.full_like(biased_RLL, np.nan) if debiased else biased_RLL
    chosen = np.ix_(varying, varying)
    group = max(1, _MOST_SUMS // (examples * layers))
    for first in range(0, len(keep_RN) if varying else 0, group):
        groups_keep = keep_RN[first : first + group]
        subsets = _products([grams[layer] for layer in varying], groups_keep, tile)
        for place, (F_LL, unbiased_LL, zero_L) in enumerate(subsets, start=first):
            biased_RLL[place][chosen] = normalised(F_LL, zero_L)
            if debiased:
                debiased_RLL[place][chosen] = normalised(unbiased_LL, zero_L)
    if debiased == "both":
        return biased_RLL, debiased_RLL
    return debiased_RLL if debiased else biased_RLL


def dynamics_resamples(
    X_LND: Iterable[States],
    keep_RN: NDArray[np.bool_],
    neighbourhood: int = 3,
    kernel: Kernel = "linear",
    debiased: bool = False,
    diagonal: bool = True,
) -> Array:
    """δ on subsets of the examples [R, L]: `local_dynamics` of each matrix of `cka_resamples`, which see."""
    return dynamics_of(cka_resamples(X_LND, keep_RN, kernel, debiased), neighbourhood, diagonal)


def dynamics_of(S_RLL: Array, neighbourhood: int = 3, diagonal: bool = True) -> Array:
    """δ of each of R similarity matrices [R, L]; see `local_dynamics`."""
    return np.stack([local_dynamics(S_LL, neighbourhood, diagonal) for S_LL in S_RLL])


def _products(
    grams: Sequence[LinearGram], keep_RN: NDArray[np.bool_], tile: int
) -> Iterable[tuple[Array, Array, Array]]:
    """For each subset ⟨H K_i H, H K_j H⟩ [L, L], its unbiased counterpart, and what is no more than rounding [L]."""
    layers, examples = len(grams), grams[0].examples
    W_RN = keep_RN.astype(np.float64)
    members = [np.flatnonzero(keep_N) for keep_N in keep_RN]
    F_RLL = np.zeros((len(keep_RN), layers, layers))  # the products of pairs above the diagonal
    sums_RNL = np.zeros((len(keep_RN), examples, layers))  # row sums of K over the subset
    diagonal_NL = np.empty((examples, layers))
    bounds = np.linspace(0, examples, -(-examples // tile) + 1).astype(int)
    blocks = [slice(int(start), int(stop)) for start, stop in itertools.pairwise(bounds)]
    gathered_PL = np.empty((max(block.stop - block.start for block in blocks) ** 2, layers))
    for place, rows in enumerate(blocks):
        for cols in blocks[place:]:
            K_ABL = np.stack([gram.kernel(rows, cols) for gram in grams], axis=-1)
            height, width = K_ABL.shape[:2]
            sums_RNL[:, cols] += (W_RN[:, rows] @ K_ABL.reshape(height, -1)).reshape(-1, width, layers)
            if rows == cols:
                diagonal_NL[rows] = K_ABL.reshape(-1, layers)[:: width + 1]
            else:  # this tile stands for its mirror image too
                K_BAL = K_ABL.swapaxes(0, 1).reshape(width, -1)
                sums_RNL[:, rows] += (W_RN[:, cols] @ K_BAL).reshape(-1, height, layers)
            K_PL = K_ABL.reshape(-1, layers)
            for member_M, F_LL in zip(members, F_RLL, strict=True):
                pairs_P = _pairs_within(member_M, rows, cols)
                V_PL = gathered_PL[: len(pairs_P)]
                np.take(K_PL, pairs_P, axis=0, out=V_PL, mode="clip")  # clip: numpy would buffer `out` otherwise
                F_LL += V_PL.T @ V_PL
    rounding_L = np.array([gram.rounding for gram in grams]) + examples * _EPS
    for member_M, F_LL, sums_NL in zip(members, F_RLL, sums_RNL, strict=True):
        m = len(member_M)
        s_ML, d_ML = sums_NL[member_M], diagonal_NL[member_M]
        t_L = s_ML.sum(axis=0)
        product_LL = 2 * F_LL + d_ML.T @ d_ML
        centred_LL = product_LL - (2 / m) * (s_ML.T @ s_ML) + np.outer(t_L, t_L) / m**2
        d_ML = d_ML - (2 / m) * s_ML + t_L / m**2  # the diagonal of H K H
        trace_L = d_ML.sum(axis=0)
        unbiased_LL = np.full_like(centred_LL, np.nan)
        if m >= 4:  # Song et al. (2012), as in cka.py
            unbiased_LL = centred_LL - m / (m - 2) * (d_ML.T @ d_ML)
            unbiased_LL += np.outer(trace_L, trace_L) / ((m - 1) * (m - 2))
        yield centred_LL, unbiased_LL, rounding_L * product_LL.diagonal()


def _pairs_within(member_M: NDArray[np.intp], rows: slice, cols: slice) -> NDArray[np.intp]:
    """Places [P], in a tile read row by row, of the pairs of examples above the diagonal that are both in a subset."""
    within = [np.searchsorted(member_M, (block.start, block.stop)) for block in (rows, cols)]
    row_A, col_B = (member_M[slice(*ends)] - block.start for ends, block in zip(within, (rows, cols), strict=True))
    width = cols.stop - cols.start
    if rows == cols:
        upper, right = np.triu_indices(len(row_A), 1)
        pairs_P: NDArray[np.intp] = row_A[upper] * width + col_B[right]
    else:
        pairs_P = (row_A[:, None] * width + col_B).ravel()
    return pairs_P
