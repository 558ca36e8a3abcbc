"""Weights that several modules of a model share (embedding and head, mostly), and telling them apart for an adapter.

An adapter is merged in place, so a merge into one module of a shared weight would change the others, which the adapter does
not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SharedWeight:
    """One parameter and the modules that share it, each with its own name for it."""

    parameter: nn.Parameter
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def is_one(self) -> bool:
        """Whether the modules still share it."""
        return all(module._parameters.get(leaf) is self.parameter for module, leaf in self.places)


def shared_weights(model: nn.Module) -> list[SharedWeight]:
    """Find the parameters that more than one module of the model has."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, leaf))
                parameters[id(parameter)] = parameter
    return [SharedWeight(parameters[key], tuple(found)) for key, found in places.items() if len(found) > 1]


def shared_names(model: nn.Module) -> set[frozenset[str]]:
    """Find the groups of parameters' names that stand for one weight."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def merged_apart(model: nn.Module, shared: Iterable[SharedWeight]) -> list[SharedWeight]:
    """Those shared weights of the base that the adapter in `model` changes for one module and not in the same way for all.

    Rows that are trained one by one are set, not added to, and PEFT sets them alike for all modules that share a weight.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    changed = {module.get_base_layer(): module for module in model.modules() if isinstance(module, BaseTunerLayer)}
    found = []
    for weight in shared:
        layers = [changed.get(module) for module, _ in weight.places]
        alike = all(isinstance(layer, TrainableTokensLayer) for layer in layers)
        if weight.is_one and any(layer is not None for layer in layers) and not alike:
            found.append(weight)
    return found


def untie(weights: Iterable[SharedWeight]) -> None:
    """Give each module but the first its own copy of a weight."""
    import torch

    for weight in weights:
        for module, leaf in weight.places[1:]:
            module._parameters[leaf] = torch.nn.Parameter(weight.parameter.detach().clone(), requires_grad=False)


def record_in_config(model: PreTrainedModel) -> None:
    """Set the config's `tie_word_embeddings` to false if the model's embedding and head are not one weight."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding.weight is head.weight:
        return
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
