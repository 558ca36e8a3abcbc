"""Which of a model's parameters are trained: all, chosen decoder layers, all but chosen ones, or low-rank updates of layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError, shown
from raysweep.models.blocks import block_path, find_blocks, layers_pattern

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from raysweep.studies.training import Lora, Recipe, Trained


def check_layers(trained: Trained, n_layers: int, model: str) -> None:
    """Refuse (InputError) layers that `model`, which has `n_layers`, does not have, and a choice that trains nothing."""
    outside = [layer for layer in trained.layers if not 0 <= layer < n_layers]
    if trained.mode != "all" and outside:
        raise InputError(
            f"layer{'s' * (len(outside) > 1)} {', '.join(map(str, outside))} cannot be chosen: '{model}' has {n_layers} decoder "
            f"layers, 0 to {n_layers - 1}"
        )
    if trained.mode == "only" and not trained.layers:
        raise InputError(f"no layer of '{model}' is chosen, so nothing would be trained; name at least one")


def choose(model: PreTrainedModel, recipe: Recipe, name: str) -> nn.Module:
    """The model with what the recipe trains made trainable and all else frozen; a PeftModel where it asks for LoRA.

    A layer's own parameters are all that it has, norms and biases among them. `name` is the model's, for messages. LoRA's
    first values are drawn from torch's generator. Raises InputError for layers outside the model, a choice that trains
    nothing, and layers of unlike choice that share a parameter.
    """
    blocks = find_blocks(model)
    check_layers(recipe.trained, len(blocks), name)
    if recipe.lora is not None:
        return _with_lora(model, recipe.lora, recipe.trained, name)
    trains = recipe.trained.trains
    chosen = _identities(block for layer, block in enumerate(blocks) if trains(layer))
    frozen = _identities(block for layer, block in enumerate(blocks) if not trains(layer))
    if shared := chosen & frozen:
        tensor = next(path for path, parameter in model.named_parameters() if id(parameter) in shared)
        raise InputError(
            f"'{name}' has layers that share a parameter ({tensor}), some chosen and some not; choose all of those layers or none"
        )
    for parameter in model.parameters():
        own = id(parameter) in chosen or (id(parameter) not in frozen and recipe.trained.trains_rest)
        parameter.requires_grad_(own and parameter.is_floating_point())
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"nothing of '{name}' is trained: the chosen layers have no parameters of their own")
    whole: nn.Module = model
    return whole


def _identities(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


def _with_lora(model: PreTrainedModel, lora: Lora, trained: Trained, name: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if trained.mode == "freeze":
        raise InputError("LoRA trains only chosen layers; name the layers to train, not the layers to freeze")
    where: dict[str, Any] = {}
    if trained.mode == "only":
        if isinstance(lora.target_modules, str):
            raise InputError(
                f"lora.target_modules is the text {shown(lora.target_modules)}, but PEFT selects layers only with a list of module "
                "names; give a list"
            )
        where = {"layers_to_transform": sorted(trained.layers), "layers_pattern": layers_pattern(model)}
    targets = list(lora.target_modules) if isinstance(lora.target_modules, tuple) else lora.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in find_blocks(model).modules()),
        **where,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under a name it is giving up
            tuned: nn.Module = get_peft_model(model, config)
    except ValueError as error:
        told = " ".join(str(error).split())
        raise InputError(f"LoRA does not fit '{name}' ({block_path(model)}): {told}") from error
    return tuned
