"""CKA between every two layers of a model, or of two models, exact, biased and debiased from one pass.

Pure functions of arrays. `X_LND` is a numpy array or torch tensor [L, N, D] of any floating dtype, or a sequence of L
such [N, D], which may differ in width; a layer may be anything that gives such an array for a slice of its rows, so
that the states need not be in memory. Nothing is clamped: what cannot be computed is NaN.

Shape suffixes: L layers, M the other model's layers, N examples, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.blas_threads import single_threaded_blas
from raysweep.numerics.gram import (
    Array,
    LayerError,
    LinearGram,
    MedianRule,
    States,
    check_layers,
    read_layers,
    row_blocks,
)
from raysweep.numerics.gram_tiles import tile_for
from raysweep.numerics.linear_products import linear_products
from raysweep.numerics.products import Accumulator, Products, normalised

Kernel = Literal["linear", "rbf"]

MEMORY = 2**26  # bytes to work in beside the states, unless said otherwise; greater tiles are no faster
_RBF_TILE = 256  # of examples squared; greater ones are no faster


@overload
def cka_matrix(
    X_LND: Iterable[States],
    kernel: Kernel = "linear",
    debiased: bool = False,
    *,
    median: MedianRule = "lower_nonzero",
    bandwidth: float = 1.0,
    tile: int | None = None,
    memory: int = MEMORY,
) -> Array: ...


@overload
def cka_matrix(
    X_LND: Iterable[States],
    kernel: Kernel = "linear",
    *,
    debiased: Literal["both"],
    median: MedianRule = "lower_nonzero",
    bandwidth: float = 1.0,
    tile: int | None = None,
    memory: int = MEMORY,
) -> tuple[Array, Array]: ...


def cka_matrix(
    X_LND: Iterable[States],
    kernel: Kernel = "linear",
    debiased: bool | Literal["both"] = False,
    *,
    median: MedianRule = "lower_nonzero",
    bandwidth: float = 1.0,
    tile: int | None = None,
    memory: int = MEMORY,
) -> Array | tuple[Array, Array]:
    """Compute CKA between every two layers, exact, biased or debiased.

    CKA(i, j) = F_ij / √(F_ii F_jj) with F_ij = ⟨H K_i H, H K_j H⟩ (Kornblith et al. 2019). It is symmetric with diagonal 1. A
    rotation, a common factor or a common shift of a layer's states does not change it. The biased value lies in [0, 1]; between
    independent Gaussian states it is about D / (N + D), near 1 with few examples. The debiased value (Song et al. 2012) lies in
    [−1, 1], is about 0 there, and needs at least four examples.

    Linear CKA of float64 states, or of fewer than 64 examples, is computed in float64. Otherwise states of half or single precision
    are centred and multiplied in single precision and the products are summed in float64, which moves a value by about 1e-8. States
    on one CUDA device are multiplied there, in float64.

    Args:
        X_LND: States [L, N, D]: an array, a torch tensor, or a sequence of L arrays [N, D], which may differ in width. A layer may
            also be an object that reads rows when sliced.
        kernel: `"linear"`, or `"rbf"`: exp(−d² / (2 · bandwidth² · median)) of the squared distances d² between a layer's states.
        debiased: False for the biased value, True for the debiased one, `"both"` for both from one pass.
        median: For `rbf`, which distances the median is taken of: `"lower_nonzero"` (the lower median of those above 0, as in the
            paper), `"off_diagonal"` (those between two examples) or `"all"`.
        bandwidth: For `rbf`, see `kernel`.
        tile: Multiply tiles of this many examples squared. It changes rounding only.
        memory: Bytes to use for arrays in addition to the states, at most. It changes rounding only.

    Returns:
        The values [L, L], float64; with `debiased="both"` a pair (biased, debiased). A layer whose states are all the same has NaN
        in its row and column; debiased, so has one whose states are all equally far apart.

    Raises:
        ValueError: Shapes do not fit, states are not finite (the message names layer and example), or there are too few examples
            or too little memory.
    """
    estimates = _matrices(check_layers(X_LND), kernel, debiased, median, bandwidth, tile, memory)
    return (estimates[0], estimates[1]) if debiased == "both" else estimates[0]


@overload
def cka_between(
    X_LND: Iterable[States],
    Y_MND: Iterable[States],
    kernel: Kernel = "linear",
    debiased: bool = False,
    *,
    median: MedianRule = "lower_nonzero",
    bandwidth: float = 1.0,
    tile: int | None = None,
    memory: int = MEMORY,
) -> Array: ...


@overload
def cka_between(
    X_LND: Iterable[States],
    Y_MND: Iterable[States],
    kernel: Kernel = "linear",
    *,
    debiased: Literal["both"],
    median: MedianRule = "lower_nonzero",
    bandwidth: float = 1.0,
    tile: int | None = None,
    memory: int = MEMORY,
) -> tuple[Array, Array]: ...


def cka_between(
    X_LND: Iterable[States],
    Y_MND: Iterable[States],
    kernel: Kernel = "linear",
    debiased: bool | Literal["both"] = False,
    *,
    median: MedianRule = "lower_nonzero",
    bandwidth: float = 1.0,
    tile: int | None = None,
    memory: int = MEMORY,
) -> Array | tuple[Array, Array]:
    """Compute CKA between each layer of one model and each layer of another, on the same examples.

    The models may differ in depth, width, dtype and tokenizer. Values and rounding are those of `cka_matrix`.

    Args:
        X_LND: States [L, N, D] of one model, as in `cka_matrix`.
        Y_MND: States [M, N, D'] of the other model, of the same examples in the same order.
        kernel: See `cka_matrix`, like the other arguments.
        debiased: See `cka_matrix`.
        median: See `cka_matrix`.
        bandwidth: See `cka_matrix`.
        tile: See `cka_matrix`.
        memory: See `cka_matrix`.

    Returns:
        The values [L, M], float64; with `debiased="both"` a pair (biased, debiased).

    Raises:
        ValueError: As `cka_matrix`, and if the numbers of examples differ.
    """
    X_layers = check_layers(X_LND)
    try:
        Y_layers = check_layers(Y_MND)
    except ValueError as error:
        raise ValueError(f"the second model: {error}") from None
    ours, theirs = X_layers[0].shape[0], Y_layers[0].shape[0]
    if ours != theirs:
        raise ValueError(
            f"the first model's states are of {ours} examples, the second's of {theirs}; give both the same"
        )
    depth = len(X_layers)
    layers = [*X_layers, *Y_layers]
    try:
        estimates = _matrices(layers, kernel, debiased, median, bandwidth, tile, memory)
    except LayerError as error:
        if error.layer < depth:
            raise
        raise ValueError(f"the second model: layer {error.layer - depth}: {error.problem}") from None
    blocks = [S_LL[:depth, depth:] for S_LL in estimates]
    return (blocks[0], blocks[1]) if debiased == "both" else blocks[0]


def constant_layers(X_LND: Iterable[States]) -> NDArray[np.bool_]:
    """Which layers have the same state for every example [L]: their similarity to any layer is 0/0.

    So it is with the embeddings of a wording that ends every prompt in the same token. The same means: in every
    dimension, no farther from the mean than one machine epsilon of the states' own dtype, relative to the magnitude in
    that dimension. bfloat16 states that were widened to float32 are judged as float32.
    """
    return np.array([gram.constant for gram in read_layers(X_LND)])


@single_threaded_blas()
def _matrices(
    layers: Sequence[States],
    kernel: Kernel,
    debiased: bool | Literal["both"],
    median: MedianRule,
    bandwidth: float,
    tile: int | None,
    memory: int,
) -> list[Array]:
    """The matrix that is asked for [L, L], or (biased, debiased)."""
    examples = layers[0].shape[0]
    if debiased and examples < 4:
        raise ValueError(f"debiased CKA needs at least 4 examples, got {examples}")
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    products, constant_L = _products(layers, kernel, median, bandwidth, tile, memory, debiased=bool(debiased))
    wanted = (False, True) if debiased == "both" else (debiased,)
    matrices = [normalised(products.debiased if unbiased else products.biased) for unbiased in wanted]
    for S_LL in matrices:
        S_LL[constant_L] = S_LL[:, constant_L] = np.nan
    return matrices


def _products(
    layers: Sequence[States],
    kernel: Kernel,
    median: MedianRule,
    bandwidth: float,
    tile: int | None,
    memory: int,
    *,
    debiased: bool,
) -> tuple[Products, NDArray[np.bool_]]:
    """The products of the layers' kernels, and which layers are constant [L]; theirs mean nothing."""
    if kernel == "linear":
        return linear_products(layers, tile, memory, debiased=debiased)
    grams = read_layers(layers, kernel, median=median, bandwidth=bandwidth)
    constant_L = np.array([gram.constant for gram in grams])
    tile = tile or min(_RBF_TILE, tile_for(memory, layers, np.dtype(np.float64)))
    return _rbf_products(grams, constant_L, tile), constant_L


def _rbf_products(grams: Sequence[LinearGram], constant_L: NDArray[np.bool_], tile: int) -> Products:
    examples = grams[0].examples
    blocks = row_blocks(examples, tile)
    rounding = max(gram.rounding for gram in grams)
    # The kernels have no rows to centre off their diagonals, so that a debiased norm is rounded as its entries are, squared.
    accumulator = Accumulator(len(grams), examples, rounding**2)
    for place, rows in enumerate(blocks):
        for cols in blocks[place:]:
            K_LAB = np.zeros((len(grams), rows.stop - rows.start, cols.stop - cols.start))
            for layer, (K_AB, gram) in enumerate(zip(K_LAB, grams, strict=True)):
                if not constant_L[layer]:
                    K_AB[...] = gram.kernel(rows, cols)
                accumulator.centre(layer, K_AB, rows, cols)
            accumulator.add(K_LAB, rows, cols)
    return accumulator.products()
