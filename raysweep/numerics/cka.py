"""CKA between every two layers of a model, exact, biased and debiased in one pass over tiles.

Pure functions of arrays. `X_LND` is a numpy array or torch tensor [L, N, D] of any floating dtype, or a sequence of L
such [N, D], which may differ in width. Nothing is clamped: what cannot be computed is NaN.

Shape suffixes: L layers, N examples, D width, T the entries of a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.gram import Array, LinearGram, States, read_layers

Kernel = Literal["linear", "rbf"]

_EPS = float(np.finfo(np.float64).eps)


@overload
def cka_matrix(
    X_LND: Iterable[States], kernel: Kernel = "linear", debiased: bool = False, *, tile: int = 256
) -> Array: ...


@overload
def cka_matrix(
    X_LND: Iterable[States], kernel: Kernel = "linear", *, debiased: Literal["both"], tile: int = 256
) -> tuple[Array, Array]: ...


def cka_matrix(
    X_LND: Iterable[States],
    kernel: Kernel = "linear",
    debiased: bool | Literal["both"] = False,
    *,
    tile: int = 256,
) -> Array | tuple[Array, Array]:
    """Centred kernel alignment between every two layers [L, L]; `debiased="both"` gives (biased, debiased) in one pass.

    CKA(i, j) = F_ij / √(F_ii F_jj) with F_ij = ⟨H K_i H, H K_j H⟩ (Kornblith et al., 2019). It is symmetric with
    diagonal 1, and unchanged by a rotation, a common factor or a common shift of a layer's states. The biased value
    lies in [0, 1]; between independent Gaussian states it is about D / (N + D), near 1 where examples are few. The
    debiased one (Song et al., 2012) lies in [−1, 1], is about 0 there, and needs at least four examples.

    `kernel="rbf"` is exp(−d² / (2·median)), with the lower median of the layer's squared distances that are not zero.

    Exact, in float64, in one pass over tiles of `tile` × `tile` examples: memory beside the states is L·tile² numbers
    (and, for the RBF's median, one layer's N²); the tile size does not change the result.

    A layer whose states are all the same (see `constant_layers`) has NaN in its row and column, diagonal included; so
    has, debiased, one whose states are all equally far apart: either way it is 0/0. Raises ValueError for shapes that
    do not fit, states that are not finite, and too few examples.
    """
    grams = read_layers(X_LND, kernel)
    examples = grams[0].examples
    if debiased and examples < 4:
        raise ValueError(f"debiased CKA needs at least 4 examples, got {examples}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    varying = [layer for layer, gram in enumerate(grams) if not gram.constant]
    F_LL, diagonal_LN = _inner_products([grams[layer] for layer in varying], examples, tile)

    def over_all_layers(values: Array) -> Array:
        S_LL = np.full((len(grams), len(grams)), np.nan)
        S_LL[np.ix_(varying, varying)] = values
        return S_LL

    if not debiased:
        return over_all_layers(_normalised(F_LL))
    # A debiased norm that is only the rounding left over from the biased one is zero.
    debiased_LL = over_all_layers(_normalised(_debiased(F_LL, diagonal_LN), examples * _EPS * F_LL.diagonal()))
    return (over_all_layers(_normalised(F_LL)), debiased_LL) if debiased == "both" else debiased_LL


def _inner_products(grams: Sequence[LinearGram], examples: int, tile: int) -> tuple[Array, Array]:
    """F[i, j] = ⟨H K_i H, H K_j H⟩ [L, L] and the diagonals of H K H [L, N], over tiles of the upper triangle."""
    bounds = np.linspace(0, examples, -(-examples // tile) + 1).astype(int)
    blocks = [slice(int(start), int(stop)) for start, stop in itertools.pairwise(bounds)]
    F_LL = np.zeros((len(grams), len(grams)))
    diagonal_LN = np.empty((len(grams), examples))
    for place, rows in enumerate(blocks):
        for cols in blocks[place:]:
            V_LT = np.empty((len(grams), (rows.stop - rows.start) * (cols.stop - cols.start)))
            for layer, gram in enumerate(grams):
                V_LT[layer] = gram.tile(rows, cols).ravel()
            if rows == cols:
                F_LL += V_LT @ V_LT.T
                diagonal_LN[:, rows] = V_LT[:, :: rows.stop - rows.start + 1]
            else:  # this tile stands for its mirror image too
                F_LL += 2 * (V_LT @ V_LT.T)
    return F_LL, diagonal_LN


def _debiased(F_LL: Array, diagonal_LN: Array) -> Array:
    """The unbiased HSIC of Song et al. (2012) times N(N−3), from centred Grams, whose rows sum to zero."""
    n = diagonal_LN.shape[1]
    trace_L = diagonal_LN.sum(axis=1)
    debiased_LL: Array = F_LL - n / (n - 2) * (diagonal_LN @ diagonal_LN.T)
    debiased_LL += np.outer(trace_L, trace_L) / ((n - 1) * (n - 2))
    return debiased_LL


def _normalised(F_LL: Array, zero_L: Array | float = 0.0) -> Array:
    """F_ij / √(F_ii F_jj); NaN where a diagonal entry is no more than `zero_L`."""
    norm_L = np.where(F_LL.diagonal() > zero_L, F_LL.diagonal(), np.nan)
    S_LL: Array = F_LL / np.sqrt(np.outer(norm_L, norm_L))
    return S_LL


def constant_layers(X_LND: Iterable[States]) -> NDArray[np.bool_]:
    """Which layers have the same state for every example [L]: their similarity to any layer is 0/0.

    So it is with the embeddings of a wording that ends every prompt in the same token. The same means: in every
    dimension, no farther from the mean than one machine epsilon of the states' own dtype, relative to the magnitude in
    that dimension. bfloat16 states that were widened to float32 are judged as float32.
    """
    return np.array([gram.constant for gram in read_layers(X_LND)])
