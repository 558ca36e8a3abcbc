"""One layer's Gram matrix, computed a tile at a time in float64.

Reads states from numpy arrays and torch tensors alike, and from anything else whose rows can be sliced; says which
layers have no Gram to speak of because their states are all the same. What is done with Grams is left to others.

Shape suffixes: L layers, N examples, D width, A and B the examples of a tile's rows and columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MedianRule = Literal["lower_nonzero", "off_diagonal", "all"]

_EPS = float(np.finfo(np.float64).eps)
# Distance from 1 to the next number. By name, because numpy knows no bfloat16 and torch is not imported here.
_INPUT_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}
_BLOCK_NUMBERS = 2**20  # of states that are looked at together: 8 MiB in float64


class States(Protocol):
    """One layer's states [N, D]: a numpy array or a torch tensor of any floating dtype, on any device.

    Or whatever gives such an array or tensor for a slice of its rows, so that states need not be in memory.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    @property
    def dtype(self) -> Any:
        """Its name tells how finely the states are rounded."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


class LayerError(ValueError):
    """What is wrong with the states of one layer, which the message names."""

    def __init__(self, layer: int, problem: object) -> None:
        super().__init__(f"layer {layer}: {problem}")
        self.layer = layer
        self.problem = str(problem)


def as_float64(values: Any) -> Array:
    """`values` as a numpy array in float64, without loss; a torch tensor is told by its `detach`."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def row_blocks(examples: int, rows: int) -> list[slice]:
    """Slices of as equal a length as can be, of `rows` at most, that cover the examples in their order."""
    count = -(-examples // rows)
    bounds = (examples * index // count for index in range(count + 1))
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


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

    Raises ValueError naming the first example and dimension that is not finite.
    """

    def __init__(self, states_ND: States) -> None:
        self.states_ND = states_ND
        self.examples, self.width = states_ND.shape
        # Averaging differences from the first state keeps identical states exactly identical.
        first_D = as_float64(states_ND[0:1])[0]
        shift_D = np.zeros(self.width)
        low_D, high_D = np.zeros(self.width), np.zeros(self.width)  # the first state's own difference
        for difference_AD in self._differences(first_D):
            shift_D += difference_AD.sum(axis=0)
            np.minimum(low_D, difference_AD.min(axis=0), out=low_D)
            np.maximum(high_D, difference_AD.max(axis=0), out=high_D)
        shift_D /= self.examples
        deviation_D = np.maximum(high_D - shift_D, shift_D - low_D)
        self.mean_D: Array = first_D + shift_D
        self.peak = float(deviation_D.max()) or 1.0
        self.constant = bool((deviation_D <= input_epsilon(states_ND) * np.abs(first_D)).all())
        self.rounding = (self.width + 2) * _EPS  # bound on the relative error of a dot product

    def _differences(self, first_D: Array) -> Iterator[Array]:
        for rows in row_blocks(self.examples, max(1, _BLOCK_NUMBERS // self.width)):
            X_AD = as_float64(self.states_ND[rows])
            finite_AD = np.isfinite(X_AD)
            if not finite_AD.all():
                row, dimension = (int(place[0]) for place in np.nonzero(~finite_AD))
                raise ValueError(
                    f"states are not all finite: example {rows.start + row} has {X_AD[row, dimension]} in dimension {dimension}"
                )
            yield X_AD - first_D

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
    """K = exp(−d² / (2 · bandwidth² · median)) − 1 of the squared distances d² between states.

    The 1 is taken off because what follows centres K, to which a constant makes no difference, and because so a wide
    bandwidth loses no digits. So is s_a + s_b off each entry, which makes no difference either: with s as in the unbiased
    HSIC's centring (Song et al., 2012) the rows' sums off the diagonal are then 0, and what is left of few examples, or of
    examples nearly as far from one another, keeps its digits. A squared distance at the rounding level of float64 counts as zero. `median` is taken of

    - `lower_nonzero`: the entries of the N × N matrix that are not zero, and of the middle two the lower;
    - `off_diagonal`: the entries off the diagonal, zero where two examples have the same state;
    - `all`: all N × N entries, the zeros of the diagonal too.

    Finding it holds one layer's N × N matrix while the layer is read; the tiles are computed anew. The states must not
    be `constant`. Raises ValueError where the median is 0, which `lower_nonzero` never is.
    """

    def __init__(self, states_ND: States, median: MedianRule = "lower_nonzero", bandwidth: float = 1.0) -> None:
        super().__init__(states_ND)
        if self.constant:
            return
        everything = slice(0, self.examples)
        distances_NN = self.squared_distances(everything, everything)
        self.median = _median(distances_NN, median)
        self.scale = 2 * bandwidth**2 * self.median
        if self.median == 0:
            raise ValueError(f"the median of the squared distances is 0 by the rule '{median}'; use 'lower_nonzero'")
        n = self.examples
        sum_N = np.expm1(-distances_NN / self.scale).sum(axis=1)  # the diagonal is 0
        self._shift_N = (sum_N - sum_N.sum() / (2 * (n - 1))) / (n - 2) if n > 2 else np.zeros(n)

    def squared_distances(self, rows: slice, cols: slice) -> Array:
        """Squared Euclidean distances between scaled states [A, B]."""
        X_AD, X_BD = self.pair(rows, cols)
        norms_AB = np.einsum("ad,ad->a", X_AD, X_AD)[:, None] + np.einsum("bd,bd->b", X_BD, X_BD)
        distances_AB: Array = norms_AB - 2 * (X_AD @ X_BD.T)
        distances_AB[distances_AB <= self.rounding * norms_AB] = 0.0
        return distances_AB

    def kernel(self, rows: slice, cols: slice) -> Array:
        """Tile of the kernel matrix [A, B], not centred."""
        K_AB: Array = np.expm1(-self.squared_distances(rows, cols) / self.scale)
        K_AB -= self._shift_N[rows, None]
        K_AB -= self._shift_N[cols]
        return K_AB

    def tile(self, rows: slice, cols: slice) -> Array:
        """Tile of the centred kernel matrix H K H [A, B]."""
        mean_N = self._row_means
        centred_AB: Array = self.kernel(rows, cols) - mean_N[rows, None] - mean_N[cols] + mean_N.mean()
        return centred_AB

    @cached_property
    def _row_means(self) -> Array:
        everything = slice(0, self.examples)
        blocks = row_blocks(self.examples, max(1, _BLOCK_NUMBERS // self.examples))
        return np.concatenate([self.kernel(rows, everything).mean(axis=1) for rows in blocks])


def _median(distances_NN: Array, rule: MedianRule) -> float:
    if rule == "all":
        return float(np.median(distances_NN))
    if rule == "off_diagonal":
        return float(np.median(distances_NN[~np.eye(len(distances_NN), dtype=bool)]))
    positive = distances_NN[distances_NN > 0]
    middle = (positive.size - 1) // 2
    return float(np.partition(positive, middle)[middle])


def check_layers(X_LND: Iterable[States]) -> list[States]:
    """The layers, once it is sure that they have the same examples, of which there are two at least.

    They may differ in width. A layer may be a list of rows or a pandas data frame, too. Raises ValueError, naming the layer,
    where shapes do not fit.
    """
    layers: list[States] = []
    for layer, given in enumerate(X_LND):
        states_ND = as_states(layer, given)
        shape = tuple(states_ND.shape)
        if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
            raise LayerError(layer, f"states of shape {shape}; expected [N, D] with N at least 2")
        if layers and shape[0] != layers[0].shape[0]:
            raise ValueError(f"layer {layer} has {shape[0]} examples, layer 0 has {layers[0].shape[0]}")
        layers.append(states_ND)
    if not layers:
        raise ValueError("no layers")
    return layers


def as_states(layer: int, given: Any) -> States:
    """One layer's states; a list of rows or a data frame as an array."""
    if isinstance(given, (list, tuple)) or (hasattr(given, "columns") and hasattr(given, "to_numpy")):
        try:
            given = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise LayerError(layer, f"no matrix of numbers [N, D]: {error}") from error
    if not (hasattr(given, "shape") and hasattr(given, "dtype")):
        raise LayerError(layer, f"states of type {type(given).__name__}; expected an array or a tensor [N, D]")
    states: States = given
    return states


def read_layers(
    X_LND: Iterable[States],
    kernel: str = "linear",
    *,
    median: MedianRule = "lower_nonzero",
    bandwidth: float = 1.0,
) -> list[LinearGram]:
    """One Gram a layer; the layers have the same examples, of which there are two at least, and may differ in width.

    `median` and `bandwidth` are the RBF's, see `RBFGram`. Raises ValueError, naming the layer, where shapes do not fit
    or a state is not finite, and for an unknown kernel, rule or bandwidth.
    """
    if kernel not in ("linear", "rbf"):
        raise ValueError(f"unknown kernel '{kernel}'; known: linear, rbf")
    if median not in get_args(MedianRule):
        raise ValueError(f"unknown median rule '{median}'; known: {', '.join(get_args(MedianRule))}")
    if not 0 < bandwidth < np.inf:
        raise ValueError(f"bandwidth must be a positive factor, got {bandwidth}")
    grams: list[LinearGram] = []
    for layer, states_ND in enumerate(check_layers(X_LND)):
        try:
            grams.append(LinearGram(states_ND) if kernel == "linear" else RBFGram(states_ND, median, bandwidth))
        except ValueError as error:
            raise LayerError(layer, error) from None
    return grams
