"""Inner products of linear kernels, over tiles of the Gram matrices' upper triangle.

No n × n matrix is made beyond a tile of each layer; the states are read once for every row of tiles and once for every
tile of it. Cheaper than cross_products.py unless examples outnumber all layers' dimensions together.

Shape suffixes: L layers, N examples, D width, A and B the examples of a tile's rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from raysweep.numerics.blas_threads import each, workers
from raysweep.numerics.centred_rows import Block, CentredRows, Working
from raysweep.numerics.gram import States, row_blocks
from raysweep.numerics.products import Accumulator, Products


def tile_for(memory: int, layers: Sequence[States], dtype: Working) -> int:
    """The side of the greatest tile whose work fits into `memory` bytes; all examples where that fits.

    A tile of side t takes t² numbers a layer, and two blocks of t rows for every worker. Raises ValueError where not even
    a tile of one example fits.
    """
    rows = 2 * workers()
    examples, widest = layers[0].shape[0], max(states_ND.shape[1] for states_ND in layers)
    room = (memory - Accumulator.memory(len(layers), examples)) / dtype.itemsize
    # The positive root of L·t² + rows·D·t = room.
    tile = math.floor(
        (math.sqrt(max(0.0, (rows * widest) ** 2 + 4 * len(layers) * room)) - rows * widest) / (2 * len(layers))
    )
    if tile < 1:
        least = Accumulator.memory(len(layers), examples) + (len(layers) + rows * widest) * dtype.itemsize
        raise ValueError(f"memory of {memory} bytes is too little for these layers; it takes {least} at least")
    return min(tile, examples)


def tile_products(layers: Sequence[States], tile: int, dtype: Working) -> Products:
    """`Products` of the layers' linear kernels over tiles of `tile` × `tile` examples, which do not change the result."""
    examples = layers[0].shape[0]
    blocks = row_blocks(examples, tile)
    sources = [CentredRows(states_ND, dtype) for states_ND in layers]
    height = max(rows.stop - rows.start for rows in blocks)
    widest = max(source.width for source in sources)
    K_T = np.empty(len(layers) * height**2, dtype)
    threads = min(workers(), len(layers))
    buffers = [[np.empty(height * widest, dtype) for _ in blocks[:2]] for _ in range(threads)]
    accumulator = Accumulator(len(layers), examples, float(np.finfo(dtype).eps))

    def centred(source: CentredRows, rows: slice, buffer: Block) -> Block:
        length = rows.stop - rows.start
        X_AD: Block = buffer[: length * source.width].reshape(length, source.width)
        source.read(rows, X_AD)
        return X_AD

    def fill(K_LAB: Block, rows: slice, cols: slice, worker: int) -> None:
        """The tiles of every `threads`-th layer."""
        for layer in range(worker, len(layers), threads):
            source, K_AB = sources[layer], K_LAB[layer]
            X_AD = centred(source, rows, buffers[worker][0])
            # On the diagonal one object twice, which lets BLAS do half the work.
            X_BD = X_AD if rows == cols else centred(source, cols, buffers[worker][1])
            np.matmul(X_AD, X_BD.T, out=K_AB)
            accumulator.centre(layer, K_AB, rows, cols)

    for place, rows in enumerate(blocks):
        for cols in blocks[place:]:
            shape = (len(layers), rows.stop - rows.start, cols.stop - cols.start)
            K_LAB = K_T[: math.prod(shape)].reshape(shape)
            each(partial(fill, K_LAB, rows, cols), threads)
            accumulator.add(K_LAB, rows, cols)
    return accumulator.products()
