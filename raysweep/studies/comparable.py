"""Whether enough examples have finite states to be compared; what is then measured is the other studies'."""

from __future__ import annotations

import numpy as np

from raysweep.errors import InputError


def check_comparable(finite_LN: np.ndarray) -> None:
    """Raise InputError where fewer than two of several examples have finite states at all layers; `finite_LN` tells which."""
    n, left = finite_LN.shape[1], int(finite_LN.all(axis=0).sum())
    if n > 1 and left < 2:
        layer = int((~finite_LN).any(axis=1).argmax())
        raise InputError(
            f"{n - left} of {n} examples have states that are not finite (from layer {layer} on), so no two can be "
            "compared; the model overflows in this dtype, so use another"
        )
