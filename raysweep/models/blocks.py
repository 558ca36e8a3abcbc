"""Where a model's decoder layers (its blocks) are, on any architecture that transformers builds from a list of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from raysweep.errors import InputError
from raysweep.models.kinds import model_predicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_body(model: PreTrainedModel) -> nn.Module:
    """The part of the model that has the blocks and no head: its decoder, or all of it where it predicts nothing."""
    body: nn.Module = model.get_decoder() if model_predicts(model) else model.base_model
    # A model may call its head `decoder` (ModernBERT), which get_decoder takes for the stack.
    return body if any(isinstance(module, nn.ModuleList) for module in body.modules()) else model.base_model


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's stack of layers: the shallowest list of `num_hidden_layers` blocks below its decoder (or encoder).

    Lists of what transformers itself takes for blocks come first; whether it was the right one, the adapter's probe tells.
    Raises InputError where there is none, naming the model's class.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    body = find_body(model)
    config = model.config.get_text_config()
    names = set(model._no_split_modules or ())
    deep = [
        (path.count("."), module)
        for path, module in body.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    known = [
        (depth, module)
        for depth, module in deep
        if all(isinstance(m, GradientCheckpointingLayer) or type(m).__name__ in names for m in module)
    ]
    lists = known or deep
    if not lists:
        raise InputError(
            f"{type(model).__name__} has no list of {config.num_hidden_layers} blocks that raysweep can find; "
            "use a decoder-only model or an encoder of transformers' own classes"
        )
    return min(lists, key=lambda item: item[0])[1]


def block_path(model: PreTrainedModel) -> str:
    """Where the blocks are in a model, as `named_parameters` writes it: `model.layers`, `transformer.h`, …"""
    blocks = find_blocks(model)
    return str(next(path for path, module in model.named_modules() if module is blocks))


def layers_pattern(model: PreTrainedModel) -> str:
    """The shortest end of the blocks' path that no other list of modules has; PEFT looks for it in a module's path.

    `layers` mostly; `language_model.layers` where a tower for images has its own `layers`.
    """
    blocks, parts = find_blocks(model), block_path(model).split(".")
    others = [
        path.split(".")
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and module is not blocks
    ]
    size = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
    return ".".join(parts[-size:])


class StandIn(nn.Module):
    """Stands where a block stood, and looks like it: attributes are the block's. It owns none of the block's parameters."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)  # not registered as a child, whose parameters would be its own

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)
