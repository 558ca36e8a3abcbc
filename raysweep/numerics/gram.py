"""One layer's Gram matrix, computed a tile at a time in float64: what cka.py is built on.

Reads states from numpy arrays and torch tensors alike; says which layers have no Gram to speak of because their
states are all the same. What is done with Grams is left to cka.py.

Shape suffixes: L layers, N examples, D width, A and B the examples of a tile's rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
# Distance from 1 to the next number. By name, because numpy knows no bfloat16 and torch is not imported here.
_INPUT_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


class States(Protocol):
    """One layer's states [N, D]: a numpy array or a torch tensor of any floating dtype, on any device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    @property
    def dtype(self) -> Any:
        """Its name tells how finely the states are rounded."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def as_float64(values: Any) -> Array:
    """`values` as a numpy array in float64, without loss; a torch tensor is told by its `detach`."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def input_epsilon(states_ND: States) -> float:
    """Distance from 1 to the next number in the states' own dtype: how finely they are rounded."""
    return _INPUT_EPS.get(str(states_ND.dtype).removeprefix("torch."), _EPS)


class LinearGram:
    """K = X Xᵀ of one layer's states, centred over the examples and divided by their largest deviation `peak`.

    Centring comes first and is done in float64: with a large common mean the Gram of uncentred states has no digits
    left for what differs. It is done on the rows of a tile, so that no second copy of all states is ever held.

    `constant` says that the states are all the same: in every dimension they deviate from their mean by no more than
    the machine epsilon of their own dtype (2⁻⁷ for bfloat16, 2⁻¹⁰ float16, 2⁻²³ float32, 2⁻⁵² float64) times the
    magnitude there. Each dimension has its own magnitude, so an outlier dimension hides no variation elsewhere.
    """

    def __init__(self, states_ND: States) -> None:
        X_ND = as_float64(states_ND)
        if not np.isfinite(X_ND).all():
            raise ValueError("states are not all finite")
        # Averaging differences from the first state keeps identical states exactly identical.
        first_D = X_ND[0].copy()
        X_ND = X_ND - first_D
        shift_D = X_ND.mean(axis=0)
        deviation_D = np.maximum(X_ND.max(axis=0) - shift_D, shift_D - X_ND.min(axis=0))
        self.states_ND = states_ND
        self.examples, self.width = X_ND.shape
        self.mean_D: Array = first_D + shift_D
        self.peak = float(deviation_D.max()) or 1.0
        self.constant = bool((deviation_D <= input_epsilon(states_ND) * np.abs(first_D)).all())
        self.rounding = (self.width + 2) * _EPS  # bound on the relative error of a dot product

    def centred(self, rows: slice) -> Array:
        """The centred, scaled states of some examples [A, D]."""
        centred_AD = as_float64(self.states_ND[rows]) - self.mean_D
        centred_AD /= self.peak
        return centred_AD

    def pair(self, rows: slice, cols: slice) -> tuple[Array, Array]:
        """Centred states [A, D] and [B, D]; on the diagonal one object twice, which lets BLAS do half the work."""
        X_AD = self.centred(rows)
        return X_AD, X_AD if rows == cols else self.centred(cols)

    def kernel(self, rows: slice, cols: slice) -> Array:
        """Tile of the kernel matrix [A, B]."""
        X_AD, X_BD = self.pair(rows, cols)
        return X_AD @ X_BD.T

    def tile(self, rows: slice, cols: slice) -> Array:
        """Tile of the centred kernel matrix H K H [A, B]; centred states need no more centring."""
        return self.kernel(rows, cols)


class RBFGram(LinearGram):
    """K = exp(−d² / (2·median)) with the median heuristic.

    `median` is the lower median of the squared distances d² between states, over the entries of the N × N matrix that
    are not zero; a squared distance at the rounding level of float64 counts as zero. Finding it holds one layer's
    N × N matrix while the layer is read; the tiles are computed anew. The states must not be `constant`.
    """

    def __init__(self, states_ND: States) -> None:
        super().__init__(states_ND)
        if self.constant:
            return
        everything = slice(0, self.examples)
        distances_NN = self.squared_distances(everything, everything)
        positive = distances_NN[distances_NN > 0]
        middle = (positive.size - 1) // 2
        self.median = float(np.partition(positive, middle)[middle])
        kernel_NN = np.exp(-distances_NN / (2 * self.median))
        self.row_mean_N: Array = kernel_NN.mean(axis=1)
        self.mean = float(self.row_mean_N.mean())

    def squared_distances(self, rows: slice, cols: slice) -> Array:
        """Squared Euclidean distances between scaled states [A, B]."""
        X_AD, X_BD = self.pair(rows, cols)
        norms_AB = np.einsum("ad,ad->a", X_AD, X_AD)[:, None] + np.einsum("bd,bd->b", X_BD, X_BD)
        distances_AB: Array = norms_AB - 2 * (X_AD @ X_BD.T)
        distances_AB[distances_AB <= self.rounding * norms_AB] = 0.0
        return distances_AB

    def kernel(self, rows: slice, cols: slice) -> Array:
        """Tile of the kernel matrix [A, B], not centred."""
        return np.exp(-self.squared_distances(rows, cols) / (2 * self.median))

    def tile(self, rows: slice, cols: slice) -> Array:
        """Tile of the centred kernel matrix H K H [A, B]."""
        return self.kernel(rows, cols) - self.row_mean_N[rows, None] - self.row_mean_N[cols] + self.mean


_KERNELS = {"linear": LinearGram, "rbf": RBFGram}


def read_layers(X_LND: Iterable[States], kernel: str = "linear") -> list[LinearGram]:
    """One Gram a layer; the layers have the same examples, of which there are two at least, and may differ in width.

    Raises ValueError, naming the layer, where shapes do not fit or a state is not finite, and for an unknown kernel.
    """
    if kernel not in _KERNELS:
        raise ValueError(f"unknown kernel '{kernel}'; known: {', '.join(_KERNELS)}")
    grams: list[LinearGram] = []
    for layer, states_ND in enumerate(X_LND):
        shape = tuple(states_ND.shape)
        if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
            raise ValueError(f"layer {layer}: states of shape {shape}; expected [N, D] with N at least 2")
        if grams and shape[0] != grams[0].examples:
            raise ValueError(f"layer {layer} has {shape[0]} examples, layer 0 has {grams[0].examples}")
        try:
            grams.append(_KERNELS[kernel](states_ND))
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from None
    if not grams:
        raise ValueError("no layers")
    return grams
