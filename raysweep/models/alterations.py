"""What has been changed in how a model computes, apart from its weights: forward hooks, and forwards replaced on an object.

A layer brings its hooks along wherever it is used, as swapped modules do. So two layers with the same weights are one layer
only if neither has been changed in this way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from raysweep.models.adapter import Adapter

_HARMLESS = ("transformers", "accelerate")  # what they hook in by themselves changes no state


def altered_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules, with their paths, that have somebody's hooks, or a forward of their own that is not their class's."""
    for path, module in model.named_modules():
        if is_altered(module):
            yield path, module


def is_altered(module: nn.Module) -> bool:
    """Whether the module itself has somebody's hooks, or a forward of its own that is not its class's."""
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        return True
    tables = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(_package(hook) not in _HARMLESS for table in tables for hook in table.values())


def _package(hook: object) -> str:
    """The package that a hook comes from; a partial's is that of its function."""
    function = getattr(hook, "func", hook)
    return str(getattr(function, "__module__", "")).partition(".")[0]


def altered_layers(adapter: Adapter) -> frozenset[int]:
    """The layers that have been altered, themselves or inside."""
    return frozenset(layer for layer, block in enumerate(adapter.blocks) if any(altered_modules(block)))


def altered_rest(adapter: Adapter) -> bool:
    """Whether anything that is no layer has been altered: embedding, norm, head, or the model itself."""
    path = f"{adapter.block_path}."
    return any(not name.startswith(path) for name, _ in altered_modules(adapter.model))
