"""How far a layer's similarity is to be trusted: figures of its states alone.

Shape suffixes: L layers, N examples, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from raysweep.numerics.gram import Array, LinearGram, States, read_layers


def health(X_LND: Iterable[States]) -> dict[str, Array]:
    """Figures [L] that tell how far a layer's linear CKA is to be trusted.

    - `mean_to_rms`: |mean state| / root mean square of the states' norms, in [0, 1]; near 1, states hardly differ.
    - `top_component_share`: share of the variance along the first principal component, in (0, 1].
    - `top_dimension_share`: share of the variance in the dimension with most of it, in (0, 1]. Where one of these two
      is near 1, CKA compares little more than that direction; debiasing does not help.
    - `n_over_d`: examples over width; biased CKA of independent states is about 1 / (1 + n_over_d).

    A constant layer has no variance to share: NaN. States that are all zero have no `mean_to_rms`: NaN.
    """
    grams = read_layers(X_LND)
    rows = [_health(gram) for gram in grams]
    return {measure: np.array([row[measure] for row in rows]) for measure in rows[0]}


def _health(gram: LinearGram) -> dict[str, float]:
    X_ND = gram.centred(slice(0, gram.examples))
    squares_D = np.einsum("nd,nd->d", X_ND, X_ND)
    total = squares_D.sum()
    mean = np.linalg.norm(gram.mean_D)
    rms = np.hypot(mean, gram.peak * np.sqrt(total / gram.examples))
    top_component = top_dimension = np.nan
    if not gram.constant:
        smaller_gram = X_ND @ X_ND.T if gram.examples < gram.width else X_ND.T @ X_ND
        top_component = np.linalg.eigvalsh(smaller_gram)[-1] / total
        top_dimension = squares_D.max() / total
    return {
        "mean_to_rms": float(mean / rms) if rms else np.nan,
        "top_component_share": float(top_component),
        "top_dimension_share": float(top_dimension),
        "n_over_d": gram.examples / gram.width,
    }
