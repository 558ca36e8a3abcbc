"""A model of a checkpoint's config with made-up weights, for dry runs of what its real weights are too precious to be loaded for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMALL = 2**26  # parameters: a quarter of a gigabyte in float32, and a second or two


def is_small(checkpoint: Checkpoint) -> bool:
    """Whether a model of this size can be made up while a run is inspected."""
    return checkpoint.n_parameters <= _SMALL


def made_up_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Build the model with the random weights that its architecture starts training from: in float32, the same each time."""
    import torch

    from raysweep.models.skeleton import empty_model

    empty = empty_model(checkpoint, torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = type(empty)._from_config(empty.config)
    return model.eval().requires_grad_(False)
