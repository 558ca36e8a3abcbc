"""CKA as one of the measures: `cka.cka_matrix`, with the reasons of its NaN.

Shape suffixes: L layers, M of the second model, N examples, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from raysweep.numerics.cka import Kernel, cka_between, cka_matrix
from raysweep.numerics.gram import States
from raysweep.numerics.measures.layers import CONSTANT, Compared, read_models

_FEWEST_DEBIASED = 4
_NO_VARIANCE = "the unbiased variance of a layer is not positive: too few examples for its width"


def cka_linear(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Compared:
    """Biased linear CKA (Kornblith et al., 2019); see `cka_matrix`. Of independent states about D / (N + D)."""
    return _cka(X_LND, Y_MND, "linear", debiased=False)


def cka_linear_debiased(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Compared:
    """Debiased linear CKA; see `cka_matrix`. About 0 of independent states; NaN with fewer than 4 examples."""
    return _cka(X_LND, Y_MND, "linear", debiased=True)


def cka_rbf(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Compared:
    """Biased CKA of the RBF kernel with the median rule; see `cka_matrix`."""
    return _cka(X_LND, Y_MND, "rbf", debiased=False)


def _cka(X_LND: Iterable[States], Y_MND: Iterable[States] | None, kernel: Kernel, debiased: bool) -> Compared:
    first, second = list(X_LND), None if Y_MND is None else list(Y_MND)
    if second is not None or (debiased and first and first[0].shape[0] < _FEWEST_DEBIASED):
        models = read_models(first, second)  # refuses what does not fit, by each model's own numbers of layers
        if debiased and models.examples < _FEWEST_DEBIASED:
            return models.nowhere(f"debiased CKA needs at least {_FEWEST_DEBIASED} examples, got {models.examples}")
    values_LM = cka_matrix(first, kernel, debiased) if second is None else cka_between(first, second, kernel, debiased)
    if not np.isnan(values_LM).any():
        return Compared(values_LM, {})
    models = read_models(first, second)
    rows, columns = ([not layer.constant for layer in side] for side in models.sides)
    views = models.views(lambda layer: CONSTANT if layer.constant else layer)
    return views.compared(lambda x, y: values_LM[np.ix_(rows, columns)], lambda x, y: _NO_VARIANCE)
