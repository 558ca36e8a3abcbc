"""One model and data set with every kind of change, losses by a formula; six layers, windows of two, 12 examples."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

EXAMPLES = 12
SPANS = [(start, start + 2) for start in range(5)]
SETS = {"0,3": 0.4, "1,2,5": 0.9}


def _rows(kind, layers, coefficient, level, spread=0.3, **more):
    wave_E = np.cos(1.0 + 7 * np.arange(EXAMPLES))
    chosen = {"start": None, "stop": None, "centre": math.nan, **more}
    told = {"kind": kind, "layers": layers, "coefficient": coefficient, "estimator": "exact", "n_tokens": 5, **chosen}
    loss_E = 1.0 + 0.2 * np.sin(np.arange(EXAMPLES)) + level + spread * level * wave_E
    return pd.DataFrame({**told, "example_id": range(EXAMPLES), "loss": loss_E})


def changed_tables():
    """Windows (1, 0.5), two sets, attention, MLP, reverse; windows cost most at layers 2–3, in which attention is most of it."""
    cost = {(s, e): 0.2 + 0.5 * math.exp(-((s - 2) ** 2)) for s, e in SPANS}
    parts = [
        _rows("window", "", 1.0, 0.0, start=0, stop=0, width=0),
        *(
            _rows("window", f"{s}-{e - 1}", c, cost[s, e] * c * c, start=s, stop=e, width=2, centre=s + 0.5)
            for c in (1.0, 0.5)
            for s, e in SPANS
        ),
        _rows("window", "0-5", 1.0, 2.0, start=0, stop=6, width=6, centre=2.5),
        *(
            _rows("set", layers, c, level * c, width=layers.count(",") + 1)
            for layers, level in SETS.items()
            for c in (1.0, 0.5)
        ),
        *(
            _rows(kind, f"{s}-{e - 1}", 1.0, share * cost[s, e], start=s, stop=e, width=2, centre=s + 0.5)
            for kind, share in (("attention", 0.7), ("mlp", 0.2))
            for s, e in SPANS
        ),
        _rows("reverse", "", 1.0, 2.5, start=0, stop=0, width=0),
        *(
            _rows("reverse", f"{s}-{e - 1}", 1.0, 2.5 - cost[s, e], start=s, stop=e, width=2, centre=s + 0.5)
            for s, e in SPANS
        ),
    ]
    rows = pd.concat(parts, ignore_index=True).astype({"start": "Int64", "stop": "Int64"})
    return {"substitution": rows.assign(model="m", dataset="d")}
