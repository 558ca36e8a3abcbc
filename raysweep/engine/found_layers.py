"""The layers that a similarity task finds for a training, read from what is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.engine.calls import Found
from raysweep.errors import InputError
from raysweep.numerics.dynamics import change_points
from raysweep.studies.training import drawn_beside

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder


def found_layers(found: Found, n_layers: int, seed: int, folder: RunFolder) -> tuple[int, ...]:
    """The critical layers, or as many others, drawn with the training's seed. Raises InputError if too few have a δ."""
    rows = folder.chunks.read_parts([found.dynamics]).to_pandas()
    delta_L = rows[rows["metric"] == found.metric].sort_values("layer")["delta"].to_numpy(dtype=float)
    layers = tuple(int(layer) for layer in change_points(delta_L, found.top))
    if len(layers) < found.top:
        raise InputError(
            f"{found.top} critical layers are needed, but {len(layers)} of {len(delta_L)} layers have a δ in "
            f"{found.metric}; see the reasons in the similarity table, or choose another metric"
        )
    return layers if found.critical else drawn_beside(layers, n_layers, seed)
