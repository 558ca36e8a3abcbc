"""CKA from batches that are seen once and not kept, as during a forward pass.

Shape suffixes: L layers, M the other model's layers, B examples of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from raysweep.numerics.blas_threads import single_threaded_blas
from raysweep.numerics.gram import Array, States, check_layers
from raysweep.numerics.linear_products import linear_products
from raysweep.numerics.products import normalised

_MEMORY = 2**28


class MinibatchCKA:
    """Linear CKA from the mean over batches of the unbiased HSIC (Nguyen et al., 2021), between layers seen batch by batch.

        cka = MinibatchCKA()
        for batch in batches:
            cka.update(states_of(batch))           # [L, B, D]; or update(states_of_one, states_of_the_other)
        S_LL = cka.value()

    The mean of the unbiased HSIC of Song et al. (2012) does not depend on the size of the batches but by chance: it
    estimates what the debiased CKA of all examples together estimates. Each batch counts the same, be it smaller or not.
    The value lies in [−1, 1] but for chance, has diagonal 1, and nothing is clamped. A layer that is constant in a batch
    adds 0 there; the rows and columns of a layer whose mean is not positive are NaN.
    """

    def __init__(self) -> None:
        self.batches = 0
        self._depths: tuple[int, int] | None = None  # of the two models; 0 where there is one
        self._total: Array = np.zeros((0, 0))

    def __repr__(self) -> str:
        layers = "" if self._depths is None else f", {' and '.join(str(n) for n in self._depths if n)} layers"
        return f"MinibatchCKA({self.batches} batches{layers})"

    @single_threaded_blas()
    def update(self, X_LBD: Iterable[States], Y_MBD: Iterable[States] | None = None) -> None:
        """Add one batch: the states of all layers, and of another model's where two are compared.

        What layers there are must be the same in all batches; their width may differ from layer to layer, as may the
        number of examples from batch to batch. Raises ValueError, naming the batch, for fewer than four examples, other
        numbers of layers than before, and what `cka_matrix` refuses; the batch then does not count.
        """
        try:
            X_layers = check_layers(X_LBD)
            Y_layers = [] if Y_MBD is None else check_layers(Y_MBD)
            layers = check_layers([*X_layers, *Y_layers])
            n = layers[0].shape[0]
            if n < 4:
                raise ValueError(f"the unbiased HSIC needs at least 4 examples, got {n}")
            depths = len(X_layers), len(Y_layers)
            if self._depths not in (None, depths):
                raise ValueError(f"the models' layers are {depths}, in the batches before {self._depths}")
            products, constant_L = linear_products(layers, None, _MEMORY, debiased=True)
        except ValueError as error:
            raise ValueError(f"batch {self.batches}: {error}") from None
        hsic_LL = products.debiased / (n * (n - 3))
        hsic_LL[constant_L] = hsic_LL[:, constant_L] = 0.0
        self._total = hsic_LL if self._depths is None else self._total + hsic_LL
        self._depths = depths
        self.batches += 1

    def value(self) -> Array:
        """CKA over the batches so far, [L, L], or [L, M] of two models. Raises ValueError where there was no batch."""
        if self._depths is None:
            raise ValueError("no batch has been seen; call update first")
        depth, other = self._depths
        S_LL = normalised(self._total)
        return S_LL[:depth, depth:] if other else S_LL
