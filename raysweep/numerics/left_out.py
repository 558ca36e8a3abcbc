"""CKA with one example left out, and with two, in closed form from one pass over the Grams: what the jackknife needs.

Shape suffixes: L layers, N examples, H = N // 2 pairs of them, G groups left out of O examples each (1 or 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from raysweep.numerics.cka import Kernel
from raysweep.numerics.gram import Array, LinearGram, States, read_layers
from raysweep.numerics.products import normalised

_EPS = float(np.finfo(np.float64).eps)
_MOST_ROWS = 2**23  # numbers in the rows of all layers' Grams that are held at a time


class LeftOut(NamedTuple):
    """CKA between every two layers without example a [N, L, L], and without the pair a, a + H [H, L, L]."""

    one: Array
    two: Array


def cka_left_out(X_LND: Iterable[States], kernel: Kernel = "linear") -> tuple[LeftOut, LeftOut]:
    """Biased and debiased CKA between every two layers without each example, and without N // 2 disjoint pairs of them.

    Equal to `cka_matrix` of the other examples, at about the cost of three such matrices. With C = H K H of all examples,
    whose rows sum to zero, O what is left out, u = Σ_{a ∈ O} C_a, and sums over the m others, those have

        Σ_ef (C_i)_ef (C_j)_ef = ⟨C_i, C_j⟩ − 2 Σ_{a ∈ O} Σ_e (C_i)_ae (C_j)_ae + Σ_{a,b ∈ O} (C_i)_ab (C_j)_ab,

    row sums −u_e and the total t = Σ_{a ∈ O} u_a, from which both values follow as in subsets.py. Memory beside the
    results: as many numbers again, and 2·10⁷ for rows of Grams.

    The RBF keeps the bandwidth of the full sample. NaN as in `cka_resamples`. Raises ValueError for shapes that do not
    fit and for fewer than 6 examples, without two of which the debiased value is not defined.
    """
    grams = read_layers(X_LND, kernel)
    layers, examples = len(grams), grams[0].examples
    if examples < 6:
        raise ValueError(f"leaving two examples out of debiased CKA needs at least 6 examples, got {examples}")
    varying = [layer for layer, gram in enumerate(grams) if not gram.constant]
    found = _left_out([grams[layer] for layer in varying], examples) if varying else []

    def over_all_layers(groups: int, place: int) -> Array:
        S_GLL = np.full((groups, layers, layers), np.nan)
        if found:
            S_GLL[np.ix_(range(groups), varying, varying)] = found[place]
        return S_GLL

    one_b, one_d, two_b, two_d = (over_all_layers(g, p) for p, g in enumerate([examples] * 2 + [examples // 2] * 2))
    return LeftOut(one_b, two_b), LeftOut(one_d, two_d)


def _left_out(grams: Sequence[LinearGram], n: int) -> list[Array]:
    """Biased and debiased without one [N, L, L], then without two [H, L, L]."""
    layers, half = len(grams), n // 2
    c_NL = np.empty((n, layers))  # diagonals of the centred Grams
    p_NLL, q_NLL = np.empty((2, n, layers, layers))  # Σ_e (C_i)_ae (C_j)_ae, and Σ_e (C_i)_ee (C_j)_ae
    x_HLL = np.empty((half, layers, layers))  # Σ_e (C_i)_ae (C_j)_be of the pairs
    C_HL = np.empty((half, layers))  # (C)_ab of the pairs
    rows = max(1, _MOST_ROWS // (2 * n * layers))
    everything = slice(0, n)
    for layer, gram in enumerate(grams):
        for start in range(0, n, rows):
            some = slice(start, min(start + rows, n))
            c_NL[some, layer] = gram.tile(some, some).diagonal()

    def read(start: int, stop: int) -> Array:
        return np.stack([gram.tile(slice(start, stop), everything) for gram in grams], axis=-1)

    for start in range(0, half, rows):
        stop = min(start + rows, half)
        first_ANL, second_ANL = read(start, stop), read(start + half, stop + half)
        for a, (C_NL, D_NL) in enumerate(zip(first_ANL, second_ANL, strict=True), start=start):
            p_NLL[a], p_NLL[a + half] = C_NL.T @ C_NL, D_NL.T @ D_NL
            q_NLL[a], q_NLL[a + half] = c_NL.T @ C_NL, c_NL.T @ D_NL
            x_HLL[a], C_HL[a] = C_NL.T @ D_NL, C_NL[a + half]
    if n % 2:
        (C_NL,) = read(n - 1, n)
        p_NLL[-1], q_NLL[-1] = C_NL.T @ C_NL, c_NL.T @ C_NL

    whole = _Whole(n, p_NLL.sum(axis=0), c_NL.sum(axis=0), c_NL.T @ c_NL)
    first, second = slice(0, half), slice(half, 2 * half)
    paired_HOOL = np.stack([np.stack([c_NL[first], C_HL], axis=1), np.stack([C_HL, c_NL[second]], axis=1)], axis=1)
    p_HLL = p_NLL[first] + p_NLL[second]
    ones = _without(whole, c_NL[:, None, None], p_NLL, p_NLL, q_NLL)
    twos = _without(whole, paired_HOOL, p_HLL, p_HLL + x_HLL + x_HLL.swapaxes(1, 2), q_NLL[first] + q_NLL[second])
    zero_L = (np.array([gram.rounding for gram in grams]) + n * _EPS) * whole.product.diagonal()
    return [normalised(F_GLL, zero_L) for F_GLL in (*ones, *twos)]


class _Whole(NamedTuple):
    """Sums over all examples: ⟨C_i, C_j⟩, the traces, and the products of the diagonals."""

    examples: int
    product: Array
    trace: Array
    diagonals: Array


def _without(whole: _Whole, C_GOOL: Array, p_GLL: Array, uu_GLL: Array, cu_GLL: Array) -> tuple[Array, Array]:
    """⟨H K_i H, H K_j H⟩ without each group and its unbiased counterpart [G, L, L].

    C_GOOL are the entries of C among those left out, `p` the sums over a ∈ O of Σ_e (C_i)_ae (C_j)_ae, `uu` Σ_e u_ie u_je
    and `cu` Σ_e (C_i)_ee u_je over all e.
    """
    m = whole.examples - C_GOOL.shape[1]
    c_GOL, u_GOL = np.einsum("gool->gol", C_GOOL), C_GOOL.sum(axis=2)
    t_GL = u_GOL.sum(axis=1)
    tt_GLL = _outer(t_GL, t_GL)
    left_GLL = uu_GLL - np.einsum("goi,goj->gij", u_GOL, u_GOL)  # Σ over the others of u_i u_j
    biased_GLL = whole.product - 2 * p_GLL + np.einsum("gabi,gabj->gij", C_GOOL, C_GOOL)
    biased_GLL += tt_GLL / m**2 - (2 / m) * left_GLL

    # The others' new diagonals are c + (2/m) u + t/m², and their sums of c and u are trace and −t.
    trace_GL = whole.trace - c_GOL.sum(axis=1)
    cross_GLL = (2 / m) * (cu_GLL - np.einsum("goi,goj->gij", c_GOL, u_GOL)) + _outer(trace_GL, t_GL) / m**2
    diagonals_GLL = whole.diagonals - np.einsum("goi,goj->gij", c_GOL, c_GOL) + (4 / m**2) * left_GLL
    diagonals_GLL += cross_GLL + cross_GLL.swapaxes(1, 2) - (3 / m**3) * tt_GLL
    new_trace_GL = trace_GL - t_GL / m
    debiased_GLL = biased_GLL - m / (m - 2) * diagonals_GLL
    debiased_GLL += _outer(new_trace_GL, new_trace_GL) / ((m - 1) * (m - 2))
    return biased_GLL, debiased_GLL


def _outer(x_GL: Array, y_GL: Array) -> Array:
    product_GLL: Array = x_GL[:, :, None] * y_GL[:, None, :]
    return product_GLL
