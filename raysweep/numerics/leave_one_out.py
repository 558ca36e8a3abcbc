"""CKA with each example left out in turn, in closed form from one pass over the Grams: what jackknife intervals need.

Shape suffixes: L layers, N examples, A and B the examples of a tile's rows and columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from raysweep.numerics.cka import Kernel
from raysweep.numerics.gram import Array, LinearGram, States, read_layers

_EPS = float(np.finfo(np.float64).eps)


def cka_leave_one_out(X_LND: Iterable[States], kernel: Kernel = "linear", *, tile: int = 256) -> tuple[Array, Array]:
    """Biased and debiased CKA between every two layers without example a [N, L, L] each, for every a.

    Equal to `cka_matrix` of the other N − 1 examples, at about the cost of one such matrix: with C = H K H of all
    examples, c its diagonal, m = N − 1 and p_a = Σ_b (C_i)_ab (C_j)_ab, leaving a out turns ⟨C_i, C_j⟩ into

        ⟨C_i, C_j⟩ − 2 (N/m) p_a + (N/m)² c_ia c_ja,

    for the rows of C sum to zero; the diagonal of the smaller centred Gram is c_b + (2/m) C_ab + c_a / m², from which
    the debiased value follows as in cka.py. Memory: two arrays [N, L, L] beside the results, and L·tile² numbers.

    The RBF keeps the bandwidth of the full sample. NaN as in `cka_resamples`. Raises ValueError for shapes that do not
    fit and for fewer than 5 examples, without one of which the debiased value is not defined.
    """
    grams = read_layers(X_LND, kernel)
    layers, examples = len(grams), grams[0].examples
    if examples < 5:
        raise ValueError(f"leaving one example out of debiased CKA needs at least 5 examples, got {examples}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    varying = [layer for layer, gram in enumerate(grams) if not gram.constant]
    biased_NLL = np.full((examples, layers, layers), np.nan)
    debiased_NLL = np.full_like(biased_NLL, np.nan)
    if varying:
        chosen = np.ix_(range(examples), varying, varying)
        biased_NLL[chosen], debiased_NLL[chosen] = _left_out([grams[layer] for layer in varying], examples, tile)
    return biased_NLL, debiased_NLL


def _left_out(grams: Sequence[LinearGram], examples: int, tile: int) -> tuple[Array, Array]:
    n, m = examples, examples - 1
    c_NL = _diagonals(grams, examples, tile)
    p_NLL, q_NLL = _row_products(grams, c_NL, tile)
    F_LL = p_NLL.sum(axis=0)
    cc_NLL = c_NL[:, :, None] * c_NL[:, None, :]
    biased_NLL = F_LL - (2 * n / m) * p_NLL + (n / m) ** 2 * cc_NLL

    trace_L = c_NL.sum(axis=0)
    # Σ over the others of the products of two layers' new diagonals, c_b + (2/m) C_ab + c_a / m².
    cross_NLL = (2 / m) * (q_NLL - cc_NLL) + (trace_L[:, None] * c_NL[:, None, :] - cc_NLL) / m**2
    diagonals_NLL = c_NL.T @ c_NL - cc_NLL + (4 / m**2) * (p_NLL - cc_NLL) - (3 / m**3) * cc_NLL
    diagonals_NLL += cross_NLL + cross_NLL.swapaxes(1, 2)
    trace_NL = trace_L - (n / m) * c_NL
    debiased_NLL = biased_NLL - m / (m - 2) * diagonals_NLL
    debiased_NLL += trace_NL[:, :, None] * trace_NL[:, None, :] / ((m - 1) * (m - 2))

    rounding_L = np.array([gram.rounding for gram in grams]) + n * _EPS
    zero_L = rounding_L * F_LL.diagonal()
    return _normalised(biased_NLL, zero_L), _normalised(debiased_NLL, zero_L)


def _blocks(examples: int, tile: int) -> list[slice]:
    bounds = np.linspace(0, examples, -(-examples // tile) + 1).astype(int)
    return [slice(int(start), int(stop)) for start, stop in itertools.pairwise(bounds)]


def _diagonals(grams: Sequence[LinearGram], examples: int, tile: int) -> Array:
    """The diagonals of the centred Grams [N, L]."""
    c_NL = np.empty((examples, len(grams)))
    for rows in _blocks(examples, tile):
        for layer, gram in enumerate(grams):
            c_NL[rows, layer] = gram.tile(rows, rows).diagonal()
    return c_NL


def _row_products(grams: Sequence[LinearGram], c_NL: Array, tile: int) -> tuple[Array, Array]:
    """p[a, i, j] = Σ_b (C_i)_ab (C_j)_ab and q[a, i, j] = Σ_b c_ib (C_j)_ab, [N, L, L] each."""
    examples, layers = c_NL.shape
    p_NLL, q_NLL = np.zeros((2, examples, layers, layers))
    blocks = _blocks(examples, tile)
    for place, rows in enumerate(blocks):
        for cols in blocks[place:]:
            C_ABL = np.stack([gram.tile(rows, cols) for gram in grams], axis=-1)
            sides = [(rows, cols, C_ABL)] if rows == cols else [(rows, cols, C_ABL), (cols, rows, C_ABL.swapaxes(0, 1))]
            for own, other, C_ABL in sides:
                for a, C_BL in enumerate(C_ABL, start=own.start):
                    p_NLL[a] += C_BL.T @ C_BL
                    q_NLL[a] += c_NL[other].T @ C_BL
    return p_NLL, q_NLL


def _normalised(F_NLL: Array, zero_L: Array) -> Array:
    """F_ij / √(F_ii F_jj); NaN where a diagonal entry is no more than `zero_L`."""
    norm_NL = np.einsum("nll->nl", F_NLL)
    norm_NL = np.sqrt(np.where(norm_NL > zero_L, norm_NL, np.nan))
    S_NLL: Array = F_NLL / (norm_NL[:, :, None] * norm_NL[:, None, :])
    return S_NLL
