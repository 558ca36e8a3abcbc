"""Similarity of a model's layers: CKA between every two of them, and what follows from it along the depth.

Pure functions of arrays. `X_LND` is a numpy array or torch tensor [L, N, D] of any floating dtype, or a sequence of L
such [N, D], which may differ in width. Nothing is clamped: what cannot be computed is NaN. Intervals over
examples are left to resampling.py, the comparison with measured losses to correlation.py.

Shape suffixes: L layers, N examples, D width, R resamples, T the entries of a tile, O the offset between two layers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.gram import Array, LinearGram, States, as_float64, read_layers

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


def local_dynamics(S_LL: ArrayLike, neighbourhood: int = 3) -> Array:
    """δ [L]: the mean of S[l, j] over |j − l| ≤ neighbourhood // 2, j = l included, cut at both ends.

    Small where representations change. NaN among the neighbours gives NaN. Raises ValueError unless S is square and
    the neighbourhood an odd number.
    """
    S_LL = as_float64(S_LL)
    reach = _reach(neighbourhood)
    if S_LL.ndim != 2 or S_LL.shape[0] != S_LL.shape[1]:
        raise ValueError(f"a similarity matrix is square [L, L]; got shape {S_LL.shape}")
    return np.array([row_L[max(0, layer - reach) : layer + reach + 1].mean() for layer, row_L in enumerate(S_LL)])


def _reach(neighbourhood: int) -> int:
    if neighbourhood < 1 or neighbourhood % 2 == 0:
        raise ValueError(f"neighbourhood must be an odd number of layers, 1 or more; got {neighbourhood}")
    return neighbourhood // 2


def change_points(delta_L: ArrayLike, k: int | None = None) -> NDArray[np.intp]:
    """The k layers with the smallest δ, in ascending layer order; the lower layer first where δ ties.

    k is a fifth of the layers unless given. NaN is never chosen, so fewer than k may come back. Raises ValueError
    unless 1 ≤ k ≤ L.
    """
    delta_L = as_float64(delta_L)
    if delta_L.ndim != 1:
        raise ValueError(f"δ has one value a layer [L]; got shape {delta_L.shape}")
    k = max(1, round(len(delta_L) / 5)) if k is None else k
    if not 1 <= k <= len(delta_L):
        raise ValueError(f"k must be from 1 to the number of layers, {len(delta_L)}; got {k}")
    ascending = np.argsort(delta_L, kind="stable")
    return np.sort(ascending[~np.isnan(delta_L[ascending])][:k])


def dynamics_resamples(
    X_LND: Iterable[States], keep_RN: NDArray[np.bool_], neighbourhood: int = 3, kernel: Kernel = "linear"
) -> Array:
    """δ of biased CKA on subsets of the examples [R, L]; row r of the boolean `keep_RN` says which are in subset r.

    Equal to `local_dynamics(cka_matrix(subset), neighbourhood)`, without computing a Gram again. With w the indicator
    of a subset of m examples, and every K and H restricted to it,

        ⟨H K_i H, H K_j H⟩ = wᵀ(K_i∘K_j)w − (2/m) Σ_a w_a (K_i w)_a (K_j w)_a + (wᵀK_i w)(wᵀK_j w) / m²,

    which for all subsets at once is a few products of an R × N with an N × N matrix. Only pairs of layers in
    one neighbourhood are formed, and only neighbourhood // 2 + 1 Grams are held at a time.

    The RBF keeps the bandwidth of the full sample: subsets differ in examples, not in kernel. Biased CKA grows as
    examples get fewer, so the values lie above the full sample's: their spread tells how sure δ is, their level is
    that of a smaller sample (`resampling.recentred_interval` makes an interval of them). A constant layer gives NaN,
    and so does a subset in which a layer's states are identical (or differ, next to their distance from the mean of
    all examples, by too little for float64 to tell). Raises ValueError for shapes that do not fit and for subsets of
    fewer than two examples.
    """
    grams = read_layers(X_LND, kernel)
    layers, examples = len(grams), grams[0].examples
    reach = min(_reach(neighbourhood), layers - 1)
    keep_RN = np.asarray(keep_RN)
    if keep_RN.dtype != np.bool_ or keep_RN.ndim != 2 or keep_RN.shape[1] != examples:
        raise ValueError(f"subsets must be boolean [R, {examples}]; got {keep_RN.dtype} of shape {keep_RN.shape}")
    W_RN = keep_RN.astype(np.float64)
    size_R = W_RN.sum(axis=1)
    if (size_R < 2).any():
        raise ValueError(f"subset {int(size_R.argmin())} has fewer than 2 examples")

    F_ORL = np.full((reach + 1, len(W_RN), layers), np.nan)  # [o, r, l] is ⟨H K_l H, H K_{l+o} H⟩ on subset r
    window: deque[tuple[Array, Array] | None] = deque(maxlen=reach + 1)  # K and its row sums in each subset
    everything = slice(0, examples)
    for layer, gram in enumerate(grams):
        if gram.constant:
            window.appendleft(None)
            continue
        K_NN = gram.kernel(everything, everything)
        sums_RN = W_RN * (W_RN @ K_NN)
        total_R = sums_RN.sum(axis=1)
        window.appendleft((K_NN, sums_RN))
        for offset, earlier in enumerate(window):
            if earlier is None:
                continue
            earlier_K_NN, earlier_sums_RN = earlier
            product_R = np.einsum("rn,rn->r", W_RN @ (K_NN * earlier_K_NN), W_RN)
            centring_R = 2 * np.einsum("rn,rn->r", sums_RN, earlier_sums_RN) / size_R
            centring_R -= total_R * earlier_sums_RN.sum(axis=1) / size_R**2
            F_R = product_R - centring_R
            if offset == 0:  # a norm that is only the rounding left over from centring is zero
                zero_R = (gram.rounding + examples * _EPS) * product_R
                F_R = np.where(zero_R < F_R, F_R, np.nan)
            F_ORL[offset, :, layer - offset] = F_R

    norm_RL = np.sqrt(F_ORL[0])
    total_RL = F_ORL[0] / F_ORL[0]
    count_L = np.ones(layers)
    for offset in range(1, reach + 1):
        cka_RL = F_ORL[offset, :, :-offset] / (norm_RL[:, :-offset] * norm_RL[:, offset:])
        for side in (slice(None, -offset), slice(offset, None)):
            total_RL[:, side] += cka_RL
            count_L[side] += 1
    delta_RL: Array = total_RL / count_L
    return delta_RL


def health(X_LND: Iterable[States]) -> dict[str, Array]:
    """Figures [L] that tell how far a layer's linear CKA is to be trusted.

    - `mean_to_rms`: |mean state| / root mean square of the states' norms, in [0, 1]; near 1, states hardly differ.
    - `top_component_share`: share of the variance along the first principal component, in (0, 1].
    - `top_dimension_share`: share of the variance in the dimension with most of it, in (0, 1]. Where one of these two
      is near 1, CKA compares little more than that direction; debiasing does not help.
    - `n_over_d`: examples over width; biased CKA of independent states is about 1 / (1 + n_over_d).

    A constant layer has no variance to share: NaN. States that are all zero have no `mean_to_rms`: NaN.
    """
    grams = read_layers(X_LND)
    rows = [_health(gram) for gram in grams]
    return {measure: np.array([row[measure] for row in rows]) for measure in rows[0]}


def _health(gram: LinearGram) -> dict[str, float]:
    X_ND = gram.centred(slice(0, gram.examples))
    squares_D = np.einsum("nd,nd->d", X_ND, X_ND)
    total = squares_D.sum()
    mean = np.linalg.norm(gram.mean_D)
    rms = np.hypot(mean, gram.peak * np.sqrt(total / gram.examples))
    top_component = top_dimension = np.nan
    if not gram.constant:
        smaller_gram = X_ND @ X_ND.T if gram.examples < gram.width else X_ND.T @ X_ND
        top_component = np.linalg.eigvalsh(smaller_gram)[-1] / total
        top_dimension = squares_D.max() / total
    return {
        "mean_to_rms": float(mean / rms) if rms else np.nan,
        "top_component_share": float(top_component),
        "top_dimension_share": float(top_dimension),
        "n_over_d": gram.examples / gram.width,
    }
