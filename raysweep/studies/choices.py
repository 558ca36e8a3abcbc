"""Which layers are chosen as critical on all examples and on resamples of them, as a table of whole choices.

A choice is kept whole, not layer by layer, because how far two data sets agree is a matter of whole choices.

Shapes: L layers, R resamples.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from raysweep.numerics.dynamics import chosen_layers
from raysweep.numerics.selection import Choices


def choice_table(delta: np.ndarray, halves: np.ndarray | None, top: int | None = None) -> pd.DataFrame:
    """One row a choice of `top` layers (a fifth by default): `layers`, `share`, `whole`.

    `layers` are as text ("3,5,9"), `share` is that of the resamples of δ (`halves` [R, L]) which choose exactly these, `whole`
    marks the choice on all examples, which comes first; the others follow by falling share. NaN share without resamples.
    """
    whole = layers_text(chosen_layers(delta, top))
    if halves is None:
        return pd.DataFrame({"layers": pd.Series([whole], dtype="string"), "share": [np.nan], "whole": [True]})
    choices, counts = np.unique(chosen_layers(halves, top), axis=0, return_counts=True)
    shares = {layers_text(row): float(count) / len(halves) for row, count in zip(choices, counts, strict=True)}
    others = sorted((name for name in shares if name != whole), key=lambda name: (-shares[name], name))
    names = [whole, *others]
    return pd.DataFrame(
        {
            "layers": pd.Series(names, dtype="string"),
            "share": [shares.get(name, 0.0) for name in names],
            "whole": [name == whole for name in names],
        }
    )


def layers_text(chosen_L: np.ndarray) -> str:
    """The layers of a mask as the table has them: "3,5,9"; "" for none."""
    return ",".join(map(str, np.flatnonzero(chosen_L)))


def choices_of(table: pd.DataFrame, n_layers: int) -> Choices:
    """The rows of one model, data set and setting, as masks of layers."""
    masks = np.zeros((len(table), n_layers), dtype=bool)
    for mask, name in zip(masks, table["layers"], strict=True):
        mask[[int(layer) for layer in str(name).split(",") if layer]] = True
    share, whole = table["share"].to_numpy(dtype=float), table["whole"].to_numpy(dtype=bool)
    seen = share > 0  # neither NaN nor a choice that no resample made
    return Choices(masks[whole][0], masks[seen], share[seen])
