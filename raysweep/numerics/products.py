"""Inner products of every two layers' kernel matrices, and the two estimators of HSIC that follow from them.

Nothing here reads states: gram_tiles.py, cross_products.py and on_device.py do, and fill `Products`.

Shape suffixes: L layers, N examples, A and B the examples of a tile's rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.blas_threads import each, workers
from raysweep.numerics.gram import Array

# Numbers of a tile that are widened to float64 and multiplied together: 2 MiB, which a core's cache holds.
_CHUNK_NUMBERS = 2**18


@dataclass(frozen=True)
class Products:
    """⟨K_i, K_j⟩ of L symmetric kernel matrices [N, N], which need not be centred, and what it takes to centre them.

    With every K centred but for rounding, what is left to centre is small and takes no digits away. The diagonals are kept
    apart, for beside large ones the products of what is off them would lose digits.
    """

    inner: Array  # ⟨K_i, K_j⟩ off the diagonal [L, L]
    row_sums: Array  # [L, N], of whole rows
    diagonals: Array  # [L, N]
    eps: float  # N times this share of a biased norm is what rounding may leave of a debiased one

    @cached_property
    def biased(self) -> Array:
        """⟨H K_i H, H K_j H⟩ [L, L]: (N−1)² times the biased HSIC of Gretton et al. (2005)."""
        sums_LN = self.row_sums
        n = sums_LN.shape[1]
        total_L = sums_LN.sum(axis=1)
        F_LL: Array = (
            self.inner
            + self.diagonals @ self.diagonals.T
            - 2 / n * (sums_LN @ sums_LN.T)
            + np.outer(total_L, total_L) / n**2
        )
        return F_LL

    @cached_property
    def debiased(self) -> Array:
        """N(N−3) times the unbiased HSIC of Song et al. (2012, eq. 5) [L, L]; the diagonals have no part in it.

        A norm on the diagonal that is no more than the rounding left over from the biased one is 0.
        """
        off_LN = self.row_sums - self.diagonals
        n = off_LN.shape[1]
        total_L = off_LN.sum(axis=1)
        U_LL: Array = self.inner - 2 / (n - 2) * (off_LN @ off_LN.T)
        U_LL += np.outer(total_L, total_L) / ((n - 1) * (n - 2))
        norm_L = U_LL.diagonal()
        rounding_L = n * self.eps * self.biased.diagonal()
        np.fill_diagonal(U_LL, np.where(norm_L > rounding_L, norm_L, 0.0))
        return U_LL


class Accumulator:
    """Sums up `Products` over tiles of the upper triangle, in float64."""

    def __init__(self, layers: int, examples: int, eps: float) -> None:
        self._products = Products(
            inner=np.zeros((layers, layers)),
            row_sums=np.zeros((layers, examples)),
            diagonals=np.empty((layers, examples)),
            eps=eps,
        )

    @staticmethod
    def memory(layers: int, examples: int) -> int:
        """Bytes that it takes, tiles not counted."""
        return 8 * (2 * layers * examples + workers() * max(_CHUNK_NUMBERS, layers * examples))

    def centre(self, layer: int, K_AB: NDArray[np.floating], rows: slice, cols: slice) -> None:
        """Note what centring one layer's tile takes: to be called once for each tile, while it lies in a core's cache.

        Sums are taken in the tile's own dtype: of centred states they are so small that their rounding does not count.
        The diagonal of K is zero afterwards.
        """
        height, width = K_AB.shape
        self._products.row_sums[layer, rows] += K_AB @ np.ones(width, K_AB.dtype)
        if rows == cols:
            self._products.diagonals[layer, rows] = K_AB.diagonal()
            np.fill_diagonal(K_AB, 0)
        else:
            self._products.row_sums[layer, cols] += np.ones(height, K_AB.dtype) @ K_AB

    def add(self, K_LAB: NDArray[np.floating], rows: slice, cols: slice) -> None:
        """Add the products of one tile of every layer; one off the diagonal stands for its mirror image too."""
        layers, height, width = K_LAB.shape
        on_diagonal = rows == cols
        strip = max(1, _CHUNK_NUMBERS // (layers * width))
        starts = range(0, height, strip)
        threads = min(workers(), len(starts))

        def multiply(worker: int) -> Array:
            F_LL = np.zeros((layers, layers))
            buffer = np.empty(layers * min(strip, height) * width)
            for start in starts[worker::threads]:
                if not on_diagonal:
                    V_LT = _widened(K_LAB[:, start : start + strip], buffer)
                    F_LL += 2 * (V_LT @ V_LT.T)
                    continue
                # Of a tile on the diagonal, the strip's square there counts once and what is right of it twice.
                square_LT = _widened(K_LAB[:, start : start + strip, start : start + strip], buffer)
                F_LL += square_LT @ square_LT.T
                right_LT = _widened(K_LAB[:, start : start + strip, start + strip :], buffer)
                F_LL += 2 * (right_LT @ right_LT.T)
            return F_LL

        for F_LL in each(multiply, threads):
            self._products.inner[...] += F_LL

    def products(self) -> Products:
        """What was added up."""
        return self._products


def _widened(K_LAB: NDArray[np.floating], buffer: Array) -> Array:
    """A contiguous copy in float64 [L, T], in a buffer that the next copy overwrites."""
    V_LAB = buffer[: K_LAB.size].reshape(K_LAB.shape)
    V_LAB[...] = K_LAB
    return V_LAB.reshape(len(K_LAB), -1)


def normalised(F_LL: Array, zero_L: Array | float = 0.0) -> Array:
    """F_ij / √(F_ii F_jj) [..., L, L]; NaN in the row and column of a diagonal entry that is no more than `zero_L`."""
    diagonal_L = np.diagonal(F_LL, axis1=-2, axis2=-1)
    norm_L = np.sqrt(np.where(diagonal_L > zero_L, diagonal_L, np.nan))
    S_LL: Array = F_LL / (norm_L[..., :, None] * norm_L[..., None, :])
    return S_LL
