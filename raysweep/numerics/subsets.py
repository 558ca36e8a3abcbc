"""δ on subsets of the examples, at the cost of re-weighted products: no Gram is computed again.

Shape suffixes: L layers, N examples, R resamples, O the offset between two layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.cka import Kernel
from raysweep.numerics.dynamics import reach_of
from raysweep.numerics.gram import Array, States, read_layers

_EPS = float(np.finfo(np.float64).eps)


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
    reach = min(reach_of(neighbourhood), layers - 1)
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
