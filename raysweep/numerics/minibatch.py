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
    """Linear CKA from batches that are seen once and not kept, as during a forward pass.

    It is the mean over batches of the unbiased HSIC (Nguyen et al. 2021; Song et al. 2012), which estimates what the debiased CKA of
    all examples together estimates. Each batch counts the same, whatever its size. A layer that is constant in a batch adds 0 there.

        cka = MinibatchCKA()
        for batch in batches:
            cka.update(states_of(batch))           # [L, B, D]; or update(states_of_one, states_of_the_other)
        S_LL = cka.value()
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
        """Add one batch of states.

        Args:
            X_LBD: The states [L, B, D] of all layers. Layers must be the same in all batches; widths may differ from layer to layer,
                batches in their number of examples.
            Y_MBD: The states [M, B, D'] of another model, if two are compared.

        Raises:
            ValueError: The batch has fewer than four examples, another number of layers than the batches before, or states that
                `cka_matrix` refuses. The message names the batch, which then does not count.
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
        """Return the CKA over the batches so far.

        Returns:
            The values [L, L], or [L, M] for two models, float64, in [−1, 1] except by chance, with diagonal 1. Rows and columns of a
            layer whose mean HSIC is not positive are NaN.

        Raises:
            ValueError: There was no batch yet.
        """
        if self._depths is None:
            raise ValueError("no batch has been seen; call update first")
        depth, other = self._depths
        S_LL = normalised(self._total)
        return S_LL[:depth, depth:] if other else S_LL
